"""Folds left out of the training, recursive removal, error of stages, and the published removal, on real trainings."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import assert_refused, execute_notebook, run_script, tree, write_config
from test_sensitivity_loops import finish, start

from libscores import ranking, renyi

FLAGS = (
    "--data_subset", 200, "--batch_size", 32, "--epochs", 2, "--max_grad_norm", 2.5, "--accountant", "rdp",
    "--points", 20, "--stages", 5, "--save_freq", 2, "--save_every", 0, "--runs", 1,
)  # fmt: skip
SCRIPT = "sensitivity/compute_sensitivity.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with all points."""
    folder = tmp_path_factory.mktemp("rounds")
    status, _, err = finish("run_loop.sh", *FLAGS, "--config", write_config(folder))
    assert status == 0, err
    return folder


def kept(results: Path) -> dict:
    """What a loop leaves but for the logs of its job files."""
    return {name: content for name, content in tree(results).items() if "jobs/" not in str(name)}


def stopped_and_resumed(study: Path, line: list[object], script: str, until: str) -> None:
    process = start(script, *line)
    while not (study / "sensitivity_dir" / until).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGTERM and f"{script}: stopped; run the same command again to go on" in err
    status, _, err = finish(script, *line)
    assert status == 0, err


@pytest.mark.slow
def test_points_left_out_are_measured_without_them(study: Path) -> None:
    line = [*FLAGS, "--config", study / "config.json", "--folds", 1, "--fold_size", 6]
    stopped_and_resumed(study, line, "run_folds.sh", "models/ckpt_without_1_1/step_0.pt")
    results = study / "sensitivity_dir"
    fold = sorted(int(word) for word in (results / "compo_res" / "fold_1.txt").read_text().split())
    before = kept(results)
    assert finish("run_folds.sh", *line)[0] == 0 and kept(results) == before
    left_file = results / "res" / "res_without_1_1.csv"
    left, whole = pd.read_csv(left_file), pd.read_csv(results / "res" / "res1.csv")
    mixed = run_script("renyi_per_instance_sum_compo.py", results / "res" / "res1.csv", left_file)
    assert_refused(mixed, left_file, "left out of the training; it goes with --without")
    assert sorted(left["point"].unique()) == fold and left["trained_on"].unique().tolist() == [0]
    assert "trained_on" not in whole
    for column in ("p", "sigma", "total_steps", "seed"):
        assert left[column].unique().tolist() == whole[column].unique().tolist()
    both = left.merge(whole[whole["point"].isin(fold)], on=["step", "point"], suffixes=("", "_with"))
    first = both["step"] == 0
    np.testing.assert_allclose(both.loc[first, "grad_norm"], both.loc[first, "grad_norm_with"], rtol=1e-6)
    changed = np.abs(both.loc[~first, "grad_norm"] / both.loc[~first, "grad_norm_with"] - 1) > 1e-5
    assert changed.mean() > 0.9
    totals = pd.read_csv(results / "compo_res" / "compo_res_both_totals.csv").set_index("point")
    assert sorted(totals.index[totals["directions"] == "both"]) == fold and len(totals) == 20
    curve = left[left["point"] == fold[0]].sort_values("step")
    (cost,) = renyi.divergence_at(
        curve["clipped_norm"].to_numpy() / 2.5, 32 / 200, left["sigma"].iloc[0], (8.0,), reverse=True
    )
    steps = left["total_steps"].iloc[0]
    expected = np.interp(np.arange(steps), curve["step"], cost).sum()
    assert totals.loc[fold[0], "realised sum mean, without || with"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_notebook_shows_both_directions(study: Path) -> None:
    """After the test above: six points in both directions, as the accounting has them; one run has no interval."""
    if not list((study / "sensitivity_dir" / "res").glob("res_without_*")):
        pytest.skip("no fold is there")
    config = {"config": study / "config.json", "runs": [1], "first": 20}
    printed, rows = execute_notebook("per_instance_privacy", "per_instance_mnist_lenet5", study, **config)
    totals = pd.read_csv(study / "sensitivity_dir" / "compo_res" / "compo_res_both_totals.csv")
    both = totals[totals["directions"] == "both"]
    assert "without ‖ with" in printed and "median of 6 points" in printed
    found = {row["statistic"]: row for row in rows}
    larger = found["median ε realised, larger direction"]
    name = "epsilon realised mean, loss distributions"
    assert larger["value"] == pytest.approx(both[f"{name}, larger"].median()) and larger["low"] is None
    apart = (both[f"{name}, without || with"] - both[name]).median()
    assert found["ε realised, without || with less with || without, median"]["value"] == pytest.approx(apart)


@pytest.mark.slow
def test_rounds_of_a_recursive_removal(study: Path) -> None:
    line = [*FLAGS, "--config", study / "config.json", "--rounds", 2, "--remove", 4]
    stopped_and_resumed(study, line, "run_recursive.sh", "models/ckpt_recursive_4_2_1/step_0.pt")
    compo = study / "sensitivity_dir" / "compo_res"
    names = ["compo_res_all", "compo_res_cheapest_4", "compo_res_recursive_4_2"]
    totals = [pd.read_csv(compo / f"{name}_totals.csv").set_index("point")["epsilon realised mean"] for name in names]
    gone: list[int] = []
    for name, here, after in zip(names, totals, totals[1:], strict=False):
        order = here.reset_index().sort_values(["epsilon realised mean", "point"])["point"].tolist()
        gone += order[:4]
        assert [int(word) for word in (compo / f"{name}_cheapest_4.txt").read_text().split()] == gone
        assert sorted(after.index) == sorted(set(range(20)) - set(gone))
    assert len(gone) == 8
    table = pd.read_csv(compo / "recursive_4.csv")
    assert table[["from_round", "round"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    guessed = totals[0].sort_values().index[:8]
    assert table.loc[1, "overlap"] == pytest.approx(np.isin(guessed, gone).mean())
    checkpoints = pd.read_csv(compo / "recursive_4_checkpoints.csv")
    assert checkpoints["round"].tolist() == [0, 0, 1, 1, 2, 2] and checkpoints["overlap"].between(0, 1).all()


def test_bad_rounds_and_folds_are_refused(study: Path, tmp_path: Path) -> None:
    first = tmp_path / "compo_res_all_totals.csv"
    first.write_text("point,epsilon realised mean\n1,0.1\n2,0.2\n3,0.3\n4,0.4\n")
    second = tmp_path / "second_totals.csv"
    second.write_text("point,epsilon realised mean\n2,0.2\n5,0.3\n")
    script = "sensitivity/recursive.py"
    assert_refused(run_script(script, first), "compo_res_all_totals.csv", "two rounds")
    assert_refused(run_script(script, first, second), "second_totals.csv", "point 5", "round before")
    assert_refused(run_script(script, first, first), "4, 4 points")
    second.write_text("point,epsilon realised mean\n2,0.2\n3,0.3\n")
    assert_refused(run_script(script, first, second), "compo_res_all.csv", "cannot read")
    results = study / "sensitivity_dir" / "res" / "res1.csv"
    assert_refused(run_script("sensitivity/folds.py", results, "--folds", 3, "--fold_size", 7), "need 21 points")
    gone = tmp_path / "gone.txt"
    gone.write_text("9 2")
    rank = ("sensitivity/compo_res/rank.py", first, "--select", 1, "--removed")
    assert_refused(run_script(*rank, gone), "gone.txt", "point 2", "not removed before")
    assert_refused(run_script(*rank, tmp_path / "none.txt"), "none.txt", "cannot read points")
    for script, flags, mention in (
        ("run_folds.sh", ["--folds", "0"], "--folds 0"), ("run_folds.sh", ["--seed", "3"], "--seed"),
        ("run_recursive.sh", ["--rounds", "x"], "--rounds x"),
    ):  # fmt: skip
        status, _, err = finish(script, *flags)
        assert status == 2 and len(err.splitlines()) == 1 and mention in err
    line = (SCRIPT, *FLAGS[:-2], "--config", study / "config.json", "--name", "_x")
    assert_refused(run_script(*line, "--points", "removed"), "--points removed", "--remove_points")
    few = ("--remove-points", gone, "--points", "removed", "--points-sample", 3)
    assert_refused(run_script(*line, *few), "--points_sample 3", "--points removed")


@pytest.mark.parametrize("script", ["run_folds.sh", "run_recursive.sh", "run_loop_rm.sh"])
def test_another_number_of_runs_than_there_is_told_before_any_work(script: str, tmp_path: Path) -> None:
    config, results = write_config(tmp_path), tmp_path / "sensitivity_dir"
    (results / "res").mkdir(parents=True)
    for name in ("1", "2", "3", "_order", "_cheapest_4_1", "1_stage_0.5"):
        (results / "res" / f"res{name}.csv").touch()
    (results / "res" / "old").mkdir()
    (results / "res" / "old" / "res4.csv").touch()
    before = tree(tmp_path)
    for runs, said in ((2, "; give --runs 3, or --overwrite to go by the first"), (4, ", and no res4.csv")):
        status, _, err = finish(script, "--runs", runs, "--config", config)
        wanted = f"--runs {runs}: {results}/res has 3 runs of run_loop.sh{said}\n"
        assert (status, err) == (2, f"{script.removesuffix('.sh')}: {wanted}")
    assert tree(tmp_path) == before and not (results / "compo_res").exists()
    said = finish(script, "--runs", 2, "--overwrite", "--config", config)[2]
    assert "--runs" not in said and "res1.csv" in said


def test_every_step_says_what_stages_lose(study: Path, tmp_path: Path) -> None:
    """12 steps, all measured: the error of 4 stages is that of straight lines between them."""
    line = (SCRIPT, *FLAGS[:-2], "--config", study / "config.json", "--name", "_every")
    done = run_script(*line, "--points", 5, "--save_freq", 1, "--stages", 13)
    assert done.returncode == 0, done.stderr
    results = study / "sensitivity_dir" / "res" / "res_every.csv"
    script = "sensitivity/interpolation.py"
    done = run_script(script, results, "--stages", 4, 12, "--output", tmp_path / "error.csv")
    assert done.returncode == 0, done.stderr
    table, rows = pd.read_csv(tmp_path / "error.csv"), pd.read_csv(results)
    errors = []
    for _, one in rows[rows["step"] < 12].groupby("point"):
        cost = renyi.step_divergence(one["clipped_norm"].to_numpy() / 2.5, 32 / 200, rows["sigma"].iloc[0], 8)
        errors.append(np.interp(np.arange(12), [0, 4, 7, 11], cost[[0, 4, 7, 11]]).sum() / cost.sum() - 1)
    assert table["error of total, 50 %"].iloc[0] == pytest.approx(np.median(errors), rel=1e-6)
    assert table.filter(like="error").iloc[1].abs().max() < 1e-9
    assert_refused(run_script(script, study / "sensitivity_dir/res/res1.csv"), "res1.csv", "step 1 was not measured")


def test_published_removal_compares_a_training_with_itself(study: Path, tmp_path: Path) -> None:
    """One training of ours measured as published: norms over the points measured at once, then clipped.

    The published files hold, for most rows above rounding, costs (1000/900)^2 times those before, the others the same.
    Here 20 and 18 points, in the mechanism whose clipping norm is so large that it never clips; the norms are scaled so
    that some reach the published clipping norm 1.
    """
    line = (SCRIPT, *FLAGS[:-2], "--config", study / "config.json", "--name", "_published", "--max_grad_norm", 32)
    done = run_script(*line)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(study / "sensitivity_dir" / "res" / "res_published.csv")
    norms = rows.pivot(index="step", columns="point", values="grad_norm").to_numpy()
    norms = norms * 20 / np.quantile(norms, 0.8)
    steps = np.sort(rows["step"].unique())
    total = int(rows["total_steps"].iloc[0])
    costs, seen = [], []
    for measured in (20, 18):
        clipped = np.minimum(norms / measured, 1.0)
        seen.append(clipped)
        # norm / (points measured), clipped, over B: what the published accounting takes for the norm.
        costs.append(
            renyi.composed_cost(
                (clipped / 32)[None], steps, total, 32 / 200, rows["sigma"].iloc[0], 8, 3 * steps[-1], "published"
            )
        )
    ratio = costs[1] / costs[0]
    free, full = norms < 18, norms >= 20
    assert free.mean() > 0.5 and full.any()
    np.testing.assert_allclose(ratio[free], (20 / 18) ** 2, rtol=2e-3)
    np.testing.assert_allclose(ratio[full], 1, rtol=1e-12)
    between = ratio[~free & ~full]
    assert np.all((between > 1 - 1e-12) & (between < (20 / 18) ** 2 * 1.002))
    # Nothing was trained anew, and yet the totals do not agree in full: clipping bends the factor.
    agreement = ranking.rank_agreement(costs[0].sum(axis=0), costs[1].sum(axis=0))
    assert agreement[0] > 0.9 and agreement[0] > agreement[1]
    assert ranking.nothing_retrained(seen[0], seen[1]) == pytest.approx(20 / 18)
