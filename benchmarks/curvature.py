"""Time libscores.curvature beside the published procedure and the least work it could do.

    python benchmarks/curvature.py [--arch lenet5 small_inception resnet18] [--examples B] [--rounds R] [--threads T]

The published procedure (arXiv 2402.18726) computes, for each of ten probes, the gradient at x again together
with the one at x + hv, of the batch-mean loss, with parameters that ask for gradients and signs set in a Python
loop, and reads the inner products off the diagonal of a full B x B matrix product. The floor is n + 1 bare
forward and input-backward passes in our layout: gradients at x and at x + h v_k cannot be had for less.
All three see the same model, data and probes in one run and take turns; the ratio of each round's CPU times is
taken, and their median printed. The scores agree after the conversion h / B. The check of a model, three passes of at
most 32 examples once, is not timed. B is the scorers' 256 for LeNet and the small CNN, and 8 for larger networks, so
that all is done in two minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmodels import ARCHITECTURES, build_model
from libmodels.devices import resolve_device
from libscores.curvature import curvature, rademacher

H, N_PROBES = 1e-3, 10


def published(model: nn.Module, x: Tensor, y: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Score one batch the published way; `signs` (n, B, C, H, W) holds 0 and 1 as drawn."""
    model.eval()
    criterion = nn.CrossEntropyLoss()
    norm, inner = x.new_zeros(len(x)), x.new_zeros(len(x))
    for drawn in signs:
        v = drawn.clone()
        for row in v:
            row[row == 0] = -1
        v = H * (v + 1e-7)
        x.requires_grad_()
        loss_shifted = criterion(model(x + v), y)
        loss = criterion(model(x), y)
        difference = torch.autograd.grad(loss_shifted - loss, x)[0]
        norm += difference.reshape(len(x), -1).norm(dim=1).detach()
        inner += torch.diag(v.reshape(len(x), -1) @ difference.reshape(len(x), -1).T).detach()
    return norm / len(signs), inner / len(signs)


def bare_passes(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Do n + 1 forward and input-backward passes and nothing else."""
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(N_PROBES + 1):
        torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)


def main(argv: Sequence[str] | None = None) -> None:
    """Print, for each architecture, seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["lenet5", "small_inception", "resnet18"], choices=ARCHITECTURES)
    parser.add_argument("--examples", type=int, help="batch size B (default 256, for larger networks 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are printed (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    resolve_device("cpu")
    print(f"n = {N_PROBES}, h = {H}, {args.threads} thread(s), {args.rounds} rounds, medians of CPU time")
    for arch in args.arch:
        torch.manual_seed(0)
        batch = args.examples or (256 if arch in ("lenet5", "smallcnn") else 8)
        channels = 1 if arch == "lenet5" else 3
        model = build_model(arch, num_classes=10, in_channels=channels).eval()
        x, y = torch.rand(batch, channels, 32, 32), torch.randint(10, (batch,))
        examples = np.arange(batch)
        signs = torch.from_numpy(rademacher(0, examples, N_PROBES, tuple(x.shape[1:]))).transpose(0, 1)
        drawn = ((signs + 1) // 2).float()

        seconds = np.empty((args.rounds * (1 if batch == 8 else 4) + 1, 3))
        how: dict[str, Any] = {"h": H, "n_probes": N_PROBES, "batch_size": batch, "checked": True}
        ways: tuple[Callable[[], Any], ...] = (
            partial(published, model, x.clone(), y, drawn),
            partial(curvature, model, x, y, examples, **how),
            partial(bare_passes, model, x.clone(), y),
        )
        found: list[Any] = [None] * len(ways)
        for number, row in enumerate(seconds):
            for way in (0, 1, 2) if number % 2 else (0, 2, 1):  # what goes first finds the caches cold
                layout = torch.channels_last if way else torch.contiguous_format
                model.to(memory_format=layout).requires_grad_(not way)
                start = time.process_time()
                found[way] = ways[way]()
                row[way] = time.process_time() - start
        (norm, inner), ours, _ = found
        seconds = seconds[1:]
        agree = [
            np.abs(theirs.numpy() * batch / scale / mine - 1).max()
            for theirs, scale, mine in ((norm, H, ours.curvature), (inner, H * H, ours.trace))
        ]
        medians = np.median(seconds, axis=0)
        ratio, floor = np.median(seconds[:, 0] / seconds[:, 1]), np.median(seconds[:, 1] / seconds[:, 2])
        print(
            f"{arch}, B = {batch}: published {medians[0]:.3f} s, ours {medians[1]:.3f} s ({ratio:.2f} times as fast), "
            f"bare passes {medians[2]:.3f} s (ours takes {floor:.3f} of that); "
            f"largest relative difference after conversion: curvature {agree[0]:.1e}, trace {agree[1]:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
