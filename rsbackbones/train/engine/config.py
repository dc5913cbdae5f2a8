"""The options of a training run, pretraining or fine-tuning: frozen dataclasses that pydantic checks.

The ranges of numbers are in the types, so that Python, recipes in JSON and ``key=value`` arguments are
checked alike. A value out of its range, an unknown option and a value of another type are a ``ValueError``.
"""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

BatchNormMode = Literal["local", "grouped", "sync"]

# Every class of options has this configuration: unknown options, NaN and infinity are refused.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):  # pydantic would take True as 1
        raise ValueError(f"expected a number, got {value}")
    return value


_Int = Annotated[int, BeforeValidator(_refuse_bool)]
_Float = Annotated[float, BeforeValidator(_refuse_bool)]
Count = Annotated[_Int, Field(ge=1)]
CountOrZero = Annotated[_Int, Field(ge=0)]
Positive = Annotated[_Float, Field(gt=0)]
NonNegative = Annotated[_Float, Field(ge=0)]
Share = Annotated[_Float, Field(ge=0, le=1)]
# A share of which the whole is not possible: a decay, a mask ratio, a warm-up.
ShareBelowOne = Annotated[_Float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


def _refuse_empty(value: object) -> object:
    if value == "":  # Path("") would be the current folder
        raise ValueError("the path is empty; name a file or a folder ('.' is the current folder)")
    return value


FilePath = Annotated[Path, BeforeValidator(_refuse_empty)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimOptions:
    """The optimizer and the schedule of its learning rate: linear warm-up, then cosine to zero.

    Attributes:
        name: a timm optimizer, or torch's ``adafactor``. Only optimizers whose state is initialized to zeros
            are supported (not LAMB). The learning rate of ``adafactor`` is relative: at step t at most
            1 / sqrt(t), times the root mean square of a parameter.
        base_lr: the peak learning rate; if ``scaled``, times global batch / 256.
        scaled: scale ``base_lr`` with the batch.
        betas: decay rates of the moment estimates.
        momentum: of ``sgd``, without Nesterov's look ahead. ``None``: timm's ``sgd``, with Nesterov's of 0.9.
        weight_decay: for weights of two or more dimensions. Biases, norms, tokens and temperatures have none.
        decay_all: all parameters have the weight decay.
        warmup: share of all steps in which the learning rate rises.
        schedule: of the learning rate after the warm-up: ``cosine``, or ``constant``.
        clip_grad: largest norm of the gradient; ``None``: no limit.
    """

    name: Literal["adamw", "adam", "nadamw", "radamw", "lion", "lars", "sgd", "sgdw", "adafactor"] = "adamw"
    base_lr: Positive = 4e-6
    scaled: bool = True
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    momentum: ShareBelowOne | None = None
    weight_decay: NonNegative = 0.01
    decay_all: bool = False
    warmup: ShareBelowOne = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_grad: Positive | None = None

    def __post_init__(self) -> None:
        if self.momentum is not None and self.name != "sgd":
            raise ValueError(
                f"momentum={self.momentum} is one of name=sgd, got name={self.name}: change the name, or "
                "leave momentum at none"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SaveOptions:
    """When and how checkpoints are written.

    Attributes:
        every: steps between checkpoints.
        keep: the newest checkpoints that are kept; older ones are deleted.
        asynchronous: training continues while the files are written.
    """

    every: Count = 1000
    keep: Count = 2
    asynchronous: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunOptions:
    """The options that every run has, whatever it trains.

    Attributes:
        name: name of the recipe.
        save: see :class:`SaveOptions`.
        output: folder of the run.
        batch_size: size of the global batch, over all processes and micro-batches.
        accumulate: micro-batches per step.
        max_steps: stop after this step; the learning rate follows the schedule of the whole run.
        seed: of initialization and of every sample.
        precision: ``bf16`` is autocast; parameters, gradients and optimizer stay in float32.
        parallel: ``ddp`` or ``fsdp`` (``fully_shard``), if there is more than one process.
        batch_norm: which rows BatchNorm takes its statistics from, see
            :mod:`rsbackbones.train.engine.batch_norm`: ``local`` (the micro-batch of the process),
            ``grouped`` (every ``batch_norm_group`` rows of it) or ``sync`` (the micro-batches of all
            processes).
        activation_checkpointing: recompute activations in the backward pass, to save memory.
        compile: compile the model with ``torch.compile``.
        log_every: steps between lines of the log. The losses in a line are those of its step.
        tensorboard: also write TensorBoard events.
        timeout: seconds after which a process that hangs stops the others.
    """

    name: Text
    save: SaveOptions = field(default_factory=SaveOptions)
    output: FilePath | None = None
    batch_size: Count
    accumulate: Count = 1
    max_steps: Count | None = None
    seed: CountOrZero = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    batch_norm: BatchNormMode = "local"
    batch_norm_group: Count | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: Count = 10
    tensorboard: bool = False
    timeout: Positive = 600.0

    def __post_init__(self) -> None:
        if (self.batch_norm == "grouped") != (self.batch_norm_group is not None):
            raise ValueError(
                "batch_norm=grouped and batch_norm_group=ROWS go together, got "
                f"{self.batch_norm} and {self.batch_norm_group}"
            )

    def resumable_fields(self) -> tuple[str, ...]:
        """Return the keys that may change when a run is resumed: none of them changes what is computed."""
        return (
            "output", "max_steps", "parallel", "activation_checkpointing", "compile", "log_every",
            "tensorboard", "timeout", "save",
        )  # fmt: skip
