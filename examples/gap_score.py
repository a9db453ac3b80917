"""A score of one's own: the gap between the two largest logits, next to built-in ones.

    python calc_curv_fz_models.py --dataset mnist --arch smallcnn --scores loss,el2n,examples/gap_score.py:gap

A score is called with a network in evaluation mode, a batch of inputs and labels on its device, and the examples'
positions, and returns a value for each example by name. The values are kept as gap_<model>.npy beside the others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def gap(model: nn.Module, x: Tensor, y: Tensor, examples: np.ndarray) -> dict[str, Tensor]:
    """Return how far the largest logit is above the next."""
    first, second = model(x).topk(2).values.unbind(1)
    return {"gap": first - second}
