"""config.json: every path the project uses, nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from libdata.errors import InputError

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.json"
_WRITTEN = ("fz_model_dir", "private_model_dir", "sensitivity_dir", "score_dir", "converted_dir", "figure_dir")
_PLACEHOLDER = re.compile(r"set[ _]?(the[ _])?path|path[/_ ]to|your[ _-]|<.*>|\.\.\.|todo|changeme", re.I)


@dataclass(frozen=True)
class Config:
    """Absolute paths, one per key of config.json."""

    data_dir: Path
    """Data sets, in the folders torchvision uses."""
    fz_model_dir: Path
    """Ensembles in the Feldman-Zhang layout: <dataset>_<arch>/<ratio>/<run>/."""
    private_model_dir: Path
    """Private models: <dataset>_<arch>_eps_<epsilon>_<suffix>/model.pt, aux_arrays.npz and their sidecars."""
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


def load_config(path: str | Path = DEFAULT_CONFIG) -> Config:
    """Read and check a configuration file; relative paths count from the file itself.

    Args:
        path: A JSON file with exactly the keys of `Config`, each a non-empty string.

    Returns:
        The configuration with absolute paths. Nothing is created on disk. Paths of results that are neither
        in the file's folder (symbolic links followed) nor in the repository are shown on stderr.

    Raises:
        InputError: The file is missing or not JSON, or a key is unknown, missing, repeated,
            not a string, empty or a placeholder; the message names the file, key and value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
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
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object of paths, found {type(values).__name__}")

    names = [field.name for field in dataclasses.fields(Config)]
    for key, value in values.items():
        if key not in names:
            raise InputError(f"{path}: unknown key {key!r} (value {value!r}); known keys: {', '.join(names)}")
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{path}: key {key!r} must be a path in quotes, found {value!r}")
        if _PLACEHOLDER.search(value):
            raise InputError(f"{path}: key {key!r} still holds a placeholder: {value!r}")
    for name in names:
        if name not in values:
            raise InputError(f"{path}: key {name!r} is missing (value should be a path)")
    base = path.resolve().parent
    found = {name: (base / Path(values[name]).expanduser()).resolve() for name in names}
    homes = (base, DEFAULT_CONFIG.parent)
    outside = [f"{name} {found[name]}" for name in _WRITTEN if not any(map(found[name].is_relative_to, homes))]
    if outside:
        print(f"{path}: results go outside its folder: {', '.join(outside)}", file=sys.stderr)
    return Config(**found)
