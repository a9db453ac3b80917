"""Training on a user's own data and networks: as the built-in ones, of any kind of input, or refused in a line."""

from __future__ import annotations

from libcli import warn_once

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, ROOT, assert_refused, run_script, tree, write_config

from libdata.choice import DataChoice
from libdata.datasets import DATASETS
from libmodels.checkpoints import load_model, read_checkpoint
from libmodels.networks import NetworkChoice, find_network
from libstore.errors import InputError
from libstore.fz import read_run
from libtrain.private_study import load_study
from libtrain.settings import DPSettings, EnsembleSettings, SGDSettings, StudySettings

NETS = """
import torch
import torch.nn.functional as F
from torch import nn

def table(num_classes, in_channels, width=8):
    return nn.Sequential(nn.Linear(in_channels, width), nn.Tanh(), nn.Linear(width, num_classes))

def normed(num_classes, in_channels):
    return nn.Sequential(nn.Linear(in_channels, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))

def words(num_classes, in_channels):
    return nn.Sequential(nn.Embedding(20, 3), nn.Flatten(), nn.Tanh(), nn.Linear(3 * in_channels, num_classes))

class Results(nn.Module):
    def __init__(self, num_classes, in_channels, kind="own"):
        super().__init__()
        self.out, self.kind = nn.Linear(in_channels, num_classes), kind
        nn.init.zeros_(self.out.weight), nn.init.zeros_(self.out.bias)  # as many do: mixing does not show at the start

    def forward(self, x):
        z = self.out(x)
        if self.training or self.kind == "own":
            return z
        if self.kind == "mixes":
            return z - z.mean(0)
        return z + torch.randn_like(z) if self.kind == "random" else z.bfloat16().float()

class Tutorial(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 4, 5), nn.Conv2d(4, 6, 5)
        self.drop, self.fc = nn.Dropout2d(), nn.Linear(96, num_classes)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 2))
        return F.log_softmax(self.fc(x.view(-1, 96)), dim=1)

def wrong(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + 1))

def breaks(num_classes):
    raise ValueError("not today")

def module():
    return 3

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with networks, a table and token ids, and a configuration."""
    rng = np.random.default_rng(0)
    labels = {f"{split}_y": np.arange(n) % 3 for split, n in (("train", 60), ("test", 20))}
    for name, draw in {
        "table": lambda n: rng.normal(3, 2, (n, 4)),
        "words": lambda n: rng.integers(0, 20, (n, 6)),
    }.items():
        np.savez(tmp_path / f"{name}.npz", **labels, train_x=draw(60), test_x=draw(20))
    (tmp_path / "nets.py").write_text(NETS)
    write_config(tmp_path)
    return tmp_path


def private(folder: Path, kind: str) -> list[object]:
    flags = ["--dataset", folder / f"{kind}.npz", "--arch", f"{folder}/nets.py:{kind}", "--batch_size", 20]
    flags += ["--epochs", 2, "--accountant", "rdp", "--config", folder / "config.json"]
    return [*flags, "--tokens"] if kind == "words" else flags


def test_a_copy_of_built_in_data_and_network_trains_to_the_same_bytes(tmp_path: Path) -> None:
    splits = {split: DATASETS["mnist"].read(DATA, split) for split in ("train", "test")}
    arrays = {
        f"{split}_{which}": part for split, pair in splits.items() for which, part in zip("xy", pair, strict=True)
    }
    arrays |= {key: arrays[key][:80] for key in ("train_x", "train_y")}
    np.savez(tmp_path / "digits.npz", **arrays)
    (tmp_path / "net.py").write_text((ROOT / "libmodels" / "smallcnn.py").read_text())
    config = ("--config", write_config(tmp_path))
    copied = ("--dataset", tmp_path / "digits.npz", "--arch", f"{tmp_path}/net.py:SmallCNN")
    lines = {
        "fz_model_dir": ("train_fz_models.py", "--epochs", 2, "--stop_run", 1, "--data_subset"),
        "private_model_dir": ("train_dp.py", "--epochs", 2, "--epsilon", 9, "--accountant", "rdp", "--batch_size", 20,
                              "--normalization", "unit", "--data_subset"),
    }  # fmt: skip
    for folder, line in lines.items():
        for more in ((80,), ("all", *copied)):
            result = run_script(*line, *more, *config)
            assert result.returncode == 0, result.stderr
        names = sorted(path.name for path in (tmp_path / folder).iterdir() if path.name != "calibrations")
        assert [name.split("_")[:2] for name in names] == [["digits", "SmallCNN"], ["mnist", "smallcnn"]]
        for file in ("aux_arrays.npz", "model.pt"):
            one, other = (next((tmp_path / folder / name).rglob(file)) for name in names)
            if file == "aux_arrays.npz":
                assert one.read_bytes() == other.read_bytes()
                continue
            kept = [read_checkpoint(path)["state_dict"] for path in (one, other)]
            assert kept[0].keys() == kept[1].keys() and all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])


