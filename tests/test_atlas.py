"""The agreement of scores against slow versions of its definitions, and the atlas as a notebook."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ENSEMBLE_FLAGS, execute_notebook, run_script
from scipy import stats

from libplots.atlas import main_scores, oriented
from libscores import atlas
from libscores.memorization import memorization
from libstore.config import load_config
from libstore.gathered_scores import Places, scores_by_run
from libstore.score_table import read_table, table_path


@pytest.fixture
def columns() -> np.ndarray:
    rng = np.random.default_rng(0)
    common = rng.normal(size=300)
    found = np.stack([common + share * rng.normal(size=300) for share in (0.2, 3.0, 0.3, 0.25)])
    found[1, :40] = np.nan
    found[3] = -found[3]
    return found


def test_correlations_are_of_the_examples_that_have_both_and_intervals_cover(columns: np.ndarray) -> None:
    found = atlas.spearman_matrix(columns)
    for i in range(4):
        for j in range(4):
            expected = stats.spearmanr(columns[i], columns[j], nan_policy="omit").statistic
            assert found.value[i, j] == pytest.approx(expected)
    assert (found.low <= found.value + 1e-12).all() and (found.high >= found.value - 1e-12).all()
    covered, truth = 0, 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal pair of correlation 0.6
    for seed in range(300):
        pair = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 60).T
        one = atlas.spearman_matrix(pair)
        covered += one.low[0, 1] <= truth <= one.high[0, 1]
    assert 0.92 < covered / 300 < 0.98


def test_partial_and_corrected_correlations(columns: np.ndarray) -> None:
    given = columns[0]
    partial = atlas.partial_matrix(columns, given)
    ranks = [stats.rankdata(one) for one in columns[[2, 3, 0]]]
    design = np.stack([np.ones(300), ranks[2]], axis=1)
    left = [rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0] for rank in ranks[:2]]
    assert partial[2, 3] == pytest.approx(stats.pearsonr(*left).statistic)
    assert np.isnan(partial[0]).all()
    corrected = atlas.corrected_matrix(np.array([[1.0, 0.4], [0.4, 1.0]]), [0.64, None])
    assert np.isnan(corrected[0, 1]) and corrected[0, 0] == 1
    assert atlas.corrected_matrix(np.array([[1.0, 0.4], [0.4, 1.0]]), [0.64, 1.0])[0, 1] == pytest.approx(0.5)


def test_similar_scores_are_neighbours() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 200))
    scores = np.stack([part + 0.1 * rng.normal(size=200) for part in (one, other, one, other, -one)])
    order = atlas.similar_first(atlas.spearman_matrix(scores).value).tolist()
    assert sorted(order) == list(range(5)) and {order.index(i) for i in (1, 3)} in ({0, 1}, {3, 4})
    assert atlas.similar_first(np.eye(2)).tolist() == [0, 1]


def test_overlap_is_a_count_and_ties_share_their_places() -> None:
    x, y = np.arange(100.0), np.roll(np.arange(100.0), 3)
    expected = len(set(np.argsort(x)[-10:]) & set(np.argsort(y)[-10:])) / 10
    found = atlas.top_overlap(x, y, 0.1)
    assert found.value == expected and found.low <= found.value <= found.high
    tied = np.zeros(100)
    tied[:4] = 1  # 4 above, 96 share 6 places
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        order = np.lexsort((rng.random(100), tied))[-10:]
        drawn.append(len(set(order) & set(np.argsort(x)[-10:])) / 10)
    assert atlas.top_overlap(tied, x, 0.1, 0).value == pytest.approx(np.mean(drawn), abs=0.005)
    assert atlas.top_weights(tied, 0.1).sum() == pytest.approx(10)


def test_within_classes_leaves_out_what_classes_differ_by() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(8), 50)
    x, y = labels + 0.1 * rng.normal(size=400), labels + 0.1 * rng.normal(size=400)
    found = atlas.within_classes(x, y, labels)
    values = [stats.spearmanr(x[labels == c], y[labels == c]).statistic for c in range(8)]
    assert stats.spearmanr(x, y).statistic > 0.9 and found.value == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 7, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high)) and found.low < 0 < found.high


def test_disagreements_are_the_largest_gaps_of_ranks() -> None:
    x, y = np.array([5.0, 1, np.nan, 3, 2, 4]), np.array([1.0, 5, 9, 3, 2.5, 2])
    high, low = atlas.disagreements(x, y, 2)
    assert high.tolist() == [0, 5] and low.tolist() == [1, 4]
    assert [len(part) for part in atlas.disagreements(x, y, 99)] == [2, 2]


def test_a_budget_is_the_mean_over_a_few_runs_against_the_target() -> None:
    rng = np.random.default_rng(4)
    masks, truth = rng.random((12, 60)) < 0.7, rng.normal(size=60)
    values = truth + rng.normal(size=(12, 60))
    weights = atlas.draws_of_runs(12, (1, 3, 6), 5)
    assert weights.sum(axis=1).tolist() == [1] * 5 + [3] * 5 + [6] * 5 and not weights[:, 1::2].any()
    found = atlas.budget(zip(masks, values, strict=True), truth, weights, (1, 3, 6))
    row, expected = weights[7] > 0, []
    slow = np.array([values[row, i][masks[row, i]].mean() if masks[row, i].any() else np.nan for i in range(60)])
    fast = atlas.combined(zip(masks, values, strict=True), weights, 60, difference=False)[7]
    assert np.allclose(slow, fast, equal_nan=True)
    for draw in range(5, 10):
        score = atlas.combined(zip(masks, values, strict=True), weights[draw : draw + 1], 60, difference=False)[0]
        expected.append(stats.spearmanr(score, truth, nan_policy="omit").statistic)
    assert found.correlation[1].value == pytest.approx(np.mean(expected))
    tops = []
    for draw in range(5, 10):
        score = atlas.combined(zip(masks, values, strict=True), weights[draw : draw + 1], 60, difference=False)[0]
        known = np.isfinite(score)
        tops.append(len(set(np.argsort(score[known])[-3:]) & set(np.argsort(truth[known])[-3:])) / 3)
    assert found.top[1].value == pytest.approx(np.mean(tops))
    assert np.isnan(found.correlation[2].low) and found.correlation[1].low < found.correlation[1].high
    assert found.correlation[0].value < found.correlation[2].value and found.coverage[0] < found.coverage[2]
    whole = atlas.combined(zip(masks, values, strict=True), np.ones((1, 12)), 60, difference=True)[0]
    assert np.allclose(whole, memorization(zip(masks, values, strict=True), 60).score, equal_nan=True)


@pytest.fixture(scope="module")
def study(ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas") / "study"
    shutil.copytree(ensemble, folder)
    for line in (("calc_curv_fz_models.py", "--scores", "loss,margin"), ("score_table.py", "--no-influence")):
        result = run_script(line[0], *ENSEMBLE_FLAGS, *line[1:], "--config", folder / "config.json")
        assert result.returncode == 0, result.stderr
    return folder


def test_scores_by_run_average_to_the_columns_of_the_table(study: Path) -> None:
    paths = load_config(study / "config.json")
    table, about = read_table(table_path(paths.score_dir, "mnist", "smallcnn"))
    found = scores_by_run(Places.of(paths, "mnist", "smallcnn", "0.7", "", ""))
    assert found.n_runs == 6 and found.examples.tolist() == table["example"].tolist()
    assert list(found.scores)[0] == "memorization_prob" and {"curvature", "trace", "loss"} < found.scores.keys()
    for name, one in found.scores.items():
        mean = atlas.combined(one.read(), np.ones((1, 6)), 200, difference=one.difference)[0]
        assert np.allclose(mean, table[name], equal_nan=True), name
        assert one.seconds > 0
    names = main_scores(about)
    assert "margin" in names and "lira_shared" in names
    assert np.array_equal(oriented(table, about, ["margin"])[0], -table["margin"])


def test_the_atlas_says_what_the_table_holds(study: Path) -> None:
    printed, rows = execute_notebook(
        "score_atlas", "atlas_mnist_smallcnn", study, config=study / "config.json", sizes=[1, 3], n_draws=3, n_shown=3
    )
    table, _ = read_table(table_path(study / "score_dir", "mnist", "smallcnn"))
    expected = stats.spearmanr(table["memorization_prob"], table["curvature"], nan_policy="omit").statistic
    row = next(row for row in rows if row["statistic"] == "Spearman(memorization_prob, curvature)")
    assert row["value"] == pytest.approx(expected) and row["low"] < expected < row["high"]
    assert "missing: grand; to make it:\n    python calc_curv_fz_models.py" in printed and "3 networks" in printed
    cells = json.loads((study / "figure_dir" / "score_atlas.ipynb").read_text())["cells"]
    figures = [out for cell in cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(figures) == 5 and (study / "figure_dir" / "score_atlas_mnist_smallcnn.png").exists()
