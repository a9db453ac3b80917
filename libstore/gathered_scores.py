"""Find the scores of an ensemble that are on disk, for the score table, one run at a time.

Every column is read by itself, so memory is a few vectors per column, whatever the number of runs. Runs and scores that
do not belong together are refused as everywhere (libstore.comparable).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libscores import correlation, trajectory
from libscores.influence import influences, top_pairs
from libscores.membership import Masked, exposure, lira, rmia
from libscores.memorization import RunningMean
from libscores.over_models import InAndOut, halves
from libstore import score_columns as columns
from libstore import trajectories
from libstore.comparable import RUNS, check_alike, kept
from libstore.config import Config
from libstore.errors import InputError
from libstore.fz import RunArrays, ensemble_root, run_dir
from libstore.index import subset_of
from libstore.recipes import command, flags_of, recipe
from libstore.score_table import Column, Gathered
from libstore.scored_ensemble import ScoredEnsemble, check_runs, checked_runs, scorer, usable_runs, values_on
from libstore.scores import CURVATURE, TRACE, fz_model_name, score_path, scores_there
from libstore.store import array_bytes, arrays_bytes, check_format, file_sha256, read_sidecar

PAIRS, MATRIX, CURVES = "influence.npz", "influence_matrix.npy", "membership.npz"
"""Kept beside the table: pairs of training and test examples, all of them, and the attacks' curves."""
_CURVE_POINTS = 400
_TRAIN = "train_fz_models.py"
_MORE_RUNS = 60
"""Runs to train where there are too few for an attack, at least."""
_RECORDED = {
    "record": ("forgetting_events", "first_learned_epoch", "csl", "lt_iqr"),
    "record_input_gradients": ("csg", "csg_stopped"),
    "record_vog": ("vog",),
}
"""What each flag of the training records."""


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
        flags: What follows a script's name in commands: --dataset with its value, and what else names the data. They go
            into the table's description, and so without --config, whose path is of one machine.
        network_flags: And then: --arch with its value, and what else names the network.
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
    network_flags: str

    @staticmethod
    def of(config: Config, dataset: str, arch: str, ratio: str, flags: str, network_flags: str) -> Places:
        """Return the places that a configuration names."""
        return Places(
            config.fz_models(dataset), config.fz_score_dir(dataset), config.private_models(dataset),
            config.private_score_dir(dataset), config.sensitivity_dir, dataset, arch, ratio, flags, network_flags,
        )  # fmt: skip

    def command(self, script: str, *more: str) -> str:
        """Return the command that runs a script for this data set and network."""
        return command(script, self.flags, self.network_flags, *more)

    @property
    def subsets(self) -> Path:
        """Where the subsets are that private models of the most memorized examples are trained on."""
        return self.private_models / "subsets" / self.dataset

    @property
    def ratio_flag(self) -> str:
        """What names the ratio to the scripts of an ensemble, nothing where it is their default."""
        return "" if self.ratio == "0.7" else flags_of({"ratio": self.ratio})


class StudyAtHand(NamedTuple):
    """The examples that a training would be on.

    Attributes:
        subset: What --data_subset takes for them, None where only an index file does.
        n_examples: Their number.
        size: Number of examples of the whole data set.
    """

    subset: str | None
    n_examples: int
    size: int

    @staticmethod
    def of(examples: np.ndarray, size: int) -> StudyAtHand:
        """Return these positions, sorted, in a data set of so many."""
        return StudyAtHand(subset_of(examples, size), len(examples), size)

    @property
    def flag(self) -> str:
        """The flag for them, nothing for all."""
        return "" if self.subset in ("all", None) else f"--data_subset {self.subset}"

    @property
    def words(self) -> str:
        """What a recipe has to say of them."""
        return "" if self.subset else "# add --data_subset with the .npy index that chose the examples of what is there"


def reliability(of_halves: np.ndarray) -> float | None:
    """Return a score's reliability from its values by two halves of the runs, (2, N); None where there is none."""
    defined = np.isfinite(of_halves).all(axis=0)
    found = correlation.reliability(*of_halves[:, defined]) if defined.sum() > 2 else float("nan")
    return found if np.isfinite(found) else None


