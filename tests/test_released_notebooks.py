"""The notebooks on released memorization, executed as a user executes them, on small scores in the released format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, execute_notebook, write_config
from notebook_lines import README, prepared, run_cells
from released_files import cifar_sums, write_cifar100, write_scored_imagenet, write_scored_models
from scipy import stats

from libdata.datasets import CIFAR_MD5
from libstore.store import arrays_bytes

NAMED = "link1_cifar100_small_inception_0.7"


def expected_spearman(memorization: np.ndarray, written: dict[int, tuple[np.ndarray, np.ndarray]]) -> float:
    """Spearman's correlation from the stacked arrays."""
    held = np.array([np.where(mask, curvature.astype(float), np.nan) for mask, curvature in written.values()])
    known = np.isfinite(held).any(axis=0)
    return stats.spearmanr(memorization[known], np.nanmean(held[:, known], axis=0)).statistic


def test_imagenet(tmp_path: Path) -> None:
    memorization, written = write_scored_imagenet(tmp_path, 2000, [0, 1, 2, 4, 5, 7])
    (tmp_path / "scores" / "imagenet_resnet50_0.7_5" / "curv_scores_imagenet_resnet50_0.7_5_0.001.npy").unlink()
    del written[5]
    config = write_config(
        tmp_path, fz_model_dir="fz_models", score_dir="scores", imagenet_index=tmp_path / "imagenet_index.npz"
    )
    printed, rows = execute_notebook(
        "analyze_imagenet_curv_fz", "link1_imagenet_resnet50_0.7_released", tmp_path, config=config, stop_run=9
    )
    assert "5 scored models, 2,000 examples" in printed
    assert "not there or not scored: [3, 5, 6, 8]" in printed
    assert "n01440764_" in printed and "maximum over models" in printed
    row, reference = rows[0], rows[-1]
    assert row["value"] == pytest.approx(expected_spearman(memorization, written))
    assert row["low"] < row["value"] < row["high"] and row["verdict"] == "yes"
    assert reference["low"] < 0 < reference["high"] and reference["verdict"] == "reference"
    assert "to have it: python calc_curv_fz_imagenet_models.py" in printed
    for suffix in ("png", "pdf"):
        assert (tmp_path / "figure_dir" / f"link1_imagenet_resnet50.{suffix}").stat().st_size > 10_000


def saved(folder: Path, pattern: str) -> list[dict]:
    """The rows of the one file of statistics that fits a pattern."""
    return [row for path in folder.glob(pattern) for row in json.loads(path.read_text())]


