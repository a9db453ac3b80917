"""One seed redrawn at a time, and the tables of the study at the published scale, of whatever runs are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_refused, run_script
from scipy import stats
from test_sensitivity_scripts import POINTS, result_table, write_runs

SCRIPT = "sensitivity/redrawn.py"


def redrawn_files(folder: Path) -> dict[str, Path]:
    """The first run again, with noise of little effect and weights of much."""
    files, table = {}, result_table(1)
    for seed, (name, size) in enumerate({"init": 0.8, "noise": 0.01}.items()):
        files[name] = folder / "res" / f"res_{name}.csv"
        factor = np.exp(np.random.default_rng(seed).normal(0, size, len(table)))
        distance = np.minimum(table["distance (sum)"] * factor, 1 / 50)
        table.assign(**{"distance (sum)": distance, "save_name": name}).to_csv(files[name], index=False)
    return files


def test_redrawing_one_seed(tmp_path: Path) -> None:
    """Epsilons of single files are the accounting's; agreement is SciPy's; runs of other seeds stand beside it."""
    runs, redrawn = write_runs(tmp_path), redrawn_files(tmp_path)
    output = tmp_path / "seeds.csv"
    words = [f"{name}={path}" for name, path in redrawn.items()]
    done = run_script(SCRIPT, *runs, "--redrawn", *words, "--output", output)
    assert done.returncode == 0 and "one-sided" in done.stdout, done.stderr
    table = pd.read_csv(output).set_index(["redrawn", "statistic"])
    epsilons = []
    for path in (runs[0], runs[1], redrawn["init"]):
        assert run_script("renyi_per_instance_sum_compo.py", path).returncode == 0
        totals = pd.read_csv(tmp_path / "compo_res" / f"compo_{path.stem}_totals.csv")
        epsilons.append(totals["epsilon realised mean, loss distributions"].to_numpy())
    here = table.loc["init"]
    assert here.loc["spearman", "value"] == pytest.approx(stats.spearmanr(epsilons[0], epsilons[2]).statistic)
    assert here.loc["kendall", "value"] == pytest.approx(stats.kendalltau(epsilons[0], epsilons[2]).statistic)
    ranks = [stats.rankdata(one) for one in (epsilons[0], epsilons[2])]
    assert here.loc["mean_rank_shift", "value"] == pytest.approx(np.abs(ranks[0] - ranks[1]).mean())
    change = epsilons[2] - epsilons[0]
    assert here.loc["median change of epsilon", "value"] == pytest.approx(np.median(change), abs=1e-12)
    assert here.loc["median absolute change of epsilon", "value"] == pytest.approx(np.median(np.abs(change)))
    assert table.loc[("noise", "median absolute change of epsilon"), "value"] < 0.2 * np.median(np.abs(change))
    assert table.loc[("nothing", "runs"), "value"] == 3 and table.loc[("everything", "spearman"), "low"] >= -1
    assert table.loc[("nothing", "test accuracy"), "value"] == pytest.approx(0.902)
    again = run_script(SCRIPT, *runs, "--redrawn", *words, "--output", output)
    assert "already made" in again.stdout
    assert_refused(run_script(SCRIPT, *runs, "--redrawn", "init"), "--redrawn init", "SEED=FILE")
    copy = tmp_path / "res" / "copy.csv"
    shutil.copy(runs[0], copy)
    assert_refused(run_script(SCRIPT, *runs, "--redrawn", f"noise={copy}"), "copy.csv", "identical bit for bit")


@pytest.mark.slow
def test_the_study_makes_its_table_of_what_has_finished(tmp_path: Path) -> None:
    """Two runs and one removal of one mechanism, one run of the other: what is missing is said to be."""
    root, study = tmp_path / "root", tmp_path / "root" / "docs" / "mnist_study"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name != "docs":
            (root / path.name).symlink_to(path)
    study.mkdir(parents=True)
    for name in ("make.sh", "README.md"):
        shutil.copy(ROOT / "docs" / "mnist_study" / name, study)
    corrected, published = tmp_path / "corrected", tmp_path / "published"
    write_runs(corrected, runs=2)
    redrawn_files(corrected)
    write_runs(published, runs=1, seed=3)
    for run in (1, 2):
        table = result_table(run, points=POINTS[1:], seed=7)
        table.to_csv(corrected / "res" / f"res_cheapest_100_{run}.csv", index=False)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path}
    line = ["sh", study / "make.sh", corrected, published]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = (study / "README.md").read_text()
    cells = {row.split(" | ")[0][2:]: row[:-2].split(" | ")[1:] for row in written.splitlines() if row[:2] == "| "}
    assert cells["runs"] == ["2", "1"] and cells["test accuracy"][1] == "0.901"
    assert cells["100 cheapest removed: Spearman"][0].endswith("(2 pairs)")
    assert cells["100 cheapest removed: Spearman"][1] == "not run" == cells["100 random removed: Kendall"][0]
    seeds = pd.read_csv(study / "corrected_seeds.csv").set_index(["redrawn", "statistic"])["value"]
    assert cells["run 1, noise redrawn: Spearman"][0].split()[0] == f"{seeds['noise', 'spearman']:.4g}"
    assert cells["run 1, batches redrawn: Spearman"] == ["not run", "not run"]
    before = (ROOT / "docs" / "mnist_study" / "README.md").read_text()
    for text in (before.split("<!-- results -->")[0], before.split("<!-- end -->")[1]):
        assert text in written
    kept = {path.name for path in study.glob("*.csv")}
    assert kept == {
        "corrected_totals.csv", "corrected_runs.csv", "corrected_seeds.csv", "corrected_cheapest.csv",
        "published_totals.csv", "published_runs.csv", "published_seeds.csv",
    }  # fmt: skip
    assert not any(str(tmp_path) in path.read_text() for path in study.glob("*.json"))
