"""Score every example of a data set under one model and keep the result."""

from __future__ import annotations

import libcli as cli

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from libdata.datasets import Dataset
from libmodels.devices import describe_device
from libscores.agreement import Overlap, below_median, lowest, overlap
from libscores.curvature import check_alone, check_model, on_device
from libscores.curvature import scoring as scored
from libscores.logit_scores import are_probabilities
from libscores.one_channel import fast_gradients_by_gray_images
from libscoring.settings import ScoreSettings
from libscoring.table import Score, values_of
from libstore.errors import InputError
from libstore.scores import COLUMNS, CURVATURE, LABELS, keep_index, score_path
from libstore.store import Output, array_bytes, exclusive, load_scores, provenance
from libtrain.self_check import PROBABILITIES
from libtrain.training import predict

Result = TypeVar("Result")

MIN_AGREEMENT = 0.99
"""Share of a run's recorded correctness that its model must reproduce."""
SAME_MARKS, ANY_RELATION = 0.1, 0.8
"""Of the differences that a random order of the data makes, the share that the right one may make: where the same is
measured again, at another precision, and where a record is only related to it."""
_SATURATED = 1e-6, 1 - 1e-6  # probabilities beyond are rounding


class Batches:
    """Examples per forward pass: halved once where a GPU has no memory for them. Scores do not depend on it."""

    def __init__(self, size: int) -> None:
        self.size = self.asked = size

    def run(self, work: Callable[[int], Result], model_name: str) -> Result:
        """Do something in batches of this size, or of half of it; the half is kept for what follows.

        Raises:
            InputError: The GPU is out of memory with half of it, too.
        """
        try:
            return work(self.size)
        except torch.OutOfMemoryError as error:
            if self.size == 1 or self.size != self.asked:
                before = f", halved from {self.asked}" if self.size != self.asked else ""
                raise InputError(
                    f"{model_name}: the GPU is out of memory with batches of {self.size}{before}; "
                    f"give a smaller --batch_size ({str(error).splitlines()[0]})"
                ) from error
        self.size //= 2
        cli.warn(f"{model_name}: the GPU is out of memory with --batch_size {self.asked}, going on with {self.size}")
        torch.cuda.empty_cache()
        return self.run(work, model_name)


@dataclass(frozen=True)
class Scoring:
    """Which scores of a model are wanted, how they are taken and where they go.

    Attributes:
        score_dir: Root of the scores.
        settings: What decides them.
        scores: Rows of the table, as `libscoring.table.find_scores` returns them for these settings.
        device: Where to compute.
        batches: Examples per forward pass.
        overwrite: Replace scores made with other settings.
    """

    score_dir: Path
    settings: ScoreSettings
    scores: Sequence[Score]
    device: torch.device
    batches: Batches
    overwrite: bool = False

    def outputs(self, model_name: str, model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Output] | None:
        """Return the file of every column, None if a score from outside has not said yet what it returns.

        Args:
            model_name: Name of the model.
            model: What distinguishes the model.
            data: What distinguishes the data, `Dataset.identity()`.
        """
        found: dict[str, Output] = {}
        for score in self.scores:
            columns = score.columns or self._columns(score, model_name, model, data)
            if columns is None:
                return None
            labels = (LABELS,) if CURVATURE in columns else ()
            for column in (*columns, *labels):
                settings = self._settings(score, model_name, model, data) | {"score": column}
                path = score_path(self.score_dir, column, model_name, self.settings.step)
                found[column] = Output(path, settings, score.format)
        return found

    def save_columns(
        self, names: Mapping[str, Sequence[str]], model_name: str, model: Mapping[str, Any], data: Mapping[str, Any]
    ) -> None:
        """Keep what scores from outside have returned, by name of the score."""
        for score in self.scores:
            if not score.columns:
                self._columns_file(score, model_name, model, data).save(array_bytes(np.array(names[score.name])), {})

    def all_finished(self, outputs: Mapping[str, Output] | None) -> bool:
        """Tell whether every column is there with these very settings; raises InputError as `Output.finished`."""
        return outputs is not None and all([one.finished(overwrite=self.overwrite) for one in outputs.values()])

    def _settings(
        self, score: Score, model_name: str, model: Mapping[str, Any], data: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"model_name": model_name, "model": model, "data": data, **score.decided_by(self.settings)}

    def _columns_file(self, score: Score, model_name: str, model: Mapping[str, Any], data: Mapping[str, Any]) -> Output:
        path = self.score_dir / model_name / f"{COLUMNS}{score.name}_{model_name}.npy"
        return Output(path, self._settings(score, model_name, model, data), score.format)

    def _columns(
        self, score: Score, model_name: str, model: Mapping[str, Any], data: Mapping[str, Any]
    ) -> tuple[str, ...] | None:
        kept = self._columns_file(score, model_name, model, data)
        return tuple(load_scores(kept.path)[0].tolist()) if kept.finished(overwrite=self.overwrite) else None


