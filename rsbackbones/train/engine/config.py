"""What decides a training run, pretraining or fine-tuning, whatever is trained: frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BatchNormMode = Literal["local", "grouped", "sync"]


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
    """The options of a run, whatever it trains.

    Attributes:
        name: of the recipe.
        output: the run's folder.
        batch_size: of the global batch, over all processes and passes.
        accumulate: forward passes per step.
        max_steps: stop after so many steps, with the schedule of the whole run.
        seed: of initialization and of every sample.
        precision: ``bf16`` is autocast: parameters, gradients and optimizer stay in float32.
        parallel: ``ddp``, or ``fsdp`` (``fully_shard``), where there is more than one process.
        batch_norm: whose statistics BatchNorm normalizes by, see :mod:`rsbackbones.train.engine.batch_norm`:
            ``local`` (a process's micro-batch), ``grouped`` (every ``batch_norm_group`` rows of it) or
            ``sync`` (the micro-batches of all processes).
        log_every: steps between lines of the log; the losses are those of the step.
        timeout: seconds until a process that hangs stops the others.
    """

    name: str
    save: SaveOptions = field(default_factory=SaveOptions)
    output: Path | None = None
    batch_size: int
    accumulate: int = 1
    max_steps: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    batch_norm: BatchNormMode = "local"
    batch_norm_group: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: int = 10
    tensorboard: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "max_steps", "batch_norm_group"):
            if (value := getattr(self, name, None)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or not self.timeout > 0:
            raise ValueError(
                f"seed must not be negative and timeout must be positive, got {self.seed} and {self.timeout}"
            )

        if (self.batch_norm == "grouped") != (self.batch_norm_group is not None):
            raise ValueError(
                "batch_norm=grouped and batch_norm_group=ROWS go together, got "
                f"{self.batch_norm} and {self.batch_norm_group}"
            )

    def resumable_fields(self) -> tuple[str, ...]:
        """Return the keys that may change when a run goes on: none of them changes what is computed."""
        return (
            "output", "max_steps", "parallel", "activation_checkpointing", "compile", "log_every",
            "tensorboard", "timeout", "save",
        )  # fmt: skip
