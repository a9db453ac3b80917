"""The loops of sensitivity/ and their job lines, run as a user runs them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, assert_refused, execute_notebook, run_script, tree, write_config

LOOPS = sorted((ROOT / "sensitivity").glob("*.sh"))
FLAGS = (
    "--data_subset", 200, "--batch_size", 32, "--epochs", 2, "--max_grad_norm", 2.5, "--accountant", "rdp",
    "--points", 20, "--stages", 7, "--save_freq", 2, "--save_every", 0,
)  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def start(script: str, *flags: object) -> subprocess.Popen[str]:
    line = [str(ROOT / "sensitivity" / script), *map(str, flags)]
    return subprocess.Popen(line, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(script: str, *flags: object) -> tuple[int, str, str]:
    process = start(script, *flags)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.mark.parametrize("path", LOOPS, ids=lambda path: path.name)
def test_loops_are_posix_and_executable(path: Path) -> None:
    assert subprocess.run([shutil.which("dash") or "sh", "-n", path], capture_output=True).returncode == 0
    assert path.name == "common.sh" or os.access(path, os.X_OK)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, stopped once, and again without five random points; returns the folder."""
    folder = tmp_path_factory.mktemp("study")
    results, line = folder / "sensitivity_dir", (*FLAGS, "--runs", 2, "--config", write_config(folder))
    process = start("run_loop.sh", *line)
    while not (results / "models" / "ckpt1" / "step_0.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGTERM and "run_loop.sh: stopped; run the same command again to go on" in err
    assert not list(results.glob("res/*"))
    status, out, err = finish("run_loop.sh", *line)
    assert status == 0 and "line 1 done, 1 of 2, " in out, err
    before = tree(results / "res")
    status, out, _ = finish("run_loop.sh", *line)
    assert status == 0 and out.count("skipped") == 2 and tree(results / "res") == before
    status, _, err = finish("run_loop_rm.sh", *line, "--remove", 5, "--which", "random", "--lr", 0.4)
    assert (
        status == 1 and "differ in optimization.lr (0.4 and 0.1); the flags must be those that it was made with" in err
    )
    assert tree(results / "res") == before and not (results / "models" / "ckpt_random_5_1").exists()
    status, _, err = finish("run_loop_rm.sh", *line, "--remove", 5, "--which", "random", "--runs_per_job", 2)
    assert status == 0, err
    return folder


@pytest.mark.slow
def test_removal_experiment(study: Path) -> None:
    folder = study / "sensitivity_dir"
    table = pd.read_csv(folder / "compo_res" / "comparison_random_5.csv").set_index("metric")
    assert table.loc["points", "value"] == 15 and table.loc["points_removed", "value"] == 5
    gone = set((folder / "compo_res" / "compo_res_all_random_5.txt").read_text().split())
    for run in (1, 2):
        rows = pd.read_csv(folder / "res" / f"res_random_5_{run}.csv")
        assert rows["seed"].unique().tolist() == [run] and not gone & set(rows["point"].astype(str))
    everything, config = tree(folder), study / "config.json"
    assert finish("run_compo.sh", "--runs", 2, "--remove", 5, "--which", "random", "--config", config)[0] == 0
    assert tree(folder) == everything
    mixed = run_script("renyi_per_instance_sum_compo.py", *sorted((folder / "res").glob("res*.csv")))
    assert_refused(mixed, "res_random_5_1.csv and ", "res1.csv differ in ", "give the runs of one experiment")


@pytest.mark.slow
def test_notebooks_show_what_the_files_say(study: Path) -> None:
    compo, parameters = study / "sensitivity_dir" / "compo_res", {"config": study / "config.json", "runs": [1, 2]}
    printed, rows = execute_notebook("per_instance_privacy", "per_instance_mnist_lenet5", study, first=10, **parameters)
    assert "20 points, 2 runs, 7 of 12 steps measured" in printed
    assert "one-sided: no runs without points here" in printed
    totals = pd.read_csv(compo / "compo_res_all_totals.csv")
    growth = pd.read_csv(compo / "compo_res_all_runs.csv").set_index("runs")
    found = {row["statistic"]: row["value"] for row in rows}
    assert rows[0]["value"] == pytest.approx(totals["epsilon realised mean, loss distributions"].median())
    assert found["median largest of 2 runs / data-independent"] == pytest.approx(growth.loc[2].iloc[0])
    assert found["median ε of the largest of 2 runs"] == pytest.approx(growth.loc[2, "epsilon"])
    single = [row for row in rows if row["low"] is None]  # two runs are one pair, which has no interval over runs
    assert len(single) == 4 and all(row["statistic"].startswith(("spearman", "kendall")) for row in single)
    assert all(row["low"] < row["value"] < row["high"] for row in rows if row not in single)
    assert sum(row["verdict"] == "reference" for row in rows) == 2

    choice = {"remove": 5, "which": ["random"]}
    _, rows = execute_notebook("removal", "removal_mnist_lenet5_5_removed", study, **choice, **parameters)
    table = pd.read_csv(compo / "comparison_random_5.csv").set_index("metric")
    for metric in ("spearman_realised", "kendall_epsilon"):
        row = next(row for row in rows if row["statistic"] == f"{metric}, 5 random removed")
        expected = table.loc[metric, ["value", "low", "high"]]
        assert [row[key] for key in ("value", "low", "high")] == pytest.approx(expected.tolist())
        assert row["verdict"].startswith(f"{table.loc[f'{metric}_other_seeds', 'value']:.4g} ")

    _, rows = execute_notebook("cost_curves", "cost_curves_mnist_lenet5", study, **parameters)
    assert len(rows) == 4 and all(row["low"] <= row["value"] <= row["high"] for row in rows)
    names = (
        "per_instance_steps_mnist_lenet5",
        "per_instance_totals_mnist_lenet5",
        "per_instance_digits_mnist_lenet5",
        "removal_mnist_lenet5_5_removed",
        "cost_curves_mnist_lenet5",
    )
    for name in names:
        for suffix in ("png", "pdf"):
            assert (study / "figure_dir" / f"{name}.{suffix}").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("script", "flags", "mention"), [
        ("run_loop.sh", ["--runs", "0"], "--runs 0"),
        ("run_loop.sh", ["--runs"], "--runs needs a value"),
        ("run_loop.sh", ["--fold-size=x"], "--fold_size x"),
        ("run_loop.sh", ["--seed", "3"], "--seed"),
        ("run_loop.sh", ["--more-runs", "3"], "--more_runs"),
        ("run_loop.sh", ["--runs_per_job", "0"], "--runs_per_job 0"),
        ("run_loop_rm.sh", ["--which", "most"], "--which most"),
        ("run_loop_rm.sh", ["--remove", "x"], "--remove x"),
        ("run_compo.sh", ["--config", "nowhere.json"], "nowhere.json"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(script: str, flags: list[str], mention: str) -> None:
    status, _, err = finish(script, *flags)
    assert status == 2 and len(err.splitlines()) == 1 and mention in err


def test_a_start_from_another_folder(tmp_path: Path) -> None:
    """A configuration beside the one who types is meant, an unrelated config.json there is not."""
    write_config(tmp_path).rename(tmp_path / "mine.json")
    (tmp_path / "config.json").write_text("of something else")
    for config, mention in (("mine.json", tmp_path / "sensitivity_dir"), ("config.json", tmp_path / "config.json")):
        line = [str(ROOT / "sensitivity" / "run_compo.sh"), "--runs", "1", "--config", config]
        result = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode == 2 and str(mention) in result.stderr, result.stderr
    line = [str(ROOT / "sensitivity" / "run.sh"), "--lr", "none"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "python").chmod(0o755)
    environment = ENVIRONMENT | {"PYTHON": str(tmp_path / "python"), "CDPATH": "/usr:."}
    said = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert said == "sensitivity/compute_sensitivity.py --config config.json --lr none\n"


def test_lines_of_the_loops_train_so_many_runs(tmp_path: Path) -> None:
    """Python is a stand-in that says where results are, starts job lines and does nothing else."""
    folder = tmp_path / "it's here"
    (folder / "res").mkdir(parents=True)
    for run in (1, 2, 3):
        (folder / "res" / f"res{run}.csv").touch()
    python = tmp_path / "python"
    known = f'*setsid*) exec {sys.executable} "$@" ;; *libcli*) echo {shlex.quote(str(folder))} ;;'
    python.write_text(f"#!/bin/sh\ncase $2 in {known} esac\n")
    python.chmod(0o755)
    start, res = "sh sensitivity/run.sh --config config.json --lr 1", f"{folder}/res"
    without = f"--remove_points {shlex.quote(f'{folder}/compo_res/fold_1.txt')} --points removed --points_sample 0"
    for per_job, loop, fold in (
        ({}, [(1, "", "1"), (2, "", "2"), (3, "", "3")], [(1, "", "1"), (2, "", "2"), (3, "", "3")]),
        (
            {"RUNS_PER_JOB": "2"},
            [(1, " --more_runs 2", "'*'"), (3, "", "3")],
            [(1, " --more_runs 2", "*"), (3, "", "3")],
        ),
    ):
        for script, flags in (("run_loop.sh", []), ("run_folds.sh", ["--folds", "1"])):
            command = [str(ROOT / "sensitivity" / script), "--runs", "3", "--lr", "1", *flags]
            environment = ENVIRONMENT | {"PYTHON": str(python)} | per_job
            result = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
        lines = (folder / "jobs" / "train.sh").read_text().splitlines()
        assert lines == [f"{start} --run {run}{more} --name {name}  " for run, more, name in loop]
        lines = (folder / "jobs" / "train_without_1_.sh").read_text().splitlines()
        assert [shlex.split(line) for line in lines] == [
            [*shlex.split(f"{start} {without} --run {run}{more} --name"), f"_without_1_{name}", "--compare_with",
             f"{res}/res{name}.csv"]
            for run, more, name in fold
        ]  # fmt: skip


def test_a_job_line_for_every_seed_and_epsilon() -> None:
    line = ["sh", "scripts/create_per_instance_renyi_jobs.sh", "--epsilons", "1 10", "--seeds", "3 4", "--stages", "5"]
    no_python = {"PATH": "/usr/bin:/bin"}  # then flags are not checked, which takes seconds
    out = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, env=no_python).stdout
    words = [shlex.split(line) for line in out.splitlines()]
    assert [(w[w.index("--seed") + 1], w[w.index("--epsilon") + 1]) for w in words] == [
        (seed, epsilon) for seed in "34" for epsilon in ("1", "10")
    ]
    assert len({w[w.index("--name") + 1] for w in words}) == 4
    assert all(w[:2] == ["python", "sensitivity/compute_sensitivity.py"] and w[-2:] == ["--stages", "5"] for w in words)


def test_too_few_checkpoints_for_the_stages_are_said_before_the_training(tmp_path: Path) -> None:
    """12 steps; the network is not there, so that the training fails, but no flag."""
    said = "7 stages in place of 41, for 7 checkpoints of 12 steps; see --save_freq\n"
    line = (*FLAGS, "--stages", 41, "--config", write_config(tmp_path), "--arch", "nowhere.py:f")
    status, _, err = finish("run_loop.sh", *line, "--runs", 1)
    assert status == 1 and err.startswith(f"run_loop: compute_sensitivity.py: {said}") and err.count(said) == 1
    words = map(str, (*FLAGS, "--stages", 41, "--dataset", "mnist fashionmnist"))
    generator = ["sh", "scripts/create_per_instance_renyi_jobs.sh", *words]
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    err = subprocess.run(generator, cwd=ROOT, env=ENVIRONMENT | path, capture_output=True, text=True, check=True).stderr
    assert err == f"create_per_instance_renyi_jobs: compute_sensitivity.py: {said}"


@pytest.mark.parametrize(
    ("flags", "said"), [
        ((), ""),
        (("--save_freq", 101), ""),  # 9,375 steps, a stage every 234
        (("--save_freq", 300), "32 stages in place of 41, for 33 checkpoints of 9375 steps"),  # 9,300 is next to none
        (("--data_subset", 2000), "5 stages in place of 41, for 5 checkpoints of 312 steps"),
        (("--data_subset", 2000, "--stages", 4), ""),
        (("--data_subset", 2000, "--stage", 0.5), ""),
        (("--dataset", "somewhere.py:function", "--data_subset", 2000), ""),
        (("--data_subset", "nowhere.npy"), ""),
    ],
)  # fmt: skip
def test_flags_alone_tell_of_too_few_checkpoints(
    flags: tuple[object, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAGS_ONLY", "1")
    result = run_script("sensitivity/compute_sensitivity.py", *flags)
    assert result.returncode == 0 and result.stderr.count("\n") == bool(said) and said in result.stderr
