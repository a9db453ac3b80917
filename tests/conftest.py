"""Fixtures shared by the tests.

Real MNIST digits, a small ensemble trained by the shipped scripts, and what TensorFlow and Sonnet write and compute.
"""

from __future__ import annotations

import libcli as cli

import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from released_files import DATA as DATA
from released_files import ROOT, photo_files, write_cifar100, write_config, write_imagenet_index, write_tree
from script_cases import Trees, script_trees

from build_fz_imagenet import build_imagenet
from libscores.curvature import rademacher
from libstore.store import exclusive


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

    def leave(signum: int, message: str) -> None:  # in place of ending this process by the signal
        cli.say(message)
        sys.exit(128 + signum)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out_file), redirect_stderr(err_file):
        patch.setattr(cli, "end_by", leave)
        patch.setattr(sys, "argv", [script, *map(str, args)])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(importlib.import_module(name).main)
    command = [script, *map(str, args)]
    return subprocess.CompletedProcess(command, exit_info.value.code, out_file.getvalue(), err_file.getvalue())


def assert_refused(result: subprocess.CompletedProcess[str], *mentions: object) -> None:
    """Check for exit status 2 and one line on stderr that names everything in `mentions`."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    for text in mentions:
        assert str(text) in lines[0], lines[0]


def tree(folder: Path) -> dict[str, bytes | dict]:
    """Return every file under a folder; sidecars without their provenance, which holds seconds."""
    found: dict[str, bytes | dict] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content: bytes | dict = path.read_bytes()
        if path.suffix == ".json":
            content = {key: value for key, value in json.loads(content).items() if key != "provenance"}
        found[str(path.relative_to(folder))] = content
    return found


def execute_notebook(name: str, results: str, folder: Path, **parameters: object) -> tuple[str, list[dict]]:
    """Run a notebook as a user does; return what it printed and the rows of <folder>/figure_dir/results_<results>.json.

    Parameters are strings, numbers or lists.
    """
    flags = [word for key, value in parameters.items() for word in ("-y", f"{key}: {json.dumps(value, default=str)}")]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    figures = folder / "figure_dir"
    result = subprocess.run(
        ["sh", "scripts/run_notebook.sh", f"notebooks/{name}.ipynb", figures, *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (made,) = figures.glob(f"{name}*.ipynb")
    assert made.with_suffix(".html").exists()
    cells = json.loads(made.read_text())["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    printed = "".join("".join(out.get("text", "")) for out in outputs)
    printed += "".join("".join(out.get("data", {}).get("text/plain", "")) for out in outputs)
    return printed, json.loads((figures / f"results_{results}.json").read_text())


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository without data and results, as after cloning it, for notebooks; the working directory."""
    import matplotlib
    import matplotlib.pyplot as plt

    for name in ("libscores", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "scripts").mkdir()
    for name in ("config.json", "scripts/demo_config.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("scripts.execute_notebook.ROOT", tmp_path)
    matplotlib.use("Agg")
    plt.rcParams.update({"figure.max_open_warning": 0, "savefig.dpi": 50})
    return tmp_path


def pytest_configure(config: pytest.Config) -> None:
    # nohup and background jobs ignore these, and so would every process that a test starts; a handler is not inherited.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trees]:
    """Every script that writes, with what it starts from and what it should leave."""
    with script_trees(tmp_path_factory.mktemp("scripts")) as found:
        yield found


ENSEMBLE_FLAGS = ("--dataset", "mnist", "--arch", "smallcnn")
TRAIN_FLAGS = (*ENSEMBLE_FLAGS, "--data_subset", "200", "--epochs", "8")


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


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user has after the downloads, and TensorFlow's numbers for all of it.

    One TensorFlow process serves every test; workers of pytest-xdist share the folder.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "released"
    with exclusive(folder):
        if not (folder / "finished").exists():
            _write_released(folder)
            (folder / "finished").touch()
    return folder


def _write_released(folder: Path) -> None:
    files = photo_files()
    order = sorted(files, key=lambda name: int.from_bytes(name.encode(), "little") % 1009)  # neither by name nor class
    write_tree(folder / "imagenet" / "train", files)
    write_imagenet_index(folder / "imagenet_index.npz", {"tr": order}, tr_mem=np.linspace(0, 1, len(order)))
    cmyk = files["n01443537_7.JPEG"]
    adobe = cmyk.index(b"\xff\xee\x00\x0eAdobe")
    (folder / "cmyk.image").write_bytes(cmyk)
    (folder / "plain_cmyk.image").write_bytes(cmyk[:adobe] + cmyk[adobe + 16 :])
    (folder / "png.image").write_bytes(files["n01443537_8.JPEG"])
    config = write_config(
        folder, imagenet_dir="imagenet", imagenet_index="imagenet_index.npz", tfrecord_dir="tfrecords"
    )  # fmt: skip
    build_imagenet.main(["--config", str(config), "--splits", "train", "--train_shards", "3", "--workers", "2"])
    np.save(folder / "probes.npy", rademacher(0, np.arange(6), 2, (3, 32, 32)))
    fz = "fz_models/cifar100-inception/0.7/0", "fz_models/cifar100-inception/0.7/3", "fz_models/imagenet-resnet50/0.7/1"
    for name in ("tfds", "small_inception", "resnet50_v2", *fz):
        (folder / name).mkdir(parents=True)
    command = [sys.executable, str(ROOT / "tests" / "sonnet_oracle.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert result.returncode == 0, result.stderr[-3000:]
    with np.load(folder / "cifar.npz", allow_pickle=False) as cifar:
        images, labels = (
            {split: cifar[f"{what}_{split}"] for split in ("train", "test")} for what in ("images", "labels")
        )
        write_cifar100(folder / "data", images, labels)
