"""Find the scores that are on disk, for the score table, one model at a time.

Every column is read by itself, so memory is a few vectors per column, whatever the number of runs. Runs, models and
scores that do not belong together are refused as everywhere (libstore.comparable).
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libscores.memorization import RunningMean, add_memorization
from libscores.statistics import spearman
from libstore import score_columns as columns
from libstore.comparable import check_content, kept
from libstore.errors import InputError
from libstore.fz import RunArrays, ensemble_root, run_dir
from libstore.private_models import (
    PrivateChoice,
    PrivateModel,
    check_comparable,
    find_private_models,
    read_curvature,
    scored_models,
)
from libstore.score_table import Column, Gathered
from libstore.scored_ensemble import ScoredEnsemble, check_runs, checked_runs, usable_runs, values_on
from libstore.scores import CURVATURE, LABELS, fz_model_name, score_path
from libstore.store import file_sha256, read_sidecar
from libstore.text_tables import open_table


@dataclass(frozen=True)
class Places:
    """Where a table's scores are, and the flags that name them in commands.

    Attributes:
        fz_models: Folder of the data set's ensembles.
        fz_scores: Root of the ensembles' scores.
        private_models: Folder of the data set's private models.
        private_scores: Root of the private models' scores.
        sensitivity: Folder of the per-instance study.
        dataset: Name of the data set on disk.
        arch: Name of the network on disk.
        ratio: Folder of the ensemble's ratio.
        flags: What follows a script's name: --config, --dataset, --arch and what belongs to them.
    """

    fz_models: Path
    fz_scores: Path
    private_models: Path
    private_scores: Path
    sensitivity: Path
    dataset: str
    arch: str
    ratio: str
    flags: str

    def run(self, script: str, more: str = "", *, arch: bool = True) -> str:
        """Return a command."""
        flags = self.flags if arch else self.flags.split(" --arch ")[0]
        return " ".join(filter(None, (f"python {script}", flags, more)))


def halves(n_runs: int) -> np.ndarray:
    """Return weights of all runs, of the even and of the odd ones, (3, T), for `RunningMean`."""
    odd = np.arange(n_runs) % 2.0
    return np.stack([np.ones(n_runs), 1 - odd, odd])


def reliability(of_halves: np.ndarray) -> float | None:
    """Return Spearman's correlation of a score from two halves of the runs, (2, N), stepped up to all of them.

    By Spearman and Brown 2 r / (1 + r); None where fewer than three examples have both, or the halves disagree.
    """
    defined = np.isfinite(of_halves).all(axis=0)
    if defined.sum() < 3:
        return None
    r = spearman(*of_halves[:, defined])
    return 2 * r / (1 + r) if r > 0 else None


def ensemble_scores(places: Places) -> Gathered:
    """Return what an ensemble's runs and the scores of its models give.

    Raises:
        InputError: Runs or scores do not belong together, or a file is damaged.
    """
    root, found = ensemble_root(places.fz_models, places.dataset, places.arch), Gathered()
    train = places.run("train_fz_models.py")
    try:
        runs = usable_runs(root, places.ratio)
    except InputError:
        there = (root / places.ratio).is_dir() and any((root / places.ratio).glob("*/aux_arrays.npz"))
        if there:
            raise
        names = [name for name, one in columns.MEANINGS.items() if one.kind in (columns.ENSEMBLE, columns.AVERAGED)]
        found.missing.update(dict.fromkeys(names, train))
        return found
    check_runs(root, places.ratio, runs)
    first = next(iter(checked_runs(root, places.ratio, runs[:1])))
    examples = first.examples
    sidecars = {run: kept(run_dir(root, places.ratio, run) / "aux_arrays.npz") for run in runs}
    one = sidecars[runs[0]]
    content = one.settings["data"].get("content_sha256") if one else None
    for run, sidecar in sidecars.items():
        path = run_dir(root, places.ratio, run) / "aux_arrays.npz"
        found.files[fz_model_name(places.dataset, places.arch, places.ratio, run)] = (
            str(sidecar.sidecar["sha256"]) if sidecar else file_sha256(path)
        )
    for value in ("correctness", "prob"):
        if not getattr(first, value):
            names = [f"memorization_{value}", f"consistency_{value}"]
            found.missing.update(dict.fromkeys(names, f"{train}; these runs keep correctness alone"))
            continue
        arrays = checked_runs(root, places.ratio, runs)
        masked = (
            values_on(one, run_dir(root, places.ratio, run), examples, value)
            for run, one in zip(runs, arrays, strict=True)
        )
        found.columns.extend(_of_membership(masked, value, examples, content, places.arch, runs, root / places.ratio))
    _add_averages(found, places, runs)
    return found


def _of_membership(
    masked: Iterable[tuple[np.ndarray, np.ndarray]],
    value: str,
    examples: np.ndarray,
    content: str | None,
    arch: str,
    runs: Sequence[int],
    source: Path,
) -> list[Column]:
    weights = halves(len(runs))
    groups = RunningMean(weights, len(examples)), RunningMean(weights, len(examples))
    for number, (mask, values) in enumerate(masked):
        add_memorization(groups, number, mask, values)
    inside, outside = groups
    memorization, consistency = inside.mean - outside.mean, outside.mean
    error = np.hypot(inside.standard_error[0], outside.standard_error[0])
    return [
        Column(
            name, columns.MEANINGS[name], examples, values[0], se, content, arch, runs, reliability(values[1:]),
            str(source),
        )
        for name, values, se in (
            (f"memorization_{value}", memorization, error),
            (f"consistency_{value}", consistency, outside.standard_error[0]),
        )
    ]  # fmt: skip


def _add_averages(found: Gathered, places: Places, runs: Sequence[int]) -> None:
    """Add the mean of every score that models of the ensemble have."""
    there: dict[tuple[str, str], list[int]] = defaultdict(list)
    for run in runs:
        name = fz_model_name(places.dataset, places.arch, places.ratio, run)
        digests = []
        for path in sorted((places.fz_scores / name).glob(f"*_{name}*.json")):
            said = read_sidecar(path)
            score, settings = said["settings"].get("score"), said["settings"]
            if score is None or score == LABELS or not path.with_suffix(".npy").exists():
                continue
            step = "exact" if settings.get("exact") else str(settings["h"]) if "h" in settings else ""
            there[score, step].append(run)
            digests.append(said["sha256"])
        if digests:
            found.files[f"scores of {name}"] = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    for (score, step), scored in sorted(there.items()):
        ensemble = ScoredEnsemble.find(
            places.fz_models, places.fz_scores, places.dataset, places.arch, places.ratio, h=step, score=score
        )
        average = RunningMean(halves(len(ensemble.runs)), len(ensemble.examples))
        for number, (mask, _, values) in enumerate(ensemble.read()):
            average.add(number, mask, values)
        model = fz_model_name(places.dataset, places.arch, places.ratio, scored[0])
        path = score_path(places.fz_scores, score, model, step)
        content = read_sidecar(path)["settings"]["data"].get("content_sha256")
        name, meaning = columns.of_score(score, step)
        found.columns.append(
            Column(
                name, meaning, ensemble.examples, average.mean[0], average.standard_error[0], content, places.arch,
                ensemble.runs, reliability(average.mean[1:]), str(path),
            )
        )  # fmt: skip
    scores = {"trace": CURVATURE}
    for name, meaning in columns.MEANINGS.items():
        if meaning.kind == columns.AVERAGED and not any(column.name == name for column in found.columns):
            script = "calc_curv_fz_models.py"
            found.missing[name] = places.run(script, f"--ratio {places.ratio} --scores {scores.get(name, name)}")


def private_scores(places: Places, suffix: str, h: float) -> Gathered:
    """Return what private models give at each epsilon, and how it moves with epsilon.

    Raises:
        InputError: Models or scores do not belong together, or a file is damaged.
    """
    found = Gathered()
    train = places.run("train_dp.py", "--epsilon E --seed S --subset FILE")
    try:
        models = find_private_models(places.private_models, places.dataset, places.arch, PrivateChoice(suffix=suffix))
    except InputError:
        names = ("private_curvature_eps_E", "private_loss_eps_E", "private_memorization_eps_E", "epsilon_sensitivity")
        found.missing.update(dict.fromkeys(names, f"{train} for several E and S"))
        return found
    check_comparable(models)
    content = models[0].settings["data"].get("content_sha256")
    examples, arch, source = models[0].arrays().examples, places.arch, str(places.private_models)
    found.files.update({model.name: model.weights_sha256 for model in models})
    by_epsilon = {e: [m for m in models if m.epsilon == e] for e in sorted({m.epsilon for m in models})}

    def add(name: str, meaning: columns.Meaning, values: np.ndarray, error: np.ndarray, of: Sequence[Any]) -> None:
        if np.isfinite(values[0]).any():
            found.columns.append(
                Column(name, meaning, examples, values[0], error, content, arch, of, reliability(values[1:]), source)
            )

    def averaged(score: str, epsilon: float, group: Sequence[PrivateModel], values: Iterable[np.ndarray]) -> None:
        mean = RunningMean(halves(len(group)), len(examples))
        for number, (model, value) in enumerate(zip(group, values, strict=True)):
            mean.add(number, _laid_out(model.arrays(), model, examples, "prob")[0], value)
        seeds = [model.seed for model in group]
        add(*columns.at_epsilon(score, epsilon), mean.mean, mean.standard_error[0], seeds)

    for epsilon, group in by_epsilon.items():
        weights = halves(len(group))
        groups = RunningMean(weights, len(examples)), RunningMean(weights, len(examples))
        for number, model in enumerate(group):
            add_memorization(groups, number, *_laid_out(model.arrays(), model, examples, "prob"))
        score, seeds = groups[0].mean - groups[1].mean, [model.seed for model in group]
        error = np.hypot(groups[0].standard_error[0], groups[1].standard_error[0])
        name, meaning = columns.at_epsilon("memorization", epsilon)
        add(name, meaning, score, error, seeds)
        if not any(column.name == name for column in found.columns):
            found.missing[name] = "python scripts/make_memorization_subsets.py, then train_dp.py on each subset"
        if models[0].arrays().logodds:
            losses = (np.logaddexp(0, -_laid_out(model.arrays(), model, examples, "logodds")[1]) for model in group)
            averaged("loss", epsilon, group, losses)
        try:
            scored, _ = scored_models(group, places.private_scores, h)
        except InputError:
            name = columns.at_epsilon("curvature", epsilon)[0]
            found.missing[name] = places.run("calc_curv_private_models.py", f"--epsilon {epsilon:g}")
        else:
            paths = (score_path(places.private_scores, CURVATURE, model.name, h) for model in scored)
            found.files.update({f"scores of {path.parent.name}": str(read_sidecar(path)["sha256"]) for path in paths})
            averaged("curvature", epsilon, scored, read_curvature(scored, places.private_scores, h))
    if not models[0].arrays().logodds:
        reason = f"{train} --overwrite; these models were trained before log-odds were kept"
        found.missing.update(dict.fromkeys(("private_loss_eps_E", "epsilon_sensitivity"), reason))
    else:
        _add_sensitivity(found, places, by_epsilon, examples, content)
    return found


def _laid_out(arrays: RunArrays, model: PrivateModel, examples: np.ndarray, value: str) -> tuple[np.ndarray, ...]:
    return values_on(arrays, model.folder, examples, value)


def _add_sensitivity(
    found: Gathered,
    places: Places,
    by_epsilon: Mapping[float, Sequence[PrivateModel]],
    examples: np.ndarray,
    content: str | None,
) -> None:
    """Add the slope of log-odds on ln epsilon, from the seeds that have a model of every epsilon on one subset."""
    seeds: dict[int, list[PrivateModel]] = defaultdict(list)
    for group in by_epsilon.values():
        for model in group:
            seeds[model.seed].append(model)
    whole = {seed: models for seed, models in sorted(seeds.items()) if len(models) == len(by_epsilon)}
    if len(by_epsilon) < 2 or not whole:
        found.missing["epsilon_sensitivity"] = places.run(
            "train_dp.py", "--epsilon E --seed S, so that a seed has a model of every one of several E"
        )
        return
    if len(whole) < len(seeds):
        print(
            f"epsilon_sensitivity: from seeds {', '.join(map(str, whole))}, the others lack an epsilon", file=sys.stderr
        )
    x = np.log(list(by_epsilon))
    share = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    mean = RunningMean(halves(len(whole)), len(examples))
    for number, models in enumerate(whole.values()):
        slope, members = np.zeros(len(examples)), np.ones(len(examples), dtype=bool)
        for factor, model in zip(share, models, strict=True):
            mask, value = _laid_out(model.arrays(), model, examples, "logodds")
            slope += factor * value
            members &= mask
        mean.add(number, members, slope)
    found.columns.append(
        Column(
            "epsilon_sensitivity", columns.EPSILON_SENSITIVITY, examples, mean.mean[0], mean.standard_error[0], content,
            places.arch, list(whole), reliability(mean.mean[1:]), str(places.private_models),
        )
    )  # fmt: skip


def instance_scores(places: Places, totals: Path | None) -> Gathered:
    """Return what the per-instance accounting gives.

    Args:
        places: Where to look.
        totals: A totals file; by default compo_res_both_totals.csv, else compo_res_all_totals.csv.

    Raises:
        InputError: The file or what it was made of is damaged, or nothing says which data and network they are of.
    """
    found = Gathered()
    folder = places.sensitivity / "compo_res"
    made_by = "sh sensitivity/run_loop.sh " + " ".join(places.flags.split(" ")[:4])
    if totals is None:
        there = [folder / f"compo_res_{kind}_totals.csv" for kind in ("both", "all")]
        there = [path for path in there if path.exists()]
        if not there:
            found.missing.update(dict.fromkeys(columns.INSTANCE, made_by))
            return found
        totals = there[0]
    if not totals.exists():
        raise InputError(f"{totals}: no such file; {made_by}")
    one = kept(totals)
    if one is None:
        raise InputError(f"{totals}: no sidecar says what it was made of; run renyi_per_instance_sum_compo.py again")
    check_content(one)
    results = []
    for name, digest in one.settings["input_sha256"].items():
        path = totals.parent.parent / "res" / name
        result = kept(path)
        if result is None or result.sidecar["sha256"] != digest:
            raise InputError(f"{path}: missing or not what {totals} was made of, so its data and network are not known")
        results.append(result)
    settings = results[0].settings
    dataset, arch, content = settings["data"]["dataset"], settings["model"]["arch"], settings["data"]["content_sha256"]
    if dataset != places.dataset:
        print(f"{totals}: of {dataset}, not of {places.dataset}, left out", file=sys.stderr)
        found.missing.update(dict.fromkeys(columns.INSTANCE, made_by))
        return found
    if arch != places.arch:
        print(f"{totals}: of the network {arch}, its columns end in _{arch}", file=sys.stderr)
    found.files[totals.name] = str(one.sidecar["sha256"])
    file = open_table(totals)
    wanted = [name for name in file.names if name == "point" or name.startswith("epsilon ")]
    frame = file.frame(wanted).sort_values("point")
    examples, runs = frame["point"].to_numpy(dtype=np.int64), [result.path.name for result in results]
    for name, (sources, _, _) in columns.INSTANCE.items():
        for direction, (end, _) in columns.DIRECTIONS.items():
            column = next((source + end for source in sources if source + end in frame), None)
            called = name + direction + (f"_{arch}" if arch != places.arch else "")
            if column is None:
                found.missing[called] = "sh sensitivity/run_folds.sh, then run_compo.sh --folds F"
                continue
            meaning, values = columns.instance(name, direction), frame[column].to_numpy(dtype=np.float64)
            found.columns.append(
                Column(called, meaning, examples, values, None, content, arch, runs, None, str(totals))
            )
    return found
