"""What commands load: flags and accounting do without PyTorch, training and scoring with nothing else that is slow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT, write_config
from test_interrupts import TYPED
from test_sensitivity_scripts import COMPO, CONCAT, EVAL, RANK, SPLIT, write_runs

SCRIPTS = [path for path in TYPED if path.name != "print_results.py"]
SLOW = ("torch", "torchvision", "opacus", "dp_accounting", "tensorflow", "matplotlib")
# Runs scripts one after another, each in a fork of its own, and prints status and what of some libraries was loaded.
RUN = """
import importlib, json, os, runpy, sys
for name in json.loads(sys.argv[3]):
    importlib.import_module(name)
for words in json.loads(sys.argv[2]):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status, sys.argv = 0, words
        sys.path.insert(0, os.getcwd())
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        loaded = [name for name in json.loads(sys.argv0) if name in sys.modules]
        os.write(write, json.dumps([words, status, loaded]).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    print(os.read(read, 65536).decode())
""".replace("sys.argv0", "LOOK")


def loaded(lines: Sequence[Sequence[object]], look: Sequence[str], *already: str) -> list[list]:
    """Return words, exit status and which of `look` was loaded, for each of some command lines."""
    code = f"LOOK = {json.dumps(json.dumps(look))}\n{RUN}"
    words = json.dumps([[str(word) for word in line] for line in lines])
    command = [sys.executable, "-c", code, "-", words, json.dumps(["numpy", "tqdm", *already])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize(("flag", "wanted"), [("--help", 0), ("--no-such-flag", 2)])
def test_flags_are_answered_without_a_slow_library(flag: str, wanted: int) -> None:
    for words, status, slow in loaded([(path, flag) for path in SCRIPTS], SLOW):
        assert (status, slow) == (wanted, []), words


def test_accounting_never_loads_pytorch(tmp_path: Path) -> None:
    files = write_runs(tmp_path)
    totals = tmp_path / "compo_res" / "compo_res_all_totals.csv"
    ranked = totals.with_name("compo_res_all_ranked.csv")
    lines = [
        (COMPO, *files), (RANK, totals, "--select", 2), (EVAL, ranked, ranked),
        ("sensitivity/folds.py", files[0], "--fold_size", 2), ("sensitivity/eps_delta.py", *files),
        (CONCAT, *files), (SPLIT, *files),
    ]  # fmt: skip
    for words, status, slow in loaded(lines, SLOW):
        assert (status, slow) == (0, []), words


def test_training_and_scoring_load_pytorch_alone(tmp_path: Path) -> None:
    """Not its compiler, nor Opacus, nor, once the noise is known, what calibrates it; and no statistics."""
    kind = ("--config", write_config(tmp_path), "--dataset", "mnist", "--arch", "smallcnn")
    private = (*kind, "--data_subset", 100, "--batch_size", 20, "--epochs", 1, "--epsilon", 8)
    assert subprocess.run([sys.executable, "train_dp.py", *map(str, private)], cwd=ROOT).returncode == 0
    ensemble = ("train_fz_models.py", *kind, "--data_subset", 100, "--stop_run", 1, "--epochs", 1)
    lines = [
        ("train_dp.py", *private, "--seed", 1), ("train_dp.py", *private, "--seed", 1),
        ("calc_curv_private_models.py", *kind), ensemble, ensemble, ("calc_curv_fz_models.py", *kind),
    ]  # fmt: skip
    heavy = ("torch._dynamo", "scipy.stats", "scipy.optimize", "pandas")
    for words, status, slow in loaded(lines, (*SLOW, *heavy), "torch"):
        assert (status, slow) == (0, ["torch"]), words
