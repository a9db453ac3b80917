"""Score every example of a data set under one model and keep the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from libdata import cli
from libdata.datasets import Dataset
from libdata.errors import InputError
from libdata.scores import KINDS, keep_index, score_path
from libdata.store import Output, array_bytes, exclusive, provenance
from libmodels.devices import describe_device
from libmodels.training import predict
from libscores.curvature import FORMAT, CurvatureScores, curvature

Result = TypeVar("Result")

MIN_AGREEMENT = 0.99
"""Share of a run's recorded correctness that its model must reproduce."""


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


def score_settings(
    model_name: str, model_identity: dict[str, Any], data_identity: dict[str, Any], args: cli.Namespace
) -> dict[str, Any]:
    """Return what decides the scores of one model, for their sidecars."""
    return {
        "model_name": model_name,
        "model": model_identity,
        "data": data_identity,
        "h": args.h,
        "n_probes": args.n_probes,
        "temp": args.temp,
        "probe_seed": args.probe_seed,
    }


def score_outputs(score_dir: Path, settings: dict[str, Any]) -> list[Output]:
    """Return the files that one model's scores go to, in the order of `KINDS`."""
    paths = [score_path(score_dir, kind, settings["model_name"], settings["h"]) for kind in KINDS]
    return [Output(path, settings | {"score": kind}, FORMAT) for path, kind in zip(paths, KINDS, strict=True)]


def score_model(
    score_dir: Path,
    model_name: str,
    model: nn.Module | Callable[[], nn.Module],
    model_identity: dict[str, Any],
    data: Dataset,
    args: cli.Namespace,
    device: torch.device,
    recorded: np.ndarray | None = None,
) -> bool:
    """Compute curvature and trace of every example under one model, unless they are kept already.

    Args:
        score_dir: Root of the scores.
        model_name: Name of the model, also of its folder.
        model: The network, or a function that loads it.
        model_identity: What distinguishes the model, at least its checkpoint's SHA-256; goes into the sidecar.
        data: The examples, normalised as the model expects.
        args: The flags of `add_scoring_options`.
        device: Where to compute.
        recorded: Correctness on each example as kept with the model, 0 or 1, NaN where unknown, shape (N,);
            the model must reproduce it.

    Returns:
        Whether anything was computed.

    Raises:
        InputError: A score is not finite, or the model does not reproduce `recorded`.
    """
    outputs = score_outputs(score_dir, score_settings(model_name, model_identity, data.identity(), args))
    with exclusive(score_dir / model_name):
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            return False
        network = model if isinstance(model, nn.Module) else model()
        if recorded is not None:
            correct = correctness(network, model_name, data.images, data.labels, args, device)
            check_agreement(correct, recorded, model_name)
        started = time.monotonic()
        with cli.progress(len(data), model_name, "examples") as bar:
            scores = score_batch(
                network, model_name, data.images, data.labels, data.index, args, device, progress=bar.update
            )
        keep_index(score_dir, data.index)
        seconds = round(time.monotonic() - started, 3)
        made_by = provenance(**describe_device(device), batch_size=args.batch_size, seconds=seconds)
        for output, array in zip(outputs, (scores.curvature, scores.trace, data.labels.numpy()), strict=True):
            output.save(array_bytes(array), made_by)
    return True


def score_batch(
    model: nn.Module,
    model_name: str,
    images: Tensor,
    labels: Tensor,
    examples: np.ndarray,
    args: cli.Namespace,
    device: torch.device,
    progress: Callable[[int], object],
) -> CurvatureScores:
    """Return the scores of examples that are in memory, in batches of --batch_size or half of it.

    Raises:
        InputError: A score is not finite, or the device's memory is too small.
    """
    done = 0

    def show(count: int) -> None:
        nonlocal done
        done += count
        progress(count)

    def score(batch_size: int) -> CurvatureScores:
        progress(-done)
        return curvature(
            model, images, labels, examples, h=args.h, n_probes=args.n_probes, temp=args.temp,
            seed=args.probe_seed, batch_size=batch_size, device=device, progress=show,
        )  # fmt: skip

    try:
        return _in_memory(score, args, model_name)
    except ValueError as error:
        raise InputError(f"{model_name}: {error}") from error


def _in_memory(work: Callable[[int], Result], args: cli.Namespace, model_name: str) -> Result:
    """Do something in batches of --batch_size; where a GPU has no memory for it, once more with half of that.

    The half is kept for what follows. Scores do not depend on it.
    """
    try:
        return work(args.batch_size)
    except torch.OutOfMemoryError as error:
        if args.batch_size == 1 or "batch_size_asked" in args:
            before = f", halved from {args.batch_size_asked}" if "batch_size_asked" in args else ""
            raise InputError(
                f"{model_name}: the GPU is out of memory with batches of {args.batch_size}{before}; "
                f"give a smaller --batch_size ({str(error).splitlines()[0]})"
            ) from error
    args.batch_size_asked, args.batch_size = args.batch_size, args.batch_size // 2
    cli.warn(
        f"{model_name}: the GPU is out of memory with --batch_size {args.batch_size_asked}, "
        f"going on with {args.batch_size}"
    )
    torch.cuda.empty_cache()
    return _in_memory(work, args, model_name)


def correctness(
    model: nn.Module, model_name: str, images: Tensor, labels: Tensor, args: cli.Namespace, device: torch.device
) -> np.ndarray:
    """Return whether a network classifies each example correctly, bool (N,); only a batch is on the device."""
    model.to(device)

    def classify(size: int) -> np.ndarray:
        batches = zip(images.split(size), labels.split(size), strict=True)
        return np.concatenate([predict(model, x.to(device), y.to(device), size)[0] for x, y in batches])

    return _in_memory(classify, args, model_name)


def check_agreement(correct: np.ndarray, recorded: np.ndarray, model_name: str, *, spread: float = 0.0) -> None:
    """Refuse a model whose correctness differs from what was recorded with it: a wrong order or scale of the data.

    Args:
        correct: What the model does now, bool, shape (N,).
        recorded: What was recorded, 0 or 1, NaN where unknown, shape (N,).
        model_name: Name for the message.
        spread: Standard errors below `MIN_AGREEMENT` that a part of the examples may be.

    Raises:
        InputError: The two agree on too few examples.
    """
    known = ~np.isnan(recorded)
    agree = float((correct[known] == recorded[known]).mean()) if known.any() else 1.0
    margin = spread * (MIN_AGREEMENT * (1 - MIN_AGREEMENT) / max(known.sum(), 1)) ** 0.5
    if agree < MIN_AGREEMENT - margin:
        raise InputError(
            f"{model_name}: agrees with the correctness recorded in aux_arrays.npz on {agree:.2%} of {known.sum()} "
            f"examples, not on {MIN_AGREEMENT:.0%}: the order or the scale of the data is not the one it was trained "
            "with (released CIFAR ensembles need the map of libdata.tfds_order)"
        )