@dataclass(frozen=True)
class _Ensemble:
    """The runs of an ensemble, checked, and the columns that they give."""

    places: Places
    root: Path
    runs: list[int]
    examples: np.ndarray
    content_sha256: str | None
    found: Gathered = field(default_factory=Gathered)

    def arrays(self) -> Iterator[RunArrays]:
        return checked_runs(self.root, self.places.ratio, self.runs)

    def laid_out(self, value: str) -> Iterator[Masked]:
        for run, arrays in zip(self.runs, self.arrays(), strict=True):
            yield values_on(arrays, run_dir(self.root, self.places.ratio, run), self.examples, value)

    def add(
        self, name: str, values: np.ndarray, error: np.ndarray | None, of_halves: np.ndarray | None = None, **more: Any
    ) -> None:
        self.found.columns.append(
            Column(
                name, columns.MEANINGS[name], self.examples, values, error, self.content_sha256, self.places.arch,
                self.runs, None if of_halves is None else reliability(of_halves), str(self.root / self.places.ratio),
                more,
            )
        )  # fmt: skip


def _open(places: Places) -> _Ensemble:
    root = ensemble_root(places.fz_models, places.dataset, places.arch)
    runs = usable_runs(root, places.ratio)
    check_runs(root, places.ratio, runs)
    first = next(checked_runs(root, places.ratio, runs[:1]))
    one = kept(run_dir(root, places.ratio, runs[0]) / "aux_arrays.npz")
    content = one.settings["data"].get("content_sha256") if one else None
    return _Ensemble(places, root, runs, first.examples, content)


def _first_train(places: Places, study: StudyAtHand) -> dict[str, str]:
    """Return the recipe of every score where there is no ensemble."""
    if places.dataset == "imagenet":
        words = "# Feldman and Zhang's models are to be downloaded (docs/released_models.md); none is trained here"
        return dict.fromkeys(columns.MEANINGS, words)
    recorded = {name: _recording(flag) for flag, names in _RECORDED.items() for name in names}
    found = {}
    for name, meaning in columns.MEANINGS.items():
        train = places.command(_TRAIN, places.ratio_flag, study.flag, *recorded.get(name, ()))
        score = _score(places, name) if meaning.kind == columns.AVERAGED else ""
        found[name] = recipe(study.words, train, score)
    return found


def _recording(flag: str) -> list[str]:
    """Return the flags that record this and what is recorded with less, which they replace: any order will do."""
    flags = list(_RECORDED)
    wanted = [f"--{one}" for one in flags[: flags.index(flag) + 1]]
    return [*wanted, "--overwrite"] if wanted[1:] else wanted


def _score(places: Places, name: str, runs: Sequence[int] = ()) -> str:
    """Return the command that scores all networks of an ensemble."""
    more = flags_of({"ratio": places.ratio, "scores": CURVATURE if name == TRACE else name})
    script = scorer(places.dataset)
    if places.dataset == "imagenet":
        return command(script, flags_of({"start_idx": min(runs), "stop_idx": max(runs)}), more)
    return places.command(script, more)


def _train_again(ensemble: _Ensemble, study: StudyAtHand, *more: str, stop_run: int | None = None) -> str:
    """Return the recipe that trains the runs as they were trained, with more flags; words where that is not known."""
    root = ensemble.root / ensemble.places.ratio
    one = kept(run_dir(ensemble.root, ensemble.places.ratio, ensemble.runs[0]) / "aux_arrays.npz")
    if one is None or not {"ratio", "seed", "sgd", "data"} <= one.settings.keys():
        return f"# the runs of {root.parent.name} are not of {_TRAIN}; an ensemble that is has this, too"
    how = {"ratio": one.settings["ratio"], "seed": one.settings["seed"], **one.settings["sgd"]}
    how["normalization"] = one.settings["data"].get("normalization")
    how |= {"start_run": ensemble.runs[0], "stop_run": stop_run or ensemble.runs[-1] + 1}
    return recipe(study.words, ensemble.places.command(_TRAIN, study.flag, flags_of(how), *more))


