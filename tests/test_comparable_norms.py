"""Gradient-norm files of one experiment only, and their derived files, which grow with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_script
from test_sensitivity_scripts import COMPO, CONCAT, EVAL, POINTS, RANK, SPLIT, result_table, run_ok, write_runs

from libstore.errors import InputError
from libstore.sensitivity_results import read_comparison, read_ranking, read_results, read_totals
from libstore.store import Output, read_sidecar

SINGLE = "sensitivity/eps_delta.py"
TRAINING = {
    "optimization": {"optimizer": "sgd", "lr": 0.1, "lr_drops": []}, "privacy": {"epsilon": 10.0},
    "train_on": {"n_examples": 2000}, "model": {"options": {"activation": "tanh"}}, "points_sha256": "p",
}  # fmt: skip


def refusal(*command: object) -> str:
    result = run_script(str(command[0]), *command[1:])
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert len(result.stderr) < 1500
    return result.stderr


def with_sidecars(paths: list[Path], **changes: object) -> list[Path]:
    for run, path in enumerate(paths, start=1):
        Output(path, {**TRAINING, "run": run, "seed": run, **changes}).save(path.read_bytes(), {})
    return paths


@pytest.mark.parametrize("script", [COMPO, CONCAT, SPLIT, SINGLE])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimization": {"optimizer": "sgd", "lr": 0.2, "lr_drops": []}}, "optimization.lr (0.2 and 0.1)"),
        ({"optimization": {"optimizer": "adam", "lr": 0.1, "lr_drops": []}}, 'optimizer ("adam" and "sgd")'),
        ({"train_on": {"n_examples": 1900}}, "train_on.n_examples (1900 and 2000)"),
    ],
)
def test_runs_trained_otherwise_are_refused(tmp_path: Path, script: str, change: dict, said: str) -> None:
    files = with_sidecars(write_runs(tmp_path))
    run_ok(script, *files[:2])
    Output(files[2], {**TRAINING, **change, "run": 3, "seed": 3}).save(files[2].read_bytes(), {})
    told = refusal(script, *files)
    assert said in told and "res3.csv" in told and "res1.csv" in told


@pytest.mark.parametrize(("column", "value"), [("lr", 0.2), ("eps", 9.0), ("delta", 1e-6)])
def test_columns_tell_where_there_are_no_sidecars(tmp_path: Path, column: str, value: float) -> None:
    files = write_runs(tmp_path)
    for path in files[:2]:
        pd.read_csv(path).assign(delta=1e-5).to_csv(path, index=False)
    pd.read_csv(files[2]).assign(**{"delta": 1e-5, column: value}).to_csv(files[2], index=False)
    told = refusal(COMPO, *files)
    assert f"res3.csv: {column} is {value}, but" in told and "res1.csv" in told


def test_a_file_is_what_its_sidecar_says(tmp_path: Path) -> None:
    files = with_sidecars(write_runs(tmp_path))
    result_table(7).to_csv(files[1], index=False)
    with pytest.raises(InputError, match="res2.csv: its content .* is not what its sidecar says"):
        read_results(files)
    files[1].with_suffix(".json").write_text('{"comment": "of somebody else"}')
    assert len(read_results(files).runs) == 3
    with_sidecars(files[2:])
    sidecar = files[2].with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match="format 2.*run sensitivity/compute_sensitivity.py with --overwrite"):
        read_results(files)


def test_derived_files_grow_with_the_runs(tmp_path: Path) -> None:
    files = write_runs(tmp_path / "all")
    pilot, compo = files[:2], files[0].parent.parent / "compo_res"
    totals, ranked = compo / "compo_res_all_totals.csv", compo / "compo_res_all_ranked.csv"
    for script in (COMPO, CONCAT, SPLIT, SINGLE):
        run_ok(script, *pilot)
    run_ok(RANK, totals, "--select", 2)
    for script in (COMPO, CONCAT, SPLIT, SINGLE):
        assert "made again, 1 file added" in run_ok(script, *files)
        assert "made again" not in run_ok(script, *files)
        told = refusal(script, *pilot)  # fewer is another question
        assert "--overwrite replaces it" in told
    assert "_ranked.csv: made again" in run_ok(RANK, totals, "--select", 2)
    fresh = write_runs(tmp_path / "fresh")
    run_ok(COMPO, *fresh)
    assert totals.read_bytes() == (fresh[0].parent.parent / "compo_res" / totals.name).read_bytes()
    np.testing.assert_array_equal(read_ranking(ranked)[1], np.sort(read_totals(totals, "epsilon realised mean")[1]))
    result_table(9).to_csv(files[2], index=False)
    assert "made again, 1 file changed" in run_ok(COMPO, *files)
    assert "alpha: 8.0 there, 4.0 asked for" in refusal(COMPO, *files, "--alpha", 4)
    sidecar = totals.with_suffix(".json")
    old = json.loads(sidecar.read_text())
    old["settings"]["input_sha256"] = list(old["settings"]["input_sha256"].values())  # as earlier versions have it
    sidecar.write_text(json.dumps({key: value for key, value in old.items() if key != "format"}))
    assert "made again" in run_ok(COMPO, *files)


def test_a_list_of_points_to_remove_is_not_replaced_without_being_asked(tmp_path: Path) -> None:
    files = write_runs(tmp_path)
    compo = tmp_path / "compo_res"
    run_ok(COMPO, *files[:2])
    run_ok(RANK, compo / "compo_res_all_totals.csv", "--select", 2)
    chosen = (compo / "compo_res_all_cheapest_2.txt").read_bytes()
    run_ok(COMPO, *files)
    totals = pd.read_csv(compo / "compo_res_all_totals.csv")
    run_ok(RANK, compo / "compo_res_all_totals.csv", "--select", 2)
    assert (compo / "compo_res_all_cheapest_2.txt").read_bytes() == chosen  # the same points, nobody is asked
    totals["epsilon realised mean"] = totals["epsilon realised mean"].to_numpy()[::-1]
    totals.to_csv(compo / "compo_res_all_totals.csv", index=False)
    told = refusal(RANK, compo / "compo_res_all_totals.csv", "--select", 2)
    assert "cheapest_2.txt: made with other settings" in told and "--overwrite" in told
    assert (compo / "compo_res_all_cheapest_2.txt").read_bytes() == chosen


def test_before_and_after_are_of_one_study(tmp_path: Path) -> None:
    before = with_sidecars(write_runs(tmp_path / "before"))
    after = write_runs(tmp_path / "after", points=POINTS[2:], seed=1)
    removal = {"train_on": {"n_examples": 1998}, "points_sha256": "q"}
    with_sidecars(after, **removal)
    ranked = []
    for paths in (before, after):
        run_ok(COMPO, *paths)
        run_ok(RANK, paths[0].parent.parent / "compo_res/compo_res_all_totals.csv")
        ranked.append(paths[0].parent.parent / "compo_res/compo_res_all_ranked.csv")
    output = tmp_path / "table.csv"
    line = (EVAL, *ranked, "--results_before", *before, "--results_after", *after, "--paired", "--output", output)
    run_ok(*line)
    kept = read_comparison(output)
    assert kept["points"].value == 5 and str(kept["points"]) == "5"
    assert kept["spearman_epsilon"].low <= kept["spearman_epsilon"].value <= kept["spearman_epsilon"].high
    names = read_sidecar(output)["settings"]["input_sha256"]
    assert len(names) == 8 and {"before/res/res1.csv", "after/res/res1.csv"} < set(names)
    optimization = TRAINING["optimization"] | {"lr": 0.3}
    with_sidecars(after, **removal, optimization=optimization)
    assert "optimization.lr (0.3 and 0.1)" in refusal(*line)
    with_sidecars(after, **removal)
    result_table(8, POINTS[2:], 1).to_csv(after[0], index=False)
    with_sidecars(after, **removal)
    assert re.search(r"after/\S+_totals.csv was not made of \S+after/res/res1.csv as it is", refusal(*line))
    run_ok(COMPO, *after)
    assert re.search(r"after/\S+_ranked.csv was not made of \S+_totals.csv", refusal(*line))
    run_ok(RANK, ranked[1].with_name("compo_res_all_totals.csv"), "--cost", "realised sum max", "--overwrite")
    assert 'cost ("realised sum max" and "epsilon realised mean")' in refusal(EVAL, *ranked)
    run_ok(COMPO, *after, "--alpha", 4, "--overwrite")
    run_ok(RANK, ranked[1].with_name("compo_res_all_totals.csv"), "--overwrite")
    assert "alpha (4.0 and 8.0)" in refusal(EVAL, *ranked)
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    output.unlink()
    run_ok(*line)


def test_a_missing_table_names_its_script(tmp_path: Path) -> None:
    for read, maker in (
        (lambda path: read_results([path]), "compute_sensitivity.py"),
        (read_ranking, "compo_res/rank.py"),
        (lambda path: read_totals(path, "composed bound"), "renyi_per_instance_sum_compo.py"),
        (read_comparison, "rank_eval.py"),
    ):
        with pytest.raises(InputError, match=f"none.csv.*{maker}"):
            read(tmp_path / "none.csv")