@pytest.mark.parametrize("kind", ["table", "words"])
def test_inputs_that_are_not_images(own: Path, kind: str) -> None:
    flags = private(own, kind)
    for mode in ("ghost", "hooks"):
        made = run_script("train_dp.py", *flags, "--epsilon", 5, "--grad_sample_mode", mode, "--suffix", mode)
        assert made.returncode == 0 and "gradients" not in made.stderr, made.stderr
    folders = [own / "private_model_dir" / f"{kind}_{kind}_eps_5_{mode}" for mode in ("ghost", "hooks")]
    network = find_network(NetworkChoice(f"{own}/nets.py:{kind}"))
    states = [load_model(folder / "model.pt", network)[0].state_dict() for folder in folders]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=1e-4)
    assert read_run(folders[0]).logodds.keys() == {"train", "removed", "test"}
    made = run_script(
        "train_fz_models.py", *flags[:6], *(["--tokens"] if kind == "words" else []), "--epochs", 2, "--stop_run", 1,
        "--config", own / "config.json", "--arch_name", "net", "--dataset_name", "data",
    )  # fmt: skip
    assert made.returncode == 0 and (own / "fz_model_dir/data_net/0.7/0/aux_arrays.npz").exists(), made.stderr


def test_the_network_of_many_a_tutorial_trains_and_is_scored(own: Path) -> None:
    flags = ("--dataset", "mnist", "--arch", f"{own}/nets.py:Tutorial", "--config", own / "config.json")
    few = ("--data_subset", 70, "--epochs", 1)
    private = (*few, "--batch_size", 30, "--epsilon", 9, "--accountant", "rdp")
    for line in (
        ("train_fz_models.py", *few, "--stop_run", 1),
        ("calc_curv_fz_models.py", "--scores", "curvature,loss,grand"),
        ("train_dp.py", *private),
        ("calc_curv_private_models.py",),
        ("sensitivity/compute_sensitivity.py", *private, "--run", 1, "--points", 9, "--stages", 2, "--save_freq", 1),
    ):
        result = run_script(*line, *flags)
        assert result.returncode == 0, result.stderr
    assert len(list((own / "score_dir").glob("*/curv_scores_*.npy"))) == 2


@pytest.mark.parametrize("kind", ["table", "words"])
def test_gradient_norms_of_rows_and_sentences(own: Path, kind: str) -> None:
    measured = run_script(
        "sensitivity/compute_sensitivity.py", *private(own, kind), "--points", 5, "--stages", 2, "--lr", 0.01
    )
    assert measured.returncode == 0, measured.stderr
    table = pd.read_csv(own / "sensitivity_dir/res/res1.csv")
    assert set(table["dataset"]) == {kind} and set(table["model"]) == {kind}
    network = find_network(NetworkChoice(f"{own}/nets.py:{kind}"))
    with np.load(own / f"{kind}.npz") as arrays:
        x, y = torch.from_numpy(arrays["train_x"]), torch.from_numpy(arrays["train_y"])
    if kind == "table":
        x = ((x - x.mean(0)) / x.std(0, correction=0)).float()
    for step, rows in table.groupby("step"):
        model, _ = load_model(own / f"sensitivity_dir/models/ckpt1/step_{step}.pt", network)
        for row, norm in zip(rows["point"], rows["grad_norm"], strict=True):
            loss = F.cross_entropy(model(x[row : row + 1]), y[row : row + 1])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-3)


