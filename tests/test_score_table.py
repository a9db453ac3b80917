"""The score table: its numbers against slow ones from the same files, its joins, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ENSEMBLE_FLAGS, assert_refused, run_script, tree
from scipy import stats

from libstore.errors import InputError
from libstore.score_columns import MEANINGS
from libstore.score_table import Column, check_columns, check_content, join, read_table, table_path


@pytest.fixture
def scored(ensemble: Path, tmp_path: Path) -> Path:
    """A copy of the small ensemble with its scores; returns the folder with config.json."""
    folder = tmp_path / "study"
    shutil.copytree(ensemble, folder)
    return folder


def table_of(folder: Path, *flags: object) -> tuple[pd.DataFrame, dict, str]:
    result = run_script("score_table.py", *ENSEMBLE_FLAGS, "--config", folder / "config.json", *flags)
    assert result.returncode == 0, result.stderr
    return *read_table(table_path(folder / "score_dir", "mnist", "smallcnn")), result.stdout


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.spearmanr(a, b, nan_policy="omit").statistic)


def test_columns_are_what_the_files_of_the_runs_say(scored: Path) -> None:
    table, about, said = table_of(scored)
    runs = [
        np.load(scored / "fz_model_dir" / "mnist_smallcnn" / "0.7" / str(run) / "aux_arrays.npz") for run in range(6)
    ]
    assert table["example"].tolist() == list(range(200)) and set(table["part"]) == {"train"}
    names = [f"mnist_smallcnn_0.7_{run}" for run in range(6)]
    labels = np.load(scored / "score_dir" / names[0] / f"true_labels_{names[0]}_0.001.npy")
    assert (table["label"] == labels).all()
    curvatures = [np.load(scored / "score_dir" / name / f"curv_scores_{name}_0.001.npy") for name in names]
    for example in (0, 17, 199):
        values = {"in": [], "out": [], "curvature": []}
        for run, curvature in zip(runs, curvatures, strict=True):
            group = "train" if example in run["index_train"] else "removed"
            at = run[f"index_{group}"].tolist().index(example)
            values["in" if group == "train" else "out"].append(float(run[f"prob_{group}"][at]))
            if group == "train":
                values["curvature"].append(float(curvature[example]))
        row = table.loc[example]
        if values["in"] and values["out"]:
            assert row["memorization_prob"] == pytest.approx(np.mean(values["in"]) - np.mean(values["out"]), abs=1e-12)
            assert row["consistency_prob"] == pytest.approx(np.mean(values["out"]), abs=1e-12)
        else:
            assert np.isnan(row["memorization_prob"])
        assert row["curvature"] == pytest.approx(np.mean(values["curvature"]))
        n = len(values["curvature"])
        assert row["curvature_se"] == pytest.approx(np.std(values["curvature"], ddof=1) / np.sqrt(n))
    halves = []
    for start in (0, 1):
        means = []
        for example in range(200):
            held = [c[example] for c, r in zip(curvatures[start::2], runs[start::2], strict=True)
                    if example in r["index_train"]]  # fmt: skip
            means.append(np.mean(held, dtype=float) if held else np.nan)
        halves.append(means)
    r = rank_correlation(*map(np.array, halves))
    told = about["columns"]["curvature"]
    assert told["reliability"] == pytest.approx(2 * r / (1 + r)) and told["runs"] == list(range(6))
    assert told["direction"] == "higher means more exposed" and told["standard_error"] == "curvature_se"
    assert set(about["missing"]) >= {"loss", "grand", "instance_epsilon_realised", "epsilon_sensitivity"}
    assert "--scores loss" in about["missing"]["loss"] and "missing: loss; to make it: python calc_curv" in said


def test_text_and_parquet_hold_the_same_and_a_second_run_changes_nothing(scored: Path) -> None:
    table, about, _ = table_of(scored)
    text = pd.read_csv(scored / "score_dir" / "table_mnist_smallcnn.csv")
    assert text.columns.tolist() == table.columns.tolist()
    assert np.allclose(text["curvature"], table["curvature"], rtol=1e-15, atol=0)
    card = json.loads((scored / "score_dir" / "table_mnist_smallcnn_croissant.json").read_text())
    assert [field["name"] for field in card["recordSet"][0]["field"]] == table.columns.tolist()
    assert {one["sha256"] for one in card["distribution"]} == {about["sha256"], about["csv_sha256"]}
    before = tree(scored)
    *_, said = table_of(scored)
    assert "already made" in said and tree(scored) == before
    (scored / "score_dir" / "table_mnist_smallcnn.csv").unlink()
    table_of(scored)
    assert tree(scored) == before
    score = ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--scores", "loss", "--config", scored / "config.json")
    assert run_script(*score).returncode == 0
    table, about, said = table_of(scored)
    assert "made again" in said and "loss" in table and "loss" not in about["missing"]


def column(name: str = "curvature", examples: tuple[int, ...] = (0, 2), **changes: object) -> Column:
    values = {"standard_error": None, "content_sha256": "a", "arch": "net", "runs": [0], "reliability": None}
    values |= {"values": np.arange(len(examples), dtype=float), "source": f"{name}.npy"} | changes
    return Column(name, MEANINGS["curvature"], np.array(examples), **values)


def test_examples_without_a_score_are_kept_and_empty() -> None:
    table = join([column(), column("trace", (1, 2), values=np.array([5.0, 6.0]))], np.array([7, 8, 9, 9]))
    assert table["example"].tolist() == [0, 1, 2] and table["label"].tolist() == [7, 8, 9]
    assert np.array_equal(table["curvature"], [0, np.nan, 1], equal_nan=True)
    assert np.array_equal(table["trace"], [np.nan, 5, 6], equal_nan=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([column(examples=(0, 9))], "has example 9, the data have 4"),
        ([column(examples=(2, 2))], "may be there twice"),
        ([column(), column()], "two scores bear one name"),
    ],
)
def test_columns_that_cannot_be_joined_are_refused(columns: list[Column], message: str) -> None:
    with pytest.raises(InputError, match=message):
        join(columns, np.zeros(4, dtype=int))


def test_scores_of_other_data_are_refused_with_both_digests() -> None:
    with pytest.raises(InputError, match="trace.npy: trace is of other data .content_sha256 b.*curvature.npy .a."):
        check_content([column(), column("trace", content_sha256="b")], None, "")


def test_changed_data_and_a_damaged_table_are_refused(scored: Path) -> None:
    path = table_path(scored / "score_dir", "mnist", "smallcnn")
    _, about, _ = table_of(scored)
    with pytest.raises(InputError, match="no column 'los'; there are: .*curvature, memorization_correctness"):
        check_columns(about, ["los"], path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="does not match the sha256"):
        read_table(path)
    for sidecar in (scored / "fz_model_dir").rglob("*.json"):
        said = json.loads(sidecar.read_text())
        said["settings"]["data"]["content_sha256"] = "0" * 64
        sidecar.write_text(json.dumps(said))
    before = tree(scored)
    result = run_script("score_table.py", *ENSEMBLE_FLAGS, "--config", scored / "config.json")
    assert_refused(result, "content_sha256", "0" * 64)
    assert tree(scored) == before


def test_nothing_to_gather_names_the_command_that_trains(scored: Path) -> None:
    result = run_script("score_table.py", "--dataset", "mnist", "--arch", "lenet5", "--config", scored / "config.json")
    assert_refused(result, "no score of mnist and lenet5", "train_fz_models.py --config")
