"""Which results belong together: the one rule for everything that is averaged, fitted or compared over several.

Two results are comparable if they are of one format and their settings are the same but for what is meant to differ
(the constants below, by kind of result). And each must be what its sidecar says, of the model that its sidecar names:
digests of weights, arrays and scores form a chain. What has no sidecar, because somebody else made it, passes; its
readers check shapes and indices.

Score arrays and the arrays of runs are hashed as they are read. Weights are taken at the word of their sidecar if they
are large: an average over 2,000 models should not read 200 GB of weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from libstore.errors import InputError
from libstore.store import Output, differences, file_sha256, read_sidecar, tell

RUNS = ("run", "seed", "seeds")
"""Free in the runs of an ensemble and of the per-instance study."""
PRIVATE_MODELS = (
    "privacy.epsilon", "privacy.noise_multiplier", "privacy.spent_epsilon", "seed", "seeds", "suffix",
    "train_on.index_sha256", "train_on.n_examples",
)  # fmt: skip
"""Free in private models: the budget with the noise that follows from it, the seed and the subset."""
SCORES = ("model_name", "model.sha256", "model.source")
"""Free in the scores of several models."""
REMOVAL = (*RUNS, "train_on", "points_sha256")
"""Free between the runs of the per-instance study before a removal and those after it."""
_HASHED_WEIGHTS = 2**22
"""Bytes of weights that are hashed; larger files are taken at their sidecar's word."""


class Kept(NamedTuple):
    """A file and what its sidecar says of it."""

    path: Path
    sidecar: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decided the file's content."""
        return self.sidecar["settings"]


def kept(path: Path) -> Kept | None:
    """Return a file with its sidecar, None if it has no sidecar.

    Raises:
        InputError: The sidecar cannot be read.
    """
    return Kept(path, read_sidecar(path)) if path.with_suffix(".json").exists() else None


def check_alike(results: Iterable[Kept | None], free: Sequence[str] = (), hint: str = "") -> None:
    """Refuse results that differ in more than what is free; those without a sidecar pass.

    Args:
        results: Files of one kind.
        free: Dotted keys of their settings that may differ.
        hint: What to do about it, for the message.

    Raises:
        InputError: Two of them differ; the message names both files, the settings and their values.
    """
    known = [result for result in results if result]
    for result in known[1:]:
        both = f"{result.path} and {known[0].path} differ in"
        formats = [one.sidecar.get("format", 1) for one in (result, known[0])]
        if formats[0] != formats[1]:
            raise InputError(f"{both} format ({formats[0]} and {formats[1]}): their numbers mean different things")
        found = differences(result.sidecar, known[0].sidecar, free)
        if found:
            raise InputError(f"{both} {tell(found, '{key} ({one} and {other})')}{hint}")


def check_made_of(part: Kept | None, whole: Kept | None, *keys: tuple[str, str]) -> None:
    """Refuse a result that says other things of what it was made of than that says of itself.

    Args:
        part: A result, the scores of a model say.
        whole: What it was made of, the model.
        keys: Dotted keys of settings that both share: the result's, and the other's.
    """
    for key, other in keys if part and whole else ():
        assert part and whole
        here, there = _at(part.settings, key), _at(whole.settings, other)
        if here and there:
            found = differences({**part.sidecar, "settings": {key: here}}, {**whole.sidecar, "settings": {key: there}})
            if found:
                told = tell(found, "{key} ({one} and {other})")
                raise InputError(f"{part.path} was not made of {whole.path}: they differ in {told}")


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def check_content(result: Kept) -> str:
    """Return the digest of a file's content after comparing it with the sidecar's, if that has one.

    Raises:
        InputError: The two differ.
    """
    digest = file_sha256(result.path)
    said = result.sidecar.get("sha256", digest)
    if digest != said:
        raise InputError(
            f"{result.path}: its content (sha256 {digest}) is not what its sidecar says ({said}); make it again"
        )
    return digest


def weights_digest(path: Path) -> str | None:
    """Return the digest of a model's weights: its sidecar's, or its content's if it is small; else None.

    Raises:
        InputError: The content is small and not what the sidecar says.
    """
    if not path.exists():
        return None
    result = kept(path)
    if path.stat().st_size <= _HASHED_WEIGHTS:
        return check_content(result or Kept(path, {}))
    return str(result.sidecar["sha256"]) if result else None


def trained(weights: Output, arrays: Output, *, overwrite: bool) -> bool:
    """Tell whether weights and arrays are there, of one training; arrays that do not name their weights pass.

    Raises:
        InputError: As `Output.finished`.
    """
    if not all([one.finished(overwrite=overwrite) for one in (weights, arrays)]):
        return False
    return read_sidecar(arrays.path).get("weights_sha256") in (None, read_sidecar(weights.path)["sha256"])


def check_weights(claims: Sequence[tuple[Path, str | None]], hint: str) -> None:
    """Refuse files that belong to different weights of one model.

    Args:
        claims: Files, and the digest of the weights that each belongs to or holds; None where it is not known.
        hint: What to do about it, for the message.
    """
    known = [(path, digest) for path, digest in claims if digest]
    for path, digest in known[1:]:
        if digest != known[0][1]:
            raise InputError(
                f"{known[0][0]} and {path} belong to different weights (sha256 {known[0][1]} and {digest}): the model "
                f"was trained again, or a file is of another; {hint}"
            )
