"""What one step of the mean update rule costs chosen points, from batches sampled under a network's present weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from libscores import one_step, renyi
from libtrain.dp_training import DPTrainer
from libtrain.settings import MeanRuleSettings

FORMAT = 1
"""To be raised when what a column means changes; results of two formats are never mixed."""


def measure_mean_rule(
    trainer: DPTrainer, points: np.ndarray, rows: torch.Tensor, how: MeanRuleSettings
) -> pd.DataFrame:
    """Measure points under the trainer's present weights.

    A step of the mean rule releases the mean of a batch's clipped gradients with noise of standard deviation
    noise_multiplier C / B; DP-SGD itself divides the sum by the expected batch size B, which is the sum rule.

    Args:
        trainer: Its settings and plan give C, B, q, the noise multiplier and the delta of the epsilon columns.
        points: Positions of the points, (P,).
        rows: Their rows of the trainer's data, (P,).
        how: Order of the divergences, and how many batches and tuples of them are drawn.

    Returns:
        A row per point: divergences in nats and epsilon at delta of one step. The coupled bound has a standard error
        over the batches. The theorem's value has none: the logarithm of a mean over few tuples is too low, and rises
        with `how.tuples`.
    """
    generator = torch.Generator().manual_seed(how.batch_seed)
    batches = [trainer.sample(generator) for _ in range(how.batches)]
    drawn = [trainer.clipped_sum(chosen) for chosen in (*batches, *rows.split(1))]
    vectors = one_step.same_inner_products(torch.stack(drawn).double().numpy())
    sums, gradients = vectors[: how.batches], vectors[how.batches :]
    holds = np.array([np.isin(rows.numpy(), batch.numpy()) for batch in batches])
    sizes = np.array([len(batch) for batch in batches])

    settings, q, noise = trainer.settings, trainer.plan.sample_rate, trainer.plan.noise_multiplier
    clip, delta, order = settings.max_grad_norm, settings.delta, how.alpha
    table = []
    for point, gradient, held in zip(points, gradients, holds.T, strict=True):
        without = sums - held[:, None] * gradient
        unit = clip / settings.batch_size
        step = one_step.mean_rule_step(
            without, sizes - held, gradient, q, noise * unit, order, how.tuples, how.batch_seed
        )
        coupled, coupled_error = one_step.coupled_mean_rule_divergence(step.coupled, order)
        sensitivity = min(float(np.linalg.norm(gradient)) / clip, 1.0)
        epsilon, _ = one_step.one_step_epsilon(step.shift[:, None] / unit, q, noise, delta)
        table.append(
            {
                "point": point,
                "sum rule": float(renyi.step_divergence(sensitivity, q, noise, order)),
                "mean rule, coupled batches": coupled,
                "mean rule, coupled batches, standard error": coupled_error,
                "mean rule, theorem 3.6, at least": step.theorem.mean(),
                "data-independent": float(renyi.step_divergence(1.0, q, noise, order)),
                "epsilon, sum rule": float(one_step.sum_rule_epsilon(np.array(sensitivity), q, noise, delta)),
                "epsilon, mean rule": epsilon[0],
                "epsilon, data-independent": float(one_step.sum_rule_epsilon(np.array(1.0), q, noise, delta)),
            }
        )
    return pd.DataFrame(table)
