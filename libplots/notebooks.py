"""What notebooks share: one parameters cell that counts, and lines that say first what is shown."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from libdata.choice import BUILT_IN
from libstore.config import Config
from libstore.errors import InputError, there_is
from libstore.recipes import flags_of, in_one_line
from libstore.scores import CURVATURE, score_path
from libstore.sensitivity_results import SensitivityResults
from libstore.store import read_sidecar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from libdata.datasets import Dataset


def show(root: Path, config: str, paths: Config, folders: Sequence[str], **shown: object) -> None:
    """Print the configuration, what is shown, and its folders as paths relative to the configuration's own folder.

    Args:
        root: The top of the repository.
        config: The configuration file, as the notebook's parameter names it.
        paths: Its content.
        folders: Keys of the configuration.
        shown: More to say, by name: data set, models.
    """
    print(f"configuration: {config}")
    for name, value in shown.items():
        print(f"{name.replace('_', ' ')}: {value}")
    base = (root / config).resolve().parent
    for key in folders:
        print(f"{key}: {os.path.relpath(getattr(paths, key), base)}")


@contextmanager
def looking_for(config: str, there: Callable[[], Iterable[str]], command: str) -> Iterator[None]:
    """Say, where what is looked for inside is not found, what is there and which command makes it.

    Args:
        config: The configuration file, as the notebook's parameter names it.
        there: Called to list what is there.
        command: The recipe of what is looked for, without --config.

    Raises:
        InputError: What was raised inside, with this added.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; {there_is(there())}; to make it: {in_one_line(command, config)}") from None


def flags_of_choice(dataset: str, arch: str, dataset_name: str | None = None, image_size: int | None = None) -> str:
    """Return the flags by which scripts take a notebook's data and network."""
    return flags_of({"dataset": dataset, "dataset_name": dataset_name, "image_size": image_size, "arch": arch})


def data_path(root: Path, dataset: str) -> str:
    """Return data as `libdata.datasets.load_dataset` takes them; a path counts from the top of the repository."""
    own = dataset not in BUILT_IN and (root / dataset.split(":")[0]).exists()
    return str(root / dataset) if own else dataset


def draw_example(axis: Axes, example: np.ndarray) -> None:
    """Draw one input: an image (1 or 3, H, W) as an image, anything else as the numbers it begins with."""
    axis.set(xticks=[], yticks=[])
    if example.ndim == 3 and example.shape[0] in (1, 3):
        low, high = min(0.0, float(example.min())), max(1.0, float(example.max()))
        image = np.moveaxis((example - low) / (high - low), 0, -1).squeeze()
        axis.imshow(image, cmap="gray_r" if image.ndim == 2 else None)
        return
    numbers = [f"{number:.3g}" for number in example.reshape(-1)[:12]]
    if example.size > len(numbers):
        numbers.append("...")
    axis.text(0.5, 0.5, textwrap.fill(" ".join(numbers), 14), ha="center", va="center", fontsize=5)


