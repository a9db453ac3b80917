"""Score ImageNet under one model, TFRecord file by TFRecord file, and merge."""

from __future__ import annotations

import libcli as cli

import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import nn

from libdata.imagenet import IMAGE_SIZE, ImageNetIndex, Shard, content_digest, stream
from libmodels.devices import describe_device
from libscoring.scoring import Scoring, check_agreement, check_scorable, outcomes, save_scores, score_batch
from libstore.errors import InputError
from libstore.index import index_digest
from libstore.scores import keep_index
from libstore.store import Output, arrays_bytes, exclusive, provenance, read_sidecar

_OUTCOMES = {"correctness": bool, "prob": np.float32}


def score_shards(
    scoring: Scoring,
    model_name: str,
    load: Callable[[], nn.Module],
    model_identity: dict[str, Any],
    shards: Sequence[Shard],
    selected: range,
    order: ImageNetIndex,
    recorded: Mapping[str, np.ndarray],
    workers: int,
) -> str:
    """Compute the scores of the examples in some TFRecord files; the job that completes the set merges them.

    The scores of one file are kept under <score dir>/<model>/parts_<scores>/ until all files are scored; then they are
    placed by index and the parts removed. Batches never cross files, so the result does not depend on which job
    scored which file, or on being interrupted. Memory holds two batches of images and, at the merge, a
    vector over the examples for each column.

    Args:
        scoring: Which scores, how and where to.
        model_name: Name of the model, also of its folder.
        load: Returns the network; called only if there is something to score.
        model_identity: What distinguishes the model; goes into the sidecars.
        shards: All TFRecord files of the split, or all parts of its folders.
        selected: Which of them to score now.
        order: Feldman and Zhang's labels by index.
        recorded: "correctness" and maybe "prob" by index as kept with the model, NaN where unknown, (N,) each; they
            are compared after every file and for all examples at the merge.
        workers: Threads that read and decode.

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
    folder = scoring.score_dir / model_name
    names = "_".join(score.name for score in scoring.scores)
    parts_dir = folder / (f"parts_{scoring.settings.step}" if names == "curvature" else f"parts_{names}")

    def finished() -> bool:
        return scoring.all_finished(scoring.outputs(model_name, model_identity, identity))

    if finished():
        shutil.rmtree(parts_dir, ignore_errors=True)  # left by a job that was killed after it merged
        return "finished before, skipped"

    settings = {"model_name": model_name, "model": model_identity, "data": identity}
    decided = {score.name: {"format": score.format, **score.decided_by(scoring.settings)} for score in scoring.scores}
    settings |= {"scores": decided}
    parts = [Output(parts_dir / path.name / "scores.npz", settings | {"file": path.name}) for path in shards]
    model: nn.Module | None = None
    files: list[dict[str, np.ndarray]] = []
    with (
        cli.progress(len(selected) * len(order) // len(shards), model_name, "examples") as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for shard in selected:
            with exclusive(parts[shard].path.parent):
                merged_meanwhile = not parts[shard].path.parent.is_dir() or finished()
                if merged_meanwhile or parts[shard].finished(overwrite=scoring.overwrite):
                    bar.update(len(order) // len(shards))
                    continue
                model = model or load()
                started = time.monotonic()
                scores = _score_file(model, model_name, shards[shard], order, scoring, pool, bar.update)
                files.append({name: scores[name] for name in ("index", "correctness", "prob")})
                now = {name: np.concatenate([file[name] for file in files]) for name in files[0]}
                there = {name: values[now["index"]] for name, values in recorded.items()}
                check_agreement(now, there, model_name, complete=False)
                seconds = round(time.monotonic() - started, 3)
                made_by = provenance(
                    **describe_device(scoring.device), batch_size=scoring.batches.size, seconds=seconds
                )
                parts[shard].save(arrays_bytes(**scores), made_by)

    with exclusive(folder):
        if finished():
            shutil.rmtree(parts_dir, ignore_errors=True)
            return "scored, and merged by another job"
        done = sum(part.finished(overwrite=scoring.overwrite) for part in parts)
        if done < len(parts):
            return f"{done} of {len(parts)} files scored"
        merged = _merge(parts, len(order))
        check_agreement(merged, recorded, model_name)
        keep_index(scoring.score_dir, order.index)
        earlier = [read_sidecar(part.path)["provenance"] for part in parts]
        made_by = provenance(
            earlier, **describe_device(scoring.device), batch_size=scoring.batches.size, files=len(parts)
        )
        found: dict[str, dict[str, np.ndarray]] = {score.name: {} for score in scoring.scores}
        for name, array in merged.items():
            score, slash, column = name.partition("/")
            if slash:
                found[score][column] = array
        save_scores(scoring, model_name, model_identity, identity, found, order.labels, made_by)
        shutil.rmtree(parts_dir)
    return "scored"


def _score_file(
    model: nn.Module,
    model_name: str,
    path: Shard,
    order: ImageNetIndex,
    scoring: Scoring,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], object],
) -> dict[str, np.ndarray]:
    """Return index, correctness and probability of a file's examples, and every column as <score>/<column>."""
    columns: dict[str, list[np.ndarray]] = {}
    for batch in stream(path, order.labels, batch_size=scoring.batches.size, pool=pool):
        if not columns:
            check_scorable(model, model_name, batch.images, batch.labels, scoring)
        found = {"index": batch.index, **outcomes(model, model_name, batch.images, batch.labels, scoring)}
        scores = score_batch(model, model_name, batch.images, batch.labels, batch.index, scoring, progress)
        found |= {f"{score}/{name}": values for score, part in scores.items() for name, values in part.items()}
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    if not columns:
        raise InputError(f"{path}: no records")
    return {name: np.concatenate(values) for name, values in columns.items()}


def _merge(parts: Sequence[Output], size: int) -> dict[str, np.ndarray]:
    """Place the scores of every file by index; every index must come once."""
    merged: dict[str, np.ndarray] = {}
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
            for name in scores.files:
                if name != "index":
                    kind = _OUTCOMES.get(name, np.float32)
                    merged.setdefault(name, np.empty(size, kind))[index] = scores[name]
    missing = np.flatnonzero(owner < 0)
    if missing.size:
        raise InputError(f"{missing.size} examples are in no TFRecord file, the first is index {missing[0]}")
    return merged
