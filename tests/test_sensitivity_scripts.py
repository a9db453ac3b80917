"""From gradient-norm files to rankings: the scripts, end to end, on made-up trajectories in the published format."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import assert_refused, run_script, tree
from scipy import special, stats

from libscores import renyi
from libscores.accounting import spent_epsilon
from libstore.errors import InputError
from libstore.sensitivity_results import read_ranking, read_results, read_totals
from libstore.store import Output

COMPO = "renyi_per_instance_sum_compo.py"
CONCAT, SPLIT = "sensitivity/res/res_concat.py", "sensitivity/res/res_splitter.py"
RANK, EVAL = "sensitivity/compo_res/rank.py", "sensitivity/rank_eval.py"

SIGMA, BATCH, EXAMPLES, EPOCHS = 0.8, 50, 2000, 4
STEPS, TOTAL = np.array([0, 30, 70, 100, 150]), 160
POINTS = np.array([3, 5, 8, 13, 21, 34, 55])


def result_table(run: int, points: np.ndarray = POINTS, seed: int = 0) -> pd.DataFrame:
    """Return one run in the published columns; a norm may exceed the clipping norm by a float32 rounding."""
    generator = np.random.default_rng([seed, run])
    norm = np.exp(np.linspace(-3, 2, points.size) + generator.normal(0, 0.6, (STEPS.size, points.size)))
    clipped = np.where(norm < 1, norm, 1.0000018)
    frame = {
        "distance (sum)": (clipped / BATCH).reshape(-1),
        "step": np.repeat(STEPS, points.size),
        "real batch size": points.size,
        "p": BATCH / EXAMPLES,
        "point": np.tile(points, STEPS.size),
        "sigma": SIGMA,
        "correct": (norm < 1.5).reshape(-1).astype(int),
        "accuracy": np.repeat(np.round(0.5 + 0.1 * np.arange(STEPS.size) + 0.001 * run, 4), points.size),
        "type": np.repeat(np.arange(STEPS.size) / 4, points.size),
        "points": np.tile(points, STEPS.size),
        "batch_size": BATCH, "num_iters": 20, "alpha": 8, "lr": 0.1, "cn": 1, "epochs": EPOCHS, "eps": 10.0,
        "dataset": "MNIST", "model": "lenet", "save_name": f"ckpt{run}", "res_name": f"res{run}", "gamma": np.nan,
        "id": np.nan, "seed": 24 + run, "reduction": "sum", "exp": "eps_delta",
    }  # fmt: skip
    return pd.DataFrame(frame)


def write_runs(folder: Path, runs: int = 3, **options) -> list[Path]:
    (folder / "res").mkdir(parents=True, exist_ok=True)
    paths = [folder / "res" / f"res{run}.csv" for run in range(1, runs + 1)]
    for run, path in enumerate(paths, start=1):
        result_table(run, **options).to_csv(path, index=False)
    return paths


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_runs(tmp_path)


def run_ok(*args: object, **env: str) -> str:
    result = run_script(str(args[0]), *args[1:], **env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def read_norms(paths: list[Path], scale: float = 1.0) -> np.ndarray:
    """Return relative sensitivities times a scale, (runs, steps, points), with the csv module alone."""
    norms = np.full((len(paths), STEPS.size, POINTS.size), np.nan)
    for run, path in enumerate(paths):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                cell = run, STEPS.tolist().index(int(row["step"])), POINTS.tolist().index(int(row["point"]))
                norm = float(row["distance (sum)"]) * int(row["batch_size"])
                norms[cell] = min(scale * norm / float(row["cn"]), 1.0)
    return norms


def log_moment(s: float, order: int) -> float:
    """Return the binomial sum's logarithm, (order - 1) times the divergence."""
    q = BATCH / EXAMPLES
    terms = [
        math.log(math.comb(order, k))
        + (order - k) * math.log(1 - q)
        + k * math.log(q)
        + k * (k - 1) * s * s / 2 / SIGMA**2
        for k in range(order + 1)
    ]
    return float(special.logsumexp(terms))


