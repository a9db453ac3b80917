"""Private models on disk: <private_model_dir>/<dataset>_<arch>_eps_<epsilon>_<suffix>/.

Each folder holds model.pt (weights and what was spent), aux_arrays.npz (the layout of libdata.fz: which examples
it trained on, correctness and true-label probability on all of them and on the test split; and `loss_test`) and
a sidecar for each. What a model is, its epsilon and its seed are read from the sidecars, never from a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from libdata.errors import InputError
from libdata.fz import RunArrays, read_run
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
    def checkpoint(self) -> Path:
        """The file of its weights."""
        return self.folder / "model.pt"

    @property
    def epsilon(self) -> float:
        """The budget it was trained with."""
        return float(self.settings["privacy"]["epsilon"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.settings["seed"])

    def arrays(self) -> RunArrays:
        """Read which examples it trained on and how it does on all of them."""
        self._check("aux_arrays.npz")
        return read_run(self.folder)

    def test_losses(self) -> np.ndarray:
        """Read the loss of every test example, (N,)."""
        self._check("aux_arrays.npz")
        with np.load(self.folder / "aux_arrays.npz", allow_pickle=False) as file:
            return file["loss_test"]

    def _check(self, name: str) -> None:
        path = self.folder / name
        sidecar = read_sidecar(path)
        if sidecar["settings"] != self.settings or not path.exists() or file_sha256(path) != sidecar["sha256"]:
            raise InputError(f"{path}: missing, damaged or of another model; run the line of train_dp.py again")


def find_private_models(
    root: Path, dataset: str, arch: str, *, epsilons: Sequence[float] | None = None, suffix: str = "*"
) -> list[PrivateModel]:
    """List the finished private models of a data set and architecture, by epsilon and seed.

    Args:
        root: private_model_dir.
        dataset: Name of the data set.
        arch: Name of the architecture.
        epsilons: The wanted values; all by default. A value without models is left out.
        suffix: A pattern such as "seed_*" that the models' suffixes match.

    Raises:
        InputError: There is none, two of them are the same run, or they differ in more than epsilon, seed and
            the examples they were trained on.
    """
    models = []
    for path in sorted(root.glob("*/model.pt")):
        sidecar = read_sidecar(path)
        settings = sidecar["settings"]
        try:
            wanted = settings["data"]["dataset"] == dataset and settings["model"]["arch"] == arch
            wanted = wanted and fnmatchcase(settings["suffix"], suffix)
            wanted = wanted and (epsilons is None or settings["privacy"]["epsilon"] in epsilons)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path.with_suffix('.json')}: not the sidecar of a private model") from error
        if wanted:
            models.append(PrivateModel(path.parent, settings, sidecar.get("provenance", {})))
    if not models:
        values = "" if epsilons is None else " with epsilon " + ", ".join(f"{value:g}" for value in epsilons)
        raise InputError(
            f"{root}: no private model of {dataset} and {arch}{values} and suffix {suffix!r}; see train_dp.py"
        )
    models.sort(key=lambda model: (model.epsilon, model.seed))
    _check_comparable(models)
    return models


def _check_comparable(models: Sequence[PrivateModel]) -> None:
    """Refuse models that a mean over seeds must not mix."""
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
