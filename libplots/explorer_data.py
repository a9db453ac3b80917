"""What the page of `explore.py` shows: the score table, the examples chosen from it, and pictures of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from libstore.errors import InputError, there_is
from libstore.safe_pickle import load_npz
from libstore.score_table import MAKER, read_table, table_path
from libstore.store import file_sha256

_PAIRS = ("example", "test", "influence", "standard_error", "chance")
_TILES = (32, 32)
"""Thumbnails across and down one sheet."""
_BLOCK = 16
_SIDE = 64
"""Pixels of a thumbnail's longer side, at most."""
_VALUES = 64
"""Values of a row of numbers that are shown."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of the examples of one data set and network.

    Attributes:
        path: The Parquet file.
        frame: `example` (position in the training split, ascending), `label`, the scores, their standard errors.
        about: Its description: `columns`, `missing` and the rest (docs/score_table.md).
        pairs: What influence_<dataset>_<arch>.npz holds, None where the table has none.
        sha256: Digests of the files, by name.
    """

    path: Path
    frame: pd.DataFrame
    about: dict[str, Any]
    pairs: dict[str, np.ndarray] | None
    sha256: dict[str, str]

    @property
    def scores(self) -> list[str]:
        """Names of the columns that are scores, without their standard errors."""
        return [name for name in self.frame.columns if name in self.about["columns"]]


def read_scores(path: Path, make: str) -> ScoreTable:
    """Read a score table and the influence pairs beside it, where its description names them.

    Args:
        path: The table.
        make: The command that makes it, for the message where it is not there.

    Raises:
        InputError: A file is missing, damaged or lacks what it should hold.
    """
    if not path.exists():
        found = sorted(file.name for file in path.parent.glob("table_*.parquet"))
        raise InputError(f"{path}: no score table; {there_is(found)}; to make it: {make}")
    frame, about = read_table(path)
    if path != table_path(path.parent, about["dataset"], about["arch"]):
        raise InputError(f"{path}: is of {about['dataset']} and {about['arch']}, not what it is called; move it away")
    frame = frame[[name for name in frame.columns if name in ("example", "label") or frame[name].dtype.kind == "f"]]
    sha256, pairs = {file.name: file_sha256(file) for file in (path, path.with_suffix(".json"))}, None
    file = path.with_name(path.name.replace("table_", "influence_", 1)).with_suffix(".npz")
    kept = about.get("beside", {}).get(file.name)
    if kept is not None:
        if not file.exists() or file_sha256(file) != kept:
            raise InputError(f"{file}: missing, or not what was made with {path.name}; run {MAKER} again")
        pairs, sha256[file.name] = load_npz(file, _PAIRS), kept
    return ScoreTable(path, frame, about, pairs, sha256)


