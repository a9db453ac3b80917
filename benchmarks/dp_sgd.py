"""Time a step of train_dp.py beside the published way to take it and beside two plain backward passes.

    python benchmarks/dp_sgd.py [--arch lenet5 smallcnn resnet18] [--batch_size B] [--steps S] [--rounds R]

The published way (arXiv 2402.18726): Opacus's default per-sample-gradient hooks behind `make_private`, a
DataLoader over a torchvision data set, and transforms (to a tensor, normalise, resize for LeNet) of every image
each time it is read. Ours: libtrain.dp_training on the data as one tensor. Both take S noisy steps on real MNIST
digits with the same expected batch size B, sample rate, noise and optimizer. Between them Opacus's own hooks and its
ghost mode, which it recommends where memory or time is short, on the same tensor as ours: what they compute alone. The
floor: a forward and two backward passes over a batch of B in memory, without privacy. Rates are examples per second of
the process's CPU time, so that other work on the machine counts little; the ways take turns, each round's ratio is
taken, and the median is printed. ResNet-18 has GroupNorm, and a sixteenth of the batch.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from libdata.datasets import DATASETS, load_dataset
from libmodels import ARCHITECTURES, build_model
from libmodels.devices import resolve_device
from libstore.config import load_config
from libtrain.dp_training import DPTrainer
from libtrain.settings import GRAD_SAMPLE_MODES, DPSettings, PrivacyPlan

NOISE_MULTIPLIER, LR = 1.0, 1e-3


class Images(Dataset):
    """MNIST as torchvision serves it: a PIL image per item, through the transforms."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor, size: int | None) -> None:
        from torchvision import transforms

        source = DATASETS["mnist"]
        resize = [] if size is None else [transforms.Resize(size)]
        steps = [*resize, transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
        self.transform = transforms.Compose(steps)
        self.pixels = [transforms.functional.to_pil_image(image) for image in pixels]
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[row]), self.labels[row]


def network(arch: str) -> nn.Module:
    """Return a fresh network without BatchNorm."""
    options = {"norm": "group"} if "norm" in ARCHITECTURES[arch].options else {}
    return build_model(arch, num_classes=10, in_channels=1, **options)


