"""Score every example of a data set under one model and keep the result."""

from __future__ import annotations

import libcli as cli

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from libdata.datasets import Dataset
from libmodels.devices import describe_device
from libscores.agreement import Overlap, below_median, lowest, overlap
from libscores.curvature import FORMAT, CurvatureScores, check_model, curvature
from libstore.errors import InputError
from libstore.scores import KINDS, keep_index, score_path
from libstore.store import Output, array_bytes, exclusive, provenance
from libtrain.training import predict

Result = TypeVar("Result")

MIN_AGREEMENT = 0.99
"""Share of a run's recorded correctness that its model must reproduce."""
SAME_MARKS, ANY_RELATION = 0.1, 0.8
"""Of the differences that a random order of the data makes, the share that the right one may make: where the same is
measured again, at another precision, and where a record is only related to it."""
_SATURATED = 1e-6, 1 - 1e-6  # probabilities beyond are rounding


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
    recorded: Mapping[str, np.ndarray] | None = None,
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
        recorded: "correctness" and maybe "prob" of each example as kept with the model, NaN where unknown, (N,)
            each; the model must reproduce them (`check_agreement`).

    Returns:
        Whether anything was computed.

    Raises:
        InputError: The model cannot be scored, a score is not finite, or the model does not reproduce `recorded`.
    """
    outputs = score_outputs(score_dir, score_settings(model_name, model_identity, data.identity(), args))
    with exclusive(score_dir / model_name):
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            return False
        network = model if isinstance(model, nn.Module) else model()
        check_scorable(network, model_name, data.images, data.labels, args, device)
        if recorded is not None:
            now = outcomes(network, model_name, data.images, data.labels, args, device)
            check_agreement(now, recorded, model_name)
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


def check_scorable(
    model: nn.Module, model_name: str, images: Tensor, labels: Tensor, args: cli.Namespace, device: torch.device
) -> None:
    """Refuse a network that `libscores.curvature.check_model` refuses.

    Raises:
        InputError: The reason.
    """
    try:
        check_model(model, images, labels, temp=args.temp, device=device)
    except ValueError as error:
        raise InputError(f"{model_name}: {error}") from error


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

    The network is one that `check_scorable` has seen.

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
            seed=args.probe_seed, batch_size=batch_size, device=device, progress=show, checked=True,
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


def outcomes(
    model: nn.Module, model_name: str, images: Tensor, labels: Tensor, args: cli.Namespace, device: torch.device
) -> dict[str, np.ndarray]:
    """Return how a network does on each example; only a batch is on the device.

    Returns:
        "correctness", whether it classifies the example correctly, bool (N,), and "prob", the true label's probability,
        float32 (N,).
    """
    model.to(device)

    def classify(size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        batches = zip(images.split(size), labels.split(size), strict=True)
        return [predict(model, x.to(device, copy=True), y.to(device), size) for x, y in batches]

    correct, prob = zip(*_in_memory(classify, args, model_name), strict=True)
    return {"correctness": np.concatenate(correct), "prob": np.concatenate(prob)}


def check_agreement(
    now: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray], model_name: str, *, complete: bool = True
) -> None:
    """Refuse a model that does not do what was recorded with it: a wrong order or scale of the data.

    It must be right and wrong where it was (`MIN_AGREEMENT`), and what marks few examples, its errors, must mark the
    same ones: in any order an accurate model agrees with its record on most. The probabilities of the true label,
    where recorded, are compared likewise, as below and above their median; so are the shares of a record that is not
    plainly right or wrong, with the probabilities, and refused only if a random order explains them. A line on stderr
    says if the examples are too few to tell.

    Args:
        now: What the model does, as `outcomes` returns it, (N,) each.
        recorded: "correctness" and maybe "prob" as recorded, in [0, 1], NaN where unknown, (N,) each.
        model_name: Name for the message.
        complete: These are all examples of the model, not the first part.

    Raises:
        InputError: The two do not agree, beyond what rounding and chance may do.
    """

    def refuse(what: str) -> NoReturn:
        raise InputError(
            f"{model_name}: {what}: the order or the scale of the data is not the one it was trained with (a released "
            "CIFAR ensemble is known by its folder's name, such as cifar100-inception; its tfds_order.npz may be wrong)"
        )

    p_random, seen = 1.0, "no result recorded"
    for kind, values in recorded.items():
        known = ~np.isnan(values)
        if not known.any():
            continue
        plain = kind == "correctness" and bool(np.isin(values[known], (0, 1)).all())
        found = _overlap(kind, plain, values[known], {name: array[known] for name, array in now.items()})
        counts = f"{found.recorded} of {found.n} examples {'wrong' if plain else f'low in {kind}'} in aux_arrays.npz"
        if plain and found.p_rate(1 - MIN_AGREEMENT) < 1e-3:
            agree = f"{1 - found.differ / found.n:.2%} of {found.n} examples, not on {MIN_AGREEMENT:.0%}"
            refuse(f"agrees with the correctness recorded in aux_arrays.npz on {agree}")
        if found.p_right(SAME_MARKS if plain or kind == "prob" else ANY_RELATION) < 1e-6:
            random = f"{found.differ} are so in one of the two only, a random order has {found.expected:.0f}"
            refuse(f"{counts}, {found.now} now, but {random}")
        if found.p_random <= p_random:
            p_random, seen = found.p_random, f"{counts} and {found.now} now"
    if complete and p_random > 1e-3:
        cli.warn(f"{model_name}: {seen}: too few to tell whether the order of the data is the one it was trained with")


def _overlap(kind: str, plain: bool, there: np.ndarray, now: Mapping[str, np.ndarray]) -> Overlap:
    """Mark errors, or low values, in the record and now, and compare the marks."""
    if plain:
        return overlap(there == 0, now["correctness"] == 0)
    if kind == "prob":
        marks, limit = below_median(np.clip(there, *_SATURATED))
        return overlap(marks, np.clip(now["prob"], *_SATURATED) < limit)
    marks, _ = below_median(there)
    return overlap(marks, lowest(now["prob"], int(marks.sum())))
