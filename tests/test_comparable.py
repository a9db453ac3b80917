"""What does not belong together is neither averaged nor compared: refused with both values, or left out by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ENSEMBLE_FLAGS, TRAIN_FLAGS, run_script, write_config

from libstore.comparable import RUNS, Kept, check_alike
from libstore.errors import InputError
from libstore.scored_ensemble import ScoredEnsemble, usable_runs
from libstore.scores import CURVATURE_FORMAT
from libstore.store import differences, provenance, read_sidecar
from libtrain.fz_training import FZTraining

TRAIN = ("train_fz_models.py", *TRAIN_FLAGS, "--start_run", 3, "--stop_run", 4, "--overwrite")
SCORE = ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", 3, "--start_run", 3, "--stop_run", 4, "--overwrite")
SUBSETS = ("scripts/make_memorization_subsets.py", *ENSEMBLE_FLAGS, "--top_k", 20, "--seeds", 0)


@pytest.fixture
def copy(ensemble: Path, tmp_path: Path) -> Path:
    """Six trained and scored runs, to be disturbed."""
    for name in ("fz_model_dir", "score_dir"):
        shutil.copytree(ensemble / name, tmp_path / name)
    write_config(tmp_path)
    return tmp_path


def root(folder: Path) -> Path:
    return folder / "fz_model_dir" / "mnist_smallcnn"


def found(folder: Path, **limits: int) -> ScoredEnsemble:
    return ScoredEnsemble.find(folder / "fz_model_dir", folder / "score_dir", "mnist", "smallcnn", "0.7", **limits)


def ok(*command: object, folder: Path) -> str:
    result = run_script(str(command[0]), *command[1:], "--config", folder / "config.json")
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def refusal(*command: object, folder: Path) -> str:
    result = run_script(str(command[0]), *command[1:], "--config", folder / "config.json")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def edit(sidecar: Path, **changes: object) -> None:
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))


@pytest.mark.parametrize(
    ("trained", "scored", "said"),
    [
        (("--activation", "relu"), (), "model.options.activation"),
        (("--epochs", "2"), (), "sgd.epochs (2 and 8)"),
        (("--weight_decay", "0.01"), (), "sgd.weight_decay (0.01 and 0.0)"),
        (("--normalization", "standard"), (), 'data.normalization ("standard" and "unit")'),
        (None, ("--temp", "10"), "temp (10.0 and 1.0)"),
        (None, ("--n_probes", "1"), "n_probes (1 and 3)"),
        (None, ("--probe_seed", "1"), "probe_seed (1 and 0)"),
    ],
)
def test_a_run_of_another_kind_is_not_averaged(copy: Path, trained, scored, said: str) -> None:
    ok(*SUBSETS, folder=copy)
    if trained:
        ok(*TRAIN, *trained, folder=copy)
        told = refusal(*SUBSETS, folder=copy)
        assert said in told and "0.7/3/" in told and "0.7/0/" in told
    ok(*SCORE, *scored, folder=copy)
    ensemble = found(copy)
    with pytest.raises(InputError) as error:
        next(ensemble.read())
    assert said in str(error.value) and "3" in str(error.value) and "\n" not in str(error.value)


def test_another_seed_is_meant_to_differ_but_its_old_scores_are_not_its_own(copy: Path) -> None:
    ok(*TRAIN, "--seed", 5, folder=copy)
    ensemble = found(copy)
    with pytest.raises(InputError, match=r"curv_scores_mnist_smallcnn_0.7_3_0.001.npy and .*3/checkpoints/model.pt.*"):
        next(ensemble.read())
    ok(*SCORE, folder=copy)
    assert len(list(found(copy).read())) == 6


def test_arrays_and_weights_must_be_of_one_training(copy: Path) -> None:
    run = root(copy) / "0.7" / "3"
    weights = read_sidecar(run / "checkpoints/model.pt")["sha256"]
    assert read_sidecar(run / "aux_arrays.npz")["weights_sha256"] == weights
    edit(run / "aux_arrays.json", weights_sha256="0" * 64)
    with pytest.raises(InputError, match="different weights"):
        next(found(copy).read())
    assert "different weights" in refusal(*SUBSETS, folder=copy)
    shutil.copy(root(copy) / "0.7/2/aux_arrays.npz", run)
    edit(run / "aux_arrays.json", weights_sha256=weights)
    with pytest.raises(InputError, match="3/aux_arrays.npz: its content .* is not what its sidecar says"):
        list(found(copy).read())
    assert "3/aux_arrays.npz: its content" in refusal(*SUBSETS, folder=copy)


def test_small_weights_are_hashed(copy: Path) -> None:
    path = root(copy) / "0.7/3/checkpoints/model.pt"
    path.write_bytes((root(copy) / "0.7/2/checkpoints/model.pt").read_bytes())
    with pytest.raises(InputError, match="3/checkpoints/model.pt: its content"):
        next(found(copy).read())


def test_an_ensemble_without_sidecars_is_read_by_its_arrays(copy: Path) -> None:
    before = [array for run in found(copy).read() for array in run]
    for path in root(copy).rglob("*.json"):
        path.unlink()
    for one, other in zip(before, (array for run in found(copy).read() for array in run), strict=True):
        np.testing.assert_array_equal(one, other)
    ok(*SUBSETS, folder=copy)
    shutil.copy(root(copy) / "0.7/2/aux_arrays.npz", root(copy) / "0.7/3")
    with pytest.raises(InputError, match="3: holds the same run as .*/2;"):
        list(found(copy).read())
    with np.load(root(copy) / "0.7/4/aux_arrays.npz", allow_pickle=False) as arrays:
        moved = {key: arrays[key] + 1000 * (key == "index_removed") for key in arrays.files}
    np.savez(root(copy) / "0.7/3/aux_arrays.npz", **moved)
    with pytest.raises(InputError, match="3: the examples in its index_train and index_removed, 200 of them, are not"):
        list(found(copy).read())
    assert "are not those of" in refusal(*SUBSETS, folder=copy)


def test_the_loss_comes_from_the_runs_or_else_from_scores(copy: Path) -> None:
    before = [run.loss for run in found(copy).read()]
    for path in root(copy).rglob("aux_arrays.npz"):  # as released runs are
        with np.load(path) as file:
            kept = {key: file[key] for key in file.files if not key.startswith(("prob", "logodds"))}
        np.savez(path, **kept)
        path.with_suffix(".json").unlink()
    assert all(run.loss is None for run in found(copy).read())
    ok("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--scores", "loss", folder=copy)
    for one, run in zip(before, found(copy).read(), strict=True):
        np.testing.assert_allclose(run.loss, one, rtol=1e-3, atol=1e-6)
    path = copy / "score_dir/mnist_smallcnn_0.7_2/loss_mnist_smallcnn_0.7_2.json"
    settings = json.loads(path.read_text())
    settings["settings"]["model"]["sha256"] = "0"
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="loss_mnist_smallcnn_0.7_2.npy: of another model than .*; score both again"):
        list(found(copy).read())


def test_a_copied_run_counts_once(copy: Path, capsys: pytest.CaptureFixture) -> None:
    before = [array for run in found(copy).read() for array in run]
    shutil.copytree(root(copy) / "0.7/3", root(copy) / "0.7/6")
    assert usable_runs(root(copy), "0.7") == list(range(6))
    assert "0.7/6: left out: its settings are those of run 3 at ratio 0.7" in capsys.readouterr().err
    (root(copy) / "0.7/2/aux_arrays.json").unlink()
    assert usable_runs(root(copy), "0.7") == [0, 1, 3, 4, 5]
    assert "0.7/2: left out: it has no sidecar" in capsys.readouterr().err
    out = ok(*SCORE[:-5], folder=copy)  # all runs, nothing is replaced
    assert "smallcnn_0.7_6" not in out and "0.7/6: left out" in out
    shutil.rmtree(root(copy) / "0.7/6")
    for path in root(copy).rglob("*.json"):
        path.unlink()
    for one, other in zip(before, (array for run in found(copy).read() for array in run), strict=True):
        np.testing.assert_array_equal(one, other)
    shutil.copytree(root(copy) / "0.7/3", root(copy) / "0.7/6")  # nothing says so but the arrays
    assert "0.7/6: holds the same run as" in refusal(*SCORE[:-5], folder=copy)


def test_scores_under_another_name_are_not_its_own(copy: Path) -> None:
    for suffix in ("json", "npy"):
        path = copy / f"score_dir/mnist_smallcnn_0.7_3/curv_scores_mnist_smallcnn_0.7_3_0.001.{suffix}"
        shutil.copy(path, str(path).replace("_3", "_4"))
    assert found(copy).runs == [0, 1, 2, 3, 5]
    edit(path.with_suffix(".json"), format=1)
    shutil.copy(path.with_suffix(".json"), str(path.with_suffix(".json")).replace("_3", "_5"))
    with pytest.raises(InputError, match=r"curv_scores_mnist_smallcnn_0.7_5_0.001.npy"):
        list(
            ScoredEnsemble.find(
                copy / "fz_model_dir", copy / "score_dir", "mnist", "smallcnn", "0.7", start_run=5
            ).read()
        )


def test_formats_do_not_mix(copy: Path) -> None:
    paths = sorted((copy / "score_dir").glob("*/curv_scores_*.json"))
    for number, path in enumerate(paths):
        old = json.loads(path.read_text())
        assert old.pop("format") == CURVATURE_FORMAT == 2
        path.write_text(json.dumps(old))  # as before there were formats: version 1
        differ = r"differ in format \(2 and 1\)|differ in format \(1 and 2\)"
        last = number == len(paths) - 1
        with pytest.raises(InputError, match="run calc_curv_fz_models.py with --overwrite" if last else differ):
            list(found(copy).read())


def test_one_line_names_three_differences_and_counts_the_rest() -> None:
    one, other = ({"settings": {f"key{i}": {"x": value} for i in range(9)}} for value in ("a" * 64, "b" * 4000))
    with pytest.raises(InputError) as error:
        check_alike([Kept(Path("one"), one), None, Kept(Path("other"), other)], ("key0",))
    said = str(error.value)
    assert said.startswith("other and one differ in key1.x (") and said.endswith("; and 5 more") and len(said) < 700
    check_alike([Kept(Path("one"), one), Kept(Path("other"), other)], [f"key{i}" for i in range(9)])


def test_what_results_before_formats_do_not_say_of_the_data_is_not_compared() -> None:
    data = {"dataset": "mnist", "index_sha256": "x"}
    old, new = {"settings": {"data": data}}, {"settings": {"data": data | {"content_sha256": "y"}}, "format": 1}
    assert not differences(old, new) and not differences(new, old)
    assert differences(old | {"format": 1}, new) == [("data.content_sha256", "nothing", '"y"')]
    assert differences({"settings": {"data": data | {"dataset": "x"}}}, new)[0].key == "data.dataset"
    assert differences({"settings": {}}, {"settings": {"lr": 1}})
    assert not differences({"settings": {"run": 1, "runs": 2}}, {"settings": {"run": 2, "runs": 2}}, RUNS)


def test_everyone_who_trained_is_recorded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (*TRAIN[:-1], "--save_every", 0, "--start_run", 6, "--stop_run", 7)
    ok(*line, folder=copy)
    whole, train = (root(copy) / "0.7/6/checkpoints/model.pt").read_bytes(), FZTraining.train
    assert "continued" not in read_sidecar(root(copy) / "0.7/6/checkpoints/model.pt")["provenance"]
    shutil.rmtree(root(copy) / "0.7/6")
    for _ in range(2):
        monkeypatch.setattr(FZTraining, "train", lambda *a, **k: train(*a, **k | {"stopping": lambda: 15}))
        assert run_script(str(line[0]), *line[1:], "--config", copy / "config.json").returncode == 143
        state = root(copy) / "0.7/6/checkpoints/state.json"
        kept = json.loads(state.read_text())
        made_by = kept["provenance"]
        assert made_by["commit"] == provenance()["commit"]
        versions = made_by["versions"] | {"torch": f"1.{len(made_by.get('continued', ()))}"}
        edit(state, provenance=made_by | {"commit": "c" * 40, "versions": versions})
    monkeypatch.setattr(FZTraining, "train", train)
    ok(*line, folder=copy)
    for path in (root(copy) / "0.7/6/checkpoints/model.pt", root(copy) / "0.7/6/aux_arrays.npz"):
        continued = read_sidecar(path)["provenance"]["continued"]
        assert [(one["commit"], one["versions"]["torch"]) for one in continued] == [
            ("c" * 40, "1.0"),
            ("c" * 40, "1.1"),
        ]
    assert (root(copy) / "0.7/6/checkpoints/model.pt").read_bytes() == whole


def test_an_earlier_process_that_did_not_say_is_recorded_too() -> None:
    now = provenance(device="cpu")
    assert "continued" not in provenance([now, now], device="cpu", seconds=3)
    assert provenance([{}], device="cpu")["continued"] == [{"commit": "unknown"}]
    other = now | {"device": "cuda"}
    assert [one["device"] for one in provenance([other, other, now], device="cpu")["continued"]] == ["cuda"]
