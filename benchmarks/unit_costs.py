"""What the papers' studies cost: counted operations and measured time per example, times the jobs of the grids.

    python benchmarks/unit_costs.py [--device cuda] [--threads T] [--only link2_train ...] [--rounds R]

Runs each kind of job for a few examples of the right shape, counts the floating-point operations of its matrix products
and convolutions, times it, and multiplies by the examples and jobs of the published grids (scripts/grid.sh). Run it on
the machine that is to do the work; docs/scale.md explains the columns. Start-up, loading and saving are not in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from libmodels import ARCHITECTURES, build_model
from libmodels.devices import resolve_device
from libscores.curvature import curvature
from libtrain.dp_training import DPTrainer
from libtrain.settings import DPSettings, PrivacyPlan


@dataclass(frozen=True)
class Kind:
    """One kind of job of the papers' grids.

    Attributes:
        arch: Its network.
        task: "dp" for a pass of DP-SGD, "score" for a curvature with ten probes, "norm" for a gradient norm.
        shape: Shape of an input.
        classes: Number of classes.
        per_job: Examples that go through one job, all epochs counted.
        jobs: Number of jobs.
        batch: Examples at once.
    """

    arch: str
    task: str
    shape: tuple[int, int, int]
    classes: int
    per_job: int
    jobs: int
    batch: int


CIFAR, MNIST, IMAGENET = (3, 32, 32), (1, 32, 32), (3, 224, 224)
KINDS = {
    "link1_cifar100_score": Kind("small_inception", "score", CIFAR, 100, 50_000, 1000, 64),
    "link1_imagenet_score": Kind("resnet50", "score", IMAGENET, 1000, 1_281_167, 100, 4),
    "link2_train": Kind("resnet18", "dp", CIFAR, 100, 20 * 50_000, 2 * 21 * 10, 64),
    "link2_score": Kind("resnet18", "score", CIFAR, 100, 50_000, 2 * 21 * 10, 64),
    "link3_train": Kind("resnet18", "dp", CIFAR, 100, 20 * 34_900, 6 * 40, 64),
    "instance_train": Kind("lenet5", "dp", MNIST, 10, 40 * 60_000, 2 * 10, 256),
    "instance_norms": Kind("lenet5", "norm", MNIST, 10, 41 * 1000, 2 * 10, 256),
}


class Operations(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products and convolutions, by PyTorch's own formulas.

    Its FlopCounterMode cannot be used here: it does not allow torch.autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def work(kind: Kind, device: torch.device) -> Callable[[], int]:
    """Return a function that does a batch of this kind of job and counts its examples."""
    options = {"norm": "group"} if "norm" in ARCHITECTURES[kind.arch].options and kind.task == "dp" else {}
    model = build_model(kind.arch, num_classes=kind.classes, in_channels=kind.shape[0], **options).to(device)
    images = torch.rand(kind.batch, *kind.shape, device=device)
    labels = torch.randint(kind.classes, (kind.batch,), device=device)
    if kind.task == "score":
        examples = np.arange(kind.batch)
        return lambda: len(curvature(model, images, labels, examples, batch_size=kind.batch, device=device).curvature)
    settings, plan = DPSettings(epsilon=1, batch_size=kind.batch, lr_drops=()), PrivacyPlan(1.0, 10**9, 1.0)
    trainer = DPTrainer(model, images, labels, settings, plan)
    if kind.task == "norm":
        return lambda: len(trainer.gradient_norms(torch.arange(kind.batch)))
    return lambda: trainer.take_step().size  # q = 1: every example is in the batch


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per kind of job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of job (default all)")
    parser.add_argument("--rounds", type=int, default=3, help="timed batches; medians are printed (default 3)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    print(f"{device}, {args.threads} thread(s), medians of {args.rounds} batches")
    print(f"{'kind':22s}{'GFLOP/ex.':>10s}{'ex./s':>10s}{'TFLOP/s':>9s}{'jobs':>6s}{'h/job':>8s}{'h in all':>10s}")
    for name in args.only:
        kind = KINDS[name]
        once = work(kind, device)
        with Operations() as operations:
            examples = once()
        flops = operations.total / examples
        rates = []
        for _ in range(args.rounds):
            synchronize(device)
            started = time.perf_counter()
            examples = once()
            synchronize(device)
            rates.append(examples / (time.perf_counter() - started))
        rate = float(np.median(rates))
        hours = kind.per_job / rate / 3600
        print(
            f"{name:22s}{flops / 1e9:10.4g}{rate:10.4g}{flops * rate / 1e12:9.3g}"
            f"{kind.jobs:6d}{hours:8.3g}{hours * kind.jobs:10.4g}"
        )


if __name__ == "__main__":
    main()
