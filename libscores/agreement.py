"""How far two markings of the same examples agree.

Does a model do on data what was recorded with it, or what it would do on the data in a random order?

Agreement as such says little: at an accuracy of 99 %, results in any order agree on 98 %. What counts is whether the
same examples are marked, for example as errors. With n examples, R of them marked in the record, C now and D in one of
the two only, a random order has D around R + C - 2 R C / n, and the number marked in both is hypergeometric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW = 2
"""Examples on a border that a right model may mark otherwise, by rounding, where next to none is marked."""


@dataclass(frozen=True)
class Overlap:
    """How far two markings of the same examples coincide.

    Attributes:
        n: Number n of examples.
        recorded: Number R marked in the record.
        now: Number C marked now.
        differ: Number D marked in one of the two only.
        p_random: Probability that a random order has as many marked in both, or more.
    """

    n: int
    recorded: int
    now: int
    differ: int
    p_random: float

    @property
    def expected(self) -> float:
        """Mean of `differ` over random orders."""
        return self.recorded + self.now - 2 * self.recorded * self.now / max(self.n, 1)

    def p_right(self, share: float) -> float:
        """Probability of as many differences, or more, in the right order.

        Args:
            share: The right order has at most this share of a random order's differences, and `FEW` more, in the
                mean.
        """
        from scipy import special

        return float(special.gammainc(self.differ, share * self.expected + FEW)) if self.differ else 1.0

    def p_rate(self, rate: float) -> float:
        """Probability of as many differences, or more, if an example differs with probability `rate`."""
        from scipy import special

        return float(special.betainc(self.differ, self.n - self.differ + 1, rate)) if self.differ else 1.0


def overlap(recorded: np.ndarray, now: np.ndarray) -> Overlap:
    """Compare two markings.

    Args:
        recorded: Whether an example is marked in the record, bool (N,).
        now: Whether it is marked now, bool (N,).
    """
    n, r, c = len(recorded), int(recorded.sum()), int(now.sum())
    both = int((recorded & now).sum())
    return Overlap(n, r, c, r + c - 2 * both, _hypergeometric_tail(both, n, r, c))


def _hypergeometric_tail(both: int, n: int, r: int, c: int) -> float:
    """Return the probability that of r and c out of n, drawn independently, `both` or more coincide."""
    from scipy import special

    def log_choose(n: int, k: np.ndarray) -> np.ndarray:
        return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)

    k = np.arange(max(both, r + c - n), min(r, c) + 1)
    log_total = log_choose(n, np.array(c))
    return min(1.0, float(np.exp(special.logsumexp(log_choose(r, k) + log_choose(n - r, c - k) - log_total))))


def below_median(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Mark the lower half of some values, (N,): those below the median or, where there is none, those at it.

    Returns:
        The marks, bool (N,), and a limit between marked and unmarked values (infinite if all are marked).
    """
    low = values < np.median(values)
    low = low if low.any() else values <= np.median(values)
    return low, float((values[low].max() + values[~low].min(initial=np.inf)) / 2)


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` lowest of some values, (N,)."""
    marks = np.zeros(len(values), dtype=bool)
    marks[np.argsort(values, kind="stable")[:count]] = True
    return marks
