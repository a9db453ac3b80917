"""What notebooks take from libplots: data of every form, figures of examples."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from libdata.datasets import load_dataset
from libplots.figures import score_against_memorization
from libplots.notebooks import about, kept_examples
from libscores.link1 import link1
from libstore.errors import InputError
from libstore.sensitivity_results import SensitivityResults
from libstore.store import Output, read_sidecar


def results(dataset: str) -> SensitivityResults:
    s = np.ones((1, 2, 3))
    return SensitivityResults(
        s, np.arange(3), np.arange(2), ("res1.csv",), 0.1, 1.0, 8, 1.0, 2, s, {}, dataset, "mlp", {}
    )


@pytest.mark.parametrize("shape", [(12, 5), (12, 6, 6, 3)], ids=["table", "images"])
def test_data_of_ones_own_are_told_by_their_content(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also under a name of the user's choice."""
    generator = np.random.default_rng(0)
    data = {
        "train_x": generator.random(shape), "train_y": np.arange(12) % 2,
        "test_x": generator.random(shape), "test_y": np.arange(12) % 2,
    }  # fmt: skip
    for name in ("own", "other"):
        np.savez(tmp_path / f"{name}.npz", **data)
        data["train_x"] = data["train_x"][::-1]
    own, other = (str(tmp_path / f"{name}.npz") for name in ("own", "other"))
    file, loaded = tmp_path / "res1.csv", load_dataset(own, "train", tmp_path)
    Output(file, {"data": loaded.identity() | {"dataset": "renamed"}}).save(b"", {})
    assert about(results("renamed"), own)["data_set"] == own
    data = read_sidecar(file)["settings"]["data"]
    shown = kept_examples(own, np.array([7, 2]), data, file, tmp_path)
    np.testing.assert_array_equal(shown.images, loaded.images[[7, 2]])
    with pytest.raises(InputError, match=r"res1.csv: made on other data .*, other is "):
        kept_examples(other, np.array([7, 2]), data, file, tmp_path)
    with pytest.raises(InputError, match="dataset 'mnist': res1.csv is of 'renamed'"):
        about(results("renamed"), "mnist")


def test_no_marker_is_cut_at_the_edge_of_its_axes() -> None:
    """The largest bin has the least curvature: its marker stands at 0."""
    n, rng = 60_000, np.random.default_rng(0)
    mem = np.r_[np.zeros(n - 50), rng.uniform(0.5, 1, 50)]
    runs = [(np.arange(n) % 3 != run, mem, mem + 1e-6) for run in range(3)]
    result = link1(lambda: iter(runs), 3, n, memorization=mem, n_groups=2, n_permutations=1)
    figure = score_against_memorization("bins", result)
    figure.canvas.draw()
    axis = figure.axes[0]
    (bins,) = (one for one in axis.collections if one.get_label() == "bin mean")
    centres = axis.transData.transform(np.asarray(bins.get_offsets()))
    radii = np.sqrt(bins.get_sizes()) / 2 * figure.dpi / 72
    assert radii.max() > 5 and axis.bbox.x0 < (centres[:, 0] - radii).min()
    assert axis.bbox.y0 < (centres[:, 1] - radii).min() and (centres[:, 1] + radii).max() < axis.bbox.y1
    plt.close(figure)


def test_examples_are_those_that_results_are_about(tmp_path: Path) -> None:
    """Resized as they were for the runs, and of the content that they had then."""
    for part in ("train", "test"):
        for kind in ("cat", "owl"):
            (tmp_path / "x" / part / kind).mkdir(parents=True)
            for size in (6, 7):
                pixels = np.full((size, size, 3), 10 * size, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "x" / part / kind / f"{size}.png")
    data, index = str(tmp_path / "x"), np.array([0, 3])
    kept = load_dataset(data, "train", tmp_path, image_size=5).identity()
    assert kept_examples(data, index, kept, "runs", tmp_path).images.shape == (2, 3, 5, 5)
    with pytest.raises(InputError, match="mixed sizes"):
        kept_examples(data, index, {}, "runs", tmp_path)
    Image.fromarray(np.zeros((7, 7, 3), np.uint8)).save(tmp_path / "x" / "train" / "cat" / "7.png")
    with pytest.raises(InputError, match="runs: made on other data"):
        kept_examples(data, index, kept, "runs", tmp_path)
