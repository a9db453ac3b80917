"""Links 2 and 3 end to end through the shipped scripts, on a small family of private models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TRAIN_FLAGS, assert_refused, run_script, tree, write_config

from libdata.fz import read_run
from libdata.index import load_array
from libdata.scores import score_path
from libdata.store import load_scores

CHOICE = ("--dataset", "mnist", "--arch", "smallcnn")
DP_FLAGS = (*CHOICE, "--data_subset", "200", "--batch_size", "32", "--epochs", "2", "--accountant", "rdp")
SEEDS, EPSILONS = (0, 1, 2, 3), (2, 50)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight private models on memorization subsets of 200 digits; returns the folder with config.json."""
    folder = tmp_path_factory.mktemp("family")
    config = write_config(folder)
    subsets = folder / "private_model_dir" / "subsets" / "mnist"
    commands = [("train_fz_models.py", *TRAIN_FLAGS, "--stop_run", 4)]
    commands += [("scripts/make_memorization_subsets.py", *CHOICE, "--top_k", 40, "--seeds", *SEEDS)]
    for seed in SEEDS:
        flags = ("--seed", seed, "--subset", subsets / f"subset_{seed}.npy", "--suffix", f"memorization_seed_{seed}")
        commands += [("train_dp.py", *DP_FLAGS, "--epsilon", epsilon, *flags) for epsilon in EPSILONS]
    for command in commands:
        result = run_script(*command, "--config", config)
        assert result.returncode == 0, result.stderr
    return folder


def test_subsets_are_as_the_design_says_and_seeded(family: Path, tmp_path: Path) -> None:
    subsets = family / "private_model_dir" / "subsets" / "mnist"
    top = load_array(subsets / "top_k.npy")
    assert len(top) == 40 and np.all(np.isin(top, np.arange(200)))
    drawn = [load_array(subsets / f"subset_{seed}.npy") for seed in SEEDS]
    for subset in drawn:
        assert np.isin(subset, top).sum() == 20 and len(subset) == 20 + 112
    assert len({tuple(subset) for subset in drawn}) == len(SEEDS)
    shutil.copytree(family / "fz_model_dir", tmp_path / "fz_model_dir")
    config = write_config(tmp_path)
    command = ("scripts/make_memorization_subsets.py", *CHOICE, "--top_k", 40, "--config", config)
    assert run_script(*command, "--seeds", 3, 1).returncode == 0
    for seed in (1, 3):
        again = tmp_path / "private_model_dir" / "subsets" / "mnist" / f"subset_{seed}.npy"
        assert again.read_bytes() == (subsets / f"subset_{seed}.npy").read_bytes()
    before = tree(tmp_path)
    assert_refused(run_script(*command, "--seeds", 1, "--ratio", 0.5), "ratio: 0.7 there, 0.5 asked for")
    assert_refused(run_script(*command, "--top_k", 201), "--top_k 201", "found 201")
    assert_refused(run_script(*command, "--scores", "nowhere.npy"), "nowhere.npy")
    assert tree(tmp_path) == before


def test_loss_against_epsilon(family: Path) -> None:
    config = family / "config.json"
    result = run_script("loss_v_priv.py", *CHOICE, "--epsilon", 2, 20, 50, "--config", config)
    assert result.returncode == 0 and "no model with epsilon 20" in result.stderr and "no fit" in result.stdout
    losses, sidecar = load_scores(family / "score_dir" / "loss_v_priv" / "mnist_smallcnn.npy")
    assert sidecar["settings"]["epsilons"] == [2, 50] and sidecar["settings"]["seeds"] == list(SEEDS)
    for row, epsilon in enumerate(EPSILONS):
        for column, seed in enumerate(SEEDS):
            run = read_run(family / f"private_model_dir/mnist_smallcnn_eps_{epsilon}_memorization_seed_{seed}")
            assert losses[row, column] == pytest.approx(-np.log(run.prob["test"], dtype=float).mean(), rel=1e-4)
    for suffix in ("png", "pdf"):
        assert (family / "figure_dir" / f"loss_v_priv_mnist_smallcnn.{suffix}").stat().st_size > 5_000
    rows = json.loads((family / "figure_dir" / "results_link2_loss_mnist_smallcnn.json").read_text())
    assert rows[0]["statistic"] == "Spearman(epsilon, test loss)" and -1 <= rows[0]["value"] <= 1
    refused = run_script("loss_v_priv.py", *CHOICE, "--epsilon", 50, "--config", config)
    assert_refused(refused, "epsilons: [2.0, 50.0] there, [50.0] asked for", "--overwrite")


