"""What can go wrong with weights. Each error names the file and revision and says what to do next."""


class WeightsError(ValueError):
    """Something is wrong with weights: where they are, how to get them, or what is in them."""


class WeightsNotFound(WeightsError):
    """There are no such weights: none were published, or the pinned file is not where it should be."""


class WeightsAccessError(WeightsError):
    """The weights exist, and the Hub or a proxy refuses them to this user."""


class WeightsUnavailable(WeightsError):
    """The weights could not be fetched: no network, offline mode, or a server that fails."""


class WeightsIntegrityError(WeightsError):
    """The bytes are not the ones that the manifest pins."""


class WeightsCacheError(WeightsError):
    """The cache cannot be used: disk full, read-only, or not permitted."""


class CorruptCheckpointError(WeightsError):
    """The file is damaged: truncated, not a checkpoint, or holding values that are not finite."""


class UnsafeCheckpointError(WeightsError):
    """The file is a pickle that holds more than tensors; nothing of it was executed."""


class WeightsMismatchError(WeightsError):
    """The tensors are not those of the model: missing, extra, or of another shape or type."""
