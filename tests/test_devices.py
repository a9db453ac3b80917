"""What choosing the device does for the computation."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import ROOT

_FAULTS = """
import resource
import torch
from libmodels.devices import resolve_device
resolve_device("cpu")
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(12 * 2**20)
before = faults()
for _ in range(16):
    torch.ones(12 * 2**20)
print(faults() - before)
"""


def _faults(**environment: str) -> int:
    """Count the pages that the system gives for 48 MiB, freed and asked for sixteen times, after as many before."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ended = subprocess.run(
        [sys.executable, "-c", _FAULTS], env=bare | environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(ended.stdout.splitlines()[-1])


def test_freed_memory_is_used_again_unless_the_user_sets_the_allocator() -> None:
    assert 10 * _faults() < _faults(MALLOC_ARENA_MAX="8")
