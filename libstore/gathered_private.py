"""Find what private models and the per-instance accounting say of examples, for the score table."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from libscores.memorization import RunningMean
from libscores.over_models import InAndOut, halves
from libstore import score_columns as columns
from libstore.comparable import check_content, kept
from libstore.errors import InputError
from libstore.fz import ensemble_root, read_run
from libstore.gathered_scores import Places, reliability
from libstore.index import subset_of
from libstore.private_models import (
    PrivateChoice,
    PrivateModel,
    check_comparable,
    find_private_models,
    read_curvature,
    scored_models,
)
from libstore.score_table import Column, Gathered
from libstore.scored_ensemble import values_on
from libstore.scores import CURVATURE, score_path
from libstore.store import read_sidecar
from libstore.text_tables import open_table

_SCORER = "calc_curv_private_models.py"
_POINTS = 1000
"""Points of the published per-instance study."""


class _Private:
    """Comparable private models, and the columns that they give."""

    def __init__(self, places: Places, models: Sequence[PrivateModel], study: str) -> None:
        self.places, self.models, self.found, self.study = places, models, Gathered(), study
        self.content = models[0].settings["data"].get("content_sha256")
        self.examples = models[0].arrays().examples
        epsilons = sorted({model.epsilon for model in models})
        self.by_epsilon = {e: [model for model in models if model.epsilon == e] for e in epsilons}

    def laid_out(self, model: PrivateModel, value: str) -> tuple[np.ndarray, np.ndarray]:
        return values_on(model.arrays(), model.folder, self.examples, value)

    def means(self, n: int) -> RunningMean:
        return RunningMean(halves(n), len(self.examples))

    def add(
        self, called: tuple[str, columns.Meaning], values: np.ndarray, error: np.ndarray, seeds: Sequence[int]
    ) -> None:
        name, meaning = called
        self.found.columns.append(
            Column(
                name, meaning, self.examples, values[0], error, self.content, self.places.arch, seeds,
                reliability(values[1:]), str(self.models[0].folder.parent),
            )
        )  # fmt: skip

    def add_memorization(self, epsilon: float) -> None:
        """Add memorization at one epsilon, if any example has a model with it and one without."""
        group = self.by_epsilon[epsilon]
        groups = InAndOut(len(group), len(self.examples))
        for number, model in enumerate(group):
            groups.add(number, *self.laid_out(model, "prob"))
        score, error = groups.difference, groups.standard_error
        called = columns.at_epsilon("memorization", epsilon)
        if np.isfinite(score[0]).any():
            self.add(called, score, error, [model.seed for model in group])
        else:
            more = f"{self.study} --epsilon {epsilon:g} --seed S --train_subset FILE".strip()
            line = self.places.command("train_dp.py", more)
            self.found.missing[called[0]] = f"{line} for subsets of scripts/make_memorization_subsets.py"

    def add_mean(self, score: str, epsilon: float, group: Sequence[PrivateModel], values: Iterable[np.ndarray]) -> None:
        """Add the mean of a value over the models of one epsilon that trained on the example."""
        mean = self.means(len(group))
        for number, (model, value) in enumerate(zip(group, values, strict=True)):
            mean.add(number, self.laid_out(model, "prob")[0], value)
        seeds = [model.seed for model in group]
        self.add(columns.at_epsilon(score, epsilon), mean.mean, mean.standard_error[0], seeds)

    def add_loss(self, epsilon: float) -> None:
        """Add the mean loss at one epsilon."""
        group = self.by_epsilon[epsilon]
        losses = (np.logaddexp(0, -self.laid_out(model, "logodds")[1]) for model in group)
        self.add_mean("loss", epsilon, group, losses)

    def add_curvature(self, epsilon: float, scored: Sequence[PrivateModel], h: float) -> None:
        """Add the mean curvature at one epsilon."""
        self.add_mean("curvature", epsilon, scored, read_curvature(scored, self.places.private_scores, h))

    def add_sensitivity(self, seeds: Mapping[int, Sequence[PrivateModel]]) -> None:
        """Add the slope of log-odds on ln epsilon; every seed has a model of every epsilon."""
        x = np.log(list(self.by_epsilon))
        share = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
        mean = self.means(len(seeds))
        for number, models in enumerate(seeds.values()):
            slope, members = np.zeros(len(self.examples)), np.ones(len(self.examples), dtype=bool)
            for factor, model in zip(share, models, strict=True):
                mask, value = self.laid_out(model, "logodds")
                slope += factor * value
                members &= mask
            mean.add(number, members, slope)
        called = "epsilon_sensitivity", columns.EPSILON_SENSITIVITY
        self.add(called, mean.mean, mean.standard_error[0], list(seeds))


class StudyAtHand(NamedTuple):
    """The examples that a private training would be on: its flag for them, empty for all, and their number."""

    flag: str
    n_examples: int


def study_at_hand(places: Places, size: int) -> StudyAtHand:
    """Return the examples of the first network there is, of the ensemble or private; all `size` where there is none."""
    root = ensemble_root(places.fz_models, places.dataset, places.arch) / places.ratio
    there = [*sorted(root.glob("*/aux_arrays.npz"))[:1]]
    there += sorted(places.private_models.glob(f"{places.dataset}_{places.arch}_eps_*/aux_arrays.npz"))[:1]
    examples = read_run(there[0].parent).examples if there else np.arange(size)
    subset = subset_of(examples, size)
    return StudyAtHand("" if subset == "all" else f"--data_subset {subset or 'FILE'}", len(examples))


def private_scores(places: Places, suffix: str, h: float, study: StudyAtHand) -> Gathered:
    """Return what private models give at each epsilon, and how it moves with epsilon, to be read.

    Args:
        places: Where to look.
        suffix: Pattern of the ends of the models' names.
        h: Step of their curvature.
        study: The examples, for the commands that make what is missing.

    Raises:
        InputError: Models do not belong together, or a file is damaged.
    """
    train = places.command("train_dp.py", f"{study.flag} --epsilon E --seed S [--train_subset FILE]".strip())
    if not any(places.private_models.glob(f"{places.dataset}_{places.arch}_eps_*/model.pt")):
        names = ("private_curvature_eps_E", "private_loss_eps_E", "private_memorization_eps_E", "epsilon_sensitivity")
        scorer = f"for several E and S, then {places.command(_SCORER, '')}".rstrip()
        return Gathered(missing=dict.fromkeys(names, f"{train} {scorer}"))
    models = find_private_models(places.private_models, places.dataset, places.arch, PrivateChoice(suffix=suffix))
    check_comparable(models)
    private = _Private(places, models, study.flag)
    found = private.found
    found.files.update({model.name: model.weights_sha256 for model in models})
    with_odds = bool(models[0].arrays().logodds)
    for epsilon, group in private.by_epsilon.items():
        found.work.append(partial(private.add_memorization, epsilon))
        if with_odds:
            found.work.append(partial(private.add_loss, epsilon))
        try:
            scored, _ = scored_models(group, places.private_scores, h)
        except InputError:
            name, _ = columns.at_epsilon("curvature", epsilon)
            found.missing[name] = places.command(_SCORER, f"--epsilon {epsilon:g}")
            continue
        paths = [score_path(places.private_scores, CURVATURE, model.name, h) for model in scored]
        found.files.update({f"scores of {path.parent.name}": str(read_sidecar(path)["sha256"]) for path in paths})
        found.work.append(partial(private.add_curvature, epsilon, scored, h))
    seeds: dict[int, list[PrivateModel]] = defaultdict(list)
    for model in models:
        seeds[model.seed].append(model)
    whole = {seed: of for seed, of in sorted(seeds.items()) if len(of) == len(private.by_epsilon) > 1}
    if not with_odds:
        reason = f"{train} --overwrite; these models were trained before log-odds were kept"
        found.missing.update(dict.fromkeys(("private_loss_eps_E", "epsilon_sensitivity"), reason))
    elif not whole:
        found.missing["epsilon_sensitivity"] = f"{train}, so that a seed has a model of every one of several E"
    else:
        if len(whole) < len(seeds):
            print(
                f"epsilon_sensitivity: from seeds {', '.join(map(str, whole))}; others lack an epsilon", file=sys.stderr
            )
        found.work.append(partial(private.add_sensitivity, whole))
    return found


def instance_scores(places: Places, totals: Path | None, study: StudyAtHand) -> Gathered:
    """Return what the per-instance accounting gives, to be read.

    Args:
        places: Where to look.
        totals: A totals file; by default compo_res_both_totals.csv, else compo_res_all_totals.csv.
        study: The examples, for the commands that make what is missing.

    Raises:
        InputError: The file or what it was made of is damaged, or nothing says which data and network they are of.
    """
    found = Gathered()
    folder = places.sensitivity / "compo_res"
    points = f"--points 0 --points_sample {min(study.n_examples, _POINTS)}"
    flags = filter(None, [places.flags, places.network_flags, study.flag, points])
    loop = " ".join(["sh sensitivity/run_loop.sh", *flags])
    made_by = f"{loop}, then run_compo.sh and, for the other direction, run_folds.sh"
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
    runs = [result.path.name for result in results]
    found.work.append(partial(_add_instance, found, places, totals, arch, content, runs))
    return found


def _add_instance(found: Gathered, places: Places, totals: Path, arch: str, content: str, runs: Sequence[str]) -> None:
    file = open_table(totals)
    wanted = [name for name in file.names if name == "point" or name.startswith("epsilon ")]
    frame = file.frame(wanted).sort_values("point")
    examples = frame["point"].to_numpy(dtype=np.int64)
    for name, (sources, _, _) in columns.INSTANCE.items():
        for direction, (end, _) in columns.DIRECTIONS.items():
            column = next((source + end for source in sources if source + end in frame), None)
            called = name + direction + (f"_{arch}" if arch != places.arch else "")
            if column is None:
                found.missing[called] = "sh sensitivity/run_folds.sh with the flags that run_loop.sh was given"
                continue
            values, meaning = frame[column].to_numpy(dtype=np.float64), columns.instance(name, direction)
            found.columns.append(
                Column(called, meaning, examples, values, None, content, arch, runs, None, str(totals))
            )