def test_memorization_against_epsilon(family: Path) -> None:
    config = family / "config.json"
    result = run_script("calc_private_memorization.py", *CHOICE, "--config", config)
    assert result.returncode == 0, result.stderr
    scores, sidecar = load_scores(family / "score_dir" / "private_memorization" / "mnist_smallcnn.npy")
    assert scores.shape == (2, 2, 40) and sidecar["settings"]["epsilons"] == [2, 50]
    top = load_array(family / "private_model_dir/subsets/mnist/top_k.npy")
    for row, epsilon in enumerate(EPSILONS):
        runs = [
            read_run(family / f"private_model_dir/mnist_smallcnn_eps_{epsilon}_memorization_seed_{s}") for s in SEEDS
        ]
        for column, example in enumerate(top):
            seen = [r.prob["train"][r.index["train"] == example][0] for r in runs if example in r.index["train"]]
            held = [r.prob["removed"][r.index["removed"] == example][0] for r in runs if example in r.index["removed"]]
            want = np.mean(seen, dtype=float) - np.mean(held, dtype=float) if seen and held else np.nan
            assert scores[0, row, column] == pytest.approx(want, nan_ok=True, abs=1e-6)
    assert "control" in json.loads((family / "figure_dir/results_link3_mnist_smallcnn.json").read_text())[-1]["verdict"]
    assert (family / "figure_dir" / "private_memorization_mnist_smallcnn.png").exists()


def test_curvature_of_private_models_needs_no_calibration(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libmodels.dp_options.plan_privacy", lambda *_: pytest.fail("calibrated again"))
    command = ("calc_curv_private_models.py", *CHOICE, "--n_probes", 2, "--seed", 1, "--config", family / "config.json")
    assert run_script(*command).stdout.count(": scored") == 2
    assert run_script(*command).stdout.count("skipped") == 2
    scores, sidecar = load_scores(
        score_path(family / "score_dir", "curv_scores", "mnist_smallcnn_eps_50_memorization_seed_1", 1e-3)
    )
    assert scores.shape == (200,) and sidecar["settings"]["data"]["normalization"] == "standard"


def test_too_few_models_are_said_and_the_rest_goes_on(family: Path) -> None:
    config = family / "config.json"
    refused = run_script("calc_private_memorization.py", *CHOICE, "--seed", 1, "--config", config)
    assert refused.returncode == 2 and "epsilon 2: memorization needs at least two models" in refused.stderr
    for script in ("loss_v_priv.py", "calc_private_memorization.py", "calc_curv_private_models.py"):
        assert_refused(run_script(script, "--dataset", "cifar10", "--config", config), "no private model of cifar10")


def test_notebook_of_link_2(family: Path, tmp_path: Path) -> None:
    choice = ("--dataset", "mnist", "--arch", "smallcnn", "--n_probes", 2, "--config", family / "config.json")
    assert run_script("calc_curv_private_models.py", *choice).returncode == 0
    dirs = {key: family / key for key in ("private_model_dir", "score_dir")}
    config = write_config(tmp_path, **dirs)
    parameters = ["-p", "config", str(config), "-y", "datasets: [mnist]", "-p", "arch", "smallcnn"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "sh",
        "scripts/run_notebook.sh",
        "notebooks/curv_privacy.ipynb",
        str(tmp_path / "figure_dir"),
        *parameters,
    ]
    result = subprocess.run(
        [*command, "-p", "suffix", "memorization_*"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(
        (tmp_path / "figure_dir" / "results_link2_curvature_mnist_smallcnn_memorization.json").read_text()
    )
    assert {row["statistic"] for row in rows} >= {f"Spearman(epsilon, {s} curvature)" for s in ("mean", "median")}
    assert (tmp_path / "figure_dir" / "curv_privacy_mnist_smallcnn.png").stat().st_size > 10_000
