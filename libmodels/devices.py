"""The device a computation runs on."""

from __future__ import annotations

import torch

from libdata.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Return the device that a `--device` flag names.

    Args:
        name: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", ...

    Raises:
        InputError: The name is not a device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not available here: {reason}") from error
    return device
