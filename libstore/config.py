"""config.json: every path the project uses, nothing else."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libstore.errors import InputError

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.json"
_REQUIRED = ("data_dir", "fz_model_dir", "private_model_dir")
_DEFAULTS = {
    "sensitivity_dir": "sensitivity",
    "score_dir": "results/scores",
    "imagenet_dir": "data/imagenet",
    "imagenet_index": "data/imagenet_index.npz",
    "tfrecord_dir": "data/imagenet-tfrecords",
    "cifar100_memorization": "data/cifar100_infl_matrix.npz",
    "converted_dir": "results/converted_models",
    "figure_dir": "results/figures",
}
_SCORES = ("fz_precomputed_score_dir", "private_precomputed_score_dir")
_BY_DATASET = ("fz_model_dir", "private_model_dir", *_SCORES)
_WRITTEN = (*_BY_DATASET, "sensitivity_dir", "score_dir", "converted_dir", "figure_dir")
_PLACEHOLDER = re.compile(
    r"(?<![\w-])(?:path[/ _-]to(?![^\W_])|your(?=[ _-])"
    r"|(?:set[ _-]?(?:the[ _-])?path(?:[ _-]here)?|todo|fixme|change[ _-]?me)(?![\w-]))"
    r"|(?<![^/])(?:<.*>|\.{3,})(?![^/])",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|\{)")


@dataclass(frozen=True)
class Folder:
    """Where a key points: one folder for every data set, or one for each.

    Attributes:
        key: The file and the key, for messages.
        everywhere: The folder of every data set; None if each has its own.
        by_dataset: The folder of each data set by name; empty if one serves all.
    """

    key: str
    everywhere: Path | None
    by_dataset: Mapping[str, Path]

    def of(self, dataset: str) -> Path:
        """Return the folder of a data set.

        Raises:
            InputError: The key has folders by data set and none for this one.
        """
        if self.everywhere is not None:
            return self.everywhere
        if dataset not in self.by_dataset:
            raise InputError(f"{self.key} has no folder for {dataset!r}; it has: {', '.join(self.by_dataset)}")
        return self.by_dataset[dataset]

    def one(self) -> Path:
        """Return the folder that serves every data set.

        Raises:
            InputError: The key has folders by data set.
        """
        if self.everywhere is None:
            raise InputError(f"{self.key} has a folder for each of {', '.join(self.by_dataset)}; one path is needed")
        return self.everywhere


@dataclass(frozen=True)
class Config:
    """Absolute paths, one per key of config.json."""

    data_dir: Path
    """Data sets, in the folders torchvision uses."""
    folders: Mapping[str, Folder]
    """The keys that may differ between data sets; see the methods."""
    sensitivity_dir: Path
    """Per-instance study: res/ (gradient norms), models/ (checkpoints), compo_res/ (costs)."""
    score_dir: Path
    """Scores: <model name>/curv_scores_<model name>_<h>.npy and their sidecars."""
    imagenet_dir: Path
    """ILSVRC 2012: train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG."""
    imagenet_index: Path
    """Feldman and Zhang's imagenet_index.npz: file names, labels and memorization by index."""
    tfrecord_dir: Path
    """ImageNet as indexed TFRecords: train-00000-of-01024 ..., validation-00000-of-00128 ..."""
    cifar100_memorization: Path
    """Feldman and Zhang's cifar100_infl_matrix.npz."""
    converted_dir: Path
    """Released TensorFlow checkpoints as PyTorch files, where they are kept."""
    figure_dir: Path
    """Executed notebooks, figures and tables of statistics."""

    @property
    def fz_model_dir(self) -> Path:
        """The one folder of all ensembles; raises InputError where each data set has its own."""
        return self.folders["fz_model_dir"].one()

    @property
    def private_model_dir(self) -> Path:
        """The one folder of all private models; raises InputError where each data set has its own."""
        return self.folders["private_model_dir"].one()

    def places(self, key: str) -> list[Path]:
        """Return every folder that a key names, whether one serves all data sets or each has its own."""
        folder = self.folders[key]
        return [folder.everywhere] if folder.everywhere else list(folder.by_dataset.values())

    def fz_models(self, dataset: str) -> Path:
        """Return where a data set's ensembles are, in the Feldman-Zhang layout: <dataset>_<arch>/<ratio>/<run>/."""
        return self.folders["fz_model_dir"].of(dataset)

    def private_models(self, dataset: str) -> Path:
        """Return where a data set's private models are: <dataset>_<arch>_eps_<epsilon>_<suffix>/."""
        return self.folders["private_model_dir"].of(dataset)

    def fz_score_dir(self, dataset: str) -> Path:
        """Return where the scores of a data set's ensembles are: `score_dir` without a key of their own."""
        return self.folders["fz_precomputed_score_dir"].of(dataset)

    def private_score_dir(self, dataset: str) -> Path:
        """Return where the scores of a data set's private models are: `score_dir` without a key of their own."""
        return self.folders["private_precomputed_score_dir"].of(dataset)