def score_model(
    scoring: Scoring,
    model_name: str,
    model: nn.Module | Callable[[], nn.Module],
    model_identity: dict[str, Any],
    data: Dataset,
    recorded: Mapping[str, np.ndarray] | None = None,
) -> bool:
    """Compute the scores of every example under one model, unless they are kept already.

    Args:
        scoring: Which scores, how and where to.
        model_name: Name of the model, also of its folder.
        model: The network, or a function that loads it.
        model_identity: What distinguishes the model, at least its checkpoint's SHA-256; goes into the sidecar.
        data: The examples, normalised as the model expects.
        recorded: "correctness" and maybe "prob" of each example as kept with the model, NaN where unknown, (N,)
            each; the model must reproduce them (`check_agreement`).

    Returns:
        Whether anything was computed.

    Raises:
        InputError: The model cannot be scored, a score is of another length or not finite, or the model does not
            reproduce `recorded`.
    """
    identity = data.identity()
    with exclusive(scoring.score_dir / model_name):
        if scoring.all_finished(scoring.outputs(model_name, model_identity, identity)):
            return False
        network = model if isinstance(model, nn.Module) else model()
        check_scorable(network, model_name, data.images, data.labels, scoring)
        if recorded is not None:
            check_agreement(outcomes(network, model_name, data.images, data.labels, scoring), recorded, model_name)
        spent: dict[str, float] = {}
        with cli.progress(len(data), model_name, "examples") as bar:
            found = score_batch(network, model_name, data.images, data.labels, data.index, scoring, bar.update, spent)
        keep_index(scoring.score_dir, data.index)
        made_by = provenance(**describe_device(scoring.device), batch_size=scoring.batches.size)
        save_scores(scoring, model_name, model_identity, identity, found, data.labels.numpy(), made_by, spent)
    return True


def save_scores(
    scoring: Scoring,
    model_name: str,
    model_identity: dict[str, Any],
    data_identity: dict[str, Any],
    found: Mapping[str, Mapping[str, np.ndarray]],
    labels: np.ndarray,
    made_by: dict[str, object],
    spent: Mapping[str, float] | None = None,
) -> None:
    """Keep what `score_batch` returned for all examples, (N,) each, with their labels and the seconds of each score."""
    scoring.save_columns(
        {name: list(columns) for name, columns in found.items()}, model_name, model_identity, data_identity
    )
    outputs = scoring.outputs(model_name, model_identity, data_identity)
    arrays: dict[str, np.ndarray] = {LABELS: labels}
    took = {LABELS: (spent or {}).get(CURVATURE)}
    for score, columns in found.items():
        arrays |= columns
        took |= dict.fromkeys(columns, (spent or {}).get(score))
    for column, output in (outputs or {}).items():
        seconds = took[column]
        output.save(array_bytes(arrays[column]), made_by | ({} if seconds is None else {"seconds": round(seconds, 3)}))


