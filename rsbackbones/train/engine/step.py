"""Which step of a run this is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """An optimizer step: a function of the run's seed and the step's number.

    Attributes:
        number: steps that were taken before this one; the first has 0.
        total: steps of the whole run.
        task: the task of the step's batches; "" where a run has one task.
    """

    number: int
    total: int
    task: str = ""
