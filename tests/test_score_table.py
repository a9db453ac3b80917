"""The score table: its numbers against slow ones from the same files, its joins, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ENSEMBLE_FLAGS, ROOT, assert_refused, run_script, tree
from released_files import write_config, write_scored_imagenet
from scipy import stats
from script_cases import CASES, KIND, Trees

from libdata.imagenet import read_imagenet_index
from libstore.errors import InputError
from libstore.score_columns import MEANINGS
from libstore.score_table import Column, check_columns, check_content, join, read_table, table_path


@pytest.fixture(scope="module")
def private(trees: Trees, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Private models of two epsilons and four seeds, and two runs of the per-instance study with their accounting."""
    folder = tmp_path_factory.mktemp("private")
    shutil.copytree(trees.whole("family"), folder, dirs_exist_ok=True)
    shutil.copytree(trees.whole("accounting") / "sensitivity_dir", folder / "sensitivity_dir")
    write_config(folder, data_dir=trees.inputs(CASES["train"]) / "data")
    curvature = (*KIND, "--n_probes", "1", "--seed", "0", "--config", folder / "config.json")
    assert trees.server.run("calc_curv_private_models.py", list(map(str, curvature))).status == 0
    assert trees.server.run("score_table.py", [*KIND, "--config", str(folder / "config.json")]).status == 0
    return folder


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
    for name in ("lira", "lira_shared_found", "rmia", "influence_total"):
        assert about["columns"][name]["kind"] == "ensemble" and name in table
    curves = np.load(scored / "score_dir" / "membership_mnist_smallcnn.npz")
    assert curves["rmia_true_positives"][-1] == 1 and (np.diff(curves["rmia_false_positives"]) >= 0).all()
    assert 0 <= about["columns"]["rmia"]["overall"]["true_positives_at_0.01"]["value"] <= 1
    pairs = np.load(scored / "score_dir" / "influence_mnist_smallcnn.npz")
    example, test = 17, int(pairs["test"][17, 0])
    sides = {"train": [], "removed": []}
    for run in runs:
        side = "train" if example in run["index_train"] else "removed"
        sides[side].append(float(run["prob_test"][run["index_test"].tolist().index(test)]))
    expected = np.mean(sides["train"]) - np.mean(sides["removed"])
    assert pairs["influence"][17, 0] == pytest.approx(expected, abs=1e-5) == table["influence_largest"][17]
    assert set(about["missing"]) >= {"loss", "grand", "instance_epsilon_realised", "epsilon_sensitivity"}
    assert "--scores loss" in about["missing"]["loss"] and "missing: loss; to make it:\n    python calc_curv" in said
    assert "--config" not in json.dumps(about["missing"])


def test_text_and_parquet_hold_the_same_and_a_second_run_changes_nothing(scored: Path) -> None:
    table, about, _ = table_of(scored)
    text = pd.read_csv(scored / "score_dir" / "table_mnist_smallcnn.csv")
    assert text.columns.tolist() == table.columns.tolist()
    assert np.allclose(text["curvature"], table["curvature"], rtol=1e-15, atol=0)
    card = json.loads((scored / "score_dir" / "table_mnist_smallcnn_croissant.json").read_text())
    assert [field["name"] for field in card["recordSet"][0]["field"]] == table.columns.tolist()
    assert {one["sha256"] for one in card["distribution"]} == {
        about["sha256"],
        about["beside"]["table_mnist_smallcnn.csv"],
    }
    before = tree(scored)
    *_, said = table_of(scored)
    assert "already made" in said and tree(scored) == before
    (scored / "score_dir" / "table_mnist_smallcnn.csv").unlink()
    table_of(scored, "--influence_matrix")
    matrix = np.load(scored / "score_dir" / "influence_matrix_mnist_smallcnn.npy")
    assert np.allclose(matrix.max(axis=1), table["influence_largest"], equal_nan=True)
    assert {path for path in tree(scored) if path not in before} == {"score_dir/influence_matrix_mnist_smallcnn.npy"}
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


