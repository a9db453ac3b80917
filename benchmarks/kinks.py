"""What of Link 1 survives where curvature counts no kinks: ensembles of tanh, ReLU and residual networks, several h.

    nice -n 19 python benchmarks/kinks.py [--folder results/kinks] [--kinds tanh relu residual]

Trains small ensembles on MNIST's first digits and scores them at several h and by exact Hessian-vector products, with
the scripts that do it for any ensemble. For each it prints how far the finite difference is from E||Hv|| (ratio of the
means and of the medians over digits and networks, Spearman's correlation of the two), and Spearman's correlation with
memorization by the true label's probability, with its interval, of curvature, and of the loss. Takes minutes on a CPU;
interrupted, it goes on where it was.
"""

from __future__ import annotations

import libcli as cli

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

import calc_curv_fz_models
import train_fz_models
from libscores.link1 import link1
from libscores.statistics import spearman
from libstore.config import load_config
from libstore.scored_ensemble import ScoredEnsemble

KINDS = {
    "tanh": ("smallcnn", 18, ["--data_subset", "300", "--arch_options", "activation=tanh"]),
    "relu": ("smallcnn", 18, ["--data_subset", "300", "--arch_options", "activation=relu"]),
    "residual": ("residual", 18, ["--data_subset", "300", "--image_size", "14", "--lr", "0.03"]),
}
"""Network, number of them, and flags of its training."""
STEPS = ("1e-4", "1e-3", "1e-2", "0.1", "exact")


class Residual(nn.Module):
    """Two blocks of two convolutions with ReLU and a path around them, normed by groups: a small ResNet."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.convolutions = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(4))
        self.last = nn.Linear(16 * 9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.first(x)), 2)
        for block in (0, 2):
            out = F.relu(self.norms[block](self.convolutions[block](x)))
            x = F.relu(x + self.norms[block + 1](self.convolutions[block + 1](out)))
        return self.last(F.avg_pool2d(x, 2).flatten(1))


def residual(num_classes: int, in_channels: int) -> nn.Module:
    """Build a `Residual` network."""
    return Residual(num_classes, in_channels)


def study(kind: str, folder: Path) -> None:
    """Train, score and print one kind of network."""
    arch, n_runs, flags = KINDS[kind]
    (folder / kind).mkdir(parents=True, exist_ok=True)
    config_file = folder / kind / "config.json"
    places = {key: key for key in ("fz_model_dir", "private_model_dir")} | {"data_dir": str(Path("data").resolve())}
    config_file.write_text(json.dumps(places))
    network = f"{Path(__file__).resolve()}:{arch}" if kind == "residual" else arch
    common = ["--dataset", "mnist", "--arch", network, "--config", str(config_file)]
    train_fz_models.main([*common, *flags, "--stop_run", str(n_runs), "--epochs", "30", "--batch_size", "32"])
    config, found = load_config(config_file), {}
    for step in STEPS:
        how = ["--exact"] if step == "exact" else ["--h", step]
        calc_curv_fz_models.main([*common, "--n_probes", "4", *how])
        h = "exact" if step == "exact" else float(step)
        found[step] = ScoredEnsemble.find(
            config.fz_models("mnist"), config.fz_score_dir("mnist"), "mnist", arch, "0.7", h=h, value="prob"
        )
    scores = {step: np.array([run.curvature for run in one.read()], dtype=float) for step, one in found.items()}
    exact = scores["exact"]
    print(f"\n{kind}: {n_runs} networks, {exact.shape[1]} digits")
    print("h      mean/exact  median/exact  Spearman(exact)  Spearman(mem, curvature)   given loss")
    for step, ensemble in found.items():
        result = link1(ensemble.read, n_runs, exact.shape[1], n_permutations=1)
        link, values = result.links["curvature"], scores[step]
        ratios = values.mean() / exact.mean(), np.median(values) / np.median(exact)
        agree = np.mean([spearman(one, other) for one, other in zip(values, exact, strict=True)])
        correlations = f"{link.similarity['Spearman']:.2f}   {link.partial:.2f}"
        print(f"{step:6} {ratios[0]:10.2f}  {ratios[1]:12.2f}  {agree:15.3f}  {correlations}")
    print(f"loss: Spearman(mem, loss) {result.links['loss'].similarity['Spearman']:.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the kinds that are asked for."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--folder", default="results/kinks", help="where models and scores go")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="networks")
    args = parser.parse_args(argv)
    for kind in args.kinds:
        study(kind, Path(args.folder))


if __name__ == "__main__":
    cli.run(main)
