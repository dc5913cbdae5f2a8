"""What can go wrong with weights. Each error names the file and revision and says what to do next."""


class WeightsError(ValueError):
    """Something is wrong with weights: where they are, how to get them, or what is in them."""


class WeightsNotFound(WeightsError):
    """The weights do not exist: none were published, or the pinned file is missing."""


class WeightsAccessError(WeightsError):
    """The weights exist, but the Hub or a proxy denies access to them."""


class WeightsUnavailable(WeightsError):
    """The weights could not be fetched: no network, offline mode, or a server error."""


class WeightsIntegrityError(WeightsError):
    """The bytes of the file differ from those pinned in the manifest."""


class WeightsCacheError(WeightsError):
    """The cache cannot be used: the disk is full, read-only, or access is denied."""


class CorruptCheckpointError(WeightsError):
    """The file is damaged: it is truncated, not a checkpoint, or has NaN or infinite values."""


class UnsafeCheckpointError(WeightsError):
    """The file is a pickle that contains more than tensors. None of it was executed."""


class WeightsMismatchError(WeightsError):
    """The tensors do not fit the model: some are missing, unexpected, or have another shape or dtype."""