def test_classes_are_called_by_their_names_where_they_have_some() -> None:
    table = join([column()], np.array([1, 0, 0]), ["cat", "owl"])
    assert table.columns.tolist()[:4] == ["example", "label", "class", "part"]
    assert table["label"].tolist() == [1, 0] and table["class"].tolist() == ["owl", "cat"]


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
    with pytest.raises(InputError, match="no column 'los'; there are: .*curvature, .*memorization_correctness"):
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
    assert_refused(result, "no score of mnist and lenet5", "train_fz_models.py --dataset mnist --arch lenet5 --config")


def printed_commands(said: str) -> dict[str, list[str]]:
    """The commands below each line that says what is missing; all other lines below it are words."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in said.splitlines():
        names = re.fullmatch(r"missing: (.*); to make (?:it|them):", line)
        if names:
            lines = []
            found |= {name: lines for name in names[1].split(", ")}
        elif line.startswith("    ") and not line.startswith("    # "):
            lines.append(line[4:])
    assert "missing" not in "".join(map(str, found.values())) and "to make" not in "".join(map(str, found.values()))
    return found


def assert_taken(lines: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the scripts take the flags of commands, typed at the top of the repository; nothing is trained."""
    monkeypatch.setenv("FLAGS_ONLY", "1")
    monkeypatch.setenv("RUNS", "1")  # of the loops, where the line does not say
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for line in dict.fromkeys(lines):
        words = shlex.split(line)
        if words[0] == "python":
            result = run_script(words[1], *words[2:])
        else:
            result = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0 and "error" not in result.stderr, (line, result.stderr)
    monkeypatch.delenv("FLAGS_ONLY")


