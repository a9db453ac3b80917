"""The device a computation runs on."""

from __future__ import annotations

import ctypes
import os
import sys

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
    if device.type == "cpu":
        _keep_freed_memory()
    what = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        what = torch.cuda.get_device_name(device) + (f", GPU {visible}" if visible else "")
    print(f"device {device} ({what})", flush=True)
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep up to 2 GiB of what is freed, since the next batch asks for the same again.

    Left alone, it maps every block of over 32 MiB anew and the system zeroes each page of it: a third of the time of
    `ResNet18`, in whose layers 128 images of 32 x 32 are such a block. Whoever sets MALLOC_ variables is left alone.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            most_maps, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(most_maps, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)


def describe_device(device: torch.device) -> dict[str, object]:
    """Return what a sidecar's provenance says of the device.

    It is not among the settings, as the device is not: it may change the last bits on a GPU, never what was asked for.
    """
    return {"device": str(device), "deterministic": torch.are_deterministic_algorithms_enabled()}