def test_accounting_of_files_agrees_with_plain_loops(files):
    run_ok(COMPO, *files, "--alpha", 4)
    folder = files[0].parent.parent / "compo_res"
    totals = pd.read_csv(folder / "compo_res_all_totals.csv").set_index("point")
    norms = read_norms(files)
    divergence = np.vectorize(lambda s: log_moment(s, 4) / 3)(norms)
    realised = np.array([[np.interp(np.arange(TOTAL), STEPS, curve).sum() for curve in run.T] for run in divergence])
    np.testing.assert_allclose(totals.loc[POINTS, "realised sum mean"], realised.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(totals.loc[POINTS, "realised sum max"], realised.max(axis=0), rtol=1e-9)
    np.testing.assert_allclose(totals["data-independent"], TOTAL * log_moment(1.0, 4) / 3, rtol=1e-9)
    assert list(totals)[:2] == ["epsilon realised mean", "epsilon realised max"]
    assert np.all(totals["largest of R runs"] >= totals["realised sum mean"])
    assert np.all(totals["largest of R runs"] <= totals["data-independent"] * (1 + 1e-9))
    assert np.all(totals["epsilon largest of R runs"] <= totals["epsilon data-independent"] * (1 + 1e-9))
    spent = totals["epsilon realised mean, loss distributions"]
    assert np.all(spent <= totals["epsilon realised mean"]) and np.any(spent < 0.95 * totals["epsilon realised mean"])
    worst = spent_epsilon(SIGMA, BATCH / EXAMPLES, TOTAL, 1e-5, "pld")
    assert totals["epsilon data-independent, loss distributions"].unique() == pytest.approx([worst], rel=2e-3)
    assert set(totals["directions"]) == {"one-sided: with || without"}
    growth = pd.read_csv(folder / "compo_res_all_runs.csv")
    assert growth["runs"].tolist() == [1, 2, 3]
    share = (totals["largest of R runs"] / totals["data-independent"]).median()
    assert growth["share of data-independent"].iloc[-1] == pytest.approx(share, rel=0.01)
    assert growth["share of data-independent"].is_monotonic_increasing and growth["epsilon"].is_monotonic_increasing
    costs = pd.read_csv(folder / "compo_res_all.csv")
    assert list(costs) == ["point", "step", "Privacy cost"]
    time = np.arange(TOTAL)
    for point, curve in costs.groupby("point"):
        summed = np.interp(time, curve["step"], curve["Privacy cost"]).sum()
        assert summed == pytest.approx(totals.loc[point, "largest of R runs"], rel=1e-9)
    sidecar = json.loads((folder / "compo_res_all_totals.json").read_text())
    assert sidecar["settings"]["total_steps"] == TOTAL
    assert "interpolated" in sidecar["settings"]["estimate"]


def test_measured_steps_alone(files):
    run_ok(COMPO, *files, "--measured_only", "--name", "few")
    totals = pd.read_csv(files[0].parent.parent / "compo_res" / "few_totals.csv").set_index("point")
    divergence = np.vectorize(lambda s: log_moment(s, 8) / 7)(read_norms(files))
    np.testing.assert_allclose(totals.loc[POINTS, "realised sum max"], divergence.sum(axis=1).max(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("unit", "scale"), [("batch_mean", 1), ("norm", 1 / BATCH)])
def test_published_convention_reproduces_the_published_loop(files, unit, scale):
    """Orders by recursion from the first step, rounded up; ln E exp unscaled; norm or norm / batch, as one reader."""
    run_ok(COMPO, *files, "--convention", "published", "--distance_unit", unit, "--output_dir", files[0].parent)
    costs = pd.read_csv(files[0].parent / "compo_res_all.csv").set_index(["point", "step"])["Privacy cost"]
    norms = read_norms(files, scale)
    p = 3 * STEPS[-1]
    for column, point in enumerate(POINTS):
        for row, step in enumerate(STEPS):
            order = 8.0
            for _ in range(step):
                order = order * p / (p - 1) - 1 / p
            each = [p * log_moment(s, math.ceil(order)) for s in norms[:, row, column]]
            expected = special.logsumexp(each) - math.log(len(each))
            assert costs[point, step] == pytest.approx(expected, rel=1e-6, abs=1e-10)
    totals = pd.read_csv(files[0].parent / "compo_res_all_totals.csv")
    np.testing.assert_allclose(totals["published total"], costs.groupby("point").sum().to_numpy(), rtol=1e-12)


def test_one_file_or_several_or_joined_give_the_same(files):
    folder = files[0].parent
    run_ok(COMPO, *files)
    run_ok(CONCAT, *files)
    joined = folder / "res_concat.csv"
    run_ok(COMPO, joined)
    compo = folder.parent / "compo_res"
    for part in ("", "_totals"):
        assert (compo / f"compo_res_all{part}.csv").read_bytes() == (compo / f"compo_res_concat{part}.csv").read_bytes()
    for one in files:
        table = pd.read_csv(joined, dtype=str, keep_default_na=False)
        expected = pd.read_csv(one, dtype=str, keep_default_na=False)
        rows = table[table["run"] == one.stem.removeprefix("res")].drop(columns="run").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, expected)


def test_runs_in_one_file_are_told_by_their_seed(files):
    table = pd.concat([pd.read_csv(path) for path in files])
    path = files[0].parent / "res.csv"
    table.drop(columns=["save_name", "res_name"]).to_csv(path, index=False)
    results = read_results([path])
    np.testing.assert_array_equal(results.sensitivity, read_results(files).sensitivity)
    assert [label.rsplit(maxsplit=1)[1] for label in results.runs] == ["25)", "26)", "27)"]


def test_splitting_and_averaging(files):
    run_ok(SPLIT, *files)
    folder = files[0].parent / "res_per_point"
    assert len(list(folder.glob("res_run*_point*.csv"))) == 4 * POINTS.size
    source = pd.read_csv(files[1], dtype=str, keep_default_na=False)
    rows = pd.read_csv(folder / "res_run2_point8.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(rows.drop(columns="run"), source[source["point"] == "8"].reset_index(drop=True))
    average = pd.read_csv(folder / "res_runA_point8.csv")
    assert list(average) == ["step", "point", "distance (sum)"]
    tables = [pd.read_csv(path).query("point == 8")["distance (sum)"].to_numpy() for path in files]
    np.testing.assert_allclose(average["distance (sum)"], np.mean(tables, axis=0), rtol=1e-14)
    np.testing.assert_array_equal(average["step"], STEPS)
    assert len(pd.read_csv(folder / "res_runA.csv")) == STEPS.size * POINTS.size
    run_ok(COMPO, folder / "res_run2_point8.csv")


def test_second_run_skips_other_settings_stop_overwrite_replaces(files):
    run_ok(COMPO, *files)
    folder = files[0].parent.parent / "compo_res"
    before = tree(folder)
    assert "already made" in run_ok(COMPO, *files)
    assert_refused(run_script(COMPO, *files, "--alpha", 4), "compo_res_all.csv", "alpha: 8.0 there, 4.0 asked for")
    assert tree(folder) == before
    run_ok(COMPO, *files, "--alpha", 4, "--overwrite")
    assert tree(folder) != before


def change(column: str, value: object, row: int | slice = 7):
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.loc[table.index[row], column] = value
        return table

    return apply


BAD_FILES = {
    "nan": (change("distance (sum)", math.nan), ["row 9", "distance (sum)"]),
    "all nan": (change("distance (sum)", math.nan, slice(None)), ["row 2", "distance (sum)"]),
    "negative": (change("distance (sum)", -0.001), ["row 9", "-0.001"]),
    "infinite": (change("distance (sum)", math.inf), ["row 9", "inf"]),
    "text": (change("distance (sum)", "much"), ["distance (sum)", "not a number"]),
    "missing step": (lambda table: table.drop(index=table.index[9]), ["point 8 has step 30 not at all"]),
    "missing point": (lambda table: table[table["point"] != 13], ["point 13", "only one"]),
    "step of its own": (lambda table: table.replace({"step": {70: 71}}), ["step 70", "only one"]),
    "repeated": (lambda table: pd.concat([table, table.iloc[[4]]]), ["point 21 has step 0 more than once"]),
    "fractional point": (change("point", 3.5), ["row 9", "point 3.5", "whole"]),
    "mixed sigma": (change("sigma", 0.9), ["sigma is 0.9", "0.8"]),
    "mixed p": (change("p", 0.03, slice(None)), ["p is 0.03", "0.025"]),
    "mixed batch size": (change("batch_size", 64), ["batch_size is 64", "50"]),
    "mixed model": (change("model", "resnet", slice(None)), ["model is resnet", "lenet"]),
    "beyond clipping": (change("distance (sum)", 0.03), ["0.03", "1.5 clipping norms", "--distance_unit"]),
    "not a result file": (lambda table: table.drop(columns=["sigma", "p"]), ["'sigma', 'p'"]),
    "empty": (lambda table: table.iloc[:0], ["no rows"]),
}
BAD_EVERYWHERE = {
    "sigma 0": (change("sigma", 0.0, slice(None)), ["sigma is 0"]),
    "sigma negative": (change("sigma", -1.0, slice(None)), ["sigma is -1"]),
    "p above 1": (change("p", 1.5, slice(None)), ["p is 1.5"]),
    "cn 0": (change("cn", 0, slice(None)), ["cn is 0"]),
    "mean rule": (change("reduction", "mean", slice(None)), ["reduction is 'mean'"]),
    "epochs too few": (change("epochs", 1, slice(None)), ["step 150", "40 steps"]),
}


@pytest.mark.parametrize("name", [*BAD_FILES, *BAD_EVERYWHERE])
def test_bad_files_are_refused_before_anything_is_written(files, name):
    damage, mentions = (BAD_FILES | BAD_EVERYWHERE)[name]
    damaged = files[1:2] if name in BAD_FILES else files
    for path in damaged:
        damage(pd.read_csv(path)).to_csv(path, index=False)
    for script in (COMPO, CONCAT, SPLIT):
        assert_refused(run_script(script, *files), *mentions)
    written = [path for path in files[0].parent.parent.rglob("*") if path.is_file() and path not in files]
    assert written == []


def joined_lines(raw: bytes, line: Callable[[int, str], str]) -> bytes:
    return "\n".join(line(number, text) for number, text in enumerate(raw.decode().splitlines(), start=1)).encode()


def csv_of(raw: bytes, **options: Any) -> bytes:
    return pd.read_csv(io.BytesIO(raw)).to_csv(index=False, **options).encode()


def floats(raw: bytes) -> bytes:
    return pd.read_csv(io.BytesIO(raw)).astype({"step": float, "point": float}).to_csv(index=False).encode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "byte-order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "byte-order mark, CRLF": lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"),
    "CR": lambda raw: raw.replace(b"\n", b"\r"),
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16, no mark": lambda raw: raw.decode().encode("utf-16-be"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32"),
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "gzip, semicolons, decimal commas": lambda raw: gzip.compress(csv_of(raw, sep=";", decimal=",")),
    "semicolons": lambda raw: csv_of(raw, sep=";"),
    "semicolons, decimal commas": lambda raw: csv_of(raw, sep=";", decimal=","),
    "semicolons, announced": lambda raw: b"sep=;\r\n" + csv_of(raw, sep=";"),
    "tabs": lambda raw: csv_of(raw, sep="\t"),
    "bars": lambda raw: csv_of(raw, sep="|"),
    "quoted": lambda raw: csv_of(raw, quoting=csv.QUOTE_ALL),
    "index column": lambda raw: pd.read_csv(io.BytesIO(raw)).to_csv().encode(),
    "whole numbers as floats": floats,
    "blanks around names": lambda raw: joined_lines(raw, lambda n, line: line.replace(",", " , ") if n == 1 else line),
    "blanks before values": lambda raw: raw.replace(b",", b", "),
    "trailing columns": lambda raw: joined_lines(raw, lambda n, line: line + ",,"),
    "trailing comma in rows": lambda raw: joined_lines(raw, lambda n, line: line + "," * (n > 1)),
    "blank lines": lambda raw: b"\n\n" + raw + b"\n\n",
    "rows of commas": lambda raw: raw + (b"," * raw.splitlines()[0].count(b",") + b"\n") * 3,
}