def ensemble_scores(places: Places, study: StudyAtHand, *, influence: bool = True, matrix: bool = False) -> Gathered:
    """Return what an ensemble's runs and the scores of its models give, to be read.

    Args:
        places: Where to look.
        study: The examples, for the commands that make what is missing.
        influence: Estimate the influence of every example on the test split, too.
        matrix: Keep the influence of every example on every test example, N M floats, also in memory.

    Raises:
        InputError: Runs do not belong together, or a file is damaged.
    """
    root = ensemble_root(places.fz_models, places.dataset, places.arch)
    if not any((root / places.ratio).glob("*/aux_arrays.npz")):
        return Gathered(missing=_first_train(places, study))
    ensemble = _open(places)
    runs, found, first = ensemble.runs, ensemble.found, next(ensemble.arrays())
    for run in runs:
        arrays = kept(run_dir(root, places.ratio, run) / "aux_arrays.npz")
        path = run_dir(root, places.ratio, run) / "aux_arrays.npz"
        digest = str(arrays.sidecar["sha256"]) if arrays else file_sha256(path)
        found.files[fz_model_name(places.dataset, places.arch, places.ratio, run)] = digest
    for value in ("correctness", "prob"):
        if getattr(first, value):
            found.work.append(partial(_add_memorization, ensemble, value))
        else:
            names = (f"memorization_{value}", f"consistency_{value}")
            again = recipe("# these runs keep correctness alone", _train_again(ensemble, study, "--overwrite"))
            found.missing.update(dict.fromkeys(names, again))
    if first.logodds:
        found.beside[CURVES] = None
        more_runs = _train_again(ensemble, study, stop_run=max(_MORE_RUNS, 2 * (ensemble.runs[-1] + 1)))
        found.work.append(partial(_add_attacks, ensemble, len(first.index["test"]), more_runs))
    else:
        again = recipe("# these runs keep no log-odds", _train_again(ensemble, study, "--overwrite"))
        found.missing.update({name: again for name in columns.MEANINGS if name.startswith(("lira", "rmia"))})
    if influence:
        found.beside.update(dict.fromkeys((PAIRS, MATRIX) if matrix else (PAIRS,)))
        found.work.append(partial(_add_influence, ensemble, "prob" if first.prob else "correctness", matrix))
    else:
        table = places.command("score_table.py", places.ratio_flag)
        found.missing["influence_largest"] = found.missing["influence_total"] = table
    _find_averages(ensemble)
    _find_trajectories(ensemble, study)
    return found


def _add_memorization(ensemble: _Ensemble, value: str) -> None:
    groups = InAndOut(len(ensemble.runs), len(ensemble.examples))
    for number, (mask, values) in enumerate(ensemble.laid_out(value)):
        groups.add(number, mask, values)
    outside = groups.outside
    ensemble.add(f"memorization_{value}", groups.difference[0], groups.standard_error, groups.difference[1:])
    ensemble.add(f"consistency_{value}", outside.mean[0], outside.standard_error[0], outside.mean[1:])


def _add_attacks(ensemble: _Ensemble, n_population: int, more_runs: str) -> None:
    n = len(ensemble.examples)

    def with_population() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for (mask, odds), arrays in zip(ensemble.laid_out("logodds"), ensemble.arrays(), strict=True):
            yield mask, odds, arrays.logodds["test"]

    attacks: dict[str, Callable[[], Iterable[Masked]]] = {
        "lira": lambda: lira(lambda: ensemble.laid_out("logodds"), n),
        "lira_shared": lambda: lira(lambda: ensemble.laid_out("logodds"), n, shared=True),
        "rmia": lambda: rmia(with_population, n, n_population),
    }
    curves: dict[str, np.ndarray] = {}
    for name, scores in attacks.items():
        try:
            attack = exposure(scores, len(ensemble.runs), n)
        except ValueError as error:
            ensemble.found.missing[name] = recipe(f"# {error}: there are too few runs", more_runs)
            continue
        overall = {"area_under_curve": vars(attack.area)}
        overall |= {f"true_positives_at_{rate:g}": vars(estimate) for rate, estimate in attack.true_at.items()}
        ensemble.add(name, attack.advantage, attack.standard_error, attack.of_halves, overall=overall)
        ensemble.add(f"{name}_found", attack.found, attack.found_error, attack.found_halves)
        rates = np.append(0.0, np.geomspace(1e-6, 1, _CURVE_POINTS))
        at = np.searchsorted(attack.false_positives, rates, side="right") - 1
        curves |= {f"{name}_false_positives": attack.false_positives[at]}
        curves |= {f"{name}_true_positives": attack.true_positives[at]}
    ensemble.found.beside[CURVES] = arrays_bytes(**curves)


def _add_influence(ensemble: _Ensemble, value: str, matrix: bool) -> None:
    masks = np.stack([mask for mask, _ in ensemble.laid_out("correctness")])
    values = np.stack([getattr(arrays, value)["test"] for arrays in ensemble.arrays()])
    test = next(ensemble.arrays()).index["test"]
    pairs, total = top_pairs(masks, values), values.sum(axis=1, dtype=np.float64)
    groups = InAndOut(len(masks), len(ensemble.examples))
    for number, mask in enumerate(masks):
        groups.add(number, mask, np.full(len(mask), total[number]))
    score = groups.difference
    ensemble.add("influence_total", score[0], groups.standard_error, score[1:], value=value)
    ensemble.add("influence_largest", pairs.influence[:, 0], None, chance=pairs.chance, value=value)
    ensemble.found.beside[PAIRS] = arrays_bytes(
        example=ensemble.examples, test=test[pairs.test], influence=pairs.influence.astype(np.float32),
        standard_error=pairs.standard_error.astype(np.float32), chance=np.array(pairs.chance),
    )  # fmt: skip
    if matrix:
        whole = np.concatenate([part.astype(np.float32) for _, part in influences(masks, values)])
        ensemble.found.beside[MATRIX] = array_bytes(whole)


