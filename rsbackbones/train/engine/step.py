"""A step of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """An optimizer step. Its task is a function of the run's seed and its number.

    Attributes:
        number: the number of previous steps; 0 for the first.
        total: the number of steps of the whole run.
        task: the task of its batches; "" if the run has one task.
    """

    number: int
    total: int
    task: str = ""
