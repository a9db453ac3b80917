"""Result files as rows of text: joined, and taken apart, with every value as it was written but for decimal commas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from libstore.errors import InputError
from libstore.sensitivity_results import DISTANCE, SensitivityResults, table_bytes
from libstore.store import write_atomic
from libstore.text_tables import open_table

RUN = "run"


def concatenate(paths: Sequence[Path]) -> bytes:
    """Return the rows of several files as one CSV whose column `run` tells the files apart."""
    header, rows = _read_rows(paths)
    return _csv_bytes(header, rows)


def split(paths: Sequence[Path], results: SensitivityResults, directory: Path) -> bytes:
    """Write one file per run and point, res_run<X>_point<Y>.csv, and the averages over runs, res_runA_point<Y>.csv.

    Every file appears whole or not at all.

    Args:
        paths: Result files, checked.
        results: What `read_results` makes of them, with the column `distance (sum)`.
        directory: Where the files go.

    Returns:
        The averages of all points as one CSV, `step,point,distance (sum)`.
    """
    header, rows = _read_rows(paths)
    run, point = header.index(RUN), header.index("point")
    groups: dict[tuple[str, int], list[list[str]]] = {}
    for row in rows:
        groups.setdefault((row[run], int(float(row[point]))), []).append(row)
    for (name, position), group in groups.items():
        write_atomic(directory / f"res_run{name}_point{position}.csv", _csv_bytes(header, group), durable=False)
    average = results.columns[DISTANCE].mean(axis=0).T
    for position, curve in zip(results.points.tolist(), average, strict=True):
        columns = {"step": results.steps, "point": np.full(curve.size, position), DISTANCE: curve}
        write_atomic(directory / f"res_runA_point{position}.csv", table_bytes(columns), durable=False)
    everything = {
        "step": np.tile(results.steps, results.points.size),
        "point": np.repeat(results.points, results.steps.size),
        DISTANCE: average.reshape(-1),
    }
    return table_bytes(everything)


def _read_rows(paths: Sequence[Path]) -> tuple[list[str], Iterator[list[str]]]:
    """Return a header, the columns of the first file with `run` last, and all files' rows in that order of columns."""
    files = [open_table(path) for path in paths]
    header = [*(name for name in files[0].names if name and name != RUN), RUN]
    for file in files:
        for name in {*header, *filter(None, file.names)} - {RUN}:
            if (name in file.names) != (name in header):
                without, having = (file, files[0]) if name in header else (files[0], file)
                raise InputError(f"{without.path}: lacks the column {name!r}, which {having.path} has")
    numbers = [match[1] for path in paths if (match := re.search(r"(\d+)(?:\.[a-z]\w*)*$", path.name, re.IGNORECASE))]
    names = numbers if len(set(numbers)) == len(paths) else [str(1 + position) for position in range(len(paths))]

    def rows() -> Iterator[list[str]]:
        owner: dict[str, Path] = {}
        filled: list[set[str]] = []
        for file, number in zip(files, names, strict=True):
            own_header = list(filter(None, file.names))
            take = [own_header.index(column) if column in own_header else None for column in header]
            filled.append(set())
            for row in file.rows():
                filled[-1].update(name for name, field in zip(own_header, row, strict=True) if field)
                found = ["" if position is None else row[position] for position in take]
                found[-1] = found[-1] or number
                if owner.setdefault(found[-1], file.path) != file.path:
                    raise InputError(f"{file.path}: run {found[-1]} is in {owner[found[-1]]} too")
                yield found
            for name in sorted((filled[-1] ^ filled[0]) - {RUN}):
                blank = file if name in filled[0] else files[0]
                raise InputError(f"{blank.path}: the column {name!r} is blank there, but not in all files")

    return header, rows()


def _csv_bytes(header: list[str], rows: Iterable[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