@pytest.mark.parametrize("form", FORMS)
def test_files_as_people_have_them(files, form):
    """The reader, the accounting, and what is joined and split of them."""
    plain = read_results(files)
    path, folder = files[0], files[0].parent
    run_ok(COMPO, *files, "--output_dir", folder / "plain")
    path.write_bytes(FORMS[form](path.read_bytes()))
    np.testing.assert_array_equal(read_results(files).sensitivity, plain.sensitivity)
    run_ok(COMPO, *files, "--output_dir", folder / "other")
    totals = "compo_res_all_totals.csv"
    assert (folder / "other" / totals).read_bytes() == (folder / "plain" / totals).read_bytes()
    run_ok(CONCAT, *files)
    joined = read_results([folder / "res_concat.csv"])
    np.testing.assert_array_equal(joined.sensitivity, plain.sensitivity)
    header, *rows = csv.reader(io.StringIO((folder / "res_concat.csv").read_text()))
    assert header == [*result_table(1).columns, "run"]
    assert all(len(row) == len(header) and row[header.index("step")] for row in rows)
    run_ok(SPLIT, *files)
    assert len(list((folder / "res_per_point").glob("res_run1_point*.csv"))) == POINTS.size
    run_ok("sensitivity/eps_delta.py", path)


@pytest.mark.parametrize("form", FORMS)
def test_costs_and_rankings_as_people_have_them(files, form):
    run_ok(COMPO, *files)
    totals = files[0].parent.parent / "compo_res" / "compo_res_all_totals.csv"
    run_ok(RANK, totals)
    ranked = totals.with_name("compo_res_all_ranked.csv")
    plain = ranked.read_bytes()
    if form != "whole numbers as floats":
        totals.write_bytes(FORMS[form](totals.read_bytes()))
        run_ok(RANK, totals, "--overwrite")
        assert ranked.read_bytes() == plain
        other = ranked.with_name("other.csv")
        other.write_bytes(FORMS[form](plain))
        np.testing.assert_array_equal(read_ranking(other), read_ranking(ranked))


