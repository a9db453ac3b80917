"""Find what private models and the per-instance accounting say of examples, for the score table."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from libscores.memorization import RunningMean
from libscores.over_models import InAndOut, halves
from libstore import score_columns as columns
from libstore.comparable import check_content, kept
from libstore.errors import InputError
from libstore.fz import ensemble_root, read_run
from libstore.gathered_scores import Places, StudyAtHand, reliability
from libstore.index import SPREAD, index_digest, read_index
from libstore.private_models import (
    PrivateChoice,
    PrivateModel,
    check_comparable,
    find_private_models,
    read_curvature,
    scored_models,
)
from libstore.recipes import SMALL, command, flags_of, recipe, smaller, spaced
from libstore.score_table import Column, Gathered
from libstore.scored_ensemble import values_on
from libstore.scores import CURVATURE, score_path
from libstore.store import read_sidecar
from libstore.text_tables import open_table

_SCORER, _TRAIN = "calc_curv_private_models.py", "train_dp.py"
_ON_SUBSETS, _SUFFIX = "scripts/create_privacy_vs_memorization_dp_train_jobs.sh", "memorization_seed_*"
_POINTS = 1000
"""Points of the published per-instance study."""
_EPOCHS, _BATCH, _SAVE_FREQ, _STAGES = 40, 256, 100, 40
"""Its epochs, batch size, steps between checkpoints and stages after the first, which a loop without flags takes."""
_FOLDS, _FOLD_SIZE = 2, 30
"""Folds of run_folds.sh without flags, and the points of each."""
_TOP_K = 500
"""Most memorized examples that make_memorization_subsets.py takes without a flag."""
_BUDGET = ("delta", "accountant", "max_grad_norm", "batch_size")
_SEEDS = range(4)
"""Seeds of an example of subsets: few, but some hold each example and some do not."""


class _Private:
    """Comparable private models, and the columns that they give."""

    def __init__(self, places: Places, models: Sequence[PrivateModel], study: StudyAtHand) -> None:
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
            table = self.places.command("score_table.py", self.places.ratio_flag, flags_of({"suffix": _SUFFIX}))
            how = _on_subsets(self.places, self.study, list(self.by_epsilon), _trained_with(group[0].settings))
            self.found.missing[called[0]] = recipe(self.study.words, how, table)

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


def _trained_with(settings: Mapping[str, Any]) -> str:
    """Return the flags of a private training with these settings, but for its epsilon, seed, name and examples."""
    budget = {key: value for key, value in settings["privacy"].items() if key in _BUDGET}
    return flags_of({**budget, **settings["optimization"], "normalization": settings["data"].get("normalization")})


def _on_subsets(places: Places, study: StudyAtHand, epsilons: Sequence[float], how: str) -> str:
    """Return the recipe of models on subsets of the most memorized examples, which the ensemble tells."""
    ratio = "" if places.ratio == "0.7" else flags_of({"ensemble_ratio": places.ratio})
    top = f"--top_k {max(2, study.n_examples // 4)}" if study.n_examples < 2 * _TOP_K else ""
    seeds = " ".join(map(str, _SEEDS))
    lists = f"--epsilons {spaced(epsilons)} --seeds {spaced(_SEEDS)}"
    blanks = " " in shlex.split(places.flags)[1]
    return recipe(
        "# what prints the trainings takes no blanks in the path of data: move them first" if blanks else "",
        places.command("scripts/make_memorization_subsets.py", ratio, top, f"--seeds {seeds}"),
        f"{places.command(_ON_SUBSETS, lists, study.flag, how)} | sh",
    )


def _another_budget(places: Places, study: StudyAtHand, seeds: Mapping[int, Sequence[PrivateModel]]) -> str:
    """Return the recipe of a seed's models that lack, at every epsilon there is, or at ten times the only one."""
    seed, models = max(seeds.items(), key=lambda one: len(one[1]))
    there = {model.epsilon for of in seeds.values() for model in of}
    wanted = sorted(there - {model.epsilon for model in models}) or [10 * min(there)]
    words = "" if len(there) > 1 else "# a second budget, here ten times the one there is; any other will do"
    settings, suffix = models[0].settings, str(models[0].settings["suffix"])
    how = (study.flag, _trained_with(settings))
    if settings["train_on"]["n_examples"] == study.n_examples:
        more = f"--more_epsilons {' '.join(f'{epsilon:g}' for epsilon in wanted[1:])}" if wanted[1:] else ""
        named = flags_of({"seed": seed, "suffix": suffix})
        line = places.command(_TRAIN, f"--epsilon {wanted[0]:g}", more, named, *how)
    elif suffix.endswith(str(seed)) and (places.subsets / f"subset_{seed}.npy").exists():
        named = flags_of({"suffix": f"{suffix.removesuffix(str(seed))}*"})
        line = f"{places.command(_ON_SUBSETS, f'--epsilons {spaced(wanted)} --seeds {seed}', named, *how)} | sh"
    else:
        line = (
            f"# {_TRAIN} with the flags, the seed and the --train_subset of {models[0].name}, whose path is not known"
        )
    return recipe(study.words, words, line)


