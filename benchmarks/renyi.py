"""Time the accounting against the published procedure: one Python call per row, on the same rows, in one run.

    python benchmarks/renyi.py                  410,000 rows: 1,000 points, 41 steps, 10 runs
    python benchmarks/renyi.py --points 60000   24.6 million rows

The published procedure, written here from its description: for each row follow the recursion of the order step by
step, round it up, and add the terms of the binomial sum with logsumexp; then a log-mean-exp over runs. It is timed on
a sample of the rows. Trajectories are made up: norms fall from step to step, from far above the clipping norm to far
below it.
"""

from __future__ import annotations

import libcli as cli

import math
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from libscores import renyi

RUNS, STEPS, TOTAL_STEPS = 10, 100 * np.round(np.arange(41) * 93 / 40).astype(int), 9375
SAMPLE_RATE, NOISE_MULTIPLIER, ORDER, DELTA = 256 / 60000, 0.57891845703125, 8, 1e-5


def published_row(sensitivity: float, step: int, holder_exponent: float) -> float:
    """Return the scaled divergence of one row as the published code computes it."""
    order = float(ORDER)
    for _ in range(step):
        order = order * holder_exponent / (holder_exponent - 1) - 1 / holder_exponent
    whole = math.ceil(order)
    terms = []
    for k in range(whole + 1):
        weight = math.log(math.comb(whole, k)) + (whole - k) * math.log(1 - SAMPLE_RATE) + k * math.log(SAMPLE_RATE)
        terms.append(weight + sensitivity**2 * k * (k - 1) / (2 * NOISE_MULTIPLIER**2))
    return holder_exponent * float(logsumexp(terms))


def trajectories(points: int) -> np.ndarray:
    """Return made-up relative sensitivities, shape (runs, steps, points), float64."""
    generator = np.random.default_rng(0)
    level = generator.normal(-1.5, 1.5, points)
    s = generator.normal(size=(RUNS, STEPS.size, points))
    s *= 0.5
    s += level + np.linspace(1, -1, STEPS.size)[:, None]
    np.exp(s, out=s)
    return np.minimum(s, 1.0, out=s)


def main(argv: Sequence[str] | None = None) -> None:
    """Time both and print the ratio."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--points", type=cli.positive_int, default=1000, help="points")
    parser.add_argument("--rows", type=cli.positive_int, default=2000, help="rows for the published procedure")
    args = parser.parse_args(argv)
    s = trajectories(args.points)
    inputs = (STEPS, TOTAL_STEPS, SAMPLE_RATE, NOISE_MULTIPLIER, ORDER)
    exponent = 3.0 * STEPS[-1]

    chosen = np.random.default_rng(1).integers(args.points, size=max(args.rows // (RUNS * STEPS.size), 1))
    sample = s[:, :, chosen]
    start = time.perf_counter()
    rows = [published_row(float(sample[i]), int(STEPS[i[1]]), exponent) for i in np.ndindex(sample.shape)]
    expected = logsumexp(np.reshape(rows, sample.shape), axis=0) - math.log(RUNS)
    published = (time.perf_counter() - start) / sample.size
    print(f"published procedure, {sample.size:,} rows: {published * 1e6:.1f} us a row")

    def timed(what: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {seconds:.2f} s, {published * s.size / seconds:,.0f} times as fast, peak {peak:.2f} GiB so far")
        return result

    print(f"ours, {s.size:,} rows:")
    cost = timed("the same costs", lambda: renyi.composed_cost(s, *inputs, exponent, "published"))
    worst = np.max(np.abs(cost[:, chosen] - expected) / np.maximum(np.abs(expected), 1e-6))
    print(f"largest relative difference above 1e-6: {worst:.1e} (the published sum rounds small costs off)")
    timed("divergences at order 8", lambda: renyi.step_divergence(s, SAMPLE_RATE, NOISE_MULTIPLIER, ORDER))
    weights = renyi.interpolation_weights(STEPS, TOTAL_STEPS)
    timed("composed bound at the best p", lambda: renyi.compose(s, *inputs, weights))
    timed("bound, realised and data-independent costs, epsilons", lambda: renyi.account(s, *inputs, DELTA))


if __name__ == "__main__":
    cli.run(main)