def choose_examples(scores: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose examples of a table too large for a page: the extremes of every score, and a sample of the others.

    Args:
        scores: Scores, NaN where there is none, shape (N, number of scores).
        limit: Largest number of examples.

    Returns:
        Rows, ascending, shape (at most limit,), and how many examples of the table each stands for: 1 for the extremes
        (those with the highest and lowest values, a quarter of the limit in all), which sums to N.
    """
    total = len(scores)
    if total <= limit:
        return np.arange(total), np.ones(total)
    each = -(-limit // (8 * max(1, scores.shape[1])))
    kept = np.zeros(total, bool)
    for column in scores.T:
        there = np.flatnonzero(~np.isnan(column))
        order = there[np.argsort(column[there], kind="stable")]
        kept[order[:each]] = kept[order[len(order) - min(each, len(order)) :]] = True
    rest = np.flatnonzero(~kept)
    sample = np.random.default_rng(0).choice(rest, max(1, limit - int(kept.sum())), replace=False)
    weights = np.where(kept, 1.0, len(rest) / len(sample))
    kept[sample] = True
    return np.flatnonzero(kept), weights[kept]


def pairs_of(pairs: Mapping[str, np.ndarray] | None, examples: np.ndarray) -> dict[str, np.ndarray]:
    """Return the influence pairs of some training examples.

    Args:
        pairs: `example`, ascending, shape (N,), and `test`, `influence` (NaN where there is none) and `standard_error`,
            shape (N, k); or None.
        examples: Training examples, ascending, shape (n,).

    Returns:
        `row` (place of the training example among `examples`, ascending), `test_example`, `influence` and
        `standard_error`, all of one shape.
    """
    if pairs is None:
        pairs = dict.fromkeys(("test", "influence", "standard_error"), np.empty((0, 0)))
        shared, rows, places = (np.empty(0, int) for _ in range(3))
    else:
        shared, rows, places = np.intersect1d(examples, pairs["example"], assume_unique=True, return_indices=True)
    influence = pairs["influence"][places]
    known = np.isfinite(influence)
    return {
        "row": np.broadcast_to(rows[:, None], known.shape)[known].astype(np.int32),
        "test_example": pairs["test"][places][known].astype(np.int32),
        "influence": influence[known].astype(np.float32),
        "standard_error": pairs["standard_error"][places][known].astype(np.float32),
    }


def pictures(inputs: np.ndarray) -> dict[str, Any]:
    """Return what shows examples: sheets of thumbnails of images, else a line of text each.

    Images of one channel are kept exactly (PNG), colours are compressed (WebP); what is above 64 pixels is shrunk.
    Floating point outside 0...1 is stretched from its lowest to its highest value. Of two channels, or of more than
    three, the first is shown.

    Args:
        inputs: Examples, shape (N, ...): images (N, C, H, W), rows (N, d), token ids (integers).

    Returns:
        For images `sheets` (data URIs), `columns` and `tiles` (thumbnails across and on a sheet), `width`, `height`
        and `pitch_x`, `pitch_y` (pixels from one to the next); else `texts`.
    """
    if inputs.dtype.kind in "iu" or inputs.ndim != 4:
        return {"texts": [_line(one.reshape(-1)) for one in inputs]}
    if inputs.shape[1] != 3:
        inputs = inputs[:, :1]
    low, high = float(inputs.min()), float(inputs.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    pixels = np.round((inputs - low) * (255 / max(high - low, 1e-30))).clip(0, 255).astype(np.uint8)
    pixels = _shrunk(pixels.transpose(0, 2, 3, 1))
    height, width = pixels.shape[1:3]
    colour = pixels.shape[3] == 3
    if colour:  # blocks that lossy compression never mixes
        pad_y, pad_x = -height % _BLOCK, -width % _BLOCK
        pixels = np.pad(pixels, ((0, 0), (0, pad_y), (0, pad_x), (0, 0)), mode="edge")
    tiles = _TILES[0] * _TILES[1]
    sheets = [_sheet(pixels[start : start + tiles], colour) for start in range(0, len(pixels), tiles)]
    return {
        "sheets": sheets, "columns": _TILES[0], "tiles": tiles, "width": width, "height": height,
        "pitch_x": pixels.shape[2], "pitch_y": pixels.shape[1],
    }  # fmt: skip


def read_texts(path: Path, size: int) -> np.ndarray:
    """Read a text for each example of the training split, a line each.

    Raises:
        InputError: The file cannot be read, or has another number of lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--texts {path}: cannot read: {error}") from error
    if len(lines) != size:
        raise InputError(f"--texts {path}: has {len(lines)} lines, the training split {size} examples")
    return np.array(lines)


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Make images (N, h, w, C) smaller where a side is above `_SIDE` pixels."""
    height, width = pixels.shape[1:3]
    part = _SIDE / max(height, width)
    if part >= 1:
        return pixels
    size = max(1, round(width * part)), max(1, round(height * part))
    grey = pixels.shape[3] == 1
    images = [Image.fromarray(one[..., 0] if grey else one).resize(size, Image.Resampling.BOX) for one in pixels]
    return np.stack([np.asarray(one) for one in images]).reshape(len(pixels), size[1], size[0], -1)


def _sheet(pixels: np.ndarray, colour: bool) -> str:
    """Lay thumbnails (n, h, w, C) side by side, and return them as a data URI."""
    across = _TILES[0]
    down = -(-len(pixels) // across)
    n, height, width, channels = pixels.shape
    full = np.zeros((down * across, height, width, channels), np.uint8)
    full[:n] = pixels
    grid = full.reshape(down, across, height, width, channels).transpose(0, 2, 1, 3, 4)
    sheet = grid.reshape(down * height, across * width, channels)
    file = io.BytesIO()
    if colour:
        Image.fromarray(sheet).save(file, "WEBP", quality=80)
    else:
        Image.fromarray(sheet[..., 0]).save(file, "PNG")
    kind = "webp" if colour else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _line(values: np.ndarray) -> str:
    words = [f"{value:.4g}" if values.dtype.kind == "f" else str(value) for value in values[:_VALUES]]
    return " ".join(words) + (f" … ({len(values)} values)" if len(values) > _VALUES else "")
