"""Time sensitivity/compute_sensitivity.py beside the published procedure on a shortened study.

    python benchmarks/sensitivity.py [--examples N] [--epochs E] [--stages S] [--points P] [--rounds R]

The published way (the code of arXiv 2307.00310): one process trains LeNet with Opacus's hooks behind a DataLoader whose
transforms (to a tensor, normalise, resize to 32x32) run for every image each time it is read, and keeps checkpoints;
then a process of its own for every stage loads data and weights, takes the test accuracy through such a loader, and
for every point takes its gradient in a batch of one and reads and writes the whole result file. Ours is one process.
Both train on the same real MNIST digits with the same B, C, epsilon and number of steps, on one thread, start-up
included. Rounds alternate; medians of seconds and of each round's ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from opacus.accountants.utils import get_noise_multiplier
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from libdata.datasets import DATASETS
from libmodels import build_model
from libstore.config import load_config

ROOT = Path(__file__).resolve().parents[1]
BATCH, CLIP, EPSILON, DELTA, LR = 256, 1.0, 10.0, 1e-5, 0.1


def published_data(train: bool) -> MNIST:
    """Return MNIST with transforms of every item that is read."""
    source = DATASETS["mnist"]
    steps = [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
    return MNIST(str(load_config().data_dir), train=train, transform=transforms.Compose(steps))


def published_training(args: argparse.Namespace, folder: Path) -> None:
    """Train, and keep a checkpoint for every stage."""
    data = Subset(published_data(train=True), range(args.examples))
    rate = BATCH / args.examples
    sigma = get_noise_multiplier(
        target_epsilon=EPSILON, target_delta=DELTA, sample_rate=rate, epochs=args.epochs, accountant="rdp"
    )
    model = build_model("lenet5", num_classes=10, in_channels=1)
    model, optimizer, loader = PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=sigma,
        max_grad_norm=CLIP,
    )
    steps = round(args.epochs / rate)
    wanted = {round(i / (args.stages - 1) * steps): i for i in range(args.stages)}
    taken = 0

    def keep() -> None:
        if taken in wanted:
            torch.save(model._module.state_dict(), folder / f"stage_{wanted[taken]}.pt")

    keep()
    while taken < steps:
        for x, y in loader:
            if taken == steps:
                break
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            taken += 1
            keep()


def published_stage(args: argparse.Namespace, folder: Path, stage: int) -> None:
    """Measure every point at one stage."""
    model = build_model("lenet5", num_classes=10, in_channels=1)
    model.load_state_dict(torch.load(folder / f"stage_{stage}.pt", weights_only=True))
    data, result = published_data(train=True), folder / "res.csv"
    hits = [(model(x).argmax(1) == y).float() for x, y in DataLoader(published_data(train=False), batch_size=BATCH)]
    accuracy = float(torch.cat(hits).mean())
    for point in range(args.points):
        image, label = data[point]
        gradients = torch.autograd.grad(
            F.cross_entropy(model(image[None]), torch.tensor([label])), list(model.parameters())
        )
        norm = float(torch.stack([g.norm() for g in gradients]).norm())
        row = pd.DataFrame(
            {"point": [point], "step": [stage], "distance (sum)": [min(norm, CLIP) / BATCH], "accuracy": [accuracy]}
        )
        rows = pd.concat([pd.read_csv(result), row]) if result.exists() else row
        rows.to_csv(result, index=False)


def run(line: Sequence[object]) -> float:
    """Run a Python command in a process of its own and return its seconds."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, *map(str, line)], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def our_flags(args: argparse.Namespace, folder: Path) -> list[object]:
    """Return the command of our script for the same work."""
    paths = {key: str(folder / key) for key in vars(load_config())} | {"data_dir": str(load_config().data_dir)}
    config = folder / "config.json"
    config.write_text(json.dumps(paths), encoding="utf-8")
    every = max(1, round(args.epochs * args.examples / BATCH / (args.stages - 1)))
    same = {
        "batch_size": BATCH,
        "max_grad_norm": CLIP,
        "epsilon": EPSILON,
        "delta": DELTA,
        "lr": LR,
        "accountant": "rdp",
    }
    same |= {"data_subset": args.examples, "epochs": args.epochs, "points": args.points, "stages": args.stages}
    flags = [
        word for name, value in (same | {"save_freq": every, "device": "cpu"}).items() for word in (f"--{name}", value)
    ]
    return ["sensitivity/compute_sensitivity.py", "--config", config, *flags]


def main(argv: Sequence[str] | None = None) -> None:
    """Print seconds of both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=12000, help="digits to train on (default 12000)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs (default 5; published: 40 of 60,000 digits)")
    parser.add_argument("--stages", type=int, default=6, help="stages to measure at (default 6; published: 41)")
    parser.add_argument("--points", type=int, default=1000, help="points to measure (default 1000, as published)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; medians are printed (default 2)")
    parser.add_argument("--published", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.published:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # no secure random numbers; hooks on the first layer
        folder = Path(args.published)
        published_training(args, folder) if args.at is None else published_stage(args, folder, args.at)
        return
    sizes = [word for name in ("examples", "epochs", "stages", "points") for word in (f"--{name}", getattr(args, name))]
    seconds: dict[str, list[float]] = {"published, training": [], "published, stages": [], "ours": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            theirs = [Path(__file__), *sizes, "--published", folder]
            seconds["published, training"].append(run(theirs))
            seconds["published, stages"].append(sum(run([*theirs, "--at", stage]) for stage in range(args.stages)))
            seconds["ours"].append(run(our_flags(args, folder)))
    for part, values in seconds.items():
        print(f"{part}: {np.median(values):.1f} s")
    training, stages, ours = (np.array(values) for values in seconds.values())
    print(f"ours is {np.median((training + stages) / ours):.1f} times as fast, start-up and calibration included")


if __name__ == "__main__":
    main()
