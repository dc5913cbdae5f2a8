"""What ``torch.load(weights_only=True)`` says of a pickle that it refuses."""

import pickle


def what_torch_refused(error: pickle.UnpicklingError) -> str:
    """Return the reason alone: torch's own text goes on to recommend loading the file without the check."""
    said = str(error).split("WeightsUnpickler error:")[-1].split(" Please")[0].splitlines()
    return next((line.strip() for line in said if line.strip() and "weights_only" not in line), "")
