"""Result files of the per-instance study: one row per point, step and run, with the norm of the point's gradient.

The columns are the published ones. `distance (sum)` is the clipped norm divided by the batch size, `p` the sampling
rate, `sigma` the noise multiplier, `cn` the clipping norm. Files may hold several runs; a run is told by its file and,
within it, by whatever of `run`, `save_name`, `res_name`, `id` and `seed` the file has. Seeds that share no step are one
run whose stages were separate processes.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from libstore.comparable import REMOVAL, RUNS, Kept, check_alike, check_content, kept
from libstore.errors import InputError
from libstore.store import check_format, file_sha256
from libstore.text_tables import open_table

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""To be raised when what a column means changes; results of two formats are never mixed."""
DISTANCE = "distance (sum)"
STEP_COST = "Privacy cost"
TOTAL = "Total Privacy Cost"
LARGEST = "largest of R runs"
FORMER_NAMES = {LARGEST: "composed bound", "epsilon largest of R runs": "epsilon composed"}
DISTANCE_UNITS = ("batch_mean", "norm")

_SETTINGS = ("sigma", "p", "batch_size", "cn")
_REQUIRED = (DISTANCE, "step", "point", *_SETTINGS)
_TEXT_SETTINGS = ("dataset", "model", "reduction")
_IDENTITY = ("run", "save_name", "res_name", "id", "seed")
_SEED = "seed"
_LENGTH = ("total_steps", "epochs")
_TRAINING = ("eps", "delta", "lr")
_SHARED = (*_TEXT_SETTINGS, "batch_size", "cn", "epochs", *_TRAINING)
_CLIPPING_SLACK = 1e-4
_ONE_EXPERIMENT = "; give the runs of one experiment, without removals and folds beside them"
MAKER, RANKER = "sensitivity/compute_sensitivity.py", "sensitivity/compo_res/rank.py"


@dataclass(frozen=True)
class SensitivityResults:
    """Trajectories of several runs over the same points and steps.

    Attributes:
        sensitivity: min(||g||, C)/C, shape (R, S, P), in [0, 1].
        points: Position of each point in the data set, shape (P,), increasing.
        steps: Training step of each measurement, shape (S,), increasing.
        runs: A label for each run, length R.
        sample_rate: Poisson sampling rate q.
        noise_multiplier: Noise standard deviation over the clipping norm.
        batch_size: Expected batch size.
        max_grad_norm: Clipping norm C.
        total_steps: Steps of the whole training run.
        accuracy: Test accuracy, shape (R, S), NaN where the files have none.
        columns: Further columns that were asked for, each of shape (R, S, P).
        dataset: The data set, "" where the files do not name it.
        model: The network, "" where the files do not name it.
        training: What the columns say of data, network and training, by the column's name.
    """

    sensitivity: np.ndarray
    points: np.ndarray
    steps: np.ndarray
    runs: tuple[str, ...]
    sample_rate: float
    noise_multiplier: float
    batch_size: int
    max_grad_norm: float
    total_steps: int
    accuracy: np.ndarray
    columns: dict[str, np.ndarray]
    dataset: str
    model: str
    training: Mapping[str, Any]