def check_scorable(model: nn.Module, model_name: str, images: Tensor, labels: Tensor, scoring: Scoring) -> None:
    """Refuse a network whose results for an example are not its own, or, for scores that differentiate, not smooth.

    That is `libscores.curvature.check_alone` and `check_model`. A line on stderr says so if it gives probabilities.

    Raises:
        InputError: The reason.
    """
    settings = scoring.settings
    differentiates = any(score.differentiates for score in scoring.scores)
    if differentiates and settings.input_module is None and not images.is_floating_point():
        raise InputError(f"{model_name}: its inputs are token ids; name an embedding with --input_module")

    def check(batch_size: int) -> None:
        try:
            if differentiates:
                check_model(
                    model, images, labels, temp=settings.temp, input_module=settings.input_module,
                    device=scoring.device, batch_size=batch_size,
                )  # fmt: skip
            logits = check_alone(model, images, labels, device=scoring.device, batch_size=batch_size)
            if are_probabilities(logits):
                cli.warn_once(PROBABILITIES)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # of the checks, or of the network itself
            raise InputError(f"{model_name}: {str(error).splitlines()[0]}") from error

    scoring.batches.run(check, model_name)


def score_batch(
    model: nn.Module,
    model_name: str,
    images: Tensor,
    labels: Tensor,
    examples: np.ndarray,
    scoring: Scoring,
    progress: Callable[[int], object],
    spent: dict[str, float] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the scores of examples that are in memory: by name of the score, its columns, float32 (N,) each.

    The network is one that `check_scorable` has seen. The seconds that each score takes are added to `spent`.

    Raises:
        InputError: A score is of another length, has other columns from batch to batch or is not finite, or the
            device's memory is too small.
    """
    done = 0

    def score(batch_size: int) -> dict[str, dict[str, np.ndarray]]:
        nonlocal done
        progress(-done)
        done = 0
        parts: dict[str, list[dict[str, np.ndarray]]] = {one.name: [] for one in scoring.scores}
        with scored(model, scoring.device), fast_gradients_by_gray_images(model):
            started = {one.name: one.start(model, scoring.settings) for one in scoring.scores}
            for first in range(0, len(labels), batch_size):
                rows = slice(first, first + batch_size)
                x, y = on_device(model, images[rows], labels[rows], scoring.device)
                for one in scoring.scores:
                    began = time.monotonic()
                    parts[one.name].append(values_of(one, started[one.name](x, y, examples[rows]), len(y)))
                    if spent is not None:
                        spent[one.name] = spent.get(one.name, 0) + time.monotonic() - began
                progress(len(y))
                done += len(y)
        return {one.name: _joined(one, parts[one.name], examples) for one in scoring.scores}

    try:
        return scoring.batches.run(score, model_name)
    except ValueError as error:
        raise InputError(f"{model_name}: {error}") from error


def _joined(score: Score, parts: Sequence[dict[str, np.ndarray]], examples: np.ndarray) -> dict[str, np.ndarray]:
    for part in parts:
        if part.keys() != parts[0].keys() or not part:
            raise ValueError(f"score {score.name} returns {sorted(part)} for one batch, {sorted(parts[0])} for another")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, values in joined.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(f"{name} of example {examples[bad[0]]} is not finite ({bad.size} such examples)")
    return joined


def outcomes(
    model: nn.Module, model_name: str, images: Tensor, labels: Tensor, scoring: Scoring
) -> dict[str, np.ndarray]:
    """Return how a network does on each example; only a batch is on the device.

    Returns:
        "correctness", whether it classifies the example correctly, bool (N,), and "prob", the true label's probability,
        float32 (N,).
    """
    model.to(scoring.device)

    def classify(size: int) -> list[tuple[np.ndarray, ...]]:
        batches = zip(images.split(size), labels.split(size), strict=True)
        return [predict(model, x.to(scoring.device, copy=True), y.to(scoring.device), size)[:2] for x, y in batches]

    correct, prob = zip(*scoring.batches.run(classify, model_name), strict=True)
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
