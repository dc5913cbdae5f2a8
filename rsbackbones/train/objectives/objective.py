"""The interface of a pretraining method."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import TypeAdapter
from pydantic_core.core_schema import no_info_plain_validator_function, plain_serializer_function_ser_schema
from torch import Tensor, nn

from rsbackbones.data.aligned_series import Alignment
from rsbackbones.input_spec import InputSpec
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.unused import called_units
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import STRICT
from rsbackbones.train.engine.config_io import to_json, union_member
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.engine.sampler import TaskSchedule

if TYPE_CHECKING:
    from rsbackbones.train.recipe import Recipe


class CrossModal(NamedTuple):
    """A prediction from images of another modality, ``seen_modality``; each [B, C, H, W]."""

    image: Tensor
    seen: Tensor
    predicted: Tensor
    seen_modality: str


class Objective(TrainModule):
    """A backbone with all that is trained around it: decoder, projections.

    There is no randomness in ``forward`` except for ``batch.noise``. Parts of the objective that a batch has
    no data for are left out. ``options`` are those that it was built from.
    """

    backbone: Backbone
    options: Any

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`: those of the backbone; a decoder adds its own."""
        return called_units(self.backbone)

    def export_backbone(self) -> Backbone:
        """Return the backbone that users get: without what only pretraining needs."""
        return self.backbone

    def begin(self, *, first: bool, resumed: bool) -> dict[str, Any]:
        """Load what only training needs, such as a frozen teacher. Called once, before the first step.

        Args:
            first: no stage before and no ``init_from`` gives weights.
            resumed: the weights are replaced by those of a checkpoint after this.

        Returns:
            What identifies it, for ``recipe.json``; a run is only resumed with the same.
        """
        return {}

    def usage_note(self) -> str:
        """Return what users should know about how the backbone was trained; empty if there is nothing."""
        return ""

    def reconstruct(self, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor, Tensor] | CrossModal]:
        """Return for pictures, by modality: (image, what the encoder saw, prediction), each [B, C, H, W].

        Where nothing was seen the middle one is NaN. Empty for an objective without reconstruction. Called in
        ``eval()`` mode.
        """
        return {}


class ObjectiveConfig:
    """The options of a method: a frozen dataclass that inherits from this.

    Attributes:
        method: a field whose default is the name of the method in recipes.
        views: names of independently augmented views of every sample; the batch then has ``views`` instead of
            ``images``.
        looks: the views are those of MoCo-v2 (:mod:`rsbackbones.data.two_views`), with changed colors. A
            target, such as radar beside pictures, is in the first view only.
        tasks: tasks that alternate step by step: their names, or objects with a ``name``. ``batch.task`` is
            the name of the step's task. A data source serves the task that it names, or all that it has the
            images for.
        stage_options: options that may differ between stages, and from the file of ``init_from``: they affect
            the data, masks or losses, not the parameters. Every other option must match.
    """

    method: str
    stage_options: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[tuple[str, ...]] = ()
    looks: ClassVar[bool] = False
    tasks: ClassVar[tuple[Any, ...]] = ()

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of ``tasks``."""
        return tuple(getattr(task, "name", task) for task in self.tasks)

    @property
    def schedule(self) -> TaskSchedule | None:
        """The order of the tasks; ``None``: that of the recipe, ``data.task_schedule``."""
        return None

    def task_images(self, task: str) -> Mapping[str, int] | None:
        """Return the sensors that samples of a task must have, and no others, with the scale of each.

        An image of scale s has s times as many pixels along each side as ``data.size``. A sensor that the
        backbone does not take is a target. ``None``: samples have whatever sensors of the backbone a source
        has.
        """
        return None

    @property
    def needs_note(self) -> str:
        """How to train without the targets that a task needs, for errors; "" if there is no way."""
        return ""

    def target_inputs(self, backbone: Backbone) -> Mapping[str, InputSpec]:
        """Return the input contracts of targets, where they are not the sensors' own. By default none."""
        return {}

    def check_run(self, options: "Recipe") -> None:
        """Refuse options of a run, or of a stage, that the method cannot have. By default none.

        Raises:
            ValueError: there is one.
        """

    @property
    def seasons(self) -> int | Literal["all"] | None:
        """The dates of a location that make a sample.

        ``None``: one; every date is a sample of its own, [C, H, W]. 1: the first date of every location that
        a sensor has. A larger number: a series of so many dates, evenly spaced, [T, C, H, W] for every
        sensor. ``"all"``: a series of all dates; shorter series of a batch are padded, and ``batch.valid``
        masks what was added. All but ``None`` give ``batch.dates``, if the source knows them.
        """
        return None

    @property
    def alignment(self) -> Alignment | None:
        """How the series of the sensors of :meth:`task_images` become pairs, with ``seasons`` of ``"all"``.

        ``None``: samples are those of the source.
        """
        return None

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields of the backbone's configuration that these options set."""
        return {}

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the random numbers of a sample, by name. The default needs none.

        The design names a number of patches. A grid also serves networks without patches, and block masks.

        Args:
            generator: that of the sample. All randomness must come from it, so that one process and many
                compute the same.
            modalities: those of the sample.
            grid: the cells (h, w) of the backbone's final map for the sample's images; the patches of a ViT.
        """
        return {}

    def build(self, backbone: Backbone) -> Objective:
        """Build the objective around ``backbone``. Parameters that these options do not train are frozen.

        Raises:
            ValueError: backbone and options do not fit together.
        """
        raise NotImplementedError

    __pydantic_config__ = STRICT  # subclasses inherit it

    @classmethod
    def members(cls) -> "tuple[type[ObjectiveConfig], ...]":
        """Return the classes that a field of this type may hold: the registered ones; for them none."""
        from rsbackbones.train.objectives.registry import registered_objectives

        return registered_objectives() if cls is ObjectiveConfig else ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let pydantic read a recipe's objective as the class that its ``method`` names."""
        if cls is not ObjectiveConfig:
            return handler(source)
        written = plain_serializer_function_ser_schema(to_json)
        return no_info_plain_validator_function(_read, serialization=written)


def _read(options: Any) -> ObjectiveConfig:
    """Read options of the registered method that they name."""
    if isinstance(options, ObjectiveConfig):
        return options
    read: ObjectiveConfig = TypeAdapter(union_member(ObjectiveConfig, options)).validate_python(options)
    return read
