"""What a GPU does with this project, in one command and under eight minutes: gpu.json, and gpu.md for docs/gpu.md.

    python benchmarks/gpu.py --out FOLDER [--wheels FOLDER] [--device cuda] [--parts parity oom ...] [--small]

Needs Python 3.11 or later, PyTorch 2.9 or later, NumPy, SciPy, pandas and matplotlib, and no network: the data are
synthetic. Private training needs Opacus besides, which needs opt_einsum; both are pure Python, and --wheels names a
folder of such .whl files (`pip download opacus opt_einsum --no-deps -d FOLDER`) to import from. What cannot be
imported or fails is recorded with its error, and the rest goes on; so does what runs over its share of the time.
Without a GPU, or with --small, everything runs at a small size, to see that it works: such rates mean nothing.

Parts: device (measured rates of matrix products), parity (curvature, scores and private training beside the CPU),
deterministic (--deterministic in two processes, same bytes), oom (a batch that does not fit is halved), scoring
(images per second and share of the float32 rate, beside the published procedure), private (ResNet-18 on CIFAR-sized
images beside Opacus's hooks, its ghost mode and plain training, in three precisions), ensembles (LeNets trained many
at once and one by one) and two_jobs (two processes on one card).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 470.0
"""Seconds for everything."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where to measure and how much.

    Attributes:
        device: The device.
        small: Take the least work that goes through every line.
        flags: Flags for processes of this script's own.
    """

    device: torch.device
    small: bool
    flags: tuple[str, ...]

    def pick(self, full: Any, small: Any) -> Any:
        """Return the full size, or the small one."""
        return small if self.small else full

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int) -> float:
        """Return the median time of a piece of work, which is done once more before."""
        work()
        times = []
        for _ in range(rounds):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return float(np.median(times))

    def peak(self) -> float:
        """Return the most memory that tensors have taken since the last call, in GB; NaN on a CPU."""
        if self.device.type != "cuda":
            return float("nan")
        found = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return found


def images_of(n: int, shape: Sequence[int], classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return synthetic pixels in [0, 1], smooth as photographs are, and labels."""
    draw = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand(n, channels, max(1, height // 4), max(1, width // 4), generator=draw)
    pixels = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = 0.1 * torch.rand(n, *shape, generator=draw)
    return (0.9 * pixels + noise).clamp(0, 1), torch.randint(classes, (n,), generator=draw)


def network(arch: str, channels: int = 3, seed: int = 0, classes: int = 10, **options: str) -> nn.Module:
    """Return a network with weights of its own seed."""
    from libmodels import build_model

    torch.manual_seed(seed)
    return build_model(arch, num_classes=classes, in_channels=channels, **options)


def private_network(arch: str, channels: int = 3) -> nn.Module:
    """Return a network without BatchNorm."""
    return network(arch, channels, norm="group") if arch == "resnet18" else network(arch, channels)


def attempt(row: Row, work: Callable[[], Row]) -> Row:
    """Return a row with what some work found, or with its error."""
    try:
        return row | work()
    except TimeoutError:
        raise
    except Exception as error:
        return row | {"error": told(error)}


def told(error: BaseException) -> str:
    """Return an error in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


# ---- parts: each returns rows, and may say what it found in a line


def device_part(bench: Bench) -> Iterator[Row]:
    """Rates of matrix products and of a convolution in three precisions."""
    from libtrain.precision import multiplying

    n, batch = bench.pick((8192, 256), (256, 2))
    a, b = (torch.randn(n, n, device=bench.device) for _ in range(2))
    x = torch.randn(batch, 256, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 256, 3, padding=1).to(bench.device).to(memory_format=torch.channels_last)
    work = {
        "matrix product": (lambda: a @ b, 2 * n**3),
        "convolution 3x3, 256 maps": (lambda: conv(x), 2 * batch * 32 * 32 * 256 * 256 * 9),
    }
    for what, (do, flops) in work.items():
        for precision in ("float32", "tf32", "bf16"):
            cast = torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16")
            with torch.no_grad(), multiplying(precision), cast:
                rate = flops / bench.seconds(do, bench.pick(10, 2)) / 1e12
            yield {"what": what, "precision": precision, "TFLOP/s": rate}


def float32_rate(bench: Bench) -> float:
    """Return the measured rate of a float32 matrix product, in FLOP/s."""
    return next(row["TFLOP/s"] for row in device_part(bench)) * 1e12


def parity_part(bench: Bench) -> Iterator[Row]:
    """Curvature, scores and private training on the device beside the CPU.

    In float64 nothing but the order of sums differs. In float32 a difference of gradients keeps 3 to 4 digits, and a
    kink of ReLU that falls on the other side changes a single score: of networks with kinks the median is judged.
    """
    cpu, n = torch.device("cpu"), bench.pick(32, 4)

    def curvatures(arch: str, dtype: torch.dtype, tolerance: float, channels: int) -> Row:
        from libscores.curvature import curvature

        x, y = images_of(n, (channels, 32, 32))
        model = network(arch, channels).to(dtype).eval()
        both = [
            curvature(model, x.to(dtype), y, np.arange(n), n_probes=4, device=device) for device in (cpu, bench.device)
        ]
        off = np.abs(both[1].curvature / both[0].curvature - 1)
        found = float(np.max(off) if dtype == torch.float64 or arch == "lenet5" else np.median(off))
        return verdict(found, tolerance)

    for arch, channels in (("lenet5", 1), ("resnet18", 3), ("small_inception", 3))[: bench.pick(3, 1)]:
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.float32, 1e-2)):
            row = {"what": "curvature", "network": arch, "type": str(dtype).removeprefix("torch.")}
            yield attempt(row, partial(curvatures, arch, dtype, tolerance, channels))

    def score(name: str) -> Row:
        from libscores.curvature import on_device, scoring
        from libscoring.settings import ScoreSettings
        from libscoring.table import find_scores

        x, y = images_of(n, (1, 32, 32))
        found = []
        for device in (cpu, bench.device):
            model = network("lenet5", 1)
            with scoring(model, device):
                (row,) = find_scores(name)
                values = row.start(model, ScoreSettings(scores=name))(*on_device(model, x, y, device), np.arange(n))
                found.append(np.concatenate([torch.as_tensor(value).cpu().double() for value in values.values()]))
        return verdict(float(np.abs(found[1] - found[0]).max() / np.abs(found[0]).max()), 1e-4)

    for name in ("loss", "margin", "el2n", "input_gradient_norm", "grand"):
        yield attempt({"what": name, "network": "lenet5", "type": "float32"}, partial(score, name))

    def private(arch: str, channels: int, steps: int) -> Row:
        x, y = images_of(64, (channels, 32, 32))
        weights = []
        for device in (cpu, bench.device):
            trainer = private_trainer(arch, x.to(device), y.to(device), 32, noise=0.0, channels=channels)
            start = flat(trainer.model)
            for _ in range(steps):
                trainer.take_step()
            weights.append(flat(trainer.model) - start)
        return verdict(float((weights[1] - weights[0]).norm() / weights[0].norm()), 1e-2)

    for arch, channels in (("lenet5", 1), ("resnet18", 3))[: bench.pick(2, 1)]:
        row = {"what": "5 private steps without noise", "network": arch, "type": "float32"}
        yield attempt(row, partial(private, arch, channels, 5))


def verdict(found: float, tolerance: float) -> Row:
    """Return a relative difference beside what is allowed."""
    return {"relative difference": found, "tolerance": tolerance, "passes": bool(found <= tolerance)}


def flat(model: nn.Module) -> Tensor:
    """Return all weights in one tensor on the CPU."""
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def private_trainer(
    arch: str,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    noise: float = 1.0,
    channels: int = 3,
    precision: str = "float32",
    physical: int = 512,
) -> Any:
    """Return a private training on data that are on the device already."""
    from libtrain.dp_training import DPTrainer
    from libtrain.settings import DPSettings, PrivacyPlan

    model = private_network(arch, channels).to(images.device)
    how = DPSettings(
        epsilon=1, batch_size=batch_size, optimizer="sgd", lr=0.1, lr_drops=(), precision=precision,
        max_physical_batch_size=physical,
    )  # fmt: skip
    return DPTrainer(model, images, labels, how, PrivacyPlan(batch_size / len(labels), 10**9, noise))


def deterministic_part(bench: Bench) -> Iterator[Row]:
    """Digests of results from two processes with --deterministic."""
    both = [child(bench, "digests") for _ in range(2)]
    one, other = (json.loads(answer(process)) for process in both)
    for what in one:
        same = one[what] == other[what] and not one[what].startswith("error")
        yield {"what": what, "digests": f"{one[what]}, {other[what]}", "passes": same}


def digests(bench: Bench) -> None:
    """Print digests of what a process computes with --deterministic."""
    from libmodels.devices import resolve_device

    sys.stdout, out = sys.stderr, sys.stdout
    resolve_device(str(bench.device), deterministic=True)
    n = bench.pick(128, 8)

    def digest(work: Callable[[], Tensor | np.ndarray]) -> str:
        try:
            return hashlib.sha256(np.asarray(work()).tobytes()).hexdigest()[:16]
        except Exception as error:
            return f"error {told(error)}"

    def scores(arch: str) -> np.ndarray:
        from libscores.curvature import curvature

        x, y = images_of(n, (3, 32, 32))
        return curvature(network(arch).eval(), x, y, np.arange(n), n_probes=2, device=bench.device).curvature

    def private(arch: str) -> Tensor:
        x, y = images_of(2 * n, (3, 32, 32))
        trainer = private_trainer(arch, x.to(bench.device), y.to(bench.device), n)
        for _ in range(3):
            trainer.take_step()
        return flat(trainer.model)

    def plain(arch: str, several: bool = False) -> Tensor:
        return torch.cat([flat(model) for model in train_lenets(bench, 2, n, several, arch)])

    archs = bench.pick(("lenet5", "smallcnn", "resnet18"), ("lenet5",))
    found = {f"curvature, {arch}": digest(partial(scores, arch)) for arch in (*archs, *bench.pick(("resnet50",), ()))}
    found |= {f"private training, {arch}": digest(partial(private, arch)) for arch in archs}
    found |= {f"plain training, {arch}": digest(partial(plain, arch)) for arch in archs}
    found |= {"two LeNets together": digest(partial(plain, "lenet5", True))}
    print(json.dumps(found), file=out, flush=True)


def train_lenets(bench: Bench, count: int, examples: int, together: bool, arch: str = "lenet5") -> list[nn.Module]:
    """Train a few networks for an epoch, in one step each or one by one, and return them."""
    import tempfile

    from libstore.store import Output
    from libtrain.settings import SGDSettings
    from libtrain.together import train_together
    from libtrain.training import train_sgd
    from libtrain.unfinished import Unfinished

    images, labels = (part.to(bench.device) for part in images_of(examples, (3, 32, 32)))
    models = [network(arch, seed=seed).to(bench.device) for seed in range(count)]
    how = SGDSettings(epochs=1, batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        state = Unfinished(Output(Path(folder) / "state.pt", {}))
        if together:
            rows = torch.arange(examples).repeat(count, 1)
            train_together(models, images, labels, rows, how, seed=0, runs=range(count), unfinished=state)
        else:
            for run, model in enumerate(models):
                train_sgd(model, images, labels, how, seed=0, run=run, unfinished=state)
    return models


def oom_part(bench: Bench) -> Iterator[Row]:
    """A batch that the memory does not hold is halved, once, and the scores are those of small batches."""
    from libscores.curvature import curvature
    from libscoring.scoring import Batches, Scoring, score_batch
    from libscoring.settings import ScoreSettings
    from libscoring.table import find_scores

    class TooLarge(nn.Module):
        """Raises as a GPU does, where there is none."""

        def __init__(self, model: nn.Module, limit: int) -> None:
            super().__init__()
            self.model, self.limit = model, limit

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.limit:
                raise torch.OutOfMemoryError("no memory (made up)")
            return self.model(x)

    arch = bench.pick("resnet18", "lenet5")
    model, cuda = network(arch).eval(), bench.device.type == "cuda"
    few, size = 512, 16
    if cuda:
        x, y = images_of(few, (3, 32, 32))
        bench.peak()
        used = []
        for n in (few // 2, few):
            curvature(model, x[:n], y[:n], np.arange(n), n_probes=1, batch_size=n, device=bench.device, checked=True)
            used.append(bench.peak() * 1e9)
        free = torch.cuda.mem_get_info(bench.device)[0]
        ballast = torch.empty(max(0, free - 12 * 10**9), dtype=torch.uint8, device=bench.device)  # 12 GB are enough
        free -= len(ballast)
        size = int(1.4 * free / ((used[1] - used[0]) / (few // 2)))
    else:
        model = TooLarge(model, 8)
    x, y = images_of(size, (3, 32, 32))
    settings = ScoreSettings(n_probes=1)
    batches = Batches(size)
    scoring = Scoring(Path("unused"), settings, find_scores("curvature"), bench.device, batches)
    found = score_batch(model, arch, x, y, np.arange(size), scoring, lambda n: None)["curvature"]["curvature"]
    checked = min(size, 64)
    few_at_once: dict[str, Any] = {"n_probes": 1, "batch_size": 8, "device": bench.device, "checked": True}
    want = curvature(model, x[:checked], y[:checked], np.arange(checked), **few_at_once).curvature
    off = float(np.median(np.abs(found[:checked] / want - 1)))
    halved = batches.size == size // 2
    yield {
        "network": arch, "batch asked for": size, "batch taken": batches.size,
        "remark": None if cuda else "the error is made up: there is no GPU",
    } | verdict(off, 1e-2) | {"passes": halved and off <= 1e-2}  # fmt: skip


def scoring_part(bench: Bench) -> Iterator[Row]:
    """Curvature with ten probes, ours and the published procedure, in images per second."""
    from curvature import published
    from unit_costs import Operations

    from libscores.curvature import curvature, full_precision, rademacher

    peak = float32_rate(bench)
    cases = bench.pick(
        (("resnet18", 512, 32, 10), ("small_inception", 512, 32, 100), ("resnet50", 64, 224, 1000)),
        (("lenet5", 2, 32, 10),),
    )
    for arch, batch, size, classes in cases:
        x, y = images_of(batch, (3, size, size), classes)
        examples, model = np.arange(batch), network(arch, classes=classes).to(bench.device).eval()

        def ours(model: nn.Module = model, x: Tensor = x, y: Tensor = y, examples: np.ndarray = examples) -> None:
            curvature(model, x, y, examples, batch_size=len(y), device=bench.device, checked=True)

        def measure(work: Callable[[], object], batch: int = batch) -> Row:
            bench.peak()
            seconds = bench.seconds(work, bench.pick(5, 1))
            return {"images/s": batch / seconds, "memory (GB)": bench.peak()}

        with Operations() as operations:
            ours()
        each = operations.total / batch
        row = attempt({"network": arch, "way": "ours", "batch": batch}, partial(measure, ours))
        mine = row.get("images/s", float("nan"))
        yield row | {"TFLOP/s": each * mine / 1e12, "of the card's float32": each * mine / peak}
        signs = rademacher(0, examples, 10, tuple(x.shape[1:]))
        drawn = ((torch.from_numpy(signs) + 1) // 2).transpose(0, 1).float().to(bench.device)
        model = model.to(memory_format=torch.contiguous_format).requires_grad_(True)
        theirs = partial(published, model, x.to(bench.device), y.to(bench.device), drawn)
        for way, precision in (("published, float32", full_precision), ("published, PyTorch's default", nullcontext)):
            with precision():
                row = attempt({"network": arch, "way": way, "batch": batch}, partial(measure, theirs))
            yield row | {"ours is faster by": mine / row.get("images/s", float("nan"))}


def private_part(bench: Bench) -> Iterator[Row]:
    """Steps of private training, ours and others', in examples per second."""
    from libtrain.precision import multiplying

    arch = bench.pick("resnet18", "lenet5")
    batch, steps = bench.pick((256, 8), (8, 1))
    images, labels = (part.to(bench.device) for part in images_of(bench.pick(8192, 32), (3, 32, 32)))

    def ours(precision: str) -> Callable[[int], int]:
        physical = bench.pick(0, 512) if precision == "float32" else 512
        trainer = private_trainer(arch, images, labels, batch, precision=precision, physical=physical)
        return lambda steps: sum(trainer.take_step().size for _ in range(steps))

    def theirs(mode: str, precision: str) -> Callable[[int], int]:
        from dp_sgd import opacus_steps, plain_steps

        cast = partial(torch.autocast, bench.device.type, torch.bfloat16, enabled=precision == "bf16")
        model = private_network(arch).to(bench.device)
        if mode == "plain":
            return plain_steps(model, images, labels, batch, cast=cast)
        return opacus_steps(mode, model, images, labels, batch, cast=cast)

    def measure(start: Callable[[], Callable[[int], int]], precision: str) -> Row:
        bench.peak()
        with multiplying(precision):
            take = start()
            counts: list[int] = []
            seconds = bench.seconds(lambda: counts.append(take(steps)), bench.pick(3, 1))
        rate = float(np.mean(counts)) / seconds
        return {"examples/s": rate, "memory (GB)": bench.peak()}

    for precision in ("float32", "tf32", "bf16"):
        ways: dict[str, Callable[[], Callable[[int], int]]] = {
            "ours": partial(ours, precision),
            "Opacus, ghost": partial(theirs, "ghost", precision),
            "Opacus, hooks": partial(theirs, "hooks", precision),
            "plain training, no privacy": partial(theirs, "plain", precision),
        }
        mine = float("nan")
        for way, start in ways.items():
            row = {"network": arch, "way": way, "precision": precision, "batch": batch}
            row = attempt(row, partial(measure, start, precision))
            rate = row.get("examples/s", float("nan"))
            mine = rate if way == "ours" else mine
            yield row | {"ours is faster by": mine / rate}


def ensembles_part(bench: Bench) -> Iterator[Row]:
    """Epochs of LeNet ensembles, many networks in one step and one by one, in networks' examples per second."""
    examples = bench.pick(4096, 64)

    def rate(count: int, together: bool) -> Row:
        work = partial(train_lenets, bench, count, examples, together)
        return {"examples/s": count * examples / bench.seconds(work, bench.pick(3, 1))}

    alone = attempt({"networks": 1, "way": "one by one"}, partial(rate, bench.pick(2, 1), False))
    yield alone
    for count in bench.pick((4, 16, 64, 256), (2,)):
        row = attempt({"networks": count, "way": "together"}, partial(rate, count, True))
        each = alone.get("examples/s", float("nan"))
        yield row | {"times one by one": row.get("examples/s", float("nan")) / each}


def two_jobs_part(bench: Bench) -> Iterator[Row]:
    """One process at a time on the card, then two, in examples per second of each and of both."""
    for arch in bench.pick(("lenet5", "resnet18"), ("lenet5",)):
        jobs = [child(bench, "job", arch) for _ in range(2)]
        for job in jobs:
            if answer(job) != "ready":
                raise RuntimeError("a job did not start")
        span = bench.pick(6.0, 0.2)
        alone = float(asked(jobs[0], span))
        for job in jobs:
            asked(job, span, wait=False)
        both = [float(answer(job)) for job in jobs]
        for job in jobs:
            asked(job, 0.0, wait=False)
            job.communicate(timeout=60)
        each = " and ".join(f"{rate:.0f}" for rate in both)
        row: Row = {"network": arch, "one job, examples/s": alone, "two jobs, each": each}
        yield row | {"both over one": sum(both) / alone}


def job(bench: Bench, arch: str) -> None:
    """Take private steps for as many seconds as each line of stdin says and print the rate; 0 ends it."""
    out, sys.stdout = sys.stdout, sys.stderr
    batch = bench.pick(256, 8)
    images, labels = (part.to(bench.device) for part in images_of(4 * batch, (3, 32, 32)))
    trainer = private_trainer(arch, images, labels, batch)
    trainer.take_step()
    bench.wait()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        span, examples, started = float(line), 0, time.perf_counter()
        if not span:
            break
        while time.perf_counter() - started < span:
            examples += sum(trainer.take_step().size for _ in range(bench.pick(10, 1)))
            bench.wait()
        print(examples / (time.perf_counter() - started), file=out, flush=True)


PROCESSES: list[subprocess.Popen[str]] = []


def child(bench: Bench, *what: str) -> subprocess.Popen[str]:
    """Start this script as a process of its own that does one thing."""
    command = [sys.executable, str(Path(__file__).resolve()), *bench.flags, "--child", *what]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    PROCESSES.append(process)
    return process


def answer(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout and process.stderr
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError((process.stderr.read().strip().splitlines() or ["a process ended without a word"])[-1])
    return line


def asked(process: subprocess.Popen[str], span: float, wait: bool = True) -> str:
    """Send a job how long to work, and return its answer if that is to be waited for."""
    assert process.stdin
    process.stdin.write(f"{span}\n")
    process.stdin.flush()
    return answer(process) if wait else ""


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], float]] = {
    "device": (device_part, 20),
    "parity": (parity_part, 60),
    "deterministic": (deterministic_part, 60),
    "oom": (oom_part, 40),
    "scoring": (scoring_part, 100),
    "private": (private_part, 100),
    "ensembles": (ensembles_part, 50),
    "two_jobs": (two_jobs_part, 60),
}
"""What is measured, with the seconds that each may take."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the code inside after so many seconds."""

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"over its {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(name: str, bench: Bench, seconds: float) -> dict[str, Any]:
    """Run a part, print its rows as they come, and return them with the error that ended it, if one did."""
    work, budget = PARTS[name]
    found: dict[str, Any] = {"what": (work.__doc__ or "").splitlines()[0], "rows": []}
    started = time.monotonic()
    print(f"{name}: {found['what']}", flush=True)
    try:
        with limited(max(1.0, min(budget, seconds))):
            for row in work(bench):
                found["rows"].append(row)
                print("  " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
    except Exception as error:
        found["error"] = told(error)
        if not isinstance(error, TimeoutError | ImportError):
            found["traceback"] = traceback.format_exc().replace(str(ROOT) + os.sep, "")
        print(f"  {found['error']}", flush=True)
    finally:
        for process in PROCESSES:
            if process.poll() is None:
                process.kill()
            process.communicate()
        PROCESSES.clear()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    found["seconds"] = round(time.monotonic() - started, 1)
    return found


def shown(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def markdown(found: dict[str, Any]) -> str:
    """Return the tables of all parts."""
    told_of = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    small = " Small sizes: the rates mean nothing." if found["small"] else ""
    lines = [f"Measured by `benchmarks/gpu.py` in {found['seconds']:.0f} s: {told_of}.{small}", ""]
    for name, part in found["parts"].items():
        lines += [f"## {name}", "", part["what"], ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row if row[key] is not None))
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            for row in part["rows"]:
                cells = (shown(row.get(column)).replace("|", "/") for column in columns)
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
        if "error" in part:
            lines += [f"Stopped: {part['error']}", ""]
    return "\n".join(lines)


def machine(device: torch.device) -> dict[str, str]:
    """Return what the numbers were measured with."""
    found = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"}
    if device.type == "cuda":
        found["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
    found |= {"Python": platform.python_version(), "PyTorch": torch.__version__, "CUDA": str(torch.version.cuda)}
    found["CPU threads"] = str(torch.get_num_threads())
    for name in ("opacus", "torchvision", "tqdm"):
        try:
            found[name] = str(getattr(__import__(name), "__version__", "there"))
        except Exception:
            found[name] = "not there"
    return found


def prepare(wheels: str | None) -> None:
    """Import from the repository and from a folder of wheels, and do without tqdm where it is not there."""
    sys.path.insert(0, str(ROOT))
    if wheels:
        folder = Path(wheels).resolve()
        sys.path += [str(folder), *map(str, sorted(folder.glob("*.whl")))]
    try:
        import tqdm  # noqa: F401
    except ImportError:
        stand_in: Any = module_from_spec(ModuleSpec("tqdm", None))
        stand_in.tqdm, stand_in.__version__ = type("tqdm", (), {}), "not there"
        sys.modules["tqdm"] = stand_in


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", help="where gpu.json and gpu.md go (required)")
    parser.add_argument("--wheels", metavar="FOLDER", help="folder of pure-Python wheels to import from")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="the least of everything, as without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default all)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    prepare(args.wheels)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    device = torch.device(name)
    small = args.small or device.type != "cuda"
    if small:
        torch.set_num_threads(1)
    flags = ["--device", name, *(["--small"] if small else [])]
    bench = Bench(device, small, (*flags, *(["--wheels", str(Path(args.wheels).resolve())] if args.wheels else [])))
    if args.child:
        if args.child[0] == "digests":
            digests(bench)
        else:
            job(bench, args.child[1])
        return
    if not args.out:
        parser.error("--out FOLDER: where should gpu.json and gpu.md go?")
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found: dict[str, Any] = {"machine": machine(device), "small": small, "seconds": 0.0, "parts": {}}
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()), flush=True)
    for part in args.parts:
        left = TOTAL - (time.monotonic() - started)
        if left < 5:
            found["parts"][part] = {"what": "", "rows": [], "error": "no time was left", "seconds": 0.0}
        else:
            found["parts"][part] = run_part(part, bench, left)
        found["seconds"] = round(time.monotonic() - started, 1)
        for file, text in (("gpu.json", json.dumps(found, indent=2) + "\n"), ("gpu.md", markdown(found))):
            (folder / f".{file}.tmp").write_text(text, encoding="utf-8")
            (folder / f".{file}.tmp").replace(folder / file)
    rows = [row for part in found["parts"].values() for row in part["rows"]]
    failed = sum(row.get("passes") is False for row in rows)
    errors = sum("error" in part for part in found["parts"].values()) + sum(bool(row.get("error")) for row in rows)
    print(f"{folder}: {found['seconds']:.0f} s, {failed} checks failed, {errors} errors", flush=True)


if __name__ == "__main__":
    main()