def _first_private(places: Places, study: StudyAtHand) -> dict[str, str]:
    """Return the recipe of every private score where there is no private model."""
    names = ("private_curvature_eps_E", "private_loss_eps_E", "private_memorization_eps_E", "epsilon_sensitivity")
    if places.dataset == "imagenet":
        return dict.fromkeys(names, "# private networks are not trained on ImageNet here")
    words = "# epsilons and seeds are examples: take those you are after; more seeds tell how sure a score is"
    how = " ".join(filter(None, (study.flag, smaller(study.n_examples))))
    train = places.command(_TRAIN, "--epsilon 1 --more_epsilons 10 --seed 0", how)
    subsets = _on_subsets(places, study, [1.0, 10.0], how)
    if not any((ensemble_root(places.fz_models, places.dataset, places.arch) / places.ratio).glob("*/aux_arrays.npz")):
        subsets = recipe(places.command("train_fz_models.py", places.ratio_flag, study.flag), subsets)
    lines = {names[0]: recipe(train, places.command(_SCORER)), names[1]: train, names[2]: subsets, names[3]: train}
    return {name: recipe(words, study.words, line) for name, line in lines.items()}


def study_at_hand(places: Places, size: int) -> StudyAtHand:
    """Return the examples of the first network there is, of the ensemble or private; all `size` where there is none."""
    root = ensemble_root(places.fz_models, places.dataset, places.arch) / places.ratio
    there = [*sorted(root.glob("*/aux_arrays.npz"))[:1]]
    there += sorted(places.private_models.glob(f"{places.dataset}_{places.arch}_eps_*/aux_arrays.npz"))[:1]
    examples = read_run(there[0].parent).examples if there else np.arange(size)
    return StudyAtHand.of(examples, size)


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
    if not any(places.private_models.glob(f"{places.dataset}_{places.arch}_eps_*/model.pt")):
        return Gathered(missing=_first_private(places, study))
    models = find_private_models(places.private_models, places.dataset, places.arch, PrivateChoice(suffix=suffix))
    check_comparable(models)
    study = StudyAtHand.of(models[0].arrays().examples, study.size)
    private = _Private(places, models, study)
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
            named = {"suffix": None if suffix == "*" else suffix, "h": None if h == 1e-3 else h}
            found.missing[name] = places.command(_SCORER, flags_of(named))
            continue
        paths = [score_path(places.private_scores, CURVATURE, model.name, h) for model in scored]
        found.files.update({f"scores of {path.parent.name}": str(read_sidecar(path)["sha256"]) for path in paths})
        found.work.append(partial(private.add_curvature, epsilon, scored, h))
    seeds: dict[int, list[PrivateModel]] = defaultdict(list)
    for model in models:
        seeds[model.seed].append(model)
    whole = {seed: of for seed, of in sorted(seeds.items()) if len(of) == len(private.by_epsilon) > 1}
    if not with_odds:
        words = (
            f"# trained before log-odds were kept; {_TRAIN} with the flags of then and --overwrite trains them again"
        )
        found.missing.update(dict.fromkeys(("private_loss_eps_E", "epsilon_sensitivity"), words))
    elif not whole:
        found.missing["epsilon_sensitivity"] = _another_budget(places, study, seeds)
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
    made_by = _first_instance(places, study)
    if totals is None:
        there = [folder / f"compo_res_{kind}_totals.csv" for kind in ("both", "all")]
        there = [path for path in there if path.exists()]
        if not there:
            found.missing.update(dict.fromkeys(columns.INSTANCE, made_by))
            return found
        totals = there[0]
    if not totals.exists():
        raise InputError(f"{totals}: no such file; renyi_per_instance_sum_compo.py makes it")
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
    folds = _folds(places, settings, runs, study.size)
    found.work.append(partial(_add_instance, found, places, totals, arch, content, runs, folds))
    return found


