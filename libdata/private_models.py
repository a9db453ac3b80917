"""Private models on disk: <private_model_dir>/<dataset>_<arch>_eps_<epsilon>_<suffix>/.

Each folder holds model.pt (weights and what was spent), aux_arrays.npz (the layout of libdata.fz: which examples
it trained on, correctness and true-label probability on all of them and on the test split; and `loss_test`) and
a sidecar for each. What a model is, its epsilon and its seed are read from the sidecars, never from a name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from libdata import cli, safe_pickle
from libdata.errors import InputError
from libdata.fz import RunArrays, read_run
from libdata.scores import CURVATURE, score_path
from libdata.store import file_sha256, flatten, read_sidecar


def private_model_name(dataset: str, arch: str, epsilon: float, suffix: str) -> str:
    """Return the name of a private model, also of its folder."""
    return f"{dataset}_{arch}_eps_{epsilon:.12g}_{suffix}"


@dataclass(frozen=True)
class PrivateModel:
    """One finished private model.

    Attributes:
        folder: Where it is.
        settings: What decided it, from its sidecar.
        provenance: What is known of its making, from its sidecar: noise multiplier, spent epsilon, versions, ...
    """

    folder: Path
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]

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
        return str(read_sidecar(self.folder / "model.pt")["sha256"])

    def arrays(self) -> RunArrays:
        """Read which examples it trained on and how it does on all of them."""
        self.file("aux_arrays.npz")
        return read_run(self.folder)

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
        path = self.folder / name
        sidecar = read_sidecar(path)
        if sidecar["settings"] != self.settings or not path.exists() or file_sha256(path) != sidecar["sha256"]:
            raise InputError(f"{path}: missing, damaged or of another model; run its line of train_dp.py again")
        return path


def add_model_choice(parser: cli.Parser, datasets: Iterable[str], architectures: Iterable[str]) -> None:
    """Add the flags that say which private models are meant."""
    parser.add_argument("--dataset", choices=datasets, default="mnist", help="data set")
    parser.add_argument("--arch", choices=architectures, default="smallcnn", help="architecture")
    parser.add_argument("--epsilon", type=cli.positive_float, nargs="+", help="budgets (default: all there are)")
    parser.add_argument("--seed", type=cli.non_negative_int, nargs="+", help="seeds (default: all there are)")
    parser.add_argument("--suffix", default="*", help="pattern of the ends of the models' names, such as 'seed_*'")


def find_private_models(root: Path, args: cli.Namespace) -> list[PrivateModel]:
    """List the finished private models that the flags of `add_model_choice` name, by epsilon and seed.

    An epsilon without models is said on stderr and left out.

    Args:
        root: private_model_dir.
        args: The flags; `epsilon` and `seed` may be None for all.

    Raises:
        InputError: There is none, or a sidecar is unreadable.
    """
    models = []
    for path in sorted(root.glob("*/model.pt")):
        sidecar = read_sidecar(path)
        settings = sidecar["settings"]
        try:
            wanted = settings["data"]["dataset"] == args.dataset and settings["model"]["arch"] == args.arch
            wanted = wanted and fnmatchcase(settings["suffix"], args.suffix)
            wanted = wanted and (args.epsilon is None or settings["privacy"]["epsilon"] in args.epsilon)
            wanted = wanted and (args.seed is None or settings["seed"] in args.seed)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path.with_suffix('.json')}: not the sidecar of a private model") from error
        if wanted:
            models.append(PrivateModel(path.parent, settings, sidecar.get("provenance", {})))
    if not models:
        kind = [f"suffix {args.suffix!r}"]
        kind += [f"epsilon {' or '.join(f'{value:g}' for value in args.epsilon)}"] if args.epsilon else []
        kind += [f"seed {' or '.join(map(str, args.seed))}"] if args.seed else []
        what = f"{args.dataset} and {args.arch} with {', '.join(kind)}"
        raise InputError(f"{root}: no private model of {what}; train it with train_dp.py")
    models.sort(key=lambda model: (model.epsilon, model.seed))
    for epsilon in sorted(set(args.epsilon or ()) - {model.epsilon for model in models}):
        print(f"{root}: no model with epsilon {epsilon:g}; going on without it", file=sys.stderr)
    return models


def check_comparable(models: Sequence[PrivateModel]) -> None:
    """Refuse models that a mean over seeds must not mix.

    Raises:
        InputError: Two of them are the same run, or they differ in more than epsilon, seed and the examples they
            were trained on.
    """
    own = ("privacy.epsilon", "seed", "suffix", "train_on.index_sha256")
    seen: dict[tuple[object, ...], PrivateModel] = {}
    first = flatten(models[0].settings)
    for model in models:
        leaves = flatten(model.settings)
        for key in sorted({*first, *leaves}):
            if key not in own and first.get(key) != leaves.get(key):
                raise InputError(
                    f"{model.folder} and {models[0].folder} differ in {key} ({leaves.get(key, 'nothing')} and "
                    f"{first.get(key, 'nothing')}); choose models of one kind with --suffix"
                )
        run = (model.epsilon, model.seed, leaves.get("train_on.index_sha256"))
        if run in seen:
            raise InputError(f"{model.folder} and {seen[run].folder} are the same run; choose one with --suffix")
        seen[run] = model


def tabulate(models: Sequence[PrivateModel], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrange one value per model by epsilon and seed.

    Returns:
        Increasing epsilons (E,), increasing seeds (S,), and the values, (E, S), NaN where there is no model.
    """
    epsilons = np.unique([model.epsilon for model in models])
    seeds = np.unique([model.seed for model in models])
    table = np.full((len(epsilons), len(seeds)), np.nan)
    for model, value in zip(models, values, strict=True):
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
            raise InputError(f"{model.folder}: has no example {examples[np.isnan(value)][0]}; see --data_subset")
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
        raise InputError(f"{score_dir}: no scores of {models[0].name} or another of these models")
    return scored, [model.name for model in models if model not in scored]