def _scored(ensemble: _Ensemble) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """Return the sidecars of the scores that models have, by score and step, and run."""
    places = ensemble.places
    there: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for run in ensemble.runs:
        name = fz_model_name(places.dataset, places.arch, places.ratio, run)
        for key, path in scores_there(places.fz_scores, name).items():
            there.setdefault(key, {})[run] = read_sidecar(path)
    return dict(sorted(there.items()))


def _find_averages(ensemble: _Ensemble) -> None:
    """Look up which scores models of the ensemble have, to be averaged."""
    places, found, there = ensemble.places, ensemble.found, _scored(ensemble)
    for run in ensemble.runs:
        digests = [by_run[run]["sha256"] for by_run in there.values() if run in by_run]
        if digests:
            name = fz_model_name(places.dataset, places.arch, places.ratio, run)
            found.files[f"scores of {name}"] = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    called = {columns.of_score(*one)[0] for one in there}
    for name, meaning in columns.MEANINGS.items():
        if meaning.kind == columns.AVERAGED and name not in called:
            found.missing[name] = _score(places, name, ensemble.runs)
    for (score, step), by_run in there.items():
        found.work.append(partial(_add_average, ensemble, score, step, min(by_run)))


def _add_average(ensemble: _Ensemble, score: str, step: str, run: int) -> None:
    places = ensemble.places
    scored = ScoredEnsemble.find(
        places.fz_models, places.fz_scores, places.dataset, places.arch, places.ratio, h=step, score=score
    )
    average = RunningMean(halves(len(scored.runs)), len(scored.examples))
    for number, one in enumerate(scored.read()):
        average.add(number, one[0], one[2])
    path = score_path(places.fz_scores, score, fz_model_name(places.dataset, places.arch, places.ratio, run), step)
    content = read_sidecar(path)["settings"]["data"].get("content_sha256")
    name, meaning = columns.of_score(score, step)
    ensemble.found.columns.append(
        Column(
            name, meaning, scored.examples, average.mean[0], average.standard_error[0], content, places.arch,
            scored.runs, reliability(average.mean[1:]), str(path),
        )
    )  # fmt: skip


def _find_trajectories(ensemble: _Ensemble, study: StudyAtHand) -> None:
    """Look up which runs recorded what they saw of their examples."""
    places, found = ensemble.places, ensemble.found
    paths = {run: run_dir(ensemble.root, places.ratio, run) / trajectories.NAME for run in ensemble.runs}
    there = {run: kept(path) for run, path in paths.items() if path.exists()}
    check_alike(there.values(), RUNS, f"; run {_TRAIN} with the same --record flags for all")
    for run, one in there.items():
        if one is None:
            raise InputError(f"{paths[run]}: its sidecar is missing; run {_TRAIN} with --record again")
        check_format(one.path, one.sidecar, trajectories.FORMAT, _TRAIN)
        found.files[f"trajectory of {places.dataset}_{places.arch}_{places.ratio}_{run}"] = str(one.sidecar["sha256"])
    first = next(iter(there.values()), None)
    said = first.settings["record"] | {"record": True} if first else {}
    for flag, missing in _RECORDED.items():
        if not said.get(flag.removeprefix("record_")):
            found.missing.update(dict.fromkeys(missing, _train_again(ensemble, study, *_recording(flag))))
    if there:
        found.work.append(partial(_add_trajectories, ensemble, list(there)))


def _add_trajectories(ensemble: _Ensemble, runs: Sequence[int]) -> None:
    n, means = len(ensemble.examples), dict[str, RunningMean]()
    for number, run in enumerate(runs):
        one = trajectories.read_trajectory(run_dir(ensemble.root, ensemble.places.ratio, run))
        for name, values in _of_trajectory(one).items():
            mask, whole = _whole(ensemble, one, values)
            means.setdefault(name, RunningMean(halves(len(runs)), n)).add(number, mask, whole)
    for name, mean in means.items():
        ensemble.add(name, mean.mean[0], mean.standard_error[0], mean.mean[1:], runs=list(runs))


