"""Data exchanged under results that were made of them: every script refuses, and nothing is written."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script, tree, write_config
from released_files import fake_cifar, know_cifar
from torchvision import datasets as tv

from libdata.imagenet import content_digest
from libstore.errors import InputError
from libstore.scored_ensemble import ScoredEnsemble
from libstore.sensitivity_results import read_results

KIND = ("--dataset", "cifar10", "--arch", "smallcnn")
TRAIN = ("train_fz_models.py", *KIND, "--data_subset", 40, "--epochs", 1)
SCORE = ("calc_curv_fz_models.py", *KIND, "--n_probes", 1)
DP = (*KIND, "--data_subset", 40, "--batch_size", 20, "--epochs", 1, "--accountant", "rdp")
NORMS = ("sensitivity/compute_sensitivity.py", *DP, "--epsilon", 9, "--points", 4, "--stages", 2, "--save_freq", 2)
SUBSETS = ("scripts/make_memorization_subsets.py", *KIND, "--top_k", 4, "--seeds", 0)
LINES = (
    (*TRAIN, "--stop_run", 2), SCORE, ("train_dp.py", *DP, "--epsilon", 9),
    ("calc_curv_private_models.py", *KIND, "--n_probes", 1), NORMS, SUBSETS,
)  # fmt: skip


def run(command: tuple, config: Path) -> tuple[int, str]:
    result = run_script(*command, "--config", config)
    return result.returncode, result.stderr.strip()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of data and results; one pixel of one image differs."""
    folders = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for number, folder in enumerate(folders):
        fake_cifar(folder / "data", tv.CIFAR10, "labels", 10)
        batch = folder / "data" / tv.CIFAR10.base_folder / "data_batch_1"
        content = pickle.loads(batch.read_bytes())
        content["data"][0, 0] = number
        batch.write_bytes(pickle.dumps(content, protocol=4))
        config = write_config(folder, data_dir="data")
        with pytest.MonkeyPatch.context() as patch:
            know_cifar(folder / "data", patch)
            for line in LINES:
                assert run(line, config) == (0, ""), line
    return folders


def exchanged(both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *results: str) -> Path:
    """Return the configuration of a folder with the second data and these results of the first."""
    shutil.copytree(both[1] / "data", tmp_path / "data")
    for name in results:
        shutil.copytree(both[0] / name, tmp_path / name)
    know_cifar(tmp_path / "data", monkeypatch)
    return write_config(tmp_path, data_dir="data")


@pytest.mark.parametrize("line", LINES[:-1], ids=lambda line: line[0])
def test_old_results_are_refused(both, tmp_path: Path, monkeypatch, line: tuple) -> None:
    folders = ("fz_model_dir", "private_model_dir", "score_dir", "sensitivity_dir")
    config = exchanged(both, tmp_path, monkeypatch, *folders)
    before = tree(tmp_path)
    status, error = run(line, config)
    assert status == 2 and error.count("\n") == 0 and tree(tmp_path) == before
    assert "content_sha256" in error or "made on other data" in error, error
    assert "--overwrite" in error


@pytest.mark.parametrize("line", [SCORE, LINES[3]], ids=lambda line: line[0])
def test_old_models_are_not_scored_on_new_data(both, tmp_path: Path, monkeypatch, line: tuple) -> None:
    config = exchanged(both, tmp_path, monkeypatch, "fz_model_dir", "private_model_dir")
    status, error = run(line, config)
    assert status == 2 and "made on other data" in error and not list(tmp_path.rglob("curv_scores*"))


def test_old_ensembles_do_not_grow(both, tmp_path: Path, monkeypatch) -> None:
    config = exchanged(both, tmp_path, monkeypatch, "fz_model_dir")
    more = (*TRAIN, "--start_run", 2, "--stop_run", 3)
    status, error = run(more, config)
    assert status == 2 and "0.7/0: made on other data" in error and "--overwrite" in error
    assert run((*TRAIN, "--stop_run", 1, "--overwrite"), config)[0] == 2  # run 1 would stay
    assert run((*TRAIN, "--stop_run", 2, "--overwrite"), config)[0] == 0
    assert run(more, config)[0] == 0


def test_ensembles_of_two_contents_are_not_averaged(both, tmp_path: Path, monkeypatch) -> None:
    config = exchanged(both, tmp_path, monkeypatch, "fz_model_dir", "score_dir")
    for folder, name in (("fz_model_dir/cifar10_smallcnn/0.7", "1"), ("score_dir", "cifar10_smallcnn_0.7_1")):
        shutil.rmtree(tmp_path / folder / name)
        shutil.copytree(both[1] / folder / name, tmp_path / folder / name)
        found = ScoredEnsemble.find(tmp_path / "fz_model_dir", tmp_path / "score_dir", *KIND[1::2], "0.7")
        with pytest.raises(InputError, match="0.7_?/1.* and .*0.7_?/0.* differ in data.content_sha256"):
            list(found.read())
    status, error = run(SUBSETS, config)
    assert status == 2 and "differ in data.content_sha256" in error
    shutil.rmtree(tmp_path / "fz_model_dir")
    shutil.copytree(both[0] / "fz_model_dir", tmp_path / "fz_model_dir")
    with pytest.raises(InputError, match="differ in data.content_sha256"):
        list(found.read())


def test_subsets_chosen_on_other_data_are_refused(both, tmp_path: Path, monkeypatch) -> None:
    config = exchanged(both, tmp_path, monkeypatch, "private_model_dir")
    subset = tmp_path / "private_model_dir/subsets/cifar10/subset_0.npy"
    line = ("train_dp.py", *DP, "--epsilon", 7, "--train_subset", subset)
    status, error = run(line, config)
    assert status == 2 and "subset_0.npy: chosen on data with content_sha256" in error
    subset.with_suffix(".json").unlink()  # an index of one's own
    assert run(line, config)[0] == 0


def test_norms_of_two_contents_are_not_composed(both, tmp_path: Path) -> None:
    paths = [both[0] / "sensitivity_dir/res/res1.csv", tmp_path / "res2.csv"]
    for suffix in (".csv", ".json"):
        shutil.copy((both[1] / "sensitivity_dir/res/res1.csv").with_suffix(suffix), tmp_path / f"res2{suffix}")
    with pytest.raises(InputError, match="res2.csv and .*res1.csv differ in data.content_sha256"):
        read_results(paths)
    sidecar = json.loads((tmp_path / "res2.json").read_text())
    del sidecar["settings"]["data"]["content_sha256"]
    (tmp_path / "res2.json").write_text(json.dumps(sidecar))
    with pytest.raises(InputError, match="differ in data.content_sha256"):
        read_results(paths)


def test_records_of_another_build_have_another_digest(tmp_path: Path) -> None:
    files = [tmp_path / f"train-0000{number}-of-00002" for number in range(2)]
    for number, path in enumerate(files):
        path.write_bytes(bytes(10 + number))
    assert content_digest(files) is None
    lines = [{"file": path.name, "bytes": path.stat().st_size, "sha256": path.name} for path in files]
    manifest = tmp_path / "train-manifest.json"
    manifest.write_text(json.dumps({"settings": {}, "files": lines}))
    before = content_digest(files)
    manifest.write_text(json.dumps({"settings": {}, "files": [lines[0], lines[1] | {"sha256": "other"}]}))
    assert before and content_digest(files) not in (None, before)
    files[1].write_bytes(bytes(np.arange(9, dtype=np.uint8)))
    with pytest.raises(InputError, match="train-00001-of-00002: has 9 bytes, train-manifest.json says 11"):
        content_digest(files)