def test_the_line_of_the_readme_for_imagenet(bare: Path) -> None:
    memorization, written = write_scored_imagenet(bare / "results", 500, [0, 1, 2, 4])
    (bare / "data").mkdir()
    (bare / "results" / "imagenet_index.npz").rename(bare / "data" / "imagenet_index.npz")
    line = next(words for words in README if "imagenet" in words[0])
    printed = run_cells(prepared(line, bare))
    assert printed.startswith("configuration: config.json\ndata set: imagenet\n") and "Synthetic" not in printed
    assert "4 scored models, 500 examples" in printed and "models: resnet50, ratio 0.7, runs 0 to 99" in printed
    row = saved(bare / line[1], "results_*.json")[0]
    assert row["value"] == pytest.approx(expected_spearman(memorization, written))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory):
    """CIFAR-100 in torchvision's order; models and released memorization in another, and the map between them."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(1)
    n = 600
    labels = {"train": rng.integers(0, 100, n), "test": rng.integers(0, 100, 5)}
    images = {split: rng.integers(0, 256, (len(y), 32, 32, 3), dtype=np.uint8) for split, y in labels.items()}
    write_cifar100(folder / "data", images, labels)
    memorization, order = rng.beta(0.3, 1.2, n), rng.permutation(n)
    root = folder / "fz_models" / "cifar100-inception"
    names = "cifar100", "small_inception"
    written = write_scored_models(root, folder / "scores", names, memorization, [0, 1, 2, 3, 5], order)
    (root / "tfds_order.npz").write_bytes(arrays_bytes(train=order, test=np.arange(5)))
    matrix = {"tr_mem": memorization[order].astype(np.float32), "tr_labels": labels["train"][order]}
    np.savez(folder / "cifar100_infl_matrix.npz", **matrix)
    return folder, memorization.astype(np.float32), written


def know_cifar(folder: Path, home: Path) -> None:
    """Let notebooks executed in a home directory take the small CIFAR-100."""
    startup = home / ".ipython/profile_default/startup/cifar.py"
    startup.parent.mkdir(parents=True)
    sums = cifar_sums(folder / "data")
    known = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from libdata.datasets import CIFAR_MD5"
    startup.write_text(f"{known}; CIFAR_MD5.update({sums})\n")


def test_cifar_released_memorization(cifar, tmp_path: Path) -> None:
    folder, memorization, written = cifar
    config = write_config(
        tmp_path, data_dir=folder / "data", fz_model_dir=folder / "fz_models", score_dir=folder / "scores",
        cifar100_memorization=folder / "cifar100_infl_matrix.npz",
    )  # fmt: skip
    know_cifar(folder, tmp_path)
    parameters = {"dataset": "cifar100", "arch": "small_inception", "memorization_source": "released", "stop_run": 7}
    printed, rows = execute_notebook(
        "analyze_cifar100_curv_fz", f"{NAMED}_released", tmp_path, config=config, **parameters
    )
    assert "5 scored runs, 600 examples" in printed and "not scored: [4, 6]" in printed
    assert "to have it: python calc_curv_fz_models.py --dataset cifar100" in printed
    assert not any("disjoint halves" in row["statistic"] or row["verdict"] == "control" for row in rows)
    row = rows[0]
    assert row["statistic"] == "Spearman(mem, curvature), released"
    assert row["value"] == pytest.approx(expected_spearman(memorization, written))
    assert row["low"] < row["value"] < row["high"] and row["verdict"] == "yes"
    assert (tmp_path / "figure_dir" / "link1_cifar100_small_inception_examples.png").stat().st_size > 10_000


def test_the_line_of_the_readme_for_cifar100(cifar, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, memorization, written = cifar
    for base, sums in cifar_sums(folder / "data").items():
        monkeypatch.setitem(CIFAR_MD5, base, sums)  # type: ignore[arg-type]
    (bare / "results").mkdir()
    for name in ("fz_models", "scores"):
        (bare / "results" / name).symlink_to(folder / name)
    (bare / "data").symlink_to(folder / "data")
    matrix = folder / "data" / "cifar100_infl_matrix.npz"
    matrix.write_bytes((folder / matrix.name).read_bytes())
    line = next(words for words in README if "released" in words)
    printed = run_cells(prepared(line, bare))
    matrix.unlink()
    assert printed.startswith("configuration: config.json\ndata set: cifar100\n")
    assert "memorization: released" in printed and "5 scored runs, 600 examples" in printed
    row = saved(bare / line[1], "results_*.json")[0]
    assert row["value"] == pytest.approx(expected_spearman(memorization, written))


def test_cifar_memorization_of_released_runs_without_probabilities(cifar, tmp_path: Path) -> None:
    folder, _, _ = cifar
    dirs = {"data_dir": folder / "data", "fz_model_dir": folder / "fz_models", "score_dir": folder / "scores"}
    config = write_config(tmp_path, **dirs)
    know_cifar(folder, tmp_path)
    parameters = {"dataset": "cifar100", "arch": "small_inception", "n_groups": 5}
    printed, rows = execute_notebook(
        "analyze_cifar100_curv_fz", f"{NAMED}_ensemble", tmp_path, config=config, **parameters
    )
    assert "5 scored runs, 600 examples" in printed and "disjoint halves" in printed
    assert {row["statistic"].rsplit(", ", 1)[1] for row in rows} == {"correctness"}
