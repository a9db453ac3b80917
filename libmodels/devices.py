"""The device a computation runs on."""

from __future__ import annotations

import os

import torch

from libstore.errors import InputError


def resolve_device(name: str, *, deterministic: bool = False) -> torch.device:
    """Return the device that a `--device` flag names, and name it in the log.

    Args:
        name: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", ...
        deterministic: What `--deterministic` says: use algorithms only that give the same bytes every time. CPUs do
            so anyway.

    Raises:
        InputError: The name is not a device, or the device is not there.
    """
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts, so before anything else
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not available here: {reason}") from error
    what = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        what = torch.cuda.get_device_name(device) + (f", GPU {visible}" if visible else "")
    print(f"device {device} ({what})", flush=True)
    return device


def describe_device(device: torch.device) -> dict[str, object]:
    """Return what a sidecar's provenance says of the device.

    It is not among the settings, as the device is not: it may change the last bits on a GPU, never what was asked for.
    """
    return {"device": str(device), "deterministic": torch.are_deterministic_algorithms_enabled()}