def read_results(
    paths: Sequence[str | Path],
    distance_unit: str = "batch_mean",
    columns: Sequence[str] = (),
    total_steps: int | None = None,
) -> SensitivityResults:
    """Read and check result files that belong to one experiment.

    Args:
        paths: CSV files, each with one or more runs, in any form that `text_tables` reads.
        distance_unit: Unit of `distance (sum)`: "batch_mean" for clipped norm / batch size, as it is saved; "norm" to
            take the number for the clipped norm itself, as one published reader does.
        columns: Further numeric columns to return, for example "grad_norm" or "correct".
        total_steps: Steps of the whole run; by default the column `total_steps`, else epochs / p, else last step + 1.

    Raises:
        InputError: A file is no result file, settings differ between rows, a value is out of range, a point lacks a
            step or has it twice, runs have different points or steps, or two runs are identical bit for bit.
    """
    settings: dict[str, tuple[Any, Path]] = {}
    runs: dict[str, _Run] = {}
    for path in map(Path, paths):
        check_there(path)
        table = _read_table(path, columns)
        for name in (*_SETTINGS, *_TEXT_SETTINGS, *_LENGTH, *_TRAINING):
            if name in table:
                _one_value(name, table[name].dropna().unique().tolist(), path, settings)
        for label, rows in _split_runs(path, table):
            if label in runs:
                raise InputError(f"{path}: given twice; a run counts once")
            runs[label] = _arrange(label, rows, columns)
    sigma, p, batch_size, cn = _check_settings(settings)
    _check_one_experiment(runs, list(map(Path, paths)))

    first = next(iter(runs.values()))
    scale = batch_size / cn if distance_unit == "batch_mean" else 1 / cn
    sensitivity = np.stack([run.values[DISTANCE] for run in runs.values()])
    sensitivity *= scale
    for label, run, largest in zip(runs, runs.values(), sensitivity.max(axis=(1, 2)), strict=True):
        if largest > 1 + _CLIPPING_SLACK:
            raise InputError(
                f"{label}: the largest {DISTANCE!r}, {run.values[DISTANCE].max():g}, is {largest:g} clipping norms if "
                f"its unit is {distance_unit!r}; see --distance_unit"
            )
        if distance_unit == "batch_mean" and run.clipped_gap > _CLIPPING_SLACK * cn:
            raise InputError(f"{label}: clipped_norm differs from {DISTANCE!r} times batch_size by {run.clipped_gap:g}")
    return SensitivityResults(
        sensitivity=np.minimum(sensitivity, 1.0, out=sensitivity),
        points=first.points,
        steps=first.steps,
        runs=tuple(runs),
        sample_rate=p,
        noise_multiplier=sigma,
        batch_size=int(batch_size),
        max_grad_norm=cn,
        total_steps=_total_steps(total_steps, settings, p, int(first.steps[-1])),
        accuracy=np.stack([run.accuracy for run in runs.values()]),
        columns={name: np.stack([run.values[name] for run in runs.values()]) for name in columns},
        dataset=str(settings.get("dataset", ("",))[0]),
        model=str(settings.get("model", ("",))[0]),
        training={name: settings[name][0] for name in _SHARED if name in settings},
    )


class _Run(NamedTuple):
    points: np.ndarray
    steps: np.ndarray
    values: dict[str, np.ndarray]
    accuracy: np.ndarray
    clipped_gap: float


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    numeric = {*_REQUIRED, *_LENGTH, *_TRAINING, *columns, "accuracy", "clipped_norm"}
    text = {*_TEXT_SETTINGS, *_IDENTITY}
    file = open_table(path)
    missing = [name for name in (*_REQUIRED, *columns) if name not in file.names]
    if missing:
        raise InputError(f"{path}: not a result file with what is needed, it lacks {', '.join(map(repr, missing))}")
    wanted = [name for name in file.names if name in numeric or name in text]
    table = file.frame(wanted, text)
    needed = {*_REQUIRED, *columns}
    present = [name for name in wanted if name in needed or (name in numeric and not table[name].isna().all())]
    _check_numbers(path, table, present)
    for name in present:
        table[name] = table[name].astype(np.int64 if name in ("step", "point") else np.float64)
    return table


def _one_value(name: str, values: Iterable[Any], path: Path, settings: dict[str, tuple[Any, Path]]) -> None:
    for value in values:
        first, where = settings.setdefault(name, (value, path))
        same = math.isclose(value, first, rel_tol=1e-9) if isinstance(first, float) else value == first
        if not same:
            raise InputError(f"{path}: {name} is {value}, but {first} in {where}; one analysis takes one {name}")


