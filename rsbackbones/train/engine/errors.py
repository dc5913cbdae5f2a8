"""The error of a run."""


class TrainingError(ValueError):
    """A run cannot begin or cannot go on; the message says why and what to do."""
