"""Score every example of a data set under one model and keep the result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libdata import cli
from libdata.datasets import Dataset
from libdata.errors import InputError
from libdata.scores import KINDS, keep_index, score_path
from libdata.store import Output, array_bytes, exclusive, provenance
from libscores.curvature import curvature


def add_scoring_options(parser: cli.Parser) -> None:
    """Add the flags of the curvature estimator."""
    parser.add_argument(
        "--h",
        type=cli.positive_float,
        default=1e-3,
        help="step of the finite difference, in pixels as the model gets them",
    )
    parser.add_argument("--n_probes", type=cli.positive_int, default=10, help="random directions per example")
    parser.add_argument("--temp", type=cli.positive_float, default=1.0, help="temperature that divides the logits")
    parser.add_argument("--probe_seed", type=cli.non_negative_int, default=0, help="seed of the directions")
    parser.add_argument(
        "--batch_size", type=cli.positive_int, default=256, help="examples per forward pass; does not change the scores"
    )
    cli.add_device(parser)
    cli.add_overwrite(parser)


def score_model(
    score_dir: Path,
    model_name: str,
    model: nn.Module,
    model_identity: dict[str, Any],
    data: Dataset,
    args: cli.Namespace,
    device: torch.device,
) -> bool:
    """Compute curvature and trace of every example under one model, unless they are kept already.

    Args:
        score_dir: Root of the scores.
        model_name: Name of the model, also of its folder.
        model: The network.
        model_identity: What distinguishes the model, at least its checkpoint's SHA-256; goes into the sidecar.
        data: The examples, normalised as the model expects.
        args: The flags of `add_scoring_options`.
        device: Where to compute.

    Returns:
        Whether anything was computed.
    """
    settings = {
        "model_name": model_name,
        "model": model_identity,
        "data": data.identity(),
        "h": args.h,
        "n_probes": args.n_probes,
        "temp": args.temp,
        "probe_seed": args.probe_seed,
    }
    outputs = [Output(score_path(score_dir, kind, model_name, args.h), settings | {"score": kind}) for kind in KINDS]
    with exclusive(score_dir / model_name):
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            return False
        started = time.monotonic()
        bar = cli.progress(len(data), model_name, "examples")
        try:
            scores = curvature(
                model, data.images, data.labels, data.index, h=args.h, n_probes=args.n_probes, temp=args.temp,
                seed=args.probe_seed, batch_size=args.batch_size, device=device, progress=bar.update,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"{model_name}: {error}") from error
        finally:
            bar.close()
        keep_index(score_dir, data.index)
        seconds = round(time.monotonic() - started, 3)
        made_by = provenance(device=str(device), batch_size=args.batch_size, seconds=seconds)
        for output, array in zip(outputs, (scores.curvature, scores.trace, data.labels.numpy()), strict=True):
            output.save(array_bytes(array), made_by)
    return True