REFUSED = {
    "no file": (["--dataset", "{own}/gone.npz"], ["gone.npz", "cannot read"]),
    "no data set": (["--dataset", "mnits"], ["mnits", "mnist"]),
    "no module": (["--dataset", "no_such_module:load"], ["no_such_module"]),
    "returns something else": (["--dataset", "{own}/nets.py:module"], ["a int", "train_x"]),
    "not callable": (["--arch", "{own}/nets.py:number"], ["nets.py:number", "cannot be called"]),
    "no such name": (["--arch", "{own}/nets.py:tabel"], ["'tabel'", "table"]),
    "no network": (["--arch", "smalcnn"], ["--arch: smalcnn is unknown", "smallcnn"]),
    "raises": (["--arch", "{own}/nets.py:breaks"], ["nets.py:breaks", "not today"]),
    "other outputs": (["--arch", "{own}/nets.py:wrong"], ["(2, 3)", "(2, 4)"]),
    "an unknown option": (["--arch_options", "depth=3"], ["nets.py:table", "depth"]),
    "no option": (["--arch_options", "depth"], ["--arch_options depth", "KEY=VALUE"]),
    "images wanted": (["--arch", "lenet5"], ["no image", "32 x 32"]),
    "a convolution of a table": (["--arch", "smallcnn"], ["SmallCNN", "conv2d"]),
    "tokens that are none": (["--tokens"], ["float64", "token ids"]),
    "NaN": (["--dataset", "{own}/nan.npz"], ["train_x is nan at [3, 1]"]),
    "labels from 1": (["--dataset", "{own}/from_1.npz"], ["labels count from 0"]),
    "labels as floats": (["--dataset", "{own}/floats.npz"], ["train_y", "0.0", "integers"]),
    "lengths": (["--dataset", "{own}/short.npz"], ["60 examples", "59"]),
    "a name of theirs": (["--dataset_name", "mnist"], ["'mnist'", "built-in"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_line_before_anything_is_written(own: Path, name: str) -> None:
    with np.load(own / "table.npz") as file:
        arrays = dict(file)
    holed = arrays["train_x"].copy()
    holed[3, 1] = np.nan
    np.savez(own / "nan.npz", **arrays | {"train_x": holed})
    np.savez(own / "from_1.npz", **arrays | {key: arrays[key] + 1 for key in ("train_y", "test_y")})
    np.savez(own / "floats.npz", **arrays | {"train_y": arrays["train_y"].astype(float)})
    np.savez(own / "short.npz", **arrays | {"train_y": arrays["train_y"][:-1]})
    before = tree(own)
    flags, mentions = REFUSED[name]
    flags = [flag.format(own=own) for flag in flags]
    for line in (
        ("train_dp.py", *private(own, "table"), "--epsilon", 5),
        ("train_fz_models.py", *private(own, "table")[:6], "--batch_size", 20, "--config", own / "config.json"),
        ("sensitivity/compute_sensitivity.py", *private(own, "table"), "--points", 5),
    ):
        result = run_script(*line, *flags)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
        for mention in mentions:
            assert mention in result.stderr
    assert tree(own) == before


@pytest.mark.parametrize("kind", ["own", "mixes", "random", "coarse"])
def test_results_that_are_no_examples_own_are_told_before_training(own: Path, kind: str) -> None:
    """Memorization is of an example's own result: none, no training. Without curvature alone, a line."""
    net = ["--arch", f"{own}/nets.py:Results", "--arch_options", f"kind={kind}"]
    flags, ensemble = private(own, "table"), ["--dataset", own / "table.npz", "--config", own / "config.json"]
    warn_once.cache_clear()
    for line in (
        ["train_fz_models.py", *ensemble, "--stop_run", 1, "--epochs", 1],
        ["train_dp.py", *flags, "--epsilon", 5],
        ["sensitivity/compute_sensitivity.py", *flags, "--points", 5],
    ):
        before, result = tree(own), run_script(*line, *net)
        if kind in ("mixes", "random"):
            assert_refused(result, "Results", kind, "evaluation mode", "no result of its own")
            assert tree(own) == before
        else:
            assert result.returncode == 0, result.stderr
            assert result.stderr.count("curvature cannot be taken") == (kind == "coarse")
            break


def test_a_refused_network_removes_no_unfinished_state(own: Path) -> None:
    line = ("train_dp.py", *private(own, "table"), "--epsilon", 5, "--overwrite")
    folder = own / "private_model_dir" / "table_table_eps_5_seed_0"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"hours of work")
    (folder / "state.json").write_text("{}")
    before = tree(own)
    for flags, mention in ((["--arch", f"{own}/nets.py:normed"], "BatchNorm"), (["--epsilon", 1e-5], "epsilon 1e-05")):
        result = run_script(*line, *flags, "--arch_name", "table", "--suffix", "seed_0")
        assert result.returncode == 2 and mention in result.stderr, result.stderr
    assert {path: content for path, content in tree(own).items() if "calibrations" not in str(path)} == before


def test_a_last_batch_of_one_is_seen_before_training(own: Path) -> None:
    line = ["train_fz_models.py", *private(own, "table")[:2], "--arch", f"{own}/nets.py:normed", "--stop_run", 1]
    line += ["--config", own / "config.json", "--epochs", 1, "--batch_size"]
    result = run_script(*line, 41)  # 42 training examples
    assert result.returncode == 2 and "(1, 4)" in result.stderr and "more than 1 value" in result.stderr
    assert not (own / "fz_model_dir").exists()
    assert run_script(*line, 21).returncode == 0


def test_changed_code_or_data_is_not_taken_for_the_same(own: Path) -> None:
    line = ("train_dp.py", *private(own, "table"), "--epsilon", 5)
    assert run_script(*line).returncode == 0
    assert "skipped" in run_script(*line).stdout
    (own / "nets.py").write_text("# a remark\n" + NETS)
    assert "skipped" in run_script(*line).stdout
    (own / "nets.py").write_text(NETS.replace("nn.Tanh(), nn.Linear(width", "nn.ReLU(), nn.Linear(width"))
    assert "model.source" in run_script(*line).stderr
    (own / "nets.py").write_text(NETS)
    assert "model.options.width" in run_script(*line, "--arch_options", "width=9").stderr
    with np.load(own / "table.npz") as file:
        arrays = dict(file)
    np.savez(own / "table.npz", **arrays | {"test_x": arrays["test_x"] + 1})
    assert "data.content_sha256" in run_script(*line).stderr


def test_data_of_one_name_on_disk_are_told_apart_by_a_name_of_their_own(own: Path) -> None:
    """Names differ in what file names cannot keep, such as umlauts."""
    with np.load(own / "table.npz") as file:
        arrays = dict(file)
    for name, shift in (("bäume", 0), ("böume", 1)):
        np.savez(own / f"{name}.npz", **arrays | {"train_x": arrays["train_x"] + shift})
    network = ["--arch", f"{own}/nets.py:table", "--config", own / "config.json", "--epochs", 1]
    for line in (["train_fz_models.py", "--stop_run", 1], ["train_dp.py", *private(own, "table")[4:], "--epsilon", 5]):
        first, second = ([*line, *network, "--dataset", own / f"{name}.npz"] for name in ("bäume", "böume"))
        assert run_script(*first).returncode == 0
        assert_refused(run_script(*second), "b_ume_table", "--overwrite", "another --dataset_name than b_ume")
        assert run_script(*second, "--dataset_name", "boeume").returncode == 0
        assert "skipped" in run_script(*first).stdout


def test_results_of_before_own_networks_are_still_theirs(tmp_path: Path) -> None:
    line = ("train_dp.py", "--data_subset", 60, "--batch_size", 20, "--epochs", 1, "--epsilon", 9, "--accountant",
            "rdp", "--config", write_config(tmp_path))  # fmt: skip
    assert run_script(*line).returncode == 0
    folder = tmp_path / "private_model_dir" / "mnist_smallcnn_eps_9_seed_0"
    for name in ("model.json", "aux_arrays.json"):
        sidecar = json.loads((folder / name).read_text())
        for key in ("built_in", "source", "tokens", "image_size", "input_shape"):
            del sidecar["settings"]["model"][key]
        (folder / name).write_text(json.dumps(sidecar))
    assert "skipped" in run_script(*line).stdout
    (tmp_path / "net.py").write_text((ROOT / "libmodels" / "smallcnn.py").read_text())
    other = run_script(*line, "--arch", f"{tmp_path}/net.py:SmallCNN", "--arch_name", "smallcnn")
    assert_refused_without_page(other, "model.built_in", "model.source")


def assert_refused_without_page(result, *mentions: str) -> None:
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert all(mention in result.stderr for mention in mentions), result.stderr


def test_a_notebook_needs_no_command_line(own: Path) -> None:
    network = find_network(NetworkChoice(f"{own}/nets.py:table"), private=True)
    study = load_study(
        DataChoice(str(own / "table.npz")), network, StudySettings(data_subset="50"), DPSettings(3, batch_size=10), DATA
    )
    assert len(study.rows) == study.planned == 50 and study.data.images.shape == (50, 4)
    for wrong in (
        lambda: DPSettings(0), lambda: DPSettings(1, optimizer="adagrad"), lambda: DPSettings(1, lr_drops=(0.5, 1.0)),
        lambda: SGDSettings(epochs=0), lambda: EnsembleSettings(ratio=1.0), lambda: StudySettings(normalization="z"),
        lambda: DPSettings(1, optimizer="adam", momentum=0.5),
    ):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
