"""The error of a run."""


class TrainingError(ValueError):
    """A run cannot start or continue. The message states why, and the fix."""
