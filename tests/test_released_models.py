"""Both scripts on ensembles that Sonnet wrote in the Feldman-Zhang layout."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_script, write_config
from released_files import know_cifar

import calc_curv_fz_imagenet_models
import calc_curv_fz_models
from libdata.imagenet import read_imagenet_index
from libmodels import tf_checkpoint
from libmodels.tf_checkpoint import converted
from libscoring import shard_scoring
from libstore.errors import InputError
from libstore.fz import read_run
from libstore.store import load_scores, read_sidecar

KINDS = ("curv_scores", "trace", "true_labels")
NAME = "imagenet_resnet50_0.7_1"
CIFAR = ("--h", "0.05", "--n_probes", "2", "--batch_size", "16", "--device", "cpu")
IMAGENET = ("--n_probes", "1", "--batch_size", "2", "--workers", "1", "--device", "cpu", "--h", "0.01")


@pytest.fixture
def work(released, tmp_path, monkeypatch):
    """A config with score and model directories of its own; the downloads themselves are shared."""
    know_cifar(released / "data", monkeypatch)
    models = tmp_path / "fz_models"
    shutil.copytree(released / "fz_models", models, copy_function=link, ignore=shutil.ignore_patterns("tfds_order*"))
    return tmp_path, write_config(
        tmp_path, data_dir=released / "data", fz_model_dir=models, tfrecord_dir=released / "tfrecords",
        imagenet_index=released / "imagenet_index.npz", score_dir=tmp_path / "scores",
    )  # fmt: skip


def link(source, target):
    """Copy small files, link large ones: a test may replace but never write into them."""
    if source.endswith(".npz"):
        shutil.copy(source, target)
    else:
        Path(target).symlink_to(source)


@pytest.fixture(scope="module")
def converted_imagenet(released):
    """A directory that holds the ImageNet model converted, for tests that are not about conversion."""
    folder = released / "converted"
    converted(released / "fz_models/imagenet-resnet50/0.7/1", folder / f"{NAME}.pt", keep=True)
    return folder


def change_config(config, **paths):
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: str(path) for key, path in paths.items()}))


def scores_of(folder, name, h):
    return {kind: load_scores(folder / "scores" / name / f"{kind}_{name}_{h}.npy") for kind in KINDS}


def test_cifar_ensemble_end_to_end(released, work, capsys, monkeypatch):
    """Scores in torchvision's order that equal TensorFlow's gradients with the same probes."""
    folder, config = work
    command = ["--config", str(config), "--ratio", "all", *CIFAR]

    own_map = folder / "fz_models" / "cifar100-inception" / "tfds_order.npz"
    np.savez(own_map, train=np.arange(64), test=np.arange(16))
    with pytest.raises(
        InputError, match=r"cifar100_small_inception_0\.7_0: agrees .* not on 99%: the order or the scale"
    ):
        calc_curv_fz_models.main(command)  # TFDS positions taken for torchvision's
    assert not list(folder.rglob("curv_scores*"))
    own_map.unlink()
    calc_curv_fz_models.main([*command, "--keep_converted"])
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("device ")]
    assert printed == [f"cifar100_small_inception_0.7_{run}: scored" for run in (0, 3)]
    name = "cifar100_small_inception_0.7_0"
    kept = scores_of(folder, name, 0.05)
    with np.load(released / "cifar.npz", allow_pickle=False) as truth:
        np.testing.assert_array_equal(kept["true_labels"][0], truth["labels_train"])
        np.testing.assert_allclose(kept["curv_scores"][0][:6], truth["curvature"], rtol=1e-3)
        np.testing.assert_allclose(
            kept["trace"][0][:6], truth["trace"], rtol=1e-3, atol=1e-3 * np.abs(truth["trace"]).max()
        )
    settings = kept["curv_scores"][1]["settings"]
    assert settings["data"]["normalization"] == "unit"
    assert set(settings["model"]["source"]) == {"ckpt-1.index", "ckpt-1.data-00000-of-00001"}
    assert sorted(path.name for path in (folder / "converted_dir").glob("*.pt")) == [
        "cifar100_small_inception_0.7_0.pt", "cifar100_small_inception_0.7_3.pt"
    ]  # fmt: skip

    monkeypatch.delattr(tf_checkpoint, "read_variables")
    calc_curv_fz_models.main(command)
    assert capsys.readouterr().out.count("finished before, skipped") == 2
    content = {path.name: path.read_bytes() for path in (folder / "scores" / name).glob("*.npy")}
    shutil.rmtree(folder / "scores" / name)
    calc_curv_fz_models.main(command)
    assert {path.name: path.read_bytes() for path in (folder / "scores" / name).glob("*.npy")} == content


def test_a_wrong_scale_is_noticed(work, monkeypatch):
    folder, config = work
    real = calc_curv_fz_models.load_dataset
    monkeypatch.setattr(
        calc_curv_fz_models, "load_dataset", lambda *a, **k: real(*a, **k | {"normalization": "standard"})
    )
    with pytest.raises(InputError, match="not on 99%: the order or the scale of the data"):
        calc_curv_fz_models.main(["--config", str(config), *CIFAR])
    assert not list(folder.rglob("curv_scores*"))


def test_imagenet_model_end_to_end(released, work, capsys, monkeypatch):
    """One job; then the same split over jobs, one of them killed; the bytes are the same."""
    folder, config = work
    command = ["--config", str(config), "--start_idx", "0", "--stop_idx", "1", *IMAGENET]
    calc_curv_fz_imagenet_models.main([*command, "--keep_converted"])
    out = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("device ")]
    assert out[0].startswith("imagenet_resnet50_0.7_0: ") and out[0].endswith("is not there, left out")
    assert out[1] == f"{NAME}: scored"
    kept = scores_of(folder, NAME, 0.01)
    order = read_imagenet_index(released / "imagenet_index.npz")
    np.testing.assert_array_equal(kept["true_labels"][0], order.labels)
    assert np.isfinite(kept["curv_scores"][0]).all() and len(set(kept["curv_scores"][0])) == len(order)
    assert sorted(path.name for path in (folder / "scores" / NAME).iterdir()) == sorted(
        f"{kind}_{NAME}_0.01.{suffix}" for kind in KINDS for suffix in ("json", "npy")
    )
    content = {path.name: path.read_bytes() for path in (folder / "scores" / NAME).glob("*.npy")}

    monkeypatch.delattr(tf_checkpoint, "read_variables")
    calc_curv_fz_imagenet_models.main(command)
    assert f"{NAME}: finished before, skipped" in capsys.readouterr().out

    shutil.rmtree(folder / "scores")
    calc_curv_fz_imagenet_models.main([*command, "--shards", "1"])
    assert f"{NAME}: 1 of 3 files scored" in capsys.readouterr().out
    scored: list[str] = []
    real = shard_scoring._score_file

    def killed(model, name, path, *more):
        if scored:
            raise KeyboardInterrupt
        scored.append(path.name)
        return real(model, name, path, *more)

    monkeypatch.setattr(shard_scoring, "_score_file", killed)
    with pytest.raises(KeyboardInterrupt):
        calc_curv_fz_imagenet_models.main(command)
    monkeypatch.setattr(shard_scoring, "_score_file", real)
    assert scored == ["train-00000-of-00003"]
    calc_curv_fz_imagenet_models.main([*command, "--shards", "2-2"])
    assert f"{NAME}: scored" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (folder / "scores" / NAME).glob("*.npy")} == content


def test_imagenet_is_scored_from_its_folders_too(released, work, converted_imagenet, capsys, monkeypatch):
    """To the same bytes where it is cut in as many parts as there were files."""
    folder, config = work
    monkeypatch.setattr(calc_curv_fz_imagenet_models, "TRAIN_FILES", 3)
    change_config(config, converted_dir=converted_imagenet, imagenet_dir=released / "imagenet")
    command = ["--config", str(config), "--start_idx", "1", "--stop_idx", "1", *IMAGENET]
    calc_curv_fz_imagenet_models.main(command)
    records = scores_of(folder, NAME, 0.01)
    with pytest.raises(InputError, match="content_sha256"):
        calc_curv_fz_imagenet_models.main([*command, "--images", "folders"])
    shutil.rmtree(folder / "scores")
    change_config(config, tfrecord_dir=folder / "none")
    calc_curv_fz_imagenet_models.main(command)
    assert f"images from {released / 'imagenet/train'}" in capsys.readouterr().out
    for kind, (values, _) in scores_of(folder, NAME, 0.01).items():
        np.testing.assert_array_equal(values, records[kind][0])
    with pytest.raises(InputError, match="none: no train-"):
        calc_curv_fz_imagenet_models.main([*command, "--images", "tfrecords"])


def test_imagenet_correctness_is_sonnets(work, converted_imagenet):
    """Had any record been lost or misplaced, or the labels shifted by one, the recorded correctness would differ."""
    folder, config = work
    change_config(config, converted_dir=converted_imagenet)
    run = folder / "fz_models" / "imagenet-resnet50" / "0.7" / "1"
    with np.load(run / "aux_arrays.npz", allow_pickle=False) as arrays:
        changed = dict(arrays)
    assert 0 < changed["correctness_train"].sum() < len(changed["correctness_train"])
    changed["correctness_train"] = ~changed["correctness_train"]
    np.savez(run / "aux_arrays.npz", **changed)
    command = ["--config", str(config), "--start_idx", "1", "--stop_idx", "1", *IMAGENET]
    with pytest.raises(InputError, match=rf"{NAME}: agrees with the correctness recorded .* not on 99%"):
        calc_curv_fz_imagenet_models.main(command)
    assert not list(folder.rglob("curv_scores*"))


def test_generated_jobs_cover_every_model_once():
    def lines(*flags):
        command = ["sh", "scripts/create_imagenet_curve_scorer_jobs.sh", *flags]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
        assert result.returncode == 0, result.stderr
        return [shlex.split(line) for line in result.stdout.splitlines()]

    published = lines()
    assert [line[:2] for line in published] == [["python", "calc_curv_fz_imagenet_models.py"]] * 25
    ranges = [(int(line[-3]), int(line[-1])) for line in published]
    assert [run for first, last in ranges for run in range(first, last + 1)] == list(range(100))
    assert published[0][2:] == ["--start_idx", "0", "--stop_idx", "3"]
    assert lines("--runs", "3", "--runs_per_job", "2", "--shards", "0-255")[1] == [
        "python", "calc_curv_fz_imagenet_models.py", "--shards", "0-255", "--start_idx", "2", "--stop_idx", "2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shards", "3-1"], "argument --shards: '3-1' is not a file's number or a range"),
        (["--shards", "0-3"], "--shards 0-3: there are 3 files, 0-2"),
        (["--start_idx", "2", "--stop_idx", "1"], "--stop_idx 1 is before --start_idx 2"),
        (["--start_idx", "5", "--stop_idx", "9"], "no model from 5 to 9"),
        (["--h", "0"], "argument --h: 0 is out of range"),
    ],
)
def test_bad_arguments(work, flags, message, capsys):
    folder, config = work
    with pytest.raises((InputError, SystemExit)) as caught:
        calc_curv_fz_imagenet_models.main(["--config", str(config), *flags])
    assert message in str(caught.value) + capsys.readouterr().err
    assert not (folder / "scores").exists()


def test_objects_in_a_run_are_refused(work):
    folder, config = work
    run = folder / "fz_models" / "cifar100-inception" / "0.7" / "0"
    with np.load(run / "aux_arrays.npz", allow_pickle=False) as arrays:
        np.savez(run / "aux_arrays.npz", **dict(arrays) | {"index_test": np.array([None], dtype=object)})
    with pytest.raises(InputError, match=r"0/aux_arrays\.npz: key 'index_test' holds a NoneType"):
        read_run(run)


def test_several_checkpoints_stop_the_command_with_one_line(work):
    folder, config = work
    checkpoints = folder / "fz_models" / "cifar100-inception" / "0.7" / "0" / "checkpoints"
    (checkpoints / "ckpt-2.index").touch()
    result = run_script("calc_curv_fz_models.py", "--config", config)
    assert_refused(result, "0/checkpoints: expected one checkpoint, found 2", "ckpt-1.index, ckpt-2.index")


def test_an_index_in_two_files_is_noticed_at_the_merge(work, converted_imagenet, monkeypatch):
    _, config = work
    change_config(config, converted_dir=converted_imagenet)

    def quick(model, name, path, order, scoring, pool, progress):
        start = {"0": 0, "1": 0, "2": 5}[path.name[10]]
        index = np.arange(start, start + 3)
        return {
            "index": index,
            "curvature/curvature": np.ones(3),
            "curvature/trace": np.ones(3),
            "correctness": np.ones(3, bool),
            "prob": np.ones(3),
        }

    monkeypatch.setattr(shard_scoring, "_score_file", quick)
    monkeypatch.setattr(shard_scoring, "check_agreement", lambda *a, **k: None)
    with pytest.raises(InputError, match="index 0 is in train-00000-of-00003 and in train-00001-of-00003"):
        calc_curv_fz_imagenet_models.main(["--config", str(config), "--start_idx", "1", "--stop_idx", "1", *IMAGENET])


def test_sidecars_of_parts_are_compared(work, converted_imagenet, monkeypatch):
    """A part that was scored with other settings is not mixed in."""
    folder, config = work
    change_config(config, converted_dir=converted_imagenet)

    def quick(model, name, path, order, scoring, pool, progress):
        index = np.arange(1)
        return {
            "index": index,
            "curvature/curvature": np.ones(1),
            "curvature/trace": np.ones(1),
            "correctness": np.ones(1, bool),
            "prob": np.ones(1),
        }

    monkeypatch.setattr(shard_scoring, "_score_file", quick)
    monkeypatch.setattr(shard_scoring, "check_agreement", lambda *a, **k: None)
    command = ["--config", str(config), "--start_idx", "1", "--stop_idx", "1", "--shards", "0", *IMAGENET]
    calc_curv_fz_imagenet_models.main(command)
    part = folder / "scores" / NAME / "parts_0.01" / "train-00000-of-00003" / "scores.npz"
    assert read_sidecar(part)["settings"]["file"] == "train-00000-of-00003"
    with pytest.raises(
        InputError, match=r"scores\.npz: made with other settings \(scores.*n_probes: 1 there, 2 asked for\)"
    ):
        calc_curv_fz_imagenet_models.main([*command, "--n_probes", "2"])
