"""Recipes: everything that decides a training run, in frozen dataclasses.

A named recipe holds a paper's numbers. ``key=value`` arguments replace single fields, as in
``optim.base_lr=1e-5``; an unknown key is an error. The recipe is printed and saved with the run.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from rsbackbones.train.data.augment import CropRange, Flips, Region
from rsbackbones.train.data.npz import NpzFile
from rsbackbones.train.data.simulated import SimulatedPlaces
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.objectives.seamo import SeamoObjective


@dataclass(frozen=True, kw_only=True)
class Part:
    """One .npz file, or simulated places, of a training set that is made of several, and how it is used.

    ``crop`` and ``size`` replace those of the data options; ``repeat``: times per epoch.
    """

    file: NpzFile | SimulatedPlaces
    repeat: int = 1
    crop: CropRange | None = None
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images come from and how they are viewed.

    Attributes:
        root: a folder (or file) in one of the layouts that :mod:`rsbackbones.train.data.open` knows, or the
            folder of ``parts``.
        options: of ``root``'s layout: ``product``, ``split``, ``offset``, ``bands``; see the layout's class.
        parts: .npz files below ``root``, and simulated places; empty where ``root`` is a training set of its
            own.
        crop: smallest and largest side of the square crops, in pixels of the source; or, up to 1, as shares
            of the shorter side of an image.
        size: side of what the model gets, in pixels.
        flips: along both axes, ``horizontal`` (left to right) only, or not at all. ``turns``: by quarters.
        region: where samples are series, how the crops of their dates lie to each other: ``same`` (one view
            for all), ``partial`` (one for each), ``disjoint`` (no two overlap).
        mixup: parameter of the Beta distribution; 0 for none.
        units: of Sentinel-2 and Sentinel-1 values, where they are not DN and dB; as in ``create_preprocess``.
        workers: loader processes per training process.
        max_bad_share: the run stops when more than this share of all places could not be used.
    """

    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    crop: CropRange = (60, 180)
    size: int = 120
    flips: Flips = True
    turns: bool = True
    region: Region = "same"
    mixup: float = 0.3
    units: dict[str, str] = field(default_factory=dict)
    workers: int = 2
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"data.crop must be the smallest and the largest side, got {self.crop}")
        if self.crop[0] < 1 < self.crop[1]:
            raise ValueError(
                f"data.crop must be two sides in pixels, or two shares of the image's, got {self.crop}"
            )
        if self.mixup < 0 or self.workers < 0 or not 0 <= self.max_bad_share <= 1:
            raise ValueError(
                f"data: mixup {self.mixup} and workers {self.workers} must not be negative, max_bad_share "
                f"{self.max_bad_share} must be from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """The optimizer and the schedule of its learning rate: linear warm-up, then cosine to zero.

    ``name`` is timm's, of an optimizer whose state begins with zeros, as a run does (LAMB's does not). The
    learning rate is ``base_lr`` x global batch / 256. ``warmup`` is a share of all steps. ``weight_decay`` is
    for weights of two or more dimensions; biases, norms, tokens and temperatures have none
    (the CROMA paper gives the number only).
    """

    name: Literal["adamw", "adam", "nadamw", "radamw", "lion", "lars", "sgd", "sgdw"] = "adamw"
    base_lr: float = 4e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        if not self.base_lr > 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"optim.base_lr must be positive and optim.warmup a share of all steps below 1, got "
                f"{self.base_lr} and {self.warmup}"
            )
        if not self.weight_decay >= 0 or (self.clip_grad is not None and not self.clip_grad > 0):
            raise ValueError(
                f"optim.weight_decay must not be negative and optim.clip_grad positive, or none, got "
                f"{self.weight_decay} and {self.clip_grad}"
            )


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """When and how checkpoints are written: every ``every`` steps, of which the newest ``keep`` stay.

    ``asynchronous``: training goes on while the files are written.
    """

    every: int = 1000
    keep: int = 2
    asynchronous: bool = True

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"save.every and save.keep must be at least 1, got {self.every}, {self.keep}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What pretraining and fine-tuning runs have in common.

    Attributes:
        name: of the recipe.
        model: as for ``create_model``; ``overrides``: fields of its configuration.
        out: the run's folder.
        batch_size: of the global batch, over all processes and passes.
        accumulate: forward passes per step.
        max_steps: stop after so many steps, with the schedule of the whole run.
        seed: of initialisation and of every sample.
        precision: ``bf16`` is autocast: parameters, gradients and optimizer stay in float32.
        parallel: ``ddp``, or ``fsdp`` (``fully_shard``), where there is more than one process.
        log_every: steps between lines of the log; the losses are those of the step.
        timeout: seconds until a process that hangs stops the others.
    """

    name: str
    model: str
    overrides: dict[str, Any] = field(default_factory=dict)
    save: SaveOptions = field(default_factory=SaveOptions)
    out: Path | None = None
    batch_size: int
    accumulate: int = 1
    max_steps: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: int = 10
    tensorboard: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "max_steps"):
            if (value := getattr(self, name, None)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or not self.timeout > 0:
            raise ValueError(
                f"seed must not be negative and timeout must be positive, got {self.seed} and {self.timeout}"
            )

    def may_change(self) -> tuple[str, ...]:
        """Return the keys that may be others when a run goes on: nothing of them changes what is computed."""
        return (
            "out", "max_steps", "parallel", "activation_checkpointing", "compile", "log_every", "tensorboard",
            "timeout", "save",
        )  # fmt: skip


R = TypeVar("R", bound=RunOptions)


@dataclass(frozen=True, kw_only=True)
class Recipe(RunOptions):
    """A pretraining run. Contrast sees the negatives of one pass, of which a step has ``accumulate``.

    Attributes:
        objective: what is trained, and its options.
        epochs: length of the run.
        first: what is different in a first phase of the run, whose weights this one begins with: fields of
            the recipe, nested as in its JSON: ``{"epochs": 20, "objective": {"strategy": "multimodal"}}``.
            What it does not name is the same in both, ``initial`` is what the first begins with.
        initial: weights to begin with: ``objective.safetensors`` of ``export --full``.
        ema: decay of the exponential moving average of the parameters, which is then exported; 0 for none.
    """

    objective: CromaObjective | SeamoObjective
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    epochs: int
    first: dict[str, Any] = field(default_factory=dict)
    initial: Path | None = None
    ema: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay from 0 (none) to below 1, got {self.ema}")
        if fixed := [name for name in ("name", "out", "first", "max_steps") if name in self.first]:
            raise ValueError(f"first cannot change {', '.join(fixed)}: they are of the run as a whole")
        self.first_phase()  # what it says must be a recipe
        if self.first and self.objective.seasons == 1:
            raise ValueError(
                "these options train on single dates, as the first phase does, and there is no second: say "
                "first={} as well"
            )

    def first_phase(self) -> "Recipe | None":
        """Return the recipe of the first phase, which trains in the folder ``phase_1`` of this one's.

        Raises:
            ValueError: ``first`` has an unknown field, or a value that does not fit.
        """
        if not self.first:
            return None
        out = None if self.out is None else str(self.out / "phase_1")
        own: dict[str, Any] = {**to_json(self), "first": {}, "out": out}
        return from_json(_merged(own, self.first))

    def may_change(self) -> tuple[str, ...]:
        """See :meth:`RunOptions.may_change`."""
        return (*super().may_change(), "data.root", "data.workers", "data.max_bad_share", "initial")


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with ``changes``, field by field where both have fields."""
    merged = dict(fields)
    for name, value in changes.items():
        inner = merged.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(dict(inner or {}), value) if both else value
    return merged


def to_json(recipe: RunOptions | Part) -> dict[str, Any]:
    """Return a recipe, or a part of its data, as JSON values."""
    from pydantic import TypeAdapter

    fields: dict[str, Any] = TypeAdapter(type(recipe)).dump_python(recipe, mode="json")
    return fields


@overload
def from_json(fields: Mapping[str, Any]) -> Recipe: ...
@overload
def from_json(fields: Mapping[str, Any], kind: type[R]) -> R: ...
def from_json(fields: Mapping[str, Any], kind: Any = Recipe) -> Any:
    """Return the recipe of :func:`to_json`, one of pretraining or of another ``kind``.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(fields, Mapping):
        raise ValueError(f"a recipe is an object of fields, got {type(fields).__name__}")
    _check_keys(kind, fields, "")
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        told = error.errors()
        # Of a union pydantic tells what is wrong with every member; what matters is the one that is meant.
        meant = _member(_field_type(kind, "objective", ""), fields.get("objective"))
        others = [e for e in told if len(e["loc"]) > 1 and e["loc"][0] == "objective"]
        name = getattr(meant, "__name__", "")
        aside = [e for e in others if e["loc"][1] != name]
        problems = [
            f"{'.'.join(str(part) for part in e['loc'] if part != name)}: "
            f"{e['msg'].removeprefix('Value error, ')}" + (f", got {e['input']!r}" if e["loc"] else "")
            for e in told
            if e not in aside or len(aside) == len(told)
        ]
        raise ValueError("; ".join(problems)) from error


def replace_fields(recipe: R, changes: Mapping[str, Any]) -> R:
    """Return a recipe with some fields changed; a key names a field within a field by dots.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    fields = to_json(recipe)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner: Any = fields
        kind: Any = type(recipe)
        for name in path:
            hint = _field_type(kind, name, key)
            if isinstance(inner, dict) and path[0] == "first":
                inner.setdefault(name, {})  # it holds only what is different, nested as the recipe is
            inner = inner.get(name) if isinstance(inner, dict) else None
            kind = type(recipe) if kind is type(recipe) and name == "first" else _member(hint, inner)
        hint = _field_type(kind, last, key)
        if not isinstance(inner, dict):
            raise ValueError(f"unknown key {key!r}: {'.'.join(path)} has no fields")
        inner[last] = _listed(key, value, hint)
        if path[:1] == ["first"]:  # whose fields nobody else brings to their types
            inner[last] = _typed(inner[last])
    return from_json(fields, type(recipe))


def parse_arguments(arguments: Sequence[str], known: Mapping[str, R]) -> R:
    """Return the recipe that ``recipe=NAME key=value ...`` names; ``recipe=FILE.json`` reads a saved one.

    Raises:
        ValueError: no or an unknown recipe, an unknown key, a value that does not fit.
    """
    changes: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key in changes:
            raise ValueError(f"expected key=value, each key once, got {argument!r}")
        changes[key] = value
    name = changes.pop("recipe", None)
    if name is not None and name.endswith(".json"):
        try:
            saved = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
            fields = saved.get("recipe", saved) if isinstance(saved, dict) else saved
            recipe = from_json(fields, type(next(iter(known.values()))))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the recipe {name}: {error}") from error
        return replace_fields(recipe, changes)
    if name is None or name not in known:
        given = "no recipe is named" if name is None else f"unknown recipe {name!r}"
        raise ValueError(f"{given}; say recipe=NAME, one of {', '.join(known)}, or recipe=FILE.json")
    return replace_fields(known[name], changes)


def differences(old: RunOptions, new: RunOptions) -> list[str]:
    """Return the fields in which a run would not be the same run, as ``key: old -> new``."""
    found = []
    before, after = _flat(to_json(old)), _flat(to_json(new))
    for key in {**before, **after}:
        plain = key.removeprefix("first.")  # what may be another in a run may be in its first phase
        if any(plain == free or plain.startswith(free + ".") for free in new.may_change()):
            continue
        if before.get(key) != after.get(key):
            found.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _field_type(kind: Any, name: str, key: str) -> Any:
    """Return the type of a field; ``key`` is all of what the user named."""
    if not dataclasses.is_dataclass(kind):
        return Any
    hints = typing.get_type_hints(kind)
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        raise ValueError(
            f"unknown key {key!r}" + (f", did you mean {close[0]!r}?" if close else "")
            + f" Keys there: {', '.join(hints)}"
        )  # fmt: skip
    return hints[name]


def _member(hint: Any, value: Any) -> Any:
    """Return which of the dataclasses of a union a value is of: that of its ``method``, else the first."""
    several = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
    if not several or not isinstance(value, Mapping):
        return hint
    named = [kind for kind in several if "method" in value and getattr(kind, "method", 0) == value["method"]]
    holds = [kind for kind in several if set(value) <= {f.name for f in dataclasses.fields(kind)}]
    return (named or holds or several)[0]


def _check_keys(kind: Any, fields: Mapping[str, Any], prefix: str) -> None:
    for name, value in fields.items():
        inner = _member(_field_type(kind, name, prefix + name), value)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _check_keys(inner, value, f"{prefix}{name}.")
        if isinstance(value, Sequence) and typing.get_origin(inner) is tuple:
            for i, item in enumerate(value):
                member = _member(typing.get_args(inner)[0], item)
                if isinstance(item, Mapping) and dataclasses.is_dataclass(member):
                    _check_keys(member, item, f"{prefix}{name}.{i}.")


def _typed(value: Any) -> Any:
    """Read text that is JSON, and that in a list; other text stays."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _listed(key: str, value: Any, hint: Any) -> Any:
    """Read JSON where a field holds several values, or any; "60,180" is understood for a tuple too."""
    if not isinstance(value, str) or hint is str:
        return value
    if value in ("none", "null") and type(None) in typing.get_args(hint):
        return None
    kinds = (hint, *typing.get_args(hint))
    if value.startswith("{") and any(dataclasses.is_dataclass(t) for t in kinds):
        hint = Any
    several = any(typing.get_origin(t) in (tuple, dict) for t in kinds)
    if several and not value.startswith(("[", "{")):
        return value.split(",")
    if several or hint is Any:
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            if several:
                raise ValueError(f"{key}: {value!r} is no JSON: {error}") from error
    return value
