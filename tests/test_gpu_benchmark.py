"""The benchmark for a GPU runs whole without one, and goes on where a part fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from released_files import ROOT

PARTS = ["device", "parity", "deterministic", "oom", "scoring", "private", "ensembles", "two_jobs"]
BLOCKED = """
import sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torchvision", "opacus", "opt_einsum", "dp_accounting", "tqdm", "absl"}:
            raise ImportError(f"No module named {name!r}")
sys.meta_path.insert(0, No())
"""


def start(out: Path, *flags: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--out", out, *flags]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"} | env  # as on a machine that has not installed it
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment)


def test_it_runs_whole_and_small_without_a_gpu(tmp_path: Path) -> None:
    result = start(tmp_path / "new" / "out")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "new" / "out" / "gpu.json").read_text())
    assert list(found["parts"]) == PARTS and found["small"]
    for name, part in found["parts"].items():
        assert part["rows"] and "error" not in part, (name, part)
        for row in part["rows"]:
            assert "error" not in row and row.get("passes", True), (name, row)
    (oom,) = found["parts"]["oom"]["rows"]
    assert oom["batch taken"] == oom["batch asked for"] // 2
    kinds = {(row["way"], row["precision"]) for row in found["parts"]["private"]["rows"]}
    assert len(kinds) == 12
    table = (tmp_path / "new" / "out" / "gpu.md").read_text()
    assert all(f"## {name}" in table for name in PARTS) and "Opacus, ghost" in table


def test_what_is_not_installed_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    result = start(tmp_path, "--parts", "parity", "private", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["opacus"] == found["machine"]["tqdm"] == "not there"
    errors = {name: [row.get("error", "") for row in part["rows"]] for name, part in found["parts"].items()}
    assert any("No module named" in error for error in errors["private"]) and "No module named" in result.stdout
    curvatures = [row for row in found["parts"]["parity"]["rows"] if row["what"] == "curvature"]
    assert curvatures and all(row["passes"] for row in curvatures)