def draw_examples(
    figure: Figure | SubFigure,
    title: str,
    examples: np.ndarray,
    above: Sequence[str],
    below: Sequence[str] = (),
    columns: int = 10,
) -> None:
    """Draw inputs, (N, ...), in rows of so many, each with a line above and, if given, one below."""
    figure.suptitle(title)
    axes = figure.subplots(max(1, -(-len(examples) // columns)), columns, squeeze=False).ravel()
    for axis, example, over, under in zip(axes, examples, above, below or [""] * len(examples), strict=False):
        draw_example(axis, example)
        axis.set_title(over, fontsize=8)
        axis.set_xlabel(under, fontsize=8)
    for axis in axes[len(examples) :]:
        axis.axis("off")


def scored_there(paths: Config, h: float) -> list[str]:
    """List the ensembles of which runs are there, with the number of them and of those that are scored with h."""
    found = []
    for folder in sorted(folder for root in paths.places("fz_model_dir") for folder in root.glob("*/*/")):
        runs = [path.parent.name for path in folder.glob("*/aux_arrays.npz")]
        models = f"{folder.parent.name}_{folder.name}_*"
        roots = paths.places("fz_precomputed_score_dir")
        scored = [path for root in roots for path in root.glob(f"{models}/curv_*_{h}.npy")]
        if runs:
            found.append(f"{folder.parent.name}/{folder.name} ({len(runs)} runs, {len(scored)} scored with h {h})")
    return found


def private_models_there(paths: Config, h: float) -> list[str]:
    """List the kinds of private models that are there, with the number of them and of those that are scored with h."""
    models: Counter[str] = Counter()
    scored: Counter[str] = Counter()
    roots = paths.places("private_precomputed_score_dir")
    for path in sorted(path for root in paths.places("private_model_dir") for path in root.glob("*/model.pt")):
        try:
            settings = read_sidecar(path)["settings"]
            kind = f"{settings['data']['dataset']} {settings['model']['arch']}, suffix {settings['suffix']}"
        except (InputError, KeyError, TypeError):
            continue
        kind = re.sub(r"\d+$", "*", kind)
        models[kind] += 1
        scored[kind] += any(score_path(root, CURVATURE, path.parent.name, h).exists() for root in roots)
    return [f"{kind} ({count} models, {scored[kind]} scored with h {h})" for kind, count in models.items()]


def run_files(paths: Config, runs: Sequence[object], prefix: str = "") -> list[Path]:
    """Return the per-instance study's result files of some runs.

    Args:
        paths: The configuration.
        runs: Numbers or names of the runs.
        prefix: What stands before them in the names of the files, such as "_cheapest_100_" of a removal.

    Raises:
        InputError: No run is given, or one is not there.
    """
    if not runs:
        raise InputError("runs []: name at least one run")
    files = [paths.sensitivity_dir / "res" / f"res{prefix}{run}.csv" for run in runs]
    for run, file in zip(runs, files, strict=True):
        if not file.exists():
            raise InputError(f"{file}: no result file of run {run}")
    return files


def fold_files(paths: Config, runs: Sequence[object]) -> list[Path]:
    """Return the result files of run_folds.sh for these runs, of every fold that has them all, from the first on."""
    files: list[Path] = []
    for fold in count(1):
        try:
            files += run_files(paths, runs, f"_without_{fold}_")
        except InputError:
            break
    return files


def runs_there(paths: Config) -> list[str]:
    """List the per-instance study's result files that are there."""
    return sorted(path.name for path in (paths.sensitivity_dir / "res").glob("res*.csv"))


def about(results: SensitivityResults, dataset: str | None = None) -> dict[str, str]:
    """Return what to `show` of some result files.

    Args:
        results: The results.
        dataset: The data set that was asked for, if one was; data of one's own are checked when they are read
            (`kept_examples`), as they may bear any name.

    Raises:
        InputError: They are of another data set.
    """
    built_in = {dataset, results.dataset} & set(BUILT_IN)
    if dataset is not None and built_in and results.dataset not in ("", dataset):
        raise InputError(f"dataset {dataset!r}: {results.runs[0]} is of {results.dataset!r}")
    return {
        "data_set": dataset or results.dataset or "not named in the result files",
        "models": f"{results.model or 'not named'}, {len(results.runs)} runs: {', '.join(map(_stem, results.runs))}",
    }


def kept_examples(
    dataset: str, index: np.ndarray, kept: Mapping[str, Any], where: str | Path, data_dir: Path, **how: Any
) -> Dataset:
    """Load the examples that results are about, resized as they were for them where they differ in size.

    Args:
        dataset: The data set, in any form that --dataset takes.
        index: Positions of the examples.
        kept: What the results' sidecar says of their data; empty where there is none, as with released models.
        where: The results.
        data_dir: Folder of the built-in data sets.
        how: More for `libdata.datasets.load_dataset`.

    Raises:
        InputError: As `load_dataset`; the data have another content than the results'.
    """
    from libdata.datasets import check_same_content, load_dataset

    try:
        examples = load_dataset(dataset, "train", data_dir, index=index, **how)
    except InputError as error:
        if "image size" not in str(error) or not kept.get("image_size"):
            raise
        examples = load_dataset(dataset, "train", data_dir, index=index, image_size=kept["image_size"], **how)
    if kept:
        check_same_content(examples, kept, where)
    return examples


def _stem(run: str) -> str:
    return Path(run.split(" (")[0]).stem + run[len(run.split(" (")[0]) :]


def drop_injected(notebook: dict[str, Any]) -> list[str]:
    """Remove the second parameters cell that papermill leaves, and what else it leaves; return the lines it held."""
    injected = [cell for cell in notebook["cells"] if "injected-parameters" in _tags(cell)]
    notebook["cells"] = [cell for cell in notebook["cells"] if cell not in injected]
    for part in (notebook, *notebook["cells"]):
        for left in ("papermill", "execution"):
            part["metadata"].pop(left, None)
    lines = [line.strip() for cell in injected for line in _source(cell).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def set_parameters(notebook: dict[str, Any], given: Mapping[str, tuple[object, object]]) -> None:
    """Write values into the parameters cell of a notebook, in place of those it has; comments stay.

    Args:
        notebook: The notebook's content, without a second parameters cell (`drop_injected`).
        given: By name, the value, and what the user typed, as text: a parameter that is text stays what was typed.

    Raises:
        InputError: A name is not in the cell, or a value is of another kind than the one that is there.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "parameters" in _tags(cell)]
    if len(cells) > 1:
        raise InputError(f"{len(cells)} cells have the tag 'parameters'; only one can count")
    source = _source(cells[0]) if cells else ""
    places = _assignments(source)
    for name in given:
        if name not in places:
            raise InputError(f"no parameter {name!r} (value {given[name][1]!r}); {there_is(places, shown=99)}")
    lines = source.encode().splitlines(keepends=True)
    edits = [(node, _checked(name, *given[name], node)) for name in given for node in places[name]]
    for node, value in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        tail = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + _literal(value).encode() + tail]
    if cells:
        cells[0]["source"] = b"".join(lines).decode()


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _source(cell: Mapping[str, Any]) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def _assignments(source: str) -> dict[str, list[ast.expr]]:
    """Return the expressions that are assigned to each name."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"the parameters cell is not Python: line {error.lineno}: {error.msg}") from error
    found: dict[str, list[ast.expr]] = {}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if len(targets) == 1 and isinstance(targets[0], ast.Name) and isinstance(value, ast.expr):
            found.setdefault(targets[0].id, []).append(value)
    return found


def _checked(name: str, value: object, typed: object, node: ast.expr) -> object:
    """Return a value as the parameter's default wants it."""
    try:
        default = ast.literal_eval(node)
    except ValueError:
        default = None
    if isinstance(default, str):
        if isinstance(typed, str):
            return typed
        raise InputError(f"parameter {name!r}: {typed!r} is not text as {default!r} is")
    if typed == "None":
        return None
    if isinstance(value, str) and not isinstance(default, list | bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    whole = isinstance(value, int) and not isinstance(value, bool)
    for kind, fits, what in (
        (bool, isinstance(value, bool), "True or False"),
        (int, whole, "a whole number"),
        (float, whole or isinstance(value, float), "a number"),
        (list, isinstance(value, list), f"a list, such as [{typed}]"),
        (dict, isinstance(value, dict), "a mapping"),
    ):
        if type(default) is kind and not fits:
            raise InputError(f"parameter {name!r}: {typed!r} is not {what}, as {default!r} is")
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def _literal(value: object) -> str:
    """Return a value as Python source."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(one)}' for key, one in value.items())}}}"
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise InputError(f"the value {value} is neither text nor a finite number, nor a list of them")
