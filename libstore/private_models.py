"""Private models on disk: <private_model_dir>/<dataset>_<arch>_eps_<epsilon>_<suffix>/.

Each folder holds model.pt (weights and what was spent), aux_arrays.npz (the layout of libstore.fz: which examples
it trained on, correctness and true-label probability on all of them and on the test split; and `loss_test`) and
a sidecar for each. What a model is, its epsilon and its seed are read from the sidecars, never from a name.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from libstore import safe_pickle
from libstore.comparable import PRIVATE_MODELS, SCORES, Kept, check_alike, check_made_of, check_weights, kept
from libstore.errors import InputError
from libstore.fz import RunArrays, read_run
from libstore.index import BY_COINS, drawn, index_digest, load_array
from libstore.recipes import named_by
from libstore.scores import CURVATURE, CURVATURE_FORMAT, index_path, score_path
from libstore.settings import Settings, setting
from libstore.store import check_format, file_sha256, flatten, load_scores, read_sidecar

FORMAT = 1
"""To be raised when what a private model is changes; models of two formats are never mixed."""
ADDS, EXCHANGES = "one example added", "one example exchanged"
_SCORER = "calc_curv_private_models.py"


def private_model_name(dataset: str, arch: str, epsilon: float, suffix: str) -> str:
    """Return the name of a private model, also of its folder."""
    return f"{dataset}_{arch}_eps_{epsilon:.12g}_{suffix}"


@dataclass(frozen=True)
class PrivateModel:
    """One finished private model.

    Attributes:
        folder: Where it is.
        sidecar: The sidecar of its checkpoint.
    """

    folder: Path
    sidecar: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decided it."""
        return self.sidecar["settings"]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What is known of its making: noise multiplier, spent epsilon, versions, ..."""
        return self.sidecar.get("provenance", {})

    @property
    def name(self) -> str:
        """The model's name."""
        return self.folder.name

    @property
    def epsilon(self) -> float:
        """The budget it was trained with."""
        return float(self.settings["privacy"]["epsilon"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.settings["seed"])

    @property
    def weights_sha256(self) -> str:
        """Digest of its checkpoint, from the sidecar."""
        return str(self.sidecar["sha256"])

    def arrays(self) -> RunArrays:
        """Read which examples it trained on and how it does on all of them.

        Raises:
            InputError: The file is damaged, or of other weights than the model's.
        """
        self.file("aux_arrays.npz")
        return read_run(self.folder)

    def members(self, examples: np.ndarray) -> np.ndarray:
        """Return which of some positions in the data set, (N,), it trained on, bool (N,)."""
        return np.isin(examples, self.arrays().index["train"])

    def test_losses(self) -> np.ndarray:
        """Read the loss of every test example, (N,).

        Raises:
            InputError: The file is damaged, or a loss is not finite.
        """
        path = self.file("aux_arrays.npz")
        losses = safe_pickle.load_npz(path, ["loss_test"])["loss_test"]
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            raise InputError(f"{path}: key 'loss_test' is {losses[bad[0]]} for test example {bad[0]}")
        return losses

    def file(self, name: str = "model.pt") -> Path:
        """Return one of its files after checking it against its sidecar.

        Raises:
            InputError: The file is missing, damaged or of another model.
        """
        path, again = self.folder / name, "run its line of train_dp.py again"
        sidecar = read_sidecar(path)
        if sidecar["settings"] != self.settings or not path.exists() or file_sha256(path) != sidecar["sha256"]:
            raise InputError(f"{path}: missing, damaged or of another model; {again}")
        if "weights_sha256" in sidecar:
            check_weights([(self.folder / "model.pt", self.weights_sha256), (path, sidecar["weights_sha256"])], again)
        return path


def open_private_model(folder: Path) -> PrivateModel:
    """Read what the sidecars in a folder say.

    Raises:
        InputError: It is not a whole private model under its own name: a file or sidecar is missing or not one of a
            private model, or the folder is called otherwise than its settings, as a copy is.
    """
    sidecars = []
    for name in ("model.pt", "aux_arrays.npz"):
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: missing; run its line of train_dp.py again")
        sidecars.append(read_sidecar(folder / name))
    settings = sidecars[0]["settings"]
    try:
        parts = settings["data"]["dataset"], settings["model"]["arch"], float(settings["privacy"]["epsilon"])
        name = private_model_name(*parts, settings["suffix"])
        int(settings["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'model.json'}: not the sidecar of a private model") from error
    if name != folder.name:
        copy = ", a copy of the folder beside it" if (folder.parent / name).is_dir() else ""
        raise InputError(f"{folder}: its settings are those of {name}{copy}")
    check_format(folder / "model.pt", sidecars[0], FORMAT, "train_dp.py")
    return PrivateModel(folder, sidecars[0])


def is_private_model(folder: Path) -> bool:
    """Tell whether `open_private_model` takes a folder."""
    try:
        open_private_model(folder)
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class PrivateChoice(Settings):
    """Which private models of a data set and network are meant."""

    epsilon: tuple[float, ...] | None = setting(None, "budgets (default: all there are)", above=0)
    seed: tuple[int, ...] | None = setting(None, "seeds (default: all there are)", at_least=0)
    suffix: str = setting("*", "end of the models' names, * for any seed, such as 'seed_*'")


def find_private_models(
    root: Path, dataset: str, arch: str, choice: PrivateChoice, made_by: str = "train_dp.py"
) -> list[PrivateModel]:
    """List the finished private models of a data set and network that a choice names, by epsilon and seed.

    An epsilon without models is said on stderr and left out; so is a folder that `open_private_model` does not take.

    Args:
        root: Where the data set's private models are.
        dataset: Name of the data set on disk.
        arch: Name of the network on disk.
        choice: Which of them.
        made_by: What trains such models, for the message.

    Raises:
        InputError: There is none; the message lists what is there.
    """
    models, others, left_out = [], [], []
    for path in sorted(root.glob("*/model.pt")):
        name = path.parent.name
        try:
            model = open_private_model(path.parent)
        except InputError as error:
            if "_eps_" not in name or name.startswith(f"{dataset}_{arch}_eps_"):
                left_out.append(str(error))
            continue
        settings = model.settings
        wanted = settings["data"]["dataset"] == dataset and settings["model"]["arch"] == arch
        wanted = wanted and fnmatchcase(settings["suffix"], choice.suffix)
        wanted = wanted and (choice.epsilon is None or model.epsilon in choice.epsilon)
        if wanted and (choice.seed is None or model.seed in choice.seed):
            models.append(model)
        else:
            others.append(model)
    if not models:
        kind = [f"suffix {choice.suffix!r}"]
        kind += [f"epsilon {' or '.join(f'{value:g}' for value in choice.epsilon)}"] if choice.epsilon else []
        kind += [f"seed {' or '.join(map(str, choice.seed))}"] if choice.seed else []
        what = f"{dataset} and {arch} with {', '.join(kind)}"
        also = f" ({len(left_out)} left out, the first: {left_out[0]})" if left_out else ""
        raise InputError(f"{root}: no private model of {what}; train it with {made_by}{also}{_listed(others)}")
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    models.sort(key=lambda model: (model.epsilon, model.seed))
    for epsilon in sorted(set(choice.epsilon or ()) - {model.epsilon for model in models}):
        print(f"{root}: no model with epsilon {epsilon:g}; going on without it", file=sys.stderr)
    return models


def _kinds(models: Sequence[PrivateModel]) -> Counter[str]:
    """Count models by the flags that name them, with * for a number at the end of a suffix."""
    suffixes = (re.sub(r"\d+$", "*", model.settings["suffix"]) for model in models)
    return Counter(named_by(model.settings, suffix=suffix) for model, suffix in zip(models, suffixes, strict=True))


def _listed(models: Sequence[PrivateModel]) -> str:
    """Say of what kinds models are, each with the flags that name it."""
    flags = [f"{n} by {named}" for named, n in sorted(_kinds(models).items())]
    return f"; there are: {', '.join(flags)}" if flags else ""


def check_comparable(models: Sequence[PrivateModel]) -> None:
    """Refuse models that a mean over seeds must not mix.

    Raises:
        InputError: Two of them are the same run, or they differ in more than epsilon, seed and the examples they
            were trained on.
    """
    checkpoints = [Kept(model.folder, model.sidecar) for model in models]
    by = "--suffix" if len(_kinds(models)) > 1 else "--seed and --epsilon, or train again with --overwrite"
    check_alike(checkpoints, PRIVATE_MODELS, f"; choose models of one kind with {by}{_listed(models)}")
    seen: dict[tuple[object, ...], PrivateModel] = {}
    for model in models:
        run = (model.epsilon, model.seed, flatten(model.settings).get("train_on.index_sha256"))
        if run in seen:
            raise InputError(f"{model.folder} and {seen[run].folder} are the same run; choose one with --suffix")
        seen[run] = model


def exchanges_or_adds(models: Sequence[PrivateModel], subsets: Path) -> str:
    """Tell by what data sets with and without an example differ, from how the models' training sets were drawn.

    By coins the example is added; sets of one size hold another in its place, and so may those of which nothing is
    known. Equal sizes do not tell: coins fall so, too.

    Args:
        models: The models.
        subsets: Folder of the data set's subsets, for models from before their sidecars told how they were drawn.
    """
    told = {model.settings["train_on"]["index_sha256"]: model.provenance.get("drawn") for model in models}
    if None in told.values():
        for path in subsets.glob("subset_*.npy"):
            how = drawn(path).how
            if how is not None:
                told |= {digest: how for digest in [index_digest(load_array(path))] if digest in told}
    sizes = [model.settings["train_on"] for model in models]
    planned = {size.get("planned") for size in sizes}
    one_plan = len(planned - {None}) == len(planned) == 1 and len({size["n_examples"] for size in sizes}) > 1
    return ADDS if one_plan or set(told.values()) == {BY_COINS} else EXCHANGES


def tabulate(models: Sequence[PrivateModel], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrange one value per model by epsilon and seed.

    Returns:
        Increasing epsilons (E,), increasing seeds (S,), and the values, (E, S), NaN where there is no model.

    Raises:
        InputError: As `check_comparable`, or two models are of one epsilon and seed.
    """
    check_comparable(models)
    epsilons = np.unique([model.epsilon for model in models])
    seeds = np.unique([model.seed for model in models])
    table = np.full((len(epsilons), len(seeds)), np.nan)
    seen: dict[tuple[float, int], PrivateModel] = {}
    for model, value in zip(models, values, strict=True):
        other = seen.setdefault((model.epsilon, model.seed), model)
        if other is not model:
            where = f"epsilon {model.epsilon:g} and seed {model.seed}"
            raise InputError(f"{model.folder} and {other.folder} are both of {where}; choose one with --suffix")
        table[np.searchsorted(epsilons, model.epsilon), np.searchsorted(seeds, model.seed)] = value
    return epsilons, seeds, table


def memberships(models: Sequence[PrivateModel], examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read what Link 3 needs of some models: who was trained on, and how probable the true label is.

    Args:
        models: The models, T of them.
        examples: Sorted positions in the data set, (N,).

    Returns:
        Whether each model trained on each example, bool (T, N), and the true label's probability, (T, N).

    Raises:
        InputError: A model does not have one of the examples.
    """
    masks, values = [], []
    for model in models:
        mask, value = model.arrays().on(examples, "prob")
        if np.isnan(value).any():
            raise InputError(
                f"{model.folder}: example {examples[np.isnan(value)][0]} is not in the --data_subset of its training; "
                "train on one that holds all these examples, or choose others with --top_k FILE"
            )
        masks.append(mask)
        values.append(value)
    return np.stack(masks), np.stack(values)


def scored_models(models: Sequence[PrivateModel], score_dir: Path, h: float) -> tuple[list[PrivateModel], list[str]]:
    """Return the models whose curvature is kept, and the names of the others.

    Raises:
        InputError: There is none.
    """
    scored = [model for model in models if score_path(score_dir, CURVATURE, model.name, h).exists()]
    if not scored:
        raise InputError(f"{score_dir}: no scores of {models[0].name} or another of these models; run {_SCORER}")
    return scored, [model.name for model in models if model not in scored]


def read_curvature(models: Sequence[PrivateModel], score_dir: Path, h: float) -> Iterator[np.ndarray]:
    """Yield every model's curvature of the same training-split examples, (N,).

    Raises:
        InputError: Models or scores do not belong together, before the first is read; or a file is damaged.
    """
    check_comparable(models)
    again = f"; run {_SCORER} with --overwrite"
    paths = [score_path(score_dir, CURVATURE, model.name, h) for model in models]
    scores = [kept(path) for path in paths]
    for model, path, one in zip(models, paths, scores, strict=True):
        settings = one.settings if one else {}
        if settings.get("model_name") != model.name:
            raise InputError(f"{path}: its sidecar is missing or of another model{again}")
        checkpoint = Kept(model.folder / "model.pt", model.sidecar)
        check_weights([(path, settings["model"]["sha256"]), (checkpoint.path, model.weights_sha256)], again[2:])
        check_made_of(one, checkpoint, ("data", "data"), ("model.spec", "model"))
    check_alike(scores, SCORES, again)
    for path in paths:
        yield load_scores(path, CURVATURE_FORMAT, _SCORER)[0]


def scored_examples(model: PrivateModel, score_dir: Path, h: float) -> np.ndarray:
    """Return the positions in the data set of the examples that `read_curvature` yields scores of, (N,).

    Raises:
        InputError: The scores have no sidecar, or the index is not there.
    """
    scores = kept(score_path(score_dir, CURVATURE, model.name, h))
    if scores is None:
        raise InputError(f"{score_path(score_dir, CURVATURE, model.name, h)}: its sidecar is missing; run {_SCORER}")
    return load_array(index_path(score_dir, scores.settings["data"]["index_sha256"]))
