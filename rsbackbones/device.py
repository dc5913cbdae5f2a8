"""The device that a model runs on: one rule for the commands (``--device``) and for Python (``device=``)."""

import re

import torch


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to use.

    Args:
        device: ``auto`` (the first CUDA GPU, else Apple's ``mps``, else the CPU), ``cuda``, ``cuda:1``,
            ``mps`` or ``cpu``.

    Raises:
        ValueError: an unknown device, or one that this machine or this torch does not have.
    """
    name = str(device)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(
            f"unknown device {name!r} (device=, --device): expected auto, cuda, cuda:1, mps or cpu"
        )
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if gpus else "mps" if mps else "cpu"
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= gpus:
        raise ValueError(
            f"there is no device {name} (device=, --device): torch {torch.__version__} finds {gpus} CUDA "
            "GPUs; auto takes what there is"
        )
    if name == "mps" and not mps:
        raise ValueError(
            f"there is no device mps (device=, --device): torch {torch.__version__} finds no Apple GPU; auto "
            "takes what there is"
        )
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes matrix products of bfloat16 by instructions of its own.

    Of CPUs oneDNN knows; where torch has no oneDNN, and of other devices, nothing is known against it.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