def load_config(path: str | Path = DEFAULT_CONFIG) -> Config:
    """Read and check a configuration file; relative paths count from the file itself.

    ~, ~user, $NAME and ${NAME} are expanded.

    Args:
        path: A JSON file with `data_dir`, `fz_model_dir` and `private_model_dir` and, where their defaults do not do,
            the other keys of `Config`, `fz_precomputed_score_dir` and `private_precomputed_score_dir`. A value is a
            path; `fz_model_dir`, `private_model_dir` and the two score keys may hold an object with a path for each
            data set instead.

    Returns:
        The configuration with absolute paths. Nothing is created on disk. Paths of results that are neither
        in the file's folder (symbolic links followed) nor in the repository are shown on stderr.

    Raises:
        InputError: The file is missing or not JSON, or a key is unknown, missing, repeated or holds something that is
            not a path: another type, nothing, a placeholder, a variable that is not set; the message names the file,
            key and value.
    """
    path = Path(path)
    values = _read(path)
    known = [*_REQUIRED, *_SCORES, *_DEFAULTS]
    base = path.resolve().parent

    def folder_of(key: str, value: object) -> Folder:
        where = f"{path}: key {key!r}"
        if key in _BY_DATASET and isinstance(value, dict):
            if not value:
                raise InputError(f"{where} must be a path, or an object with a path for each data set, found {{}}")
            each = {name: _resolve(f"{where}, {name!r},", one, base) for name, one in value.items()}
            return Folder(where, None, each)
        return Folder(where, _resolve(where, value, base), {})

    for key, value in values.items():
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r} (value {value!r}); known keys: {', '.join(known)}")
    for key in _REQUIRED:
        if key not in values:
            raise InputError(f"{path}: key {key!r} is missing (value should be a path)")
    found = {key: folder_of(key, value) for key, value in (_DEFAULTS | values).items()}
    for key in _SCORES:
        found.setdefault(key, Folder(f"{path}: key {key!r}", found["score_dir"].one(), {}))

    homes = (base, DEFAULT_CONFIG.parent)
    outside = [
        f"{key} {place}"
        for key in _WRITTEN
        if key in values or key in _DEFAULTS
        for place in ([found[key].everywhere] if found[key].everywhere else found[key].by_dataset.values())
        if place and not any(map(place.is_relative_to, homes))
    ]
    if outside:
        print(f"{path}: results go outside its folder: {', '.join(outside)}", file=sys.stderr)
    by_dataset = {key: found[key] for key in _BY_DATASET}
    single = {key: found[key].one() for key in ("data_dir", *_DEFAULTS)}
    return Config(folders=by_dataset, **single)


def _read(path: Path) -> dict[str, object]:
    """Return what a configuration file holds, whatever wrote it: UTF-8 or UTF-16, with a byte-order mark or none."""
    try:
        raw = path.read_bytes()
        text = raw.decode(json.detect_encoding(raw))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the configuration: {error}") from error

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{path}: key {key!r} appears more than once")
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=no_repeats)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object of paths, found {type(values).__name__}")
    return values


def _resolve(where: str, value: object, base: Path) -> Path:
    """Return the absolute path that a value stands for; `where` names the file and key in messages."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} must be a path in quotes, found {value!r}")
    if any(ord(letter) < 32 for letter in value):
        raise InputError(f"{where} holds a control character: {value!r}; a backslash is written twice")
    if re.match(r"[A-Za-z]:[\\/]|\\\\", value) and os.name == "posix":
        raise InputError(f"{where} is a path of Windows, which this system does not know: {value!r}")

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not name:
            raise InputError(f"{where}: only $NAME and ${{NAME}} are expanded, value {value!r}")
        if not os.environ.get(name):
            raise InputError(f"{where}: the variable {name} is not set, value {value!r}")
        return os.environ[name]

    expanded = _VARIABLE.sub(variable, value)
    if expanded.startswith("~"):
        home = os.path.expanduser(expanded)
        if home == expanded or os.environ.get("HOME") == "" and re.match("~(/|$)", expanded):
            raise InputError(f"{where}: there is no home directory for {value!r}; write the path in full")
        expanded = home
    try:
        placeholder = _PLACEHOLDER.search(expanded)
        rest = expanded[placeholder.end() :].partition("/")[0] if placeholder else ""
        if placeholder and not os.path.exists(base / (expanded[: placeholder.end()] + rest)):
            raise InputError(f"{where} still holds a placeholder: {value!r}")
        return (base / expanded).resolve()
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{where} is not a path: {value!r}: {error}") from error