def published(arch: str, images: Images, batch_size: int) -> Callable[[int], int]:
    """Return a function that takes noisy steps the published way and counts the examples."""
    from opacus import PrivacyEngine

    model = network(arch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no secure random numbers
        model, optimizer, loader = PrivacyEngine(accountant="rdp").make_private(
            module=model,
            optimizer=torch.optim.RMSprop(model.parameters(), lr=LR),
            data_loader=DataLoader(images, batch_size=batch_size),
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=1.0,
        )
    model.train()

    def take(steps: int) -> int:
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        examples = 0
        for x, y in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            examples += len(y)
        return examples

    return take


def ours(arch: str, data, batch_size: int, mode: str) -> Callable[[int], int]:
    """Return a function that takes steps of train_dp.py and counts the examples."""
    model = network(arch)
    settings = DPSettings(epsilon=1, batch_size=batch_size, lr=LR, lr_drops=(), grad_sample_mode=mode)
    plan = PrivacyPlan(batch_size / len(data), 10**9, NOISE_MULTIPLIER)
    trainer = DPTrainer(model, data.images, data.labels, settings, plan)
    return lambda steps: sum(trainer.take_step().size for _ in range(steps))


def opacus_steps(
    mode: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    noise_multiplier: float = 1.0,
    lr: float = 1e-3,
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[int], int]:
    """Return a function that takes noisy RMSprop steps on Poisson batches as Opacus does and counts the examples.

    Args:
        mode: "hooks", per-sample gradients in memory, or "ghost", norms first and a second backward pass.
        model: The network, on the device of the data.
        images: Inputs, (N, ...).
        labels: Classes, (N,).
        batch_size: Expected examples of a step.
        noise_multiplier: Standard deviation of the noise over the clipping norm, which is 1.
        lr: Learning rate.
        cast: Entered around every forward pass.
    """
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    arguments: dict[str, Any] = {"max_grad_norm": 1.0, "noise_multiplier": noise_multiplier}
    inner = torch.optim.RMSprop(model.parameters(), lr=lr)
    criterion: Any = nn.CrossEntropyLoss()
    if mode == "hooks":
        private: Any = GradSampleModule(model)
        optimizer: Any = DPOptimizer(inner, expected_batch_size=batch_size, **arguments)
    else:
        private = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(inner, expected_batch_size=batch_size, **arguments)
        criterion = DPLossFastGradientClipping(private, optimizer, criterion)
    draw = torch.Generator().manual_seed(0)
    rate = batch_size / len(labels)

    def take(steps: int) -> int:
        examples = 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for _ in range(steps):
                rows = (torch.rand(len(labels), generator=draw) < rate).nonzero()[:, 0].to(images.device)
                optimizer.zero_grad()
                with cast():
                    logits = private(images[rows])
                criterion(logits.float(), labels[rows]).backward()
                optimizer.step()
                examples += len(rows)
        return examples

    return take


def plain_steps(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    lr: float = 1e-3,
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[int], int]:
    """Return a function that takes plain RMSprop steps, without privacy, and counts the examples; as `opacus_steps`."""
    optimizer = torch.optim.RMSprop(model.parameters(), lr=lr)

    def take(steps: int) -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            with cast():
                logits = model(images[:batch_size])
            F.cross_entropy(logits.float(), labels[:batch_size]).backward()
            optimizer.step()
        return steps * batch_size

    return take


def opacus(arch: str, data, batch_size: int, mode: str) -> Callable[[int], int]:
    """Return a function that takes steps by Opacus on the data in memory and counts the examples."""
    return opacus_steps(
        mode, network(arch), data.images, data.labels, batch_size, noise_multiplier=NOISE_MULTIPLIER, lr=LR
    )


def two_backward_passes(arch: str, data, batch_size: int) -> Callable[[int], int]:
    """Return a function that does the least work of clipping with two passes, and counts the examples."""
    model = network(arch)
    x, y = data.images[:batch_size], data.labels[:batch_size]

    def take(steps: int) -> int:
        for _ in range(steps):
            loss = F.cross_entropy(model(x), y)
            loss.backward(retain_graph=True)
            loss.backward()
        return steps * batch_size

    return take


def main(argv: Sequence[str] | None = None) -> None:
    """Print rates and ratios for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["lenet5", "smallcnn", "resnet18"], choices=ARCHITECTURES)
    parser.add_argument("--batch_size", type=int, default=256, help="expected batch size (default 256)")
    parser.add_argument("--examples", type=int, default=6000, help="digits in the data set (default 6000)")
    parser.add_argument("--steps", type=int, default=12, help="steps per round (default 12)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are printed (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    resolve_device("cpu")
    print(f"B = {args.batch_size} (a sixteenth for larger networks), {args.threads} thread(s), {args.rounds} rounds")
    index = np.arange(args.examples)
    for arch in args.arch:
        large = arch not in ("lenet5", "smallcnn")
        batch_size, steps = (max(1, args.batch_size // 16), 1) if large else (args.batch_size, args.steps)
        size = ARCHITECTURES[arch].image_size
        shape: dict[str, Any] = {"normalization": "standard", "image_size": size}
        pixels = load_dataset("mnist", "train", load_config().data_dir, index=index)
        data = load_dataset("mnist", "train", load_config().data_dir, index=index, **shape)
        ways = {
            "published": published(arch, Images(pixels.images, pixels.labels, size), batch_size),
            **{f"Opacus, {mode}": opacus(arch, data, batch_size, mode) for mode in ("hooks", "ghost")},
            **{f"ours, {mode}": ours(arch, data, batch_size, mode) for mode in GRAD_SAMPLE_MODES},
            "two backward passes": two_backward_passes(arch, data, batch_size),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(args.rounds + 1):
            for name, take in ways.items():
                start = time.process_time()
                examples = take(steps)
                if round_number:
                    rates[name].append(examples / (time.process_time() - start))
        table = {name: np.array(values) for name, values in rates.items()}
        for name, values in table.items():
            against = [np.median(values / table[one]) for one in ("published", "Opacus, ghost", "two backward passes")]
            print(
                f"{arch}, {name}: {np.median(values):.4g} examples/s, {against[0]:.2f} times the published way, "
                f"{against[1]:.2f} times Opacus's ghost mode, {against[2]:.2f} of two plain backward passes",
                flush=True,
            )


if __name__ == "__main__":
    main()
