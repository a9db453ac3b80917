"""What the demo's arithmetic costs alone: the passes of its networks in bare PyTorch, beside what the demo took.

    python benchmarks/demo.py
    python benchmarks/demo.py --times results/demo/times

Bare: the forward and backward passes that training, scoring and testing cannot do without, on random digits in memory
and one thread, with no data, noise, clipping, checks, files or processes around them; a private step counts as one
without privacy. Seconds of the processor: the number of passes times the least of the repeats. What the demo's parts
took is read from the file that it leaves; on another load or machine neither tells anything of the other.
"""

from __future__ import annotations

import libcli as cli

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmodels.lenet5 import LeNet5
from libmodels.smallcnn import SmallCNN
from libscores.curvature import full_precision, input_gradient, scoring
from libstore.errors import InputError

EXAMPLES, TEST, BATCH, SCORED, PASSES = 2000, 10_000, 64, 256, 11
NETWORKS, EPOCHS, SHARE = 60, 30, 0.7  # Link 1
PRIVATE, PRIVATE_EPOCHS, PRIVATE_SHARE = 48, 20, 0.68  # Links 2 and 3: digits of a subset drawn by coins, on average
RUNS, STAGES, STAGE_TEST = {"three runs": 3, "removals and a fold": 12}, 21, 1000


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least CPU time of a call."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def bare(network: type[nn.Module], size: int, repeats: int) -> tuple[float, float, float]:
    """Return the CPU seconds of a training step, of a scoring batch's pass and of a test split."""
    model = network(10, 1)
    images, labels = torch.randn(TEST, 1, size, size), torch.randint(0, 10, (TEST,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images[:BATCH]), labels[:BATCH]).backward()
        optimizer.step()

    def one_pass() -> Tensor:
        return input_gradient(model, images[:SCORED], labels[:SCORED], 1.0)

    @torch.inference_mode()
    def test() -> None:
        for part in images.split(500):
            model(part)

    with full_precision():
        trained = seconds(step, repeats)
    with scoring(model, "cpu"):
        return trained, seconds(one_pass, repeats), seconds(test, max(3, repeats // 10))


def floor(repeats: int) -> dict[str, float]:
    """Return the CPU seconds of the bare passes of each part of the demo."""
    step, one_pass, test = bare(SmallCNN, 28, repeats)
    lenet_step, _, lenet_test = bare(LeNet5, 32, repeats)
    scored = PASSES * EXAMPLES / SCORED * one_pass
    own = EPOCHS * SHARE * EXAMPLES / BATCH * step + test
    private = PRIVATE_EPOCHS * PRIVATE_SHARE * EXAMPLES / BATCH * step + test
    stages = ((STAGES - 1) * STAGE_TEST / TEST + 1) * lenet_test
    run = PRIVATE_EPOCHS * EXAMPLES / BATCH * lenet_step + stages
    parts = {
        f"{NETWORKS} networks": NETWORKS * own,
        "their curvature": NETWORKS * scored,
        f"{PRIVATE} private networks": PRIVATE * private,
        "the curvature under these": PRIVATE * scored,
    }
    return parts | {f"per-instance: {name}": count * run for name, count in RUNS.items()}


def taken(times: Path) -> dict[str, float]:
    """Return the CPU seconds of the parts of a demo, from the file that scripts/demo.sh leaves."""
    try:
        lines = times.read_text(encoding="utf-8").splitlines()
        names, used = lines[::4], [[word.split("m") for word in line.replace("s", "").split()] for line in lines[3::4]]
        total = [sum(60 * float(minutes) + float(rest) for minutes, rest in words) for words in used]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{times}: not what scripts/demo.sh leaves: {error}") from error
    return {name: after - before for name, before, after in zip(names, total, total[1:], strict=False)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print both."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--repeats", type=cli.positive_int, default=50, help="take the least of so many")
    parser.add_argument("--times", type=Path, help="what a demo left (default: only the bare passes)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for title, parts in (
        ("bare passes", floor(args.repeats)),
        *([("the demo", taken(args.times))] if args.times else []),
    ):
        print(f"{title}, CPU seconds")
        for name, cost in {**parts, "all": sum(parts.values())}.items():
            print(f"  {cost:7.1f}  {name}")


if __name__ == "__main__":
    cli.run(main)