DAMAGED_FORMS: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "thousands": (lambda raw: raw.replace(b",100,", b',"1,000",'), ["step is '1,000'", "not a number"]),
    "row names": (lambda raw: joined_lines(raw, lambda n, line: f"{n},{line}" if n > 1 else line), ["27", "26"]),
    "decimal commas between commas": (lambda raw: raw.replace(b",0.8,", b",0,8,"), ["27 fields", "26"]),
    "both decimal marks": (
        lambda raw: csv_of(raw, sep=";", decimal=",").replace(b";0,8;", b";0.8;"), ["row 2: sigma is '0.8'"]
    ),
    "no UTF-8": (lambda raw: raw.replace(b"lenet", "leñet".encode("latin-1")), ["utf-8"]),
    "a workbook": (lambda raw: b"PK\x03\x04" + raw, ["Excel"]),
    "cut gzip": (lambda raw: gzip.compress(raw)[:300], ["ended before"]),
    "a column twice": (lambda raw: raw.replace(b"real batch size", b"step"), ["'step' is there twice"]),
    "capitals": (bytes.upper, ["'distance (sum)'"]),
    "a short row": (
        lambda raw: joined_lines(raw, lambda n, line: line.rsplit(",", 24)[0] if n == 9 else line), ["row 9"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", DAMAGED_FORMS)
def test_forms_that_are_refused(files, form):
    damage, mentions = DAMAGED_FORMS[form]
    files[1].write_bytes(damage(files[1].read_bytes()))
    for script in (COMPO, CONCAT, SPLIT, "sensitivity/eps_delta.py"):
        assert_refused(run_script(script, *files), "res2.csv", *mentions)
    assert {path for path in files[0].parent.parent.rglob("*") if path.is_file() and path.name != ".lock"} == set(files)


@pytest.mark.parametrize("damage", [lambda t: t.drop(columns="accuracy"), lambda t: t.assign(accuracy=math.nan)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_column_of_one_file_alone_is_not_joined(files, damage, which):
    damage(pd.read_csv(files[which])).to_csv(files[which], index=False)
    for script in (CONCAT, SPLIT):
        assert_refused(run_script(script, *files), files[which], "'accuracy'")
    assert not (files[0].parent / "res_concat.csv").exists() and not (files[0].parent / "res_per_point").is_file()


def test_stages_with_seeds_of_their_own_are_one_run(files):
    """A published file is such: its last stages were measured by processes that had another seed."""
    plain = read_results(files)
    table = pd.read_csv(files[0])
    table.loc[table["step"] >= 100, "seed"] = 7
    table.to_csv(files[0], index=False)
    assert "one run" in run_script(COMPO, *files).stderr
    for again in (files, [files[0].parent / "res_concat.csv"]):
        np.testing.assert_array_equal(read_results(again).sensitivity, plain.sensitivity)
        run_ok(CONCAT, *files)
    # Where seeds share a step, they are runs, and each has to be whole.
    table.loc[(table["step"] == 70) & (table["point"] == 8), "seed"] = 7
    table.to_csv(files[0], index=False)
    assert_refused(run_script(COMPO, *files), "res1.csv (seed", "not at all")


def test_identical_runs_are_refused(files):
    shutil.copy(files[0], files[2])
    for script in (COMPO, CONCAT, SPLIT):
        assert_refused(run_script(script, *files), "res3.csv", "identical bit for bit", "res1.csv")
    assert_refused(run_script(COMPO, files[0], files[0]), "given twice")


def test_files_that_are_no_tables(files, tmp_path):
    assert_refused(run_script(COMPO, tmp_path / "none.csv"), "none.csv", "No such file")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(256)))
    assert_refused(run_script(COMPO, binary), "binary.csv")
    (tmp_path / "nothing.csv").write_bytes(b"")
    assert_refused(run_script(COMPO, tmp_path / "nothing.csv"), "nothing.csv")
    ragged = tmp_path / "ragged.csv"
    ragged.write_bytes(files[0].read_bytes() + b"1,2,3" + b",4" * 60 + b"\n")
    assert_refused(run_script(COMPO, ragged), "ragged.csv")


@pytest.mark.parametrize(
    ("flags", "mentions"), [
        (["--alpha", "1.5"], ["--alpha", "1.5"]), (["--alpha", "nan"], ["--alpha"]), (["--delta", "0"], ["--delta"]),
        (["--convention", "mine"], ["--convention"]), (["--total_steps", "100"], ["step 150", "100 steps"]),
    ],
)  # fmt: skip
def test_bad_flags_are_refused(files, flags, mentions):
    assert_refused(run_script(COMPO, *files, *flags), *mentions)
    assert not (files[0].parent.parent / "compo_res").exists()


def test_clipped_norm_must_fit_the_distance(files):
    table = pd.read_csv(files[0])
    table["clipped_norm"] = table["distance (sum)"] * BATCH
    table.to_csv(files[0], index=False)
    read_results(files)
    table.loc[3, "clipped_norm"] *= 0.5
    table.to_csv(files[0], index=False)
    with pytest.raises(InputError, match="clipped_norm differs"):
        read_results(files)


def test_length_of_the_run(files):
    assert read_results(files).total_steps == TOTAL
    assert read_results(files, total_steps=200).total_steps == 200
    for path in files:
        table = pd.read_csv(path).drop(columns="epochs")
        table.to_csv(path, index=False)
    assert read_results(files).total_steps == 151
    for path in files:
        pd.read_csv(path).assign(total_steps=155).to_csv(path, index=False)
    assert read_results(files).total_steps == 155


def rank_both(tmp_path: Path) -> tuple[list[Path], list[Path], Path, Path]:
    """Two experiments on the same points, the second without the two cheapest; return files and rankings."""
    before = write_runs(tmp_path / "before")
    after = write_runs(tmp_path / "after", points=POINTS[2:], seed=1)
    rankings = []
    for paths in (before, after):
        run_ok(COMPO, *paths)
        totals = paths[0].parent.parent / "compo_res" / "compo_res_all_totals.csv"
        run_ok(RANK, totals)
        rankings.append(totals.with_name("compo_res_all_ranked.csv"))
    return before, after, *rankings


def test_ranking_and_selection(files):
    run_ok(COMPO, *files)
    compo = files[0].parent.parent / "compo_res"
    out = run_ok(RANK, compo / "compo_res_all_totals.csv", "--select", 2, "--show", 3)
    totals = pd.read_csv(compo / "compo_res_all_totals.csv").sort_values("epsilon realised mean")
    ranked = pd.read_csv(compo / "compo_res_all_ranked.csv")
    assert list(ranked) == ["point", "Total Privacy Cost"]
    np.testing.assert_array_equal(ranked.to_numpy(), totals[["point", "epsilon realised mean"]].to_numpy())
    assert (compo / "compo_res_all_cheapest_2.txt").read_text() == f"{ranked.point[0]} {ranked.point[1]}\n"
    assert out.count("point ") == 6
    run_ok(RANK, compo / "compo_res_all_totals.csv", "--select", 2, "--which", "dearest")
    assert (compo / "compo_res_all_dearest_2.txt").read_text() == f"{ranked.point[6]} {ranked.point[5]}\n"
    run_ok(RANK, compo / "compo_res_all_totals.csv", "--select", 3, "--which", "random", "--seed", 4)
    assert len((compo / "compo_res_all_random_3.txt").read_text().split()) == 3
    run_ok(RANK, compo / "compo_res_all.csv", "--cost", "Total", "--overwrite")
    steps = pd.read_csv(compo / "compo_res_all.csv").groupby("point")["Privacy cost"].sum().sort_values()
    again = pd.read_csv(compo / "compo_res_all_ranked.csv")
    np.testing.assert_array_equal(again["point"], steps.index)
    np.testing.assert_allclose(again["Total Privacy Cost"], steps, rtol=1e-12)


def test_comparing_two_rankings(tmp_path):
    before, after, ranked_before, ranked_after = rank_both(tmp_path)
    out = run_ok(EVAL, ranked_before, ranked_after, "--output", tmp_path / "alone.csv")
    alone = pd.read_csv(tmp_path / "alone.csv").set_index("metric")["value"]
    tables = [pd.read_csv(path).set_index("point")["Total Privacy Cost"] for path in (ranked_before, ranked_after)]
    first, second = tables[0][POINTS[2:]], tables[1][POINTS[2:]]
    assert alone["points"] == 5
    assert alone["points_removed"] == 2
    assert alone["spearman"] == pytest.approx(first.corr(second, method="spearman"))
    assert alone["kendall"] == pytest.approx(first.corr(second, method="kendall"))
    assert alone["mean_rank_shift"] == pytest.approx((first.rank() - second.rank()).abs().mean())
    full = tables[0].rank()[POINTS[2:]] - second.rank()
    assert alone["mean_rank_shift_unadjusted"] == pytest.approx(full.abs().mean())
    assert "spearman_of_permuted_points" in out

    flags = ("--results_before", *before, "--results_after", *after, "--paired")
    run_ok(EVAL, ranked_before, ranked_after, *flags, "--output", tmp_path / "runs.csv")
    table = pd.read_csv(tmp_path / "runs.csv").set_index("metric")
    assert np.all(table.loc["spearman_realised", ["low"]] <= table.loc["spearman_realised", "value"])
    single = read_norms(before)[:, :, 2:]
    for metric in ("spearman", "kendall", "mean_rank_shift"):
        for kind in ("realised", "epsilon"):
            assert {f"{metric}_{kind}", f"{metric}_{kind}_other_seeds"} <= set(table.index)
    costs = np.array([[np.interp(np.arange(TOTAL), STEPS, np.vectorize(log_moment)(c, 8)).sum() for c in run.T]
                      for run in single])  # fmt: skip
    pairs = [stats.spearmanr(costs[i], costs[j]).statistic for i in range(3) for j in range(3) if i != j]
    assert table.loc["spearman_realised_other_seeds", "value"] == pytest.approx(np.mean(pairs))
    norms = single.mean(axis=0)
    others = np.mean(
        [pd.read_csv(path).pivot(index="step", columns="point", values="distance (sum)") for path in after], axis=0
    )
    others = np.minimum(others * BATCH, 1)
    cosine = (norms * others).sum(axis=0) / np.linalg.norm(norms, axis=0) / np.linalg.norm(others, axis=0)
    assert table.loc["trajectory_cosine", "value"] == pytest.approx(np.median(cosine), rel=1e-5)
    assert table.loc["accuracy_change", "value"] == pytest.approx(0, abs=1e-12)
    assert table.loc["accuracy_before", "value"] == pytest.approx(0.902)
    assert 0 < table.loc["correctness_agreement", "value"] <= 1


def test_comparison_refuses_what_does_not_fit(tmp_path):
    before, after, ranked_before, ranked_after = rank_both(tmp_path)
    assert_refused(run_script(EVAL, ranked_after, ranked_before), "point 3", "not in")
    assert_refused(run_script(EVAL, ranked_before, ranked_after, "--results_before", *before), "go together")
    both = ("--results_before", *before, "--results_after")
    assert_refused(run_script(EVAL, ranked_before, ranked_after, *both, *after[:2], "--paired"), "3 runs", "2")
    assert_refused(run_script(EVAL, ranked_before, ranked_before, *both, *after), "lacks point 3")
    totals = Path(str(ranked_before).replace("_ranked", "_totals"))
    for wrong in ((before[0], ranked_after), (ranked_before, totals)):
        expected = "give the ..._ranked.csv that sensitivity/compo_res/rank.py makes"
        assert_refused(run_script(EVAL, *wrong), *set(wrong) - {ranked_before, ranked_after}, expected)
    bad = tmp_path / "bad.csv"
    for content, mention in (
        ("1,2\n1,3\n", "point 1 is repeated"),
        ("1,-2\n2,3\n", "-2"),
        ("1,nan\n2,3\n", "nan"),
        ("", "no rows"),
    ):
        bad.write_text("point,Total Privacy Cost\n" + content)
        assert_refused(run_script(EVAL, bad, bad), "bad.csv", mention)
    compo = ranked_before.parent
    assert_refused(
        run_script(RANK, compo / "compo_res_all_totals.csv", "--cost", "price"), "'price'", "largest of R runs"
    )
    assert_refused(run_script(RANK, compo / "compo_res_all_totals.csv", "--select", 7), "--select 7")


def test_costs_that_are_all_equal_have_no_rank_correlation_and_it_is_said(tmp_path):
    both = write_runs(tmp_path / "before", runs=2), write_runs(tmp_path / "after", runs=2, points=POINTS[2:])
    rankings = []
    for files in both:
        for file in files:
            pd.read_csv(file).assign(**{"distance (sum)": 1 / BATCH}).to_csv(file, index=False)  # all are clipped
        run_ok(COMPO, *files)
        run_ok(RANK, files[0].parent.parent / "compo_res" / "compo_res_all_totals.csv")
        rankings.append(files[0].parent.parent / "compo_res" / "compo_res_all_ranked.csv")
    flags = ("--results_before", *both[0], "--results_after", *both[1], "--output", tmp_path / "table.csv")
    found = run_script(EVAL, *rankings, *flags)
    said = "and 5 more: all points cost the same; rank correlations with that are undefined (nan, in files empty)"
    assert (found.returncode, found.stderr) == (0, f"{rankings[0]} {said}\n")
    table = pd.read_csv(tmp_path / "table.csv").set_index("metric")["value"]
    undefined = {name for name in table.index if "spearman" in name or "kendall" in name}
    assert set(table.index[table.isna()]) == undefined | {"trajectory_correlation"}


def test_one_training_measured_twice_is_refused(tmp_path):
    """As the published removal: the norms over 1,000 and over 900, clipped, and nothing trained anew."""
    before, _, ranked_before, ranked_after = rank_both(tmp_path)
    again = write_runs(tmp_path / "again", points=POINTS[2:])
    for source, path, factor in zip(before, again, (1.0, 10 / 9, 0.9), strict=True):
        table = pd.read_csv(source).query("point > 5")
        table["distance (sum)"] = np.minimum(table["distance (sum)"] * factor, 1 / BATCH)
        table.to_csv(path, index=False)
    for factor, path in zip(("1 times", "1.11111 times", "0.9 times"), again, strict=True):
        both = ("--results_before", *before, "--results_after", path)
        refused = run_script(EVAL, ranked_before, ranked_after, *both)
        assert_refused(refused, path.name, factor, "nothing was trained anew")


def write_folds(folder: Path, runs: int = 2, **changes: object) -> list[Path]:
    """Two folds of two and three points, left out of the training."""
    (folder / "res").mkdir(parents=True, exist_ok=True)
    paths = []
    for fold, points in enumerate((POINTS[:2], POINTS[3:6]), start=1):
        for run in range(1, runs + 1):
            paths.append(folder / "res" / f"res_without_{fold}_{run}.csv")
            table = result_table(run, points=points, seed=40 + fold).assign(trained_on=0, **changes)
            table.to_csv(paths[-1], index=False)
    return paths


def test_both_directions(files, tmp_path):
    """The larger stands where both were measured; the others say that they are one-sided."""
    folds = write_folds(tmp_path / "without")
    out = run_ok(COMPO, *files, "--without", *folds)
    assert "both directions of 5" in out
    table = pd.read_csv(files[0].parent.parent / "compo_res" / "compo_res_all_totals.csv").set_index("point")
    measured = [*POINTS[:2], *POINTS[3:6]]
    assert (table.loc[measured, "directions"] == "both").all()
    rest = table.drop(index=measured)
    assert set(rest["directions"]) == {"one-sided: with || without"}
    assert rest["epsilon realised mean, without || with"].isna().all()
    np.testing.assert_array_equal(rest["epsilon realised mean, larger"], rest["epsilon realised mean"])
    both = table.loc[measured]
    columns = ["epsilon realised mean", "epsilon realised mean, without || with"]
    np.testing.assert_array_equal(both["epsilon realised mean, larger"], both[columns].max(axis=1))
    curve = pd.read_csv(folds[0]).query(f"point == {POINTS[0]}")["distance (sum)"].to_numpy() * BATCH
    other = pd.read_csv(folds[1]).query(f"point == {POINTS[0]}")["distance (sum)"].to_numpy() * BATCH
    runs = np.minimum(np.stack([curve, other]), 1)
    (divergence,) = renyi.divergence_at(runs, BATCH / EXAMPLES, SIGMA, (8.0,), reverse=True)
    sums = [np.interp(np.arange(TOTAL), STEPS, row).sum() for row in divergence]
    assert table.loc[POINTS[0], "realised sum mean, without || with"] == pytest.approx(np.mean(sums), rel=1e-9)


def test_directions_are_not_mixed_up(files, tmp_path):
    folds = write_folds(tmp_path / "without")
    assert_refused(run_script(COMPO, *files, "--without", files[0]), "res1.csv", "were in the training")
    assert_refused(run_script(COMPO, *folds[:2]), "res_without_1_1.csv", "left out of the training")
    other = write_folds(tmp_path / "other", sigma=0.9)
    assert_refused(run_script(COMPO, *files, "--without", *other), "noise_multiplier is 0.9", "0.8")
    shifted = write_folds(tmp_path / "shifted")
    for path in shifted:
        pd.read_csv(path).replace({"step": {70: 80}}).to_csv(path, index=False)
    assert_refused(run_script(COMPO, *files, "--without", *shifted), "step 70", "not measured")
    twice = pd.read_csv(folds[2]).replace({"point": {int(POINTS[3]): int(POINTS[0])}})
    twice.to_csv(folds[2], index=False)
    assert_refused(run_script(COMPO, *files, "--without", *folds[:3]), f"point {POINTS[0]} is in", "too")
    strange = pd.read_csv(folds[3]).replace({"point": {int(POINTS[3]): 4000}})
    strange.to_csv(folds[3], index=False)
    assert_refused(run_script(COMPO, *files, "--without", folds[3]), "point 4000", "not measured in the runs with it")
    assert not (files[0].parent.parent / "compo_res").exists()


@pytest.mark.parametrize(
    ("column", "value"), [("dataset", "CIFAR"), ("model", "vgg"), ("lr", 0.2), ("eps", 3.0), ("epochs", 5), ("cn", 2)]
)
def test_folds_of_another_training_are_refused(files, tmp_path, column, value):
    folds = write_folds(tmp_path / "without", **{column: value})
    total = () if column != "epochs" else ("--total_steps", TOTAL)
    told = run_script(COMPO, *files, "--without", *folds, *total)
    assert_refused(told, "res_without_1_1.csv", f"{column} is {value}", "res1.csv")


def test_folds_whose_sidecar_tells_another_training_are_refused(files, tmp_path):
    """What no column says: optimizer, data by content, network's options. Runs, points and the removed may differ."""
    said = {"optimization": {"optimizer": "sgd"}, "data": {"content_sha256": "a"}, "model": {"options": {"width": 1}}}
    folds = write_folds(tmp_path / "without")
    for run, path in enumerate(files):
        settings = said | {"run": run, "seed": run, "points_sha256": "p", "train_on": {"n_examples": 2000}}
        Output(path, settings).save(path.read_bytes(), {})
    removal = {"points_sha256": "q", "train_on": {"n_examples": 1998}}
    for change, mention in (
        ({"optimization": {"optimizer": "adam"}}, 'optimization.optimizer ("adam" and "sgd")'),
        ({"data": {"content_sha256": "b"}}, 'data.content_sha256 ("b" and "a")'),
        ({"model": {"options": {"width": 2}}}, "model.options.width (2 and 1)"),
    ):
        for run, path in enumerate(folds):
            Output(path, said | removal | {"run": run, "seed": run} | change).save(path.read_bytes(), {})
        assert_refused(run_script(COMPO, *files, "--without", *folds), "res_without_1_1.csv", mention, "res1.csv")
    for run, path in enumerate(folds):
        Output(path, said | removal | {"run": run, "seed": run}).save(path.read_bytes(), {})
    assert "both directions of 5" in run_ok(COMPO, *files, "--without", *folds)


def test_former_names_of_columns_are_read(tmp_path):
    path = tmp_path / "old_totals.csv"
    path.write_text("point,composed bound,realised sum mean\n3,2.5,1\n1,1.5,2\n")
    for name in ("largest of R runs", "composed bound"):
        np.testing.assert_array_equal(read_totals(path, name)[1], [2.5, 1.5])
    path.write_text("point,largest of R runs\n3,2.5\n")
    np.testing.assert_array_equal(read_totals(path, "composed bound")[1], [2.5])


def test_tiny_delta_needs_no_loss_distributions(files):
    assert_refused(run_script(COMPO, *files, "--delta", "1e-12"), "--delta 1e-12", "--no-loss_distributions")
    run_ok(COMPO, *files, "--delta", "1e-12", "--no-loss_distributions")


def test_epsilons_of_single_steps(files):
    """Against the guarantee's definition: (1-q) + q Phi(...) - e^eps Phi(...) at the best event is delta."""
    run_ok("sensitivity/eps_delta.py", *files, "--delta", "1e-4")
    table = pd.read_csv(files[0].parent.parent / "compo_res" / "eps_delta.csv").set_index(["point", "step"])
    norms, q = read_norms(files), BATCH / EXAMPLES
    for row, step in enumerate(STEPS[:2]):
        for column, point in enumerate(POINTS):
            s, epsilon = norms[:, row, column].max(), table.loc[(point, step), "epsilon max"]
            if epsilon == 0:
                continue
            cut = SIGMA**2 * math.log((math.exp(epsilon) - 1 + q) / q) / s + s / 2
            with_point = (1 - q) * special.ndtr(-cut / SIGMA) + q * special.ndtr((s - cut) / SIGMA)
            assert with_point - math.exp(epsilon) * special.ndtr(-cut / SIGMA) == pytest.approx(1e-4, rel=1e-6)
    assert np.all(table["epsilon mean"] <= table["epsilon max"])
    assert np.all(table["epsilon max"] <= table["epsilon data-independent"])


@pytest.mark.parametrize("script", [CONCAT, SPLIT, RANK, EVAL, "sensitivity/eps_delta.py"])
def test_help_explains_every_flag_and_its_default(script):
    text = run_ok(script, "--help")
    for entry in re.split(r"\n  (?=-)", text.split("options:\n")[1])[2:]:
        words = " ".join(entry.split())
        assert words.endswith(")") or "by default" in words, words