def _split_runs(path: Path, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    telling = [name for name in _IDENTITY if name in table and table[name].nunique(dropna=False) > 1]
    others = [name for name in telling if name != _SEED]
    groups = table.groupby(others, observed=True, dropna=False, sort=False) if others else [((), table)]
    for key, rows in groups:
        parts = [rows]
        if _SEED in telling:
            parts = [part for _, part in rows.groupby(_SEED, observed=True, dropna=False, sort=False)]
        if len(parts) > 1 and sum(part["step"].nunique() for part in parts) == rows["step"].nunique():
            label = _label(path, others, key)
            print(f"{label}: its {len(parts)} seeds share no step, read as one run", file=sys.stderr)
            parts = [rows]
        names = telling if len(parts) > 1 else others
        for part in parts:
            yield _label(path, names, [part[name].iloc[0] for name in names]), part


def _label(path: Path, names: Sequence[str], values: Iterable[object]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    return f"{path} ({told})" if told else str(path)


def _arrange(label: str, rows: pd.DataFrame, columns: Sequence[str]) -> _Run:
    """Return one run's columns as (step, point) arrays, after checking that each pair is there exactly once."""
    points, point_position = np.unique(rows["point"].to_numpy(), return_inverse=True)
    steps, step_position = np.unique(rows["step"].to_numpy(), return_inverse=True)
    cell = step_position * points.size + point_position
    count = np.bincount(cell, minlength=steps.size * points.size)
    for wrong, what in ((count > 1, "more than once"), (count == 0, "not at all")):
        if wrong.any():
            step, point = divmod(int(np.flatnonzero(wrong)[0]), points.size)
            raise InputError(f"{label}: point {points[point]} has step {steps[step]} {what}")

    def arranged(name: str) -> np.ndarray:
        values = np.empty(cell.size)
        values[cell] = rows[name].to_numpy()
        return values.reshape(steps.size, points.size)

    accuracy = arranged("accuracy")[:, 0] if "accuracy" in rows else np.full(steps.size, math.nan)
    gap = (rows["clipped_norm"] - rows[DISTANCE] * rows["batch_size"]).abs().max() if "clipped_norm" in rows else 0.0
    return _Run(points, steps, {name: arranged(name) for name in (DISTANCE, *columns)}, accuracy, float(gap))


def _check_settings(settings: dict[str, tuple[Any, Path]]) -> list[float]:
    fine = {
        "sigma": lambda value: value > 0,
        "p": lambda value: 0 < value <= 1,
        "batch_size": lambda value: value >= 1 and value == int(value),
        "cn": lambda value: value > 0,
    }
    for name, check in fine.items():
        value, path = settings[name]
        if not check(value):
            raise InputError(f"{path}: {name} is {value:g}, out of range")
    reduction, path = settings.get("reduction", ("sum", Path()))
    if reduction != "sum":
        raise InputError(f"{path}: reduction is {reduction!r}; the composition takes the sum rule only")
    return [float(settings[name][0]) for name in _SETTINGS]


def _check_one_experiment(runs: dict[str, _Run], paths: Sequence[Path]) -> None:
    check_alike(_trainings(paths), RUNS, _ONE_EXPERIMENT)
    first_label, first = next(iter(runs.items()))
    seen: dict[bytes, str] = {}
    for label, run in runs.items():
        for name, here, there in (("point", run.points, first.points), ("step", run.steps, first.steps)):
            extra = np.setxor1d(here, there)
            if extra.size:
                raise InputError(f"{name} {extra[0]} is in only one of {first_label} and {label}{_ONE_EXPERIMENT}")
        digest = hashlib.sha256(run.values[DISTANCE].tobytes() + run.accuracy.tobytes()).digest()
        if digest in seen:
            raise InputError(f"{label}: identical bit for bit to {seen[digest]}; one run counts once, leave one out")
        seen[digest] = label


def _trainings(paths: Iterable[Path]) -> list[Kept]:
    """Return the result files whose sidecars say how the runs were trained, after comparing their digests."""
    found = [one for one in map(_kept, paths) if one and "optimization" in one.settings]
    for one in found:
        check_format(one.path, one.sidecar, FORMAT, MAKER)
        check_content(one)
    return found


def _kept(path: Path) -> Kept | None:
    try:
        return kept(path)
    except InputError:
        return None  # a JSON file of somebody else's


def check_same_training(
    one: SensitivityResults, paths: Sequence[Path], other: SensitivityResults, other_paths: Sequence[Path]
) -> None:
    """Refuse results of two trainings that differ in more than runs and the points they train on.

    Args:
        one: Results.
        paths: Their files.
        other: Results of the other training.
        other_paths: Their files.

    Raises:
        InputError: Data, network or training differ, by the files' columns or their sidecars.
    """
    settings = {name: (value, other_paths[0]) for name, value in other.training.items()}
    for name, value in one.training.items():
        _one_value(name, [value], paths[0], settings)
    check_alike(_trainings([*other_paths, *paths]), REMOVAL)


def check_removal(rankings: Sequence[Path], results: Sequence[Sequence[Path]]) -> None:
    """Refuse rankings, and the result files behind them, that are no before and after of one study.

    What has no sidecar passes.

    Args:
        rankings: Two files of sensitivity/compo_res/rank.py, before and after.
        results: The result files behind each, or none.

    Raises:
        InputError: The two are ranked by different costs, their accounting or training differs in more than runs,
            points and the removed, or a file is not the one that the next was made of.
    """
    ranked = [_kept(path) for path in rankings]
    check_alike(ranked, ("input_sha256",))
    totals = []
    for one, files in zip(ranked, results, strict=True):
        name = one.sidecar.get("provenance", {}).get("file") if one else None
        costs = one.path.with_name(name) if one and name else None
        if one and costs and costs.exists():
            _check_made_of(one, [costs], RANKER)
            totals.append(_kept(costs))
            if files and totals[-1]:
                _check_made_of(totals[-1], files, "renyi_per_instance_sum_compo.py, or give the files it was made of")
    derived = ("input_sha256", "measured_steps")
    check_alike(totals, derived)
    check_alike(_trainings([file for files in results for file in files]), REMOVAL)


def _check_made_of(result: Kept, files: Sequence[Path], remedy: str) -> None:
    said = result.settings.get("input_sha256", [])
    known = {said} if isinstance(said, str) else set(said.values() if isinstance(said, Mapping) else said)
    for file in files:
        digest = file_sha256(file)
        if known and digest not in known:
            raise InputError(
                f"{result.path} was not made of {file} as it is (sha256 {sorted(known)[0]} and {digest}); run {remedy}"
            )


def check_there(path: str | Path, made_by: str = MAKER) -> None:
    """Refuse a file that is not there, with the name of what makes it."""
    if not Path(path).exists():
        raise InputError(f"{path}: cannot read as CSV: No such file or directory; {made_by} makes it")


def _total_steps(given: int | None, settings: dict[str, tuple[Any, Path]], p: float, last_step: int) -> int:
    if given is not None:
        total, source = given, "--total_steps"
    elif "total_steps" in settings:
        total, source = int(settings["total_steps"][0]), "column total_steps"
    elif "epochs" in settings:
        total, source = math.floor(settings["epochs"][0] / p + 1e-6), "epochs / p"
    else:
        return last_step + 1
    if last_step > total or total < 1:
        raise InputError(f"step {last_step} is beyond the {total} steps of the run ({source}); see --total_steps")
    return total


def read_ranking(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a ranking file, `point,Total Privacy Cost`.

    Returns:
        Points, int64, and their total costs, in the file's order, each of shape (P,).

    Raises:
        InputError: The file cannot be read, lacks a column, repeats a point or holds a cost that is no number >= 0.
    """
    check_there(path, RANKER)
    if TOTAL not in open_table(path).names:
        remedy = f"give the ..._ranked.csv that {RANKER} makes"
        raise InputError(f"{path}: no ranking, it lacks the column {TOTAL!r}; {remedy}")
    table = _read_columns(path, ("point", TOTAL))
    return table["point"].astype(np.int64), table[TOTAL]


def tell_constant(costs: Iterable[tuple[object, np.ndarray]]) -> None:
    """Say on stderr why rank correlations of these costs, each a name and an array (P,), are undefined, if any is.

    Costs that are all equal have no ranks to correlate; `libscores.ranking.rank_agreement` is NaN for them.
    """
    constant = list(dict.fromkeys(str(name) for name, values in costs if np.ptp(values) == 0))
    if constant:
        more = f" and {len(constant) - 1} more" if len(constant) > 1 else ""
        text = "all points cost the same; rank correlations with that are undefined (nan, in files empty)"
        print(f"{constant[0]}{more}: {text}", file=sys.stderr)


def read_totals(path: str | Path, cost: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one cost column of a totals file; the published per-step files, `point,step,Privacy cost`, are added up.

    Raises:
        InputError: The file cannot be read or has neither form, a point is repeated, or a cost is no number >= 0.
    """
    check_there(path, "renyi_per_instance_sum_compo.py")
    header = open_table(path).names
    for names in (FORMER_NAMES, {old: new for new, old in FORMER_NAMES.items()}):
        cost = names[cost] if cost not in header and names.get(cost) in header else cost
    if cost not in header and {"point", "step", STEP_COST} <= set(header):
        steps = _read_columns(path, ("point", "step", STEP_COST), unique=("point", "step"))
        points, position = np.unique(steps["point"].astype(np.int64), return_inverse=True)
        return points, np.bincount(position, steps[STEP_COST])
    table = _read_columns(path, ("point", cost))
    return table["point"].astype(np.int64), table[cost]


def read_comparison(path: str | Path) -> pd.Series:
    """Read a table of sensitivity/rank_eval.py: an `Estimate` by metric.

    Raises:
        InputError: The file cannot be read or is not such a table.
    """
    import pandas as pd

    check_there(path, "sensitivity/run_compo.sh or rank_eval.py --output")
    missing = {"metric", "value", "low", "high"} - set(open_table(path).names)
    if missing:
        raise InputError(f"{path}: lacks the column {min(missing)!r} of a comparison")
    from libscores.statistics import Estimate  # SciPy, which training does not need

    table = pd.read_csv(path)
    return pd.Series({row.metric: Estimate(row.value, row.low, row.high) for row in table.itertuples()}, dtype=object)


def read_step_costs(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a file of step costs, `point,step,Privacy cost`.

    Returns:
        Points (P,), steps (S,), both int64 and increasing, and costs (S, P).

    Raises:
        InputError: The file cannot be read, lacks a column or a pair of point and step, or repeats one.
    """
    check_there(path, "renyi_per_instance_sum_compo.py")
    names = ("point", "step", STEP_COST)
    rows = _read_columns(path, names, unique=("point", "step"))
    points, column = np.unique(rows["point"].astype(np.int64), return_inverse=True)
    steps, row = np.unique(rows["step"].astype(np.int64), return_inverse=True)
    if row.size != points.size * steps.size:
        raise InputError(f"{path}: not every point has a cost at every step")
    costs = np.empty((steps.size, points.size))
    costs[row, column] = rows[STEP_COST]
    return points, steps, costs


def table_bytes(columns: Mapping[str, np.ndarray]) -> bytes:
    """Return columns of equal length as CSV; floats are written so that they read back exactly."""
    import pandas as pd

    return pd.DataFrame(dict(columns)).to_csv(index=False).encode()


def _read_columns(path: str | Path, names: Sequence[str], unique: Sequence[str] = ("point",)) -> dict[str, np.ndarray]:
    file = open_table(path)
    missing = [name for name in names if name not in file.names]
    if missing:
        raise InputError(f"{path}: lacks the column {missing[0]!r}; it has {', '.join(map(repr, file.names))}")
    table = file.frame(names)
    _check_numbers(path, table, names)
    repeated = table[table.duplicated(list(unique))]
    if len(repeated):
        raise InputError(f"{path}: row {repeated.index[0]}: point {repeated['point'].iloc[0]:g} is repeated")
    return {name: table[name].to_numpy(dtype=np.float64) for name in names}


def _check_numbers(path: str | Path, table: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse what is not a finite number >= 0, and points and steps that are not whole."""
    import pandas as pd

    for name in names:
        column = table[name]
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
            strange = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
            row, value = next(iter(strange.items()), (column.index[0], column.iloc[0]))
            raise InputError(f"{path}: row {row}: {name} is {value!r}, not a number")
        values = column.to_numpy(dtype=np.float64)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            row, value = column.index[bad[0]], values[bad[0]]
            raise InputError(f"{path}: row {row}: {name} is {value:g}, must be finite and not negative")
        fractional = np.flatnonzero(values != np.floor(values)) if name in ("step", "point") else bad
        if fractional.size:
            row, value = column.index[fractional[0]], values[fractional[0]]
            raise InputError(f"{path}: row {row}: {name} {value:g} is not whole")
