"""Small copies of the released data sets, written by the tests: ILSVRC folders, index files, CIFAR-100."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n02105855")


def photo(height: int, width: int, seed: int) -> Image.Image:
    """A random picture with detail on all scales, as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for scale in (64, 16, 4, 1):
        coarse = rng.normal(size=(height // scale + 2, width // scale + 2, 3)).repeat(scale, 0).repeat(scale, 1)
        pixels += 12 * scale**0.4 * coarse[:height, :width]
    return Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """An image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo_files() -> dict[str, bytes]:
    """Image files of the kinds that ILSVRC holds, by file name."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    return {
        "n01440764_10.JPEG": encoded(photo(375, 500, 0), quality=95),
        "n01440764_11.JPEG": encoded(photo(500, 333, 1), quality=75, subsampling=0),
        "n01440764_12.JPEG": encoded(photo(300, 400, 2).convert("L"), quality=90),
        "n01443537_7.JPEG": encoded(photo(260, 340, 3).convert("CMYK"), quality=90),
        "n01443537_8.JPEG": encoded(photo(270, 350, 4), "PNG"),
        "n01443537_9.JPEG": encoded(photo(320, 480, 5), quality=85, exif=exif),
        "n02105855_1.JPEG": encoded(photo(97, 130, 6), quality=60),
        "n02105855_2.JPEG": encoded(photo(401, 299, 7), quality=85, progressive=True),
    }


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """Lay image files out as ILSVRC does."""
    for name, content in files.items():
        (folder / name.split("_")[0]).mkdir(parents=True, exist_ok=True)
        (folder / name.split("_")[0] / name).write_bytes(content)


def write_imagenet_index(path: Path, names: dict[str, list[str]], **extra: np.ndarray) -> None:
    """Write an imagenet_index.npz as released: object arrays of bytes, labels from 0."""
    arrays = dict(extra)
    for prefix, files in names.items():
        arrays[f"{prefix}_filenames"] = np.array([name.encode() for name in files], dtype=object)
        arrays[f"{prefix}_labels"] = np.array([SYNSETS.index(name.split("_")[0]) for name in files])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_cifar100(data_dir: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """Write torchvision's folder of CIFAR-100 from images (N, 32, 32, 3)."""
    (data_dir / "cifar-100-python").mkdir(parents=True)
    for split in ("train", "test"):
        rows = images[split].transpose(0, 3, 1, 2).reshape(-1, 3072)
        content = {"data": rows, "fine_labels": labels[split].tolist()}
        (data_dir / "cifar-100-python" / split).write_bytes(pickle.dumps(content))
