"""What a user says of the data; light, so that --help and refusals need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libstore.settings import Settings, setting

IMAGENET = "imagenet"
BUILT_IN = ("mnist", "fashionmnist", "cifar10", "cifar100")
NORMALIZATIONS = ("unit", "standard")


def _unknown(name: str) -> str | None:
    own = name.endswith(".npz") or ":" in name or Path(name).expanduser().is_dir()
    what = "no such folder" if "/" in name else "unknown"
    known = f"{what}; known: {', '.join(BUILT_IN)}, an .npz file, a folder, an import path"
    return None if own or name in BUILT_IN else known


@dataclass(frozen=True)
class DataChoice(Settings):
    """Which data set, and how its inputs are taken."""

    dataset: str = setting(
        "mnist",
        f"data set: {', '.join(BUILT_IN)}, an .npz file, a folder of class folders, or package.module:function or "
        "path/to/file.py:function",
        metavar="DATA",
        check=_unknown,
    )
    dataset_name: str | None = setting(
        None, "name of own data on disk (default: the file's or function's)", metavar="NAME"
    )
    image_size: int | None = setting(
        None, "height and width that images are resized to (default: their own)", at_least=1
    )
    tokens: bool = setting(False, "inputs are token ids, not pixels")

    def arguments(self) -> dict[str, Any]:
        """Return what `libdata.datasets.load_dataset` takes beside name, split and folder."""
        return {"image_size": self.image_size, "tokens": self.tokens, "name_on_disk": self.dataset_name}


@dataclass(frozen=True)
class TableData(DataChoice):
    """Data that scores may be about: ImageNet, too, of which the labels alone are read, from `imagenet_index`."""

    dataset: str = setting(
        "mnist",
        f"data set: {', '.join(BUILT_IN)}, {IMAGENET}, an .npz file, a folder of class folders, or "
        "package.module:function or path/to/file.py:function",
        metavar="DATA",
        check=lambda name: None if name == IMAGENET else _unknown(name),
    )
