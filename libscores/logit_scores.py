"""Scores of single examples that need nothing but the logits of one model.

Every function takes logits z, shape (N, K) with K >= 2, and labels y, int64, shape (N,), and returns a tensor (N,).
With m = logsumexp_{j != y} z_j - z_y, the probability of the label is p = 1 / (1 + exp(m)): what is taken from m keeps
its digits where p rounds to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return ln(p / (1 - p)) = -m of the label's probability p (as Carlini et al. 2022, arXiv 2112.03570, use it)."""
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, y[:, None])[:, 0] - others


def are_probabilities(logits: Tensor) -> bool:
    """Tell whether every row is not negative and sums to 1, as what a softmax gives and logits do not."""
    return (
        logits.ndim == 2
        and logits.shape[1] > 1
        and bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all())
    )


def losses(logits: Tensor, y: Tensor, temp: float = 1.0) -> Tensor:
    """Return the cross-entropy of softmax(z / temp), as softplus(m): the same number without the loss of 1 - p."""
    return F.softplus(-log_odds(logits / temp, y))


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return z_y - max_{j != y} z_j: negative where the model is wrong."""
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - others


def el2n(logits: Tensor, y: Tensor) -> Tensor:
    """Return ||softmax(z) - onehot(y)||_2, the EL2N score (Paul et al. 2021, arXiv 2107.07075, definition 2.3)."""
    others = logits.softmax(1).scatter(1, y[:, None], 0)
    return torch.linalg.vector_norm(others.scatter(1, y[:, None], -torch.sigmoid(-log_odds(logits, y))[:, None]), dim=1)
