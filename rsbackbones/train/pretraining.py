"""Pretraining: builds the data, objective, optimizer and schedule of a recipe, and trains its stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from rsbackbones.data.source import Source
from rsbackbones.files.bounds import read_json
from rsbackbones.models.unused import eval_mode
from rsbackbones.train.dataset import TrainingSet
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.checkpoint import finished
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.ema import ParameterEma
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.optim import build_optimizer, build_schedule, start_state
from rsbackbones.train.engine.parallel import parallelize
from rsbackbones.train.engine.run_dir import RECIPE
from rsbackbones.train.engine.sampler import BatchPlan
from rsbackbones.train.engine.train_step import TrainRun
from rsbackbones.train.engine.trainer import Summary, train
from rsbackbones.train.initialize import (
    build_objective,
    check_stages,
    initialize_weights,
    with_statistics,
)
from rsbackbones.train.objectives.objective import Objective
from rsbackbones.train.pictures import draw_losses, draw_reconstructions
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.streams import open_sources, task_names


def pretrain(recipe: Recipe) -> Summary:
    """Pretrain with a recipe, resuming the run in ``recipe.output`` if there is one, in its stage.

    A single process needs no launcher; with torchrun, call this in every process.

    Returns:
        The summary of the stage in which the run ended.

    Raises:
        ValueError: the recipe, the data or the folder cannot be used.
        TrainingError: (a ``ValueError``) as :func:`rsbackbones.train.engine.trainer.train`.
    """
    return train(stages_of(recipe))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a recipe that is not built yet.

    Attributes:
        config: the recipe of the stage alone.
        saved: the recipe that is saved in its folder: the whole one for the last stage, else its own.
        recipe: the whole recipe; this is its stage ``index``.
        previous: the recipe of the previous stage.
    """

    config: Recipe
    saved: Recipe
    recipe: Recipe
    index: int
    previous: Recipe | None

    def check(self) -> None:
        """Raise errors that would stop this stage, before earlier stages are trained.

        Raises:
            ValueError: the data or the model cannot be used, or the weights of the previous stage do not fit.
        """
        open_sources(self.config, check_stages(self.recipe)[self.index].backbone)

    def build(self, processes: DistributedContext) -> "PretrainRun":
        """Build the run, after the previous stage is trained."""
        return PretrainRun(self.config, processes, saved=self.saved, previous=self.previous)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages of a recipe, not built yet.

    Raises:
        TrainingError: ``data.statistics=dataset``, and the data have none.
    """
    recipe = with_statistics(recipe)
    configs = recipe.resolve_stages()
    return [
        Stage(
            config=config,
            saved=recipe if i == len(configs) - 1 else config,
            recipe=recipe,
            index=i,
            previous=configs[i - 1] if i else None,
        )
        for i, config in enumerate(configs)
    ]


class PretrainRun(TrainRun):
    """The run of a recipe with one stage.

    Args:
        config: the recipe.
        processes: the process group, and this process in it.
        saved: the recipe to save with the run, if it is a stage of another recipe.
        previous: the recipe of the stage whose weights initialize it.
    """

    config: Recipe
    objective: Objective
    dataset: TrainingSet

    def __init__(
        self,
        config: Recipe,
        processes: DistributedContext,
        *,
        saved: Recipe | None = None,
        previous: Recipe | None = None,
    ) -> None:
        if config.stages:
            raise TrainingError(
                "a recipe of several stages is built stage by stage: stages_of(recipe)[i].build(...)"
            )
        if config.data.statistics == "dataset":
            raise TrainingError(
                "data.statistics=dataset is of a whole recipe, not of a stage: state it there"
            )
        self.config, self.processes, self.saved = config, processes, saved or config
        self.clip_grad, self.workers = config.optim.clip_grad, config.data.workers
        self.max_bad_share = config.data.max_bad_share
        self.objective = build_objective(config)
        resumed = config.output is not None and bool(finished(config.output.expanduser() / "checkpoints"))
        if not resumed:  # it loads its own weights
            self.beginning = initialize_weights(self.objective, config, previous)
        self._record = self.objective.begin(
            first=previous is None and config.init_from is None, resumed=resumed
        )
        if self._record and previous is not None and previous.output is not None:
            held = read_json(previous.output.expanduser() / RECIPE)
            if other := [name for name, x in self._record.items() if held.get(name, x) != x]:
                raise TrainingError(
                    f"the stage before had another {', '.join(other)}: {[held[n] for n in other]}, now "
                    f"{[self._record[n] for n in other]}; name the same"
                )
        backbone, options = self.objective.backbone, config.objective
        self.streams = open_sources(config, backbone)
        whole = [_whole(stream.source) for stream in self.streams]
        self.places = sum(len(source) for source in {id(source): source for source in whole}.values())
        self.plan = BatchPlan(
            lengths=tuple(len(stream) for stream in self.streams),
            repeats=tuple(stream.repeat for stream in self.streams),
            blocks=tuple(stream.source.block for stream in self.streams),
            frames=tuple(stream.frames for stream in self.streams),
            tasks=tuple(stream.task for stream in self.streams),
            task_names=task_names(config),
            schedule=options.schedule or config.data.task_schedule,
            batch_size=config.batch_size,
            seed=config.seed,
        )  # fmt: skip
        self.dataset = TrainingSet(
            self.streams, stride=backbone.stride, sample_noise=options.sample_noise,
            views=options.views, seed=config.seed,
        )  # fmt: skip
        self.total_steps = config.steps or (config.epochs or 1) * self.plan.steps_per_epoch

        self.objective.to(processes.device)
        set_batch_norm(self.objective, config.batch_norm, config.batch_norm_group)
        # A batch without one of the sensors, of one of several tasks, or of series without dates or missing
        # images, leaves some parameters without gradients.
        unused = (
            len(self.plan.task_names) > 1
            or backbone.consumes == "series"
            or any(set(stream.preprocess.specs) != set(backbone.modalities) for stream in self.streams)
        )
        self.module = parallelize(self.objective, config, processes.device, unused=unused)
        if isinstance(self.module, FSDPModule):
            register_fsdp_forward_method(self.module, "reconstruct")
        self.optimizer = build_optimizer(self.objective, config.optim, config.batch_size)
        start_state(self.objective, self.optimizer)
        self.schedule = build_schedule(self.optimizer, config.optim, self.total_steps)
        self.ema = ParameterEma(self.objective, config.ema) if config.ema else None

    @property
    def recipe(self) -> Recipe:
        """See :class:`TrainRun`."""
        return self.saved

    def sources(self) -> list[dict[str, Any]]:
        """See :meth:`TrainRun.sources`."""
        return [
            {"name": stream.source.name, "places": len(stream.source), "frames": stream.source.frames,
             "bands": {m: list(spec.bands) for m, spec in stream.preprocess.specs.items()},
             "notes": list(stream.source.notes), **({"seasons": stream.seasons} if stream.seasons else {}),
             **({"task": stream.task} if stream.task else {})}
            for stream in self.streams
        ]  # fmt: skip

    def record(self) -> dict[str, Any]:
        """See :meth:`TrainRun.record`."""
        return self._record

    @torch.no_grad()
    def plot(self, folder: Path) -> None:
        """Plot reconstructions and losses. All processes compute, as parameters may be sharded."""
        device = self.processes.device
        examples = []
        for batch in self.examples():
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
            # A run that resumes from this checkpoint does not plot: random state is restored, and BatchNorm
            # learns nothing.
            rng = torch.random.fork_rng([device] if device.type == "cuda" else [])
            with rng, autocast, eval_mode(self.objective):
                images = self.objective.reconstruct(batch.to(device))
            for i, name in enumerate(batch.names):
                one = {m: (x[0][i], x[1][i], x[2][i], *x[3:]) for m, x in images.items()}
                examples.append((name, one, batch.bands))
        if self.processes.is_main_process:
            draw_reconstructions(folder, examples)
            draw_losses(folder)

    def examples(self, per_source: int = 2) -> list[Batch]:
        """Return a fixed set of samples of every source, for plots."""
        return [
            self.dataset.__getitems__([(0, i, k * len(stream) // count) for k in range(count)])
            for i, stream in enumerate(self.streams)
            for count in [min(per_source, len(stream))]
        ]


def _whole(source: Source) -> Source:
    """Return the source that one of some of its sensors reads."""
    inner = getattr(source, "source", None)
    return source if inner is None else _whole(inner)