def _first_instance(places: Places, study: StudyAtHand) -> str:
    """Return the recipe of the per-instance study with the published settings, as far as the examples allow."""
    if places.dataset == "imagenet":
        return "# private networks are not trained on ImageNet here"
    n = study.n_examples
    batch = max(1, n // 8) if n < SMALL else _BATCH
    every = max(1, _EPOCHS * n // batch // _STAGES)
    sampled = f"--points 0 --points_sample {min(n, _POINTS)}"
    more = [study.flag, sampled, smaller(n), f"--save_freq {every}" if every < _SAVE_FREQ else ""]
    return recipe(study.words, places.command("sensitivity/run_loop.sh", *more), "sh sensitivity/run_compo.sh")


def _folds(places: Places, settings: Mapping[str, Any], runs: Sequence[str], size: int) -> Callable[[int], str]:
    """Return what gives the recipe of the other direction for so many points, of runs with these settings."""
    data, stages, n = settings["data"], settings.get("stages", ()), settings["data"].get("n_examples")
    subsets = ("all", str(n), f"{SPREAD}{n}") if n else ()
    same = [one for one in subsets if index_digest(read_index(one, size)) == data["index_sha256"]]
    study = StudyAtHand(same[0] if same else None, n or 0, size)
    own = settings["model"]["arch"] == places.arch
    named = sorted(runs) == sorted(f"res{run}.csv" for run in range(1, len(runs) + 1))
    known = named and len(stages) > 1 and "privacy" in settings and "checkpoints_sha256" not in settings and n
    if not known or not (own or settings["model"].get("built_in")):
        return lambda points: "# sh sensitivity/run_folds.sh with the flags that run_loop.sh was given"
    network = places.network_flags if own else flags_of(_network(settings["model"]))
    how = {"epsilon": settings["privacy"]["epsilon"], "runs": len(runs), "stages": len(stages)}
    how |= {key: settings.get(key) for key in ("save_freq", "test_examples")}
    flags = (places.flags, network, study.flag, _trained_with(settings), flags_of(how))

    def line(points: int) -> str:
        fold_size = f"--fold_size {max(1, points // 4)}" if points < _FOLDS * _FOLD_SIZE else ""
        return recipe(study.words, command("sensitivity/run_folds.sh", *flags, fold_size))

    return line


def _network(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags' values of a built-in network."""
    return {"arch": model["built_in"], **model.get("options", {})}


def _add_instance(
    found: Gathered, places: Places, totals: Path, arch: str, content: str, runs: Sequence[str],
    folds: Callable[[int], str],
) -> None:  # fmt: skip
    file = open_table(totals)
    wanted = [name for name in file.names if name == "point" or name.startswith("epsilon ")]
    frame = file.frame(wanted).sort_values("point")
    examples = frame["point"].to_numpy(dtype=np.int64)
    for name, (sources, _, _) in columns.INSTANCE.items():
        for direction, (end, _) in columns.DIRECTIONS.items():
            column = next((source + end for source in sources if source + end in frame), None)
            called = name + direction + (f"_{arch}" if arch != places.arch else "")
            if column is None:
                found.missing[called] = folds(len(examples))
                continue
            values, meaning = frame[column].to_numpy(dtype=np.float64), columns.instance(name, direction)
            found.columns.append(
                Column(called, meaning, examples, values, None, content, arch, runs, None, str(totals))
            )
