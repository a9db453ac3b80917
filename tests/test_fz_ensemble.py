"""Training and scoring an ensemble through the shipped scripts: layout, kills, refusals."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    DATA,
    ENSEMBLE_FLAGS,
    TRAIN_FLAGS,
    assert_refused,
    run_script,
    start_script,
    tree,
    write_config,
)

from calc_curv_fz_models import wanted_runs
from libdata.datasets import load_dataset
from libmodels.checkpoints import load_model
from libscores.curvature import curvature
from libscores.memorization import memorization
from libstore.errors import InputError
from libstore.fz import list_runs, read_run, read_runs, run_dir
from libstore.index import index_digest, load_array
from libstore.scored_ensemble import ScoredEnsemble
from libstore.scores import CURVATURE, LABELS, TRACE, index_path, score_path
from libstore.store import load_scores, read_sidecar


def test_layout_holds_what_the_models_do(ensemble: Path) -> None:
    root = ensemble / "fz_model_dir" / "mnist_smallcnn"
    assert list_runs(root, "0.7", 0, None) == list(range(6))
    data, test = (load_dataset("mnist", split, DATA) for split in ("train", "test"))
    subsets = []
    for run in range(6):
        arrays = read_run(root / "0.7" / str(run))
        subsets.append(tuple(arrays.subsample_idx))
        assert len(arrays.index["train"]) == 140 and len(arrays.index["removed"]) == 60
        np.testing.assert_array_equal(arrays.examples, np.arange(200))
        np.testing.assert_array_equal(arrays.index["test"], np.arange(10_000))
        model, spec = load_model(root / "0.7" / str(run) / "checkpoints" / "model.pt")
        assert spec.arch == "smallcnn" and spec.normalization == "unit"
        for group, split in (("train", data), ("removed", data), ("test", test)):
            index = torch.from_numpy(arrays.index[group])
            with torch.no_grad():
                logits = model(split.images[index])
            labels = split.labels[index]
            np.testing.assert_array_equal(arrays.correctness[group], logits.argmax(1) == labels)
            prob = torch.exp(-torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            np.testing.assert_allclose(arrays.prob[group], prob, atol=1e-5)
            exact = logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]
            np.testing.assert_allclose(arrays.logodds[group], exact - torch.log(-torch.expm1(exact)), atol=1e-4)
        np.testing.assert_array_equal(arrays.on(arrays.index["removed"], "logodds")[1], arrays.logodds["removed"])
    assert len(set(subsets)) == 6


def test_scores_are_the_estimator_on_the_saved_models(ensemble: Path) -> None:
    data = load_dataset("mnist", "train", DATA, index=np.arange(200))
    name = "mnist_smallcnn_0.7_2"
    model, _ = load_model(ensemble / "fz_model_dir/mnist_smallcnn/0.7/2/checkpoints/model.pt")
    want = curvature(model, data.images, data.labels, data.index, n_probes=3)
    for kind, array in zip((CURVATURE, TRACE, LABELS), (want.curvature, want.trace, data.labels.numpy()), strict=True):
        path = score_path(ensemble / "score_dir", kind, name, 1e-3)
        file = {"curvature": "curv_scores"}.get(kind, kind)
        assert path == ensemble / "score_dir" / name / f"{file}_{name}_0.001.npy"
        got, sidecar = load_scores(path)
        np.testing.assert_allclose(got, array, rtol=1e-5)
        settings = sidecar["settings"]
        assert settings["h"] == 1e-3 and settings["n_probes"] == 3 and settings["model_name"] == name
        digest = settings["data"]["index_sha256"]
        np.testing.assert_array_equal(load_array(index_path(ensemble / "score_dir", digest)), np.arange(200))
        assert digest == index_digest(np.arange(200))
        assert {"commit", "versions", "seconds", "device", "batch_size"} <= sidecar["provenance"].keys()


def test_a_second_run_skips_and_other_settings_are_refused(ensemble: Path) -> None:
    config, before = ensemble / "config.json", tree(ensemble)
    for command in (
        ("train_fz_models.py", *TRAIN_FLAGS, "--stop_run", "6"),
        ("train_fz_models.py", *(flag.replace("--data_subset", "--subset") for flag in TRAIN_FLAGS), "--stop_run", "6"),
        ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "3", "--batch_size", "64"),
    ):
        result = run_script(*command, "--config", config)
        assert result.returncode == 0 and result.stdout.count("skipped") == 6
    refused = run_script("train_fz_models.py", *TRAIN_FLAGS, "--lr", "0.2", "--config", config)
    assert_refused(refused, "sgd.lr: 0.1 there, 0.2 asked for", "--overwrite")
    refused = run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "4", "--config", config)
    assert_refused(refused, "n_probes: 3 there, 4 asked for", "--overwrite")
    assert tree(ensemble) == before


def test_an_ensemble_grows_by_runs_of_its_own_settings(ensemble: Path, tmp_path: Path) -> None:
    """Runs are averaged: they may differ in number and seed; other examples, epochs or a network would not belong."""
    shutil.copytree(ensemble / "fz_model_dir/mnist_smallcnn/0.7/5", tmp_path / "fz_model_dir/mnist_smallcnn/0.7/5")
    line = ("train_fz_models.py", *TRAIN_FLAGS, "--config", write_config(tmp_path), "--stop_run", "8")
    before, started = tree(tmp_path), ("--start_run", "6")
    for flags, told in (
        (("--epochs", "1"), "sgd.epochs: 8 there, 1 asked for"),
        (("--data_subset", "150"), "data.n_examples: 200 there, 150 asked for"),
        (("--activation", "relu"), 'model.options.activation: "tanh" there, "relu" asked for'),
    ):
        assert_refused(run_script(*line, *started, *flags), "smallcnn/0.7/5: ", told, "--overwrite")
        assert_refused(run_script(*line, *flags), "smallcnn/0.7/5: ", told)  # before runs 0 to 4 are trained
    assert tree(tmp_path) == before
    assert run_script(*line, *started, "--seed", "3", "--stop_run", "7").returncode == 0
    other = ("--start_run", "7", "--epochs", "1")
    assert run_script(*line, *other, "--ratio", "0.5").returncode == 0  # another ensemble, in a folder of its own
    assert run_script(*line, *other, "--overwrite").returncode == 0  # one line of many that train it anew
    assert tree(tmp_path).items() > before.items()
    arrays = tmp_path / "fz_model_dir/mnist_smallcnn/0.7/5/aux_arrays.json"  # as of a training on another device
    arrays.write_text(arrays.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    for said in ("accuracy", "skipped"):
        assert said in run_script(*line, "--start_run", "5", "--stop_run", "6", "--overwrite").stdout
    assert tree(tmp_path).items() > before.items()


def test_split_over_jobs_gives_the_same_bytes(ensemble: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for start, stop in ((4, 6), (0, 4)):
        span = ("--start_run", start, "--stop_run", stop, "--config", config)
        assert run_script("train_fz_models.py", *TRAIN_FLAGS, *span).returncode == 0
        assert run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "3", *span).returncode == 0
    for folder in ("fz_model_dir", "score_dir"):
        assert tree(tmp_path / folder) == tree(ensemble / folder)


def test_state_of_an_unfinished_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = ["train_fz_models.py", *TRAIN_FLAGS, "--epochs", "400", "--stop_run", "1", "--save_every", "0"]
    process = start_script(*command, "--config", config)
    state = tmp_path / "fz_model_dir/mnist_smallcnn/0.7/0/checkpoints/state.pt"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert_refused(run_script(*command, "--lr", "0.2", "--config", config), "state.pt", "lr: 0.1 there, 0.2 asked for")
    again = run_script("train_fz_models.py", *TRAIN_FLAGS, "--stop_run", "1", "--overwrite", "--config", config)
    assert again.returncode == 0 and not state.exists()


def test_diverging_training_is_stopped_and_named(tmp_path: Path) -> None:
    result = run_script(
        "train_fz_models.py", *TRAIN_FLAGS, "--lr", "1e38", "--stop_run", "1", "--config", write_config(tmp_path)
    )
    assert_refused(result, "run 0", "not finite", "--lr")


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (["--ratio", "1.0"], ["--ratio", "1.0", "< 1"]),
        (["--ratio", "0"], ["--ratio", "0", "> 0"]),
        (["--ratio", "nan"], ["--ratio", "nan"]),
        (["--data_subset", "20", "--ratio", "0.02"], ["--ratio 0.02", "20 examples"]),
        (["--data_subset", "1"], ["hold 1 of 10 classes", "spread:N"]),
        (["--data_subset", "60001"], ["60001", "60000"]),
        (["--start_run", "3", "--stop_run", "3"], ["--stop_run 3", "--start_run 3"]),
        (["--data_subset", "no.npy"], ["no.npy"]),
        (["--data_subset", "-5"], ["--data_subset: -5", "spread:N"]),
        (["--data_subset", "spread:0"], ["--data_subset: spread:0", "N from 1"]),
        (["--data-subset=200", "--subset", "300"], ["--subset", "old spelling of --data_subset"]),
        (["--device", "cuda:7"], ["cuda:7", "not available"]),
        (["--device", "abacus"], ["abacus", "not available"]),
        (["--norm", "group"], ["--norm group", "smallcnn"]),
        (["--lr", "-1"], ["--lr", "-1"]),
        (["--epochs", "two"], ["--epochs", "two"]),
    ],
)
def test_train_refuses_bad_input_before_any_work(tmp_path: Path, flags: list[str], mentions: list[str]) -> None:
    config = write_config(tmp_path)
    assert_refused(run_script("train_fz_models.py", *flags, "--config", config), *mentions)
    assert not (tmp_path / "fz_model_dir").exists()


@pytest.mark.parametrize(
    "flags", [["--h", "0"], ["--h", "-0.1"], ["--n_probes", "0"], ["--temp", "0"], ["--device", "cuda:7"]]
)
def test_score_refuses_bad_input_before_any_work(ensemble: Path, tmp_path: Path, flags: list[str]) -> None:
    shutil.copytree(ensemble / "fz_model_dir", tmp_path / "fz_model_dir")
    config = write_config(tmp_path)
    assert_refused(run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, *flags, "--config", config), *flags[1:])
    assert not (tmp_path / "score_dir").exists()


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"correctness_train": None}, "'correctness_train' is missing"),
        ({"correctness_removed": np.ones(3, bool)}, "'correctness_removed' has 3 values for 60"),
        ({"index_train": np.array([object()])}, "'index_train'.*builtins.object"),
        ({"index_removed": np.array([0, 0])}, "'index_removed' holds a position twice"),
        ({"index_test": np.array([-1])}, "negative position -1"),
        ({"index_test": np.array([0.5])}, r"'index_test' should hold whole numbers, found 0\.5"),
        ({"index_test": np.array([np.nan])}, "whole numbers, found nan"),
        ({"index_test": np.array(["0"])}, "whole numbers, found <U1"),
        ({"index_train": np.arange(200) < 140}, "'index_train' is a mask of 200"),
        ({"subsample_idx": np.arange(200) < 140}, "'subsample_idx' is a mask of 200"),
        ({"subsample_idx": np.arange(140)}, r"'subsample_idx' and 'index_train' differ, example \d+ is only in"),
        ({"subsample_idx": np.empty(0, int)}, "'subsample_idx' and 'index_train' differ"),
        ({"index_test": np.arange(1, 10_001)}, "positions in index_test run from 1 to 10000; count them from 0"),
        ({"correctness_train": np.full(140, "1")}, "'correctness_train' should hold values from 0 to 1, found <U1"),
        ({"correctness_train": np.full(140, np.nan)}, "'correctness_train' .* from 0 to 1, found nan at 0"),
        ({"correctness_train": np.r_[np.ones(139), np.nan]}, "found nan at 139"),
        ({"correctness_test": np.full(10_000, 97.0)}, r"from 0 to 1, found 97\.0 at 0"),
        ({"correctness_removed": np.full(60, -1)}, "from 0 to 1, found -1 at 0"),
        ({"correctness_removed": np.ones(60, complex)}, "from 0 to 1, found complex128"),
        ({"correctness_removed": np.ones((60, 2))}, r"one-dimensional, found shape \(60, 2\)"),
        ({"index_removed": np.arange(200)}, "'correctness_removed' has 60 values for 200"),
        ({"prob_test": np.full(10_000, 1.5)}, "from 0 to 1"),
        ({"prob_test": None}, "not all of prob_train"),
        ({"logodds_removed": None}, "has 'logodds_train' but not all of logodds_train, logodds_removed"),
        ({"logodds_train": np.full(140, np.inf)}, "'logodds_train' should hold finite numbers, found inf at 0"),
        ({"logodds_train": np.zeros(3)}, "'logodds_train' has 3 values for 140"),
        ({"subsample_idx": np.zeros((2, 2), int)}, "one-dimensional"),
    ],
)
def test_damaged_runs_are_refused_with_file_and_key(ensemble: Path, tmp_path: Path, change: dict, mention: str) -> None:
    shutil.copy(ensemble / "fz_model_dir/mnist_smallcnn/0.7/0/aux_arrays.npz", tmp_path)
    rewrite(tmp_path / "aux_arrays.npz", **change)
    with pytest.raises(InputError, match=mention) as error:
        read_run(tmp_path)
    assert str(tmp_path / "aux_arrays.npz") in str(error.value)


def own_runs(root: Path, *, ratio: str = "0.7", n: int = 40, runs: int = 6) -> list[dict[str, np.ndarray]]:
    """Write runs of a user's own making, without sidecars, whose correctness is a share; return their arrays."""
    rng, written = np.random.default_rng(0), []
    for run in range(runs):
        chosen = rng.permutation(n)
        index = {"train": chosen[: n * 7 // 10], "removed": chosen[n * 7 // 10 :], "test": np.arange(5)}
        arrays = {f"index_{group}": values for group, values in index.items()}
        arrays |= {f"correctness_{group}": rng.random(len(values)) for group, values in index.items()}
        arrays["subsample_idx"] = index["train"]
        (root / ratio / f"{run:03d}").mkdir(parents=True)
        np.savez(root / ratio / f"{run:03d}" / "aux_arrays.npz", **arrays)
        written.append(arrays)
    return written


def test_shares_are_values_like_any_other_in_folders_with_zeros(tmp_path: Path) -> None:
    """Memorization against plain lists."""
    written = own_runs(tmp_path)
    numbers = list_runs(tmp_path, "0.7", 0, None)
    assert numbers == list(range(6))
    runs = list(read_runs(tmp_path, "0.7", numbers, size=40))
    got = memorization((run.on(np.arange(40)) for run in runs), 40)
    for i in range(40):
        groups: dict[str, list[float]] = {"train": [], "removed": []}
        for arrays in written:
            for group, values in groups.items():
                values += arrays[f"correctness_{group}"][arrays[f"index_{group}"] == i].tolist()
        if all(groups.values()):
            want = np.mean(groups["train"]) - np.mean(groups["removed"])
            assert got.score[i] == pytest.approx(want) and abs(want) > 1e-3
        else:
            assert np.isnan(got.score[i])
    kept = runs[2].to_dict()
    np.savez(tmp_path / "aux_arrays.npz", **kept)
    again = read_run(tmp_path).to_dict()
    assert kept.keys() == again.keys()
    for key, values in kept.items():
        np.testing.assert_array_equal(again[key], values)


def test_columns_and_whole_floats_are_read(tmp_path: Path) -> None:
    own_runs(tmp_path, runs=1)
    folder = tmp_path / "0.7" / "000"
    before = read_run(folder)
    with np.load(folder / "aux_arrays.npz") as file:
        arrays = dict(file)
    types = {"index_train": "f4", "index_removed": "u2", "index_test": "i1", "subsample_idx": "f8"}
    changed = {key: arrays[key].astype(kind)[:, None] for key, kind in types.items()}
    changed |= {key: values[None] for key, values in arrays.items() if key.startswith("correctness")}
    rewrite(folder / "aux_arrays.npz", **changed, notes=np.zeros((2, 2)))
    after = read_run(folder)
    for kind in ("index", "correctness"):
        for group, values in getattr(before, kind).items():
            np.testing.assert_array_equal(getattr(after, kind)[group], values)
    assert after.index["train"].dtype == np.int64


def test_positions_from_one_are_refused_unless_meant(tmp_path: Path) -> None:
    own_runs(tmp_path, runs=1)
    path = tmp_path / "0.7" / "000" / "aux_arrays.npz"
    with np.load(path) as file:
        shifted = {key: file[key] + 1 for key in ("index_train", "index_removed", "subsample_idx")}
    rewrite(path, **shifted)
    with pytest.raises(InputError, match="index_train and index_removed run from 1 to 40; count them from 0"):
        read_run(path.parent)
    path.with_suffix(".json").touch()  # a run of train_fz_models.py --subset with these positions
    np.testing.assert_array_equal(read_run(path.parent).examples, np.arange(1, 41))


@pytest.mark.parametrize("name", ["7 (copy)", "run_7", "-7", "7.0", "\uff17", "7_old", "0" * 17 + "7"])
def test_a_run_under_a_name_that_is_no_number_is_refused(tmp_path: Path, name: str) -> None:
    own_runs(tmp_path, runs=2)
    (tmp_path / "0.7" / "notes").mkdir()
    (tmp_path / "0.7" / "9").mkdir()  # unfinished
    assert list_runs(tmp_path, "0.7", 0, None) == [0, 1]
    shutil.copytree(tmp_path / "0.7" / "001", tmp_path / "0.7" / name)
    with pytest.raises(InputError, match=rf"{re.escape(name)}: holds aux_arrays\.npz, but its name is no run's number"):
        list_runs(tmp_path, "0.7", 0, None)


def test_a_run_counts_once(tmp_path: Path) -> None:
    own_runs(tmp_path, runs=3)
    shutil.copytree(tmp_path / "0.7" / "001", tmp_path / "0.7" / "17")
    with pytest.raises(InputError, match="17: holds the same run as .*001; a run counts once"):
        list(read_runs(tmp_path, "0.7", list_runs(tmp_path, "0.7", 0, None)))
    (tmp_path / "0.7" / "17").rename(tmp_path / "0.7" / "1")
    for use in (lambda: list_runs(tmp_path, "0.7", 0, None), lambda: run_dir(tmp_path, "0.7", 1)):
        with pytest.raises(InputError, match="0.7/1 and .*0.7/001: two folders of run 1"):
            use()


def test_runs_about_other_examples_are_refused(tmp_path: Path) -> None:
    own_runs(tmp_path, runs=3)
    path = tmp_path / "0.7" / "001" / "aux_arrays.npz"
    with np.load(path) as file:
        last = np.argmax(file["index_removed"])
        fewer = {key: np.delete(file[key], last) for key in ("index_removed", "correctness_removed")}
    rewrite(path, **fewer)
    with pytest.raises(InputError, match="001: the examples .* 39 of them, are not those of .*000"):
        list(read_runs(tmp_path, "0.7", range(3)))
    with pytest.raises(
        InputError, match=r"000/aux_arrays\.npz: key 'index_\w+' holds 39, the data set has 39 examples"
    ):
        next(read_runs(tmp_path, "0.7", range(3), size=39))


def test_scripts_name_the_run_they_refuse(ensemble: Path, tmp_path: Path) -> None:
    shutil.copytree(ensemble / "fz_model_dir", tmp_path / "fz_model_dir")
    shutil.copytree(ensemble / "score_dir", tmp_path / "score_dir")
    config, runs = write_config(tmp_path), tmp_path / "fz_model_dir/mnist_smallcnn/0.7"
    scripts = ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "3"), ("scripts/make_memorization_subsets.py",)
    with np.load(runs / "2" / "aux_arrays.npz") as file:
        moved = np.where(np.arange(60) == 5, 60_000, file["index_removed"])
    rewrite(runs / "2" / "aux_arrays.npz", index_removed=moved)
    outside = "'index_removed' holds 60000, the data set has 60000 examples"
    for script, mention in zip(scripts, (outside, "is not what its sidecar says"), strict=True):
        assert_refused(run_script(*script, "--config", config), runs / "2", mention)
    shutil.copy(ensemble / "fz_model_dir/mnist_smallcnn/0.7/2/aux_arrays.npz", runs / "2")
    shutil.copytree(runs / "3", runs / "17")
    copied = run_script(*scripts[0], "--config", config)  # a copy that says so in its sidecar is left out
    assert copied.returncode == 0 and copied.stderr.count("left out: its settings are those of run 3") == 1
    for sidecar in runs.glob("*/aux_arrays.json"):
        sidecar.unlink()
    for script in scripts:
        refused = run_script(*script, "--config", config)
        assert_refused(refused, runs / "17", "the same run as", runs / "3")
    assert not (tmp_path / "private_model_dir").exists()


@pytest.mark.parametrize("prob", [False, True])
def test_positions_of_another_order_are_refused(ensemble: Path, tmp_path: Path, prob: bool) -> None:
    shutil.copytree(ensemble / "fz_model_dir", tmp_path / "fz_model_dir")
    path = tmp_path / "fz_model_dir/mnist_smallcnn/0.7/0/aux_arrays.npz"
    order = np.random.default_rng(0).permutation(200)
    with np.load(path) as file:
        changed: dict[str, np.ndarray | None] = {
            key: order[file[key]] for key in ("index_train", "index_removed", "subsample_idx")
        }
        if not prob:
            changed |= dict.fromkeys(key for key in file.files if key.startswith("prob_"))
    rewrite(path, **changed)
    command = ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "1", "--config", write_config(tmp_path))
    refused = run_script(*command)
    assert_refused(refused, "mnist_smallcnn_0.7_0: ", "the order or the scale of the data")
    assert not list(tmp_path.rglob("curv_scores*"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no archive at all"])
def test_files_that_are_no_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "aux_arrays.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"aux_arrays\.npz"):
        read_run(tmp_path)


def test_an_example_cannot_be_both_seen_and_removed(ensemble: Path, tmp_path: Path) -> None:
    shutil.copy(ensemble / "fz_model_dir/mnist_smallcnn/0.7/0/aux_arrays.npz", tmp_path)
    with np.load(tmp_path / "aux_arrays.npz") as file:
        shared = np.concatenate([file["index_train"][:1], file["index_removed"][1:]])
    rewrite(tmp_path / "aux_arrays.npz", index_removed=shared)
    with pytest.raises(InputError, match="both index_train and index_removed"):
        read_run(tmp_path)


def test_an_ensemble_without_runs_is_refused(ensemble: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert_refused(run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--config", config), "no such ensemble")
    (tmp_path / "fz_model_dir/mnist_smallcnn/0.7/0").mkdir(parents=True)
    assert_refused(run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--config", config), "no finished run")
    shutil.copytree(ensemble / "fz_model_dir", tmp_path / "fz_model_dir", dirs_exist_ok=True)
    result = run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--start_run", "6", "--config", config)
    assert_refused(result, "no finished run")


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


def test_checkpoints_that_carry_code_or_do_not_fit_are_refused(ensemble: Path, tmp_path: Path) -> None:
    shutil.copytree(ensemble / "fz_model_dir", tmp_path / "fz_model_dir")
    config = write_config(tmp_path)
    path = tmp_path / "fz_model_dir/mnist_smallcnn/0.7/0/checkpoints/model.pt"
    good = torch.load(path, weights_only=True)
    short = dict(list(good["state_dict"].items())[:-1])
    for content in ({"spec": Trap()}, good | {"state_dict": short}, good | {"spec": {"arch": "lenet5"}}, [1]):
        torch.save(content, path)
        result = run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--config", config)
        assert_refused(result, path)
        assert "unpickled" not in result.stdout
    path.unlink()
    assert_refused(run_script("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--config", config), path)


def test_saved_runs_and_scores_feed_the_mathematics(ensemble: Path) -> None:
    found = ScoredEnsemble.find(
        ensemble / "fz_model_dir", ensemble / "score_dir", "mnist", "smallcnn", "0.7", stop_run=8, value="prob"
    )
    assert found.runs == list(range(6)) and found.missing == [6, 7]
    runs = list(found.read())
    scores = memorization([(run.in_mask, run.value) for run in runs], 200)
    np.testing.assert_allclose(runs[0].loss, -np.log(runs[0].value), rtol=1e-3, atol=1e-6)
    by_hand = np.full(200, np.nan)
    arrays = [read_run(ensemble / "fz_model_dir/mnist_smallcnn/0.7" / str(run)) for run in range(6)]
    for i in range(200):
        seen = [a.prob["train"][a.index["train"] == i][0] for a in arrays if i in a.index["train"]]
        not_seen = [a.prob["removed"][a.index["removed"] == i][0] for a in arrays if i in a.index["removed"]]
        if seen and not_seen:
            by_hand[i] = np.mean(seen, dtype=float) - np.mean(not_seen, dtype=float)
    np.testing.assert_allclose(scores.score, by_hand, atol=1e-6)
    assert read_sidecar(ensemble / "score_dir/mnist_smallcnn_0.7_0/trace_mnist_smallcnn_0.7_0_0.001.npy")


def test_unscored_ensembles_and_foreign_scores_are_named(ensemble: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model of .* has this score"):
        ScoredEnsemble.find(ensemble / "fz_model_dir", tmp_path, "mnist", "smallcnn", "0.7")
    shutil.copytree(ensemble / "score_dir", tmp_path / "s")
    path = tmp_path / "s/mnist_smallcnn_0.7_3/curv_scores_mnist_smallcnn_0.7_3_0.001.json"
    path.write_text(path.read_text().replace(index_digest(np.arange(200)), index_digest(np.arange(199))))
    found = ScoredEnsemble.find(ensemble / "fz_model_dir", tmp_path / "s", "mnist", "smallcnn", "0.7")
    with pytest.raises(InputError, match="other examples than run 0"):
        list(found.read())


def test_one_unreadable_ratio_does_not_stop_all(capsys) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for ratio in ("0.1", "0.4", "0.7"):
            (root / ratio / "2").mkdir(parents=True)
            (root / ratio / "2" / "aux_arrays.npz").touch()
        (root / "0.2").touch()
        (root / "0.3").symlink_to("0.3")
        (root / "0.5").mkdir()
        (root / "0.1").chmod(0o000)
        try:
            if not os.geteuid():
                os.seteuid(54321)
            assert wanted_runs(root, "all", 0, None) == [("0.4", [2]), ("0.7", [2])]
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 4 and all(line.endswith("; left out") for line in lines)
            assert all(
                f"{root}/{ratio}" in line for ratio, line in zip(("0.1", "0.2", "0.3", "0.5"), lines, strict=True)
            )
            assert "Permission denied" in lines[0]
            with pytest.raises(InputError, match="no ratio has a finished run from 3 to the last"):
                wanted_runs(root, "all", 3, None)
        finally:
            os.seteuid(os.getuid())
            (root / "0.1").chmod(0o755)
