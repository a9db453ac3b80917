"""Score ImageNet under one model, TFRecord file by TFRecord file, and merge."""

from __future__ import annotations

import libcli as cli

import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from libdata.imagenet import IMAGE_SIZE, ImageNetIndex, content_digest, stream
from libmodels.devices import describe_device
from libscores.curvature import FORMAT
from libscoring.scoring import check_agreement, check_scorable, outcomes, score_batch, score_outputs, score_settings
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.scores import keep_index
from libstore.store import Output, array_bytes, arrays_bytes, exclusive, provenance, read_sidecar

_MERGED = {"curvature": np.float32, "trace": np.float32, "correctness": bool, "prob": np.float32}


def score_shards(
    score_dir: Path,
    model_name: str,
    load: Callable[[], nn.Module],
    model_identity: dict[str, Any],
    shards: Sequence[Path],
    selected: range,
    order: ImageNetIndex,
    recorded: Mapping[str, np.ndarray],
    args: cli.Namespace,
    device: torch.device,
) -> str:
    """Compute the scores of the examples in some TFRecord files; the job that completes the set merges them.

    The scores of one file are kept under <score dir>/<model>/parts_<h>/ until all files are scored; then they are
    placed by index and the parts removed. Batches never cross files, so the result does not depend on which job
    scored which file, or on being interrupted. Memory holds two batches of images and, at the merge, three
    vectors over the examples.

    Args:
        score_dir: Root of the scores.
        model_name: Name of the model, also of its folder.
        load: Returns the network; called only if there is something to score.
        model_identity: What distinguishes the model; goes into the sidecars.
        shards: All TFRecord files of the split.
        selected: Which of them to score now.
        order: Feldman and Zhang's labels by index.
        recorded: "correctness" and maybe "prob" by index as kept with the model, NaN where unknown, (N,) each; they
            are compared after every file and for all examples at the merge.
        args: The flags of `libscoring.scoring.add_scoring_options`, and `workers`.
        device: Where to compute.

    Returns:
        What was done, for the log.

    Raises:
        InputError: A record, label or index is wrong, the model cannot be scored, a score is not finite, or the model
            does not reproduce `recorded`.
    """
    identity = {
        "dataset": "imagenet", "split": "train", "n_examples": len(order), "index_sha256": index_digest(order.index),
        "image_size": IMAGE_SIZE, "normalization": "standard", "imagenet_index_sha256": order.sha256,
        "content_sha256": content_digest(shards),
    }  # fmt: skip
    settings = score_settings(model_name, model_identity, identity, args)
    outputs = score_outputs(score_dir, settings)
    folder = score_dir / model_name
    parts_dir = folder / f"parts_{args.h}"
    if all([output.finished(overwrite=args.overwrite) for output in outputs]):
        shutil.rmtree(parts_dir, ignore_errors=True)  # left by a job that was killed after it merged
        return "finished before, skipped"

    parts = [Output(parts_dir / path.name / "scores.npz", settings | {"file": path.name}, FORMAT) for path in shards]
    model: nn.Module | None = None
    files: list[dict[str, np.ndarray]] = []
    with (
        cli.progress(len(selected) * len(order) // len(shards), model_name, "examples") as bar,
        ThreadPoolExecutor(args.workers) as pool,
    ):
        for shard in selected:
            with exclusive(parts[shard].path.parent):
                merged_meanwhile = not parts[shard].path.parent.is_dir() or all(
                    [output.finished(overwrite=args.overwrite) for output in outputs]
                )
                if merged_meanwhile or parts[shard].finished(overwrite=args.overwrite):
                    bar.update(len(order) // len(shards))
                    continue
                model = model or load()
                started = time.monotonic()
                scores = _score_file(model, model_name, shards[shard], order, args, device, pool, bar.update)
                files.append({name: scores[name] for name in ("index", "correctness", "prob")})
                now = {name: np.concatenate([file[name] for file in files]) for name in files[0]}
                there = {name: values[now["index"]] for name, values in recorded.items()}
                check_agreement(now, there, model_name, complete=False)
                seconds = round(time.monotonic() - started, 3)
                made_by = provenance(**describe_device(device), batch_size=args.batch_size, seconds=seconds)
                parts[shard].save(arrays_bytes(**scores), made_by)

    with exclusive(folder):
        if all([output.finished(overwrite=args.overwrite) for output in outputs]):
            shutil.rmtree(parts_dir, ignore_errors=True)
            return "scored, and merged by another job"
        done = sum(part.finished(overwrite=args.overwrite) for part in parts)
        if done < len(parts):
            return f"{done} of {len(parts)} files scored"
        merged = _merge(parts, len(order))
        check_agreement(merged, recorded, model_name)
        keep_index(score_dir, order.index)
        earlier = [read_sidecar(part.path)["provenance"] for part in parts]
        made_by = provenance(earlier, **describe_device(device), batch_size=args.batch_size, files=len(parts))
        for output, array in zip(outputs, (merged["curvature"], merged["trace"], order.labels), strict=True):
            output.save(array_bytes(array), made_by)
        shutil.rmtree(parts_dir)
    return "scored"


def _score_file(
    model: nn.Module,
    model_name: str,
    path: Path,
    order: ImageNetIndex,
    args: cli.Namespace,
    device: torch.device,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], object],
) -> dict[str, np.ndarray]:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("index", *_MERGED)}
    for batch in stream(path, order.labels, batch_size=args.batch_size, pool=pool):
        if not columns["index"]:
            check_scorable(model, model_name, batch.images, batch.labels, args, device)
        columns["index"].append(batch.index)
        for name, values in outcomes(model, model_name, batch.images, batch.labels, args, device).items():
            columns[name].append(values)
        scores = score_batch(model, model_name, batch.images, batch.labels, batch.index, args, device, progress)
        columns["curvature"].append(scores.curvature)
        columns["trace"].append(scores.trace)
    if not columns["index"]:
        raise InputError(f"{path}: no records")
    return {name: np.concatenate(values) for name, values in columns.items()}


def _merge(parts: Sequence[Output], size: int) -> dict[str, np.ndarray]:
    """Place the scores of every file by index; every index must come once."""
    merged = {name: np.empty(size, kind) for name, kind in _MERGED.items()}
    owner = np.full(size, -1)
    for number, part in enumerate(parts):
        with np.load(io.BytesIO(part.path.read_bytes()), allow_pickle=False) as scores:
            index = scores["index"]
            twice = index[owner[index] >= 0]
            if twice.size:
                first = parts[owner[twice[0]]].path.parent.name
                raise InputError(
                    f"index {twice[0]} is in {first} and in {part.path.parent.name}; build the files again"
                )
            owner[index] = number
            for name, array in merged.items():
                array[index] = scores[name]
    missing = np.flatnonzero(owner < 0)
    if missing.size:
        raise InputError(f"{missing.size} examples are in no TFRecord file, the first is index {missing[0]}")
    return merged
