"""Full and read-only disks, folders that go, signals, memory, NaN: one line, nothing lost, the same bytes later."""

from __future__ import annotations

import libcli as cli

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, ENSEMBLE_FLAGS, TRAIN_FLAGS, assert_refused, run_script, tree, write_config
from kill_server import Ended
from released_files import know_cifar
from script_cases import CASES, Trees, files, snapshot
from torch import nn

from libdata.datasets import load_dataset
from libmodels.checkpoints import read_checkpoint
from libmodels.devices import describe_device, resolve_device
from libscoring.scoring import Batches, Scoring, score_model
from libscoring.settings import ScoreSettings
from libscoring.table import find_scores
from libstore.store import load_scores, read_sidecar

LONG = ("train", "private", "norms", "curvature", "private curvature", "ImageNet", "records", "unpacking")
ON_DEVICE = ("train", "private", "norms", "curvature", "private curvature")


def last_line(ended: Ended) -> str:
    """Return the one line of an error, after whatever a log holds before it."""
    assert "Traceback" not in ended.errors, ended.errors
    return ended.errors.strip().splitlines()[-1]


def titled(name: str) -> str:
    case = CASES[name]
    return f"{case.script} {case.argv[0]}" if "download" in case.script else case.script


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is refused here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_full_and_read_only_disks(trees: Trees, small_disk: Path, name: str) -> None:
    whole, work, prepare = files(snapshot(trees.whole(name))), small_disk / "work", trees.prepare(name)
    trees.begin(name, work)
    start = snapshot(work)
    script, argv = trees.line(name, work)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    def answers_one_line(fault: str, *mentions: str) -> None:
        ended = trees.server.run(script, argv, prepare=prepare)
        line = last_line(ended)
        assert ended.status == 2 and all(text in line for text in (f"{Path(script).name}: error: ", *mentions)), line
        left = snapshot(work)
        assert all(left[path] == content for path, content in files(start).items() if path not in left or "-" in fault)

    remount("ro")
    answers_one_line("read-only disk", "Read-only file system")
    assert snapshot(work) == start
    remount("rw")

    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**20))
    room = 0 if "--overwrite" in argv else 4096  # for one small file; an overwritten one makes room itself
    os.truncate(filler, filler.stat().st_size // 4096 * 4096 - room)
    answers_one_line("full disk", "No space left on device")
    assert not any(Path(path).name.endswith(".tmp") and content for path, content in snapshot(work).items())
    filler.unlink()
    ended = trees.server.run(script, argv, prepare=prepare)
    assert ended.status == 0, ended.errors
    assert files(snapshot(work)) == whole


def test_a_limit_on_file_sizes(trees: Trees, tmp_path: Path) -> None:
    """Stands for a full disk where nothing can be mounted."""
    trees.begin("train", tmp_path)
    script, argv = trees.line("train", tmp_path)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    ended = trees.server.run(script, argv, prepare=limit)
    line = last_line(ended)
    assert ended.status == 2 and "state.pt: cannot write: File too large" in line, line
    assert not list(tmp_path.rglob(".*.tmp"))
    assert trees.server.run(script, argv).status == 0
    assert files(snapshot(tmp_path)) == files(snapshot(trees.whole("train")))


@pytest.mark.parametrize("name", CASES)
def test_output_folder_removed_midway(trees: Trees, tmp_path: Path, name: str) -> None:
    work, prepare = tmp_path / "work", trees.prepare(name)
    trees.begin(name, work)
    moments = trees.server.run(*trees.line(name, work), prepare=prepare).moments
    made = tmp_path / "again"
    trees.begin(name, made)
    script, argv = trees.line(name, made)
    ended = trees.server.run(script, argv, prepare=prepare, at=moments * 2 // 3, remove=made)
    line = last_line(ended)
    assert ended.status == 2 and str(made) in line, line


@pytest.mark.parametrize("name", LONG)
def test_signals_stop_in_good_order(trees: Trees, tmp_path: Path, name: str) -> None:
    whole, prepare = files(snapshot(trees.whole(name))), trees.prepare(name)
    for signum in (signal.SIGTERM, signal.SIGINT):
        work = tmp_path / signum.name
        trees.begin(name, work)
        script, argv = trees.line(name, work)
        ended = trees.server.run(script, argv, prepare=prepare, at=8, signum=signum)
        line = last_line(ended)
        assert ended.status == -signum and "run the same command again to go on" in line, (ended.status, line)
        ended = trees.server.run(script, argv, prepare=prepare)
        assert ended.status == 0, ended.errors
        assert files(snapshot(work)) == whole


def test_a_stop_saves_the_epoch(trees: Trees, tmp_path: Path) -> None:
    """Without --save_every 0, nothing but the signal makes train_fz_models.py save."""
    trees.begin("train", tmp_path)
    script, argv = trees.line("train", tmp_path)
    argv[argv.index("--save_every") + 1] = "3600"
    stop = "import os, signal\nfrom torch.nn import functional as F\nloss = F.cross_entropy\n"
    stop += "def once(*a):\n    F.cross_entropy = loss\n    os.kill(os.getpid(), signal.SIGTERM)\n    return loss(*a)\n"
    ended = trees.server.run(script, argv, prepare=f"{stop}F.cross_entropy = once\n")
    assert ended.status == -signal.SIGTERM, ended.errors
    state = tmp_path / "fz_model_dir/cifar10_smallcnn/0.7/0/checkpoints/state.pt"
    assert read_checkpoint(state)["epochs_done"] == 1
    assert trees.server.run(script, argv).status == 0
    assert files(snapshot(tmp_path)) == files(snapshot(trees.whole("train")))


def test_the_state_of_other_settings_is_refused(trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_cifar(trees.folder / "data", monkeypatch)
    trees.begin("private", tmp_path)
    script, argv = trees.line("private", tmp_path)
    assert trees.server.run(script, argv, at=16).status == -signal.SIGKILL
    before = snapshot(tmp_path)
    assert_refused(run_script(script, *argv, "--lr", 0.5), "state.pt", "optimization.lr: 0.001 there, 0.5 asked for")
    assert files(snapshot(tmp_path)).items() <= files(before).items()
    assert run_script(script, *argv, "--resume").returncode == 0
    assert files(snapshot(tmp_path)) == files(snapshot(trees.whole("private")))


def test_stages_already_trained_are_measured_after_a_stop(trees: Trees, tmp_path: Path) -> None:
    trees.begin("norms", tmp_path)
    script, argv = trees.line("norms", tmp_path)
    stop = "import os, signal\nfrom libtrain import gradient_norms\nmeasure = gradient_norms.measure\n"
    stop += "gradient_norms.measure = lambda *a: (os.kill(os.getpid(), signal.SIGTERM), measure(*a))[1]\n"
    ended = trees.server.run(script, argv, prepare=stop)
    line = last_line(ended)
    assert ended.status == -signal.SIGTERM and "1 of 2 stages done and all checkpoints kept" in line, line
    assert trees.server.run(script, argv).status == 0
    assert files(snapshot(tmp_path)) == files(snapshot(trees.whole("norms")))


class SmallMemory(nn.Module):
    """A network on a device that holds `limit` images at a time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.layer = nn.Linear(784, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} images")
        return self.layer(torch.tanh(x.flatten(1)))


def score(folder: Path, limit: int, batch_size: int, name: str = "model") -> tuple[Batches, np.ndarray]:
    torch.manual_seed(0)
    data = load_dataset("mnist", "train", DATA, index=np.arange(50))
    settings, batches = ScoreSettings(n_probes=2), Batches(batch_size)
    scoring = Scoring(folder, settings, find_scores(settings.scores), torch.device("cpu"), batches)
    model = SmallMemory(limit)
    with torch.no_grad():
        correct = (model.layer(torch.tanh(data.images.flatten(1))).argmax(1) == data.labels).double().numpy()
    score_model(scoring, name, model, {"sha256": "0"}, data, {"correctness": correct})
    return batches, load_scores(folder / name / f"curv_scores_{name}_0.001.npy")[0]


def test_a_full_gpu_gets_half_batches_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch's own error, raised by a real network; a GPU itself is not at hand."""
    _, want = score(tmp_path / "plenty", 50, 32)
    capsys.readouterr()
    batches, got = score(tmp_path / "little", 20, 32)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--batch_size 32, going on with 16" in line
    assert batches.size == 16
    np.testing.assert_allclose(got, want, rtol=1e-3)  # float32: 1e-7 of the gradient over h = 1e-3
    sidecar = read_sidecar(tmp_path / "little/model/curv_scores_model_0.001.npy")
    assert sidecar["provenance"]["batch_size"] == 16 and "batch_size" not in sidecar["settings"]

    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: score(tmp_path / "none", 5, 32))
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "batches of 16, halved from 32" in line.splitlines()[-1], line
    assert not list((tmp_path / "none").rglob("*.np?"))


def test_what_a_gpu_cannot_do_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: SmallMemory(1)(torch.zeros(2, 784)))
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and "--batch_size" in line

    def no_such_kernel() -> None:
        raise RuntimeError("pool_backward_cuda does not have a deterministic implementation, but you set ...\nmore")

    with pytest.raises(SystemExit) as stop:
        cli.run(no_such_kernel)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and "not with --deterministic on this device" in line
    with pytest.raises(RuntimeError, match="shapes"):  # any other error of PyTorch is a fault of ours and stays whole
        cli.run(lambda: SmallMemory(9)(torch.zeros(2, 7)))


def test_nan_is_stopped_and_named(ensemble: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    flags = ("--data_subset", 200, "--batch_size", 20, "--epochs", 30, "--accountant", "rdp", "--lr", "1e38")
    result = run_script(
        "train_dp.py",
        *ENSEMBLE_FLAGS,
        *flags,
        "--epsilon",
        5,
        "--optimizer",
        "sgd",
        "--momentum",
        0.9,
        "--config",
        config,
    )
    assert_refused(result, "mnist_smallcnn_eps_5_seed_0", "not finite at step 50", "--lr")
    assert not list(tmp_path.rglob("model.pt"))

    result = run_script("train_fz_models.py", *TRAIN_FLAGS, "--lr", "1e38", "--stop_run", 1, "--config", config)
    assert_refused(result, "run 0: the loss is not finite in epoch", "--lr")

    root = tmp_path / "fz_model_dir/mnist_smallcnn/0.7/0"
    for part in ("aux_arrays.npz", "checkpoints/model.pt"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).write_bytes((ensemble / "fz_model_dir/mnist_smallcnn/0.7/0" / part).read_bytes())
    path = root / "checkpoints/model.pt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["classifier.2.bias"][3] = torch.nan
    torch.save(content, path)
    result = run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", 1, "--config", config)
    assert_refused(result, path, "'classifier.2.bias' holds a value that is not finite")

    content["state_dict"]["classifier.2.bias"][3] = 0
    content["state_dict"]["features.0.weight"].fill_(3e38)
    torch.save(content, path)
    before = tree(root)
    result = run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", 1, "--config", config)
    assert result.returncode == 2 and tree(root) == before
    assert not list((tmp_path / "score_dir").rglob("*.npy"))


@pytest.mark.parametrize("name", ON_DEVICE)
def test_deterministic_is_noted_and_on_a_cpu_changes_nothing(trees: Trees, tmp_path: Path, name: str) -> None:
    trees.begin(name, tmp_path)
    start = snapshot(tmp_path)
    script, argv = trees.line(name, tmp_path)
    ended = trees.server.run(script, [*argv, "--deterministic"])
    assert ended.status == 0, ended.errors
    assert files(snapshot(tmp_path)) == files(snapshot(trees.whole(name)))
    noted = [
        json.loads((tmp_path / path).read_text())["provenance"]["deterministic"]
        for path in snapshot(tmp_path).keys() - start.keys()
        if path.endswith(".json") and "calibrations" not in path
    ]
    assert noted and all(noted)


def test_deterministic_sets_pytorchs_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert describe_device(resolve_device("cpu")) == {"device": "cpu", "deterministic": False}
    try:
        described = describe_device(resolve_device("cpu", deterministic=True))
        assert described == {"device": "cpu", "deterministic": True}
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", LONG[:-1])
def test_logs_are_whole_lines_with_the_time_left(trees: Trees, tmp_path: Path, name: str) -> None:
    trees.begin(name, tmp_path)
    script, argv = trees.line(name, tmp_path)
    ended = trees.server.run(script, argv, prepare="import libcli as cli\ncli.REPORT_EVERY = 0\n")
    assert ended.status == 0, ended.errors
    assert "\r" not in ended.errors + ended.output
    reports = [line for line in ended.errors.splitlines() if " left" in line]
    assert len(reports) > 1 and all(" of " in line and " spent, " in line for line in reports), ended.errors