def _of_trajectory(one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of one run's record, (n,) each."""
    found = {
        "forgetting_events": trajectory.forgetting_events(one["correct"]),
        "first_learned_epoch": trajectory.first_learned_epoch(one["correct"]),
        "csl": trajectory.cumulative(one["loss"]),
        "lt_iqr": trajectory.loss_range(one["loss"]),
    }
    if "input_gradient_norm" in one:
        norms = one["input_gradient_norm"]
        found["csg"] = trajectory.cumulative(norms)
        found["csg_stopped"] = trajectory.cumulative(norms, one["weight_norm"])
    return found | ({"vog": one["vog"]} if "vog" in one else {})


def _whole(ensemble: _Ensemble, one: dict[str, np.ndarray], values: np.ndarray) -> Masked:
    """Lay a value of the training examples, (n,), out on all: whether it is one, and the value, (N,)."""
    rows = np.flatnonzero(np.isin(ensemble.examples, one["index_train"], assume_unique=True))
    if not np.array_equal(ensemble.examples[rows], one["index_train"]):
        raise InputError(f"{ensemble.root}: a {trajectories.NAME} is about other examples than the runs, or not sorted")
    mask, whole = np.zeros(len(ensemble.examples), dtype=bool), np.zeros(len(ensemble.examples))
    mask[rows], whole[rows] = True, values
    return mask, whole


@dataclass(frozen=True)
class ByRun:
    """A score of every run of an ensemble.

    Attributes:
        read: Called to read, of each run, whether it trained on each example (for held-out consistency whether it did
            not) and the score, NaN where it has none.
        seconds: What a network cost, training and this score, mean over the runs, as their provenance says.
        difference: The score is a difference between runs that hold an example and those that do not.
    """

    read: Callable[[], Iterator[Masked]]
    seconds: float
    difference: bool = False


@dataclass(frozen=True)
class RunByRun:
    """What an ensemble's scores are made of.

    Attributes:
        n_runs: Number T of runs.
        examples: Positions of the examples, (N,).
        scores: Memorization first, held-out consistency, and every score that all runs have, by column.
    """

    n_runs: int
    examples: np.ndarray
    scores: dict[str, ByRun]


def scores_by_run(places: Places) -> RunByRun:
    """Find memorization and every score that all runs have, run by run, to see what a few of them buy.

    Raises:
        InputError: There are no runs, or they do not belong together.
    """
    ensemble = _open(places)

    def seconds(sidecars: Iterable[Any]) -> float:
        return float(np.mean([one["provenance"].get("seconds", np.nan) if one else np.nan for one in sidecars]))

    folders = [run_dir(ensemble.root, places.ratio, run) for run in ensemble.runs]
    arrays = [kept(folder / "aux_arrays.npz") for folder in folders]
    training = seconds(one.sidecar if one else None for one in arrays)
    value = "prob" if next(ensemble.arrays()).prob else "correctness"
    found = {
        f"memorization_{value}": ByRun(lambda: ensemble.laid_out(value), training, difference=True),
        f"consistency_{value}": ByRun(lambda: ((~mask, of) for mask, of in ensemble.laid_out(value)), training),
    }
    for (score, step), by_run in _scored(ensemble).items():
        if len(by_run) == len(ensemble.runs):
            scored = ScoredEnsemble.find(
                places.fz_models, places.fz_scores, places.dataset, places.arch, places.ratio, h=step, score=score
            )
            if scored.runs == ensemble.runs:
                cost = training + seconds(by_run.values())
                found[columns.of_score(score, step)[0]] = ByRun(partial(_read_scores, scored), cost)
    if all((folder / trajectories.NAME).exists() for folder in folders):
        cost = seconds(read_sidecar(folder / trajectories.NAME) for folder in folders)
        for name in _of_trajectory(trajectories.read_trajectory(folders[0])):
            found[name] = ByRun(partial(_read_trajectories, ensemble, folders, name), cost)
    return RunByRun(len(ensemble.runs), ensemble.examples, found)


def _read_scores(scored: ScoredEnsemble) -> Iterator[Masked]:
    for one in scored.read():
        yield one[0], one[2]


def _read_trajectories(ensemble: _Ensemble, folders: Sequence[Path], name: str) -> Iterator[Masked]:
    for folder in folders:
        one = trajectories.read_trajectory(folder)
        yield _whole(ensemble, one, _of_trajectory(one)[name])
