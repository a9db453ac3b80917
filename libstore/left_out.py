"""Result files of points that were left out of the training they are measured in, fold by fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from libstore.errors import InputError
from libstore.sensitivity_results import SensitivityResults, check_same_training, check_there, read_results
from libstore.text_tables import open_table

TRAINED_ON = "trained_on"
"""Column of a result file: 0 where the points were left out of the training; 1, or no such column, otherwise."""
_MECHANISM = ("sample_rate", "noise_multiplier", "total_steps")


def check_trained_on(paths: Sequence[Path], expected: bool) -> None:
    """Refuse result files whose points were, or were not, in the training.

    Raises:
        InputError: A file holds points of the other kind.
    """
    for path in paths:
        check_there(path)
        table = open_table(path)
        values = {1}
        if TRAINED_ON in table.names:
            values = set(table.frame([TRAINED_ON])[TRAINED_ON].dropna().unique().tolist())
        if values != {int(expected)}:
            kind = ("in the training", "left out of the training; it goes with --without")[expected]
            raise InputError(f"{path}: {TRAINED_ON} says that its points were {kind}")


def read_left_out(
    paths: Sequence[Path],
    beside: SensitivityResults,
    beside_paths: Sequence[Path],
    distance_unit: str = "batch_mean",
    total_steps: int | None = None,
) -> Iterator[SensitivityResults]:
    """Read the runs of each fold: files with the same points are runs of one fold.

    Args:
        paths: Result files of points left out of the training.
        beside: The runs that train with the points, which must share data, network, training and mechanism, and have
            the points and stages.
        beside_paths: Their files.
        distance_unit: See `read_results`.
        total_steps: See `read_results`.

    Yields:
        Results of one fold at a time; no point comes twice.

    Raises:
        InputError: As `read_results`; a point was in the training, is in two folds or not among `beside`'s; the
            data, network, training, mechanism or the stages differ.
    """
    check_trained_on(paths, expected=False)
    folds: dict[tuple[int, ...], list[Path]] = {}
    for path in paths:
        measured = read_results([path], distance_unit, total_steps=total_steps).points
        folds.setdefault(tuple(measured.tolist()), []).append(path)
    seen: dict[int, Path] = {}
    for points, files in folds.items():
        for point in points:
            if point in seen:
                raise InputError(f"{files[0]}: point {point} is in {seen[point]} too, a fold with other points")
            seen[point] = files[0]
        fold = read_results(files, distance_unit, total_steps=total_steps)
        check_same_training(fold, files, beside, beside_paths)
        for name in _MECHANISM:
            here, there = getattr(fold, name), getattr(beside, name)
            if not np.isclose(here, there, rtol=1e-9):
                raise InputError(f"{files[0]}: {name} is {here:g}, but {there:g} in the runs with the points")
        for what, other, reason in (
            ("point", np.setdiff1d(fold.points, beside.points), "not measured in the runs with it"),
            ("step", np.setxor1d(fold.steps, beside.steps), "not measured with and without the points alike"),
        ):
            if other.size:
                raise InputError(f"{files[0]}: {what} {other[0]} is {reason}")
        yield fold