def test_printed_commands_are_taken_as_typed_where_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and network of one's own, fewer than a batch of the papers."""
    x, y = np.zeros((60, 8), np.float32), np.arange(60) % 3
    np.savez(tmp_path / "letters.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    (tmp_path / "net.py").write_text("from torch import nn\ndef net(num_classes, width):\n    return nn.Identity()\n")
    own = ("--dataset", tmp_path / "letters.npz", "--arch", tmp_path / "net.py:net", "--arch_options", "width=8")
    config = write_config(tmp_path)
    result = run_script("score_table.py", *own, "--dataset_name", "a", "--ratio", 0.5, "--config", config)
    assert result.returncode == 2
    found = printed_commands(result.stdout)
    assert set(MEANINGS) <= set(found) and len(found) == len(MEANINGS) + 6
    lines = [line for of in found.values() for line in of]
    assert all(line.removesuffix(" | sh").endswith(f" --config {config}") for line in lines)
    assert len(found["curvature"]) == 2 and len(found["private_memorization_eps_E"]) == 3
    assert_taken(lines, monkeypatch)
    (error,) = result.stderr.splitlines()
    assert error.endswith(found["memorization_prob"][0])


def test_printed_commands_give_what_is_missing(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, said = table_of(scored)
    found = printed_commands(said)
    assert_taken((line for of in found.values() for line in of if line.startswith("python")), monkeypatch)
    for name in ("csl", "csg", "loss"):  # the second replaces the first
        for line in found[name]:
            words = shlex.split(line)
            result = run_script(words[1], *words[2:])
            assert result.returncode == 0, result.stderr
    table, about, _ = table_of(scored)
    assert {"csg", "csg_stopped", "csl", "loss"} <= set(table) and not {"csg", "csl", "loss"} & set(about["missing"])


def test_printed_commands_of_private_models_are_those_of_the_models_there(
    private: Path, trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(private, folder)
    config = write_config(folder, data_dir=json.loads((private / "config.json").read_text())["data_dir"])
    for path in (folder / "private_model_dir").glob("*_eps_50_*"):
        shutil.rmtree(path)
    ended = trees.server.run("score_table.py", [*KIND, "--config", str(config), "--overwrite"])
    assert ended.status == 0, ended.errors
    found = printed_commands(ended.output)
    assert_taken((line for of in found.values() for line in of), monkeypatch)
    (line,) = found["epsilon_sensitivity"]
    printed = subprocess.run(
        ["sh", "-c", line.removesuffix(" | sh")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (words,) = map(shlex.split, printed.stdout.splitlines())
    ended = trees.server.run(words[1], words[2:])
    assert ended.status == 0, ended.errors
    ended = trees.server.run("score_table.py", [*KIND, "--config", str(config)])
    assert ended.status == 0, ended.errors
    assert read_table(table_path(folder / "score_dir", "cifar10", "smallcnn"))[1]["columns"]["epsilon_sensitivity"]


def test_commands_for_what_is_missing_are_about_the_examples_at_hand(scored: Path) -> None:
    """The 200 digits of the ensemble: fewer than the published number of points, and not all of MNIST."""
    _, about, _ = table_of(scored)
    train = about["missing"]["epsilon_sensitivity"].splitlines()[-1]
    assert train.startswith("python train_dp.py --dataset mnist --arch smallcnn ") and " --data_subset 200" in train
    line, then = about["missing"]["instance_epsilon_realised"].splitlines()
    words = shlex.split(line)
    assert words[:2] == ["sh", "sensitivity/run_loop.sh"] and then == "sh sensitivity/run_compo.sh"
    small = ("--epochs", 1, "--stages", 2, "--accountant", "rdp")
    result = run_script("sensitivity/compute_sensitivity.py", *words[2:], *small, "--config", scored / "config.json")
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(scored / "sensitivity_dir" / "res" / "res1.csv")
    assert sorted(rows["point"].unique()) == list(range(200))


def test_private_columns_are_means_over_the_models_of_an_epsilon(private: Path) -> None:
    table, about = read_table(table_path(private / "score_dir", "cifar10", "smallcnn"))
    groups: dict[float, list[dict]] = {2.0: [], 50.0: []}
    for folder in sorted((private / "private_model_dir").glob("*_eps_*")):
        said = json.loads((folder / "model.json").read_text())["settings"]
        arrays = np.load(folder / "aux_arrays.npz")
        rows = {}
        for group in ("train", "removed"):
            for i, p, z in zip(*(arrays[f"{kind}_{group}"] for kind in ("index", "prob", "logodds")), strict=True):
                rows[int(i)] = (group == "train", float(p), float(z))
        groups[said["privacy"]["epsilon"]].append({"seed": said["seed"], "rows": rows})
    slopes: dict[int, list[float]] = {}
    for example in table["example"]:
        for epsilon, models in groups.items():
            held, lacking, losses = [], [], []
            for model in models:
                member, p, z = model["rows"][example]
                (held if member else lacking).append(p)
                if member:
                    losses.append(np.log1p(np.exp(-z)))
            row = table.loc[table["example"] == example].iloc[0]
            expected = np.mean(held) - np.mean(lacking) if held and lacking else np.nan
            assert row[f"private_memorization_eps_{epsilon:g}"] == pytest.approx(expected, nan_ok=True)
            assert row[f"private_loss_eps_{epsilon:g}"] == pytest.approx(
                np.mean(losses) if losses else np.nan, nan_ok=True
            )
        for low, high in zip(groups[2.0], groups[50.0], strict=True):
            assert low["seed"] == high["seed"]
            if low["rows"][example][0]:
                rise = high["rows"][example][2] - low["rows"][example][2]
                slopes.setdefault(example, []).append(rise / np.log(25))
    expected = [np.mean(slopes[e]) if e in slopes else np.nan for e in table["example"]]
    assert table["epsilon_sensitivity"].to_numpy() == pytest.approx(np.array(expected), nan_ok=True)
    told = about["columns"]["epsilon_sensitivity"]
    assert told["runs"] == [0, 1, 2, 3] and told["kind"] == "private" and told["direction"] == "not known"
    assert about["columns"]["private_curvature_eps_2"]["runs"] == [0]
    assert about["columns"]["private_curvature_eps_2"]["standard_error"] is None


def test_another_suffix_makes_the_table_again(private: Path, trees: Trees, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(private, folder)
    config = write_config(folder, data_dir=json.loads((private / "config.json").read_text())["data_dir"])
    flags, path = [*KIND, "--config", str(config)], table_path(folder / "score_dir", "cifar10", "smallcnn")
    for suffix, runs in (("*seed_[01]", [0, 1]), ("*seed_[12]", [1, 2]), ("*", [0, 1, 2, 3])):
        ended = trees.server.run("score_table.py", [*flags, "--suffix", suffix])
        assert ended.status == 0 and "made again" in ended.output, ended.errors
        assert read_table(path)[1]["columns"]["private_loss_eps_2"]["runs"] == runs
    shutil.rmtree(next((folder / "private_model_dir").glob("*_eps_2_*seed_3")))
    ended = trees.server.run("score_table.py", flags)
    assert ended.status == 2 and "--overwrite" in ended.errors  # of the same models there are fewer


def test_per_instance_columns_are_those_of_the_totals(private: Path) -> None:
    table, about = read_table(table_path(private / "score_dir", "cifar10", "smallcnn"))
    totals = pd.read_csv(private / "sensitivity_dir" / "compo_res" / "compo_res_all_totals.csv").set_index("point")
    rows = table.set_index("example").loc[totals.index]
    assert np.allclose(rows["instance_epsilon_realised"], totals["epsilon realised mean, loss distributions"])
    assert np.allclose(rows["instance_epsilon_largest"], totals["epsilon largest of R runs"])
    assert table["instance_epsilon_realised"].notna().sum() == len(totals) < len(table)
    assert about["columns"]["instance_epsilon_realised"]["runs"] == ["res1.csv", "res2.csv"]
    assert "run_folds.sh" in about["missing"]["instance_epsilon_realised_both"]


def test_per_instance_costs_of_another_network_bear_its_name_and_need_a_source(
    private: Path, trees: Trees, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(private, folder)
    config = write_config(folder, data_dir=json.loads((private / "config.json").read_text())["data_dir"])
    for path in (folder / "sensitivity_dir" / "res").glob("*.json"):
        path.write_text(path.read_text().replace('"arch": "smallcnn"', '"arch": "lenet5"'))
    flags = [*KIND, "--no-influence", "--config", str(config)]
    ended = trees.server.run("score_table.py", [*flags, "--overwrite"])
    assert ended.status == 0 and "of the network lenet5, its columns end in _lenet5" in ended.errors
    table, about = read_table(table_path(folder / "score_dir", "cifar10", "smallcnn"))
    assert "instance_epsilon_realised_lenet5" in table and "instance_epsilon_realised" not in table
    assert about["columns"]["instance_epsilon_realised_lenet5"]["arch"] == "lenet5"
    (folder / "sensitivity_dir" / "res" / "res2.json").unlink()
    before = tree(folder)
    ended = trees.server.run("score_table.py", flags)
    assert ended.status == 2 and "res2.csv: missing or not what" in ended.errors, ended.errors
    assert "compo_res_all_totals.csv" in ended.errors and tree(folder) == before


def test_imagenet_takes_its_labels_from_the_index(tmp_path: Path) -> None:
    write_scored_imagenet(tmp_path, 60, [0, 1, 2])
    places = {"fz_model_dir": "fz_models", "score_dir": "scores", "imagenet_index": "imagenet_index.npz"}
    config = write_config(tmp_path, **places)
    line = ("score_table.py", "--dataset", "imagenet", "--arch", "resnet50", "--no-influence", "--config", config)
    result = run_script(*line)
    assert result.returncode == 0, result.stderr
    table, about = read_table(table_path(tmp_path / "scores", "imagenet", "resnet50"))
    assert np.array_equal(table["label"], read_imagenet_index(tmp_path / "imagenet_index.npz").labels)
    assert "curvature" in table and "keep correctness alone" in about["missing"]["memorization_prob"]
