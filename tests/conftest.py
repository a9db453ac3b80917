"""Fixtures shared by the tests: real MNIST digits and a small ensemble trained by the shipped scripts."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from libdata import cli

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


def start_script(*args: object, **env: str) -> subprocess.Popen[str]:
    """Start a script of the repository in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error:::__main__"} | env
    return subprocess.Popen(
        [sys.executable, *map(str, args)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_script(script: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does: in a process of its own if `env` is given, else (faster) in this one."""
    if env:
        process = start_script(script, *args, **env)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    name = script.removesuffix(".py").replace("/", ".")
    out_file, err_file = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out_file), redirect_stderr(err_file):
        patch.setattr(sys, "argv", [script, *map(str, args)])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(importlib.import_module(name).main)
    return subprocess.CompletedProcess(script, exit_info.value.code, out_file.getvalue(), err_file.getvalue())


def assert_refused(result: subprocess.CompletedProcess[str], *mentions: object) -> None:
    """Check for exit status 2 and one line on stderr that names everything in `mentions`."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    for text in mentions:
        assert str(text) in lines[0], lines[0]


def write_config(folder: Path, **changes: str) -> Path:
    """Write a configuration whose outputs are in `folder` and whose data are the repository's."""
    keys = ("fz_model_dir", "private_model_dir", "sensitivity_dir", "score_dir", "figure_dir")
    values = {"data_dir": str(DATA)} | {key: key for key in keys} | changes
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes | dict]:
    """Return every file under a folder; sidecars without their provenance, which holds seconds."""
    found: dict[str, bytes | dict] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content: bytes | dict = path.read_bytes()
        if path.suffix == ".json":
            content = {key: value for key, value in json.loads(content).items() if key != "provenance"}
        found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


ENSEMBLE_FLAGS = ("--dataset", "mnist", "--arch", "smallcnn")
TRAIN_FLAGS = (*ENSEMBLE_FLAGS, "--subset", "200", "--epochs", "8")


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six trained and scored runs on 200 digits; returns the folder with config.json."""
    folder = tmp_path_factory.mktemp("ensemble")
    config = write_config(folder)
    for command in (
        ("train_fz_models.py", *TRAIN_FLAGS, "--stop_run", "6"),
        ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "3"),
    ):
        result = run_script(*command, "--config", config, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
    return folder
