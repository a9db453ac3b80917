"""The table of the scores that a model gives to an example; a new score is a row here, or an import path.

A score is a function (model, x, y, examples) -> {name: values}: the network in evaluation mode on a device, its
parameters frozen; a batch of inputs (B, ...) and labels (B,) there; the examples' positions in the data set (B,); and
for every name B values, a tensor or an array, each of its own example alone, since batches may be of any size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from libdata.import_paths import call, is_import_path, kind_of, load_callable
from libmodels.networks import source_digest
from libscores import curvature as curvatures
from libscores import logit_scores
from libscoring.settings import BUILT_IN, ScoreSettings
from libstore.errors import InputError
from libstore.score_columns import MEANINGS
from libstore.scores import CURVATURE_FORMAT
from libtrain.per_example import PerExampleGradients

OfBatch = Callable[[Tensor, Tensor, np.ndarray], Mapping[str, Any]]


@dataclass(frozen=True)
class Score:
    """A row of the table.

    Attributes:
        name: What the user asks for.
        start: Called with the model and the settings; returns what is called with every batch (x, y, examples).
        columns: Names of what it returns; empty where only its result tells.
        uses: Settings that decide the values.
        differentiates: The loss is differentiated with respect to the input.
        format: To be raised when what a column means changes.
        source: Digest of the code of a score from outside.
    """

    name: str
    start: Callable[[nn.Module, ScoreSettings], OfBatch]
    columns: tuple[str, ...]
    uses: tuple[str, ...] = ()
    differentiates: bool = False
    format: int = 1
    source: str | None = None

    def decided_by(self, settings: ScoreSettings) -> dict[str, Any]:
        """Return what a sidecar says of the settings."""
        said = {name: getattr(settings, name) for name in self.uses}
        for name in ("exact", "input_module"):  # said only where they are not the default
            if name in said and not said[name]:
                del said[name]
        return said if self.source is None else said | {"score_source": self.source}


def _curvature(model: nn.Module, settings: ScoreSettings) -> OfBatch:
    def score(x: Tensor, y: Tensor, examples: np.ndarray) -> Mapping[str, Any]:
        found = curvatures.curvature(
            model, x, y, examples, h=settings.h, n_probes=settings.n_probes, temp=settings.temp,
            seed=settings.probe_seed, batch_size=len(y), device=x.device, exact=settings.exact,
            input_module=settings.input_module, checked=True,
        )  # fmt: skip
        return {"curvature": found.curvature, "trace": found.trace}

    return score


def _input_gradient_norm(model: nn.Module, settings: ScoreSettings) -> OfBatch:
    def score(x: Tensor, y: Tensor, examples: np.ndarray) -> Mapping[str, Any]:
        network, inputs = curvatures.at_module(model, settings.input_module, x)
        gradient = curvatures.input_gradient(network, inputs, y, settings.temp)
        return {"input_gradient_norm": gradient.flatten(1).norm(dim=1)}

    return score


def _of_logits(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Score:
    def start(model: nn.Module, settings: ScoreSettings) -> OfBatch:
        def score(x: Tensor, y: Tensor, examples: np.ndarray) -> Mapping[str, Any]:
            with torch.inference_mode():
                return {name: function(model(x.clone()), y)}

        return score

    return Score(name, start, (name,))


def _grand(model: nn.Module, settings: ScoreSettings) -> OfBatch:
    """Norm of the gradient of an example's loss by the weights (GraNd; Paul et al. 2021, arXiv 2107.07075)."""
    gradients: list[PerExampleGradients] = []

    def score(x: Tensor, y: Tensor, examples: np.ndarray) -> Mapping[str, Any]:
        with _trainable(model):
            if not gradients:
                first = PerExampleGradients(model)
                first.check(x, y)
                gradients.append(first)
            return {"grand": gradients[0].norms(x.clone(), y)}

    return score


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


SCORES = {
    score.name: score
    for score in (
        Score(
            "curvature", _curvature, ("curvature", "trace"),
            ("h", "n_probes", "temp", "probe_seed", "exact", "input_module"), True, CURVATURE_FORMAT,
        ),
        Score("input_gradient_norm", _input_gradient_norm, ("input_gradient_norm",), ("temp", "input_module"), True),
        _of_logits("loss", logit_scores.losses),
        _of_logits("margin", logit_scores.margins),
        _of_logits("el2n", logit_scores.el2n),
        Score("grand", _grand, ("grand",)),
    )
}  # fmt: skip
assert set(SCORES) == set(BUILT_IN)
_TAKEN = {"example", "label", "part", "epsilon_sensitivity", *MEANINGS}
"""Names of columns of the score table that mean something else."""
_TAKEN_STARTS = ("private_", "instance_")
_NAME = re.compile(r"[\w.-]+")


def find_scores(text: str) -> list[Score]:
    """Return the rows that a list with commas names.

    Raises:
        InputError: A name is unknown or comes twice, or an import path leads nowhere.
    """
    found: dict[str, Score] = {}
    for word in (part.strip() for part in text.split(",")):
        if word in SCORES:
            score = SCORES[word]
        elif is_import_path(word):
            score = _own_score(word)
        else:
            known = ", ".join(SCORES)
            raise InputError(f"--scores {word}: unknown; known: {known}, or an import path such as my_scores.py:margin")
        if score.name in found:
            raise InputError(f"--scores {text}: {score.name} is there twice")
        found[score.name] = score
    return list(found.values())


def _own_score(text: str) -> Score:
    function, name = load_callable(text)
    if name in SCORES:
        raise InputError(f"--scores {text}: {name} is the name of a built-in score, give the function another")

    def start(model: nn.Module, settings: ScoreSettings) -> OfBatch:
        def score(x: Tensor, y: Tensor, examples: np.ndarray) -> Mapping[str, Any]:
            result = call(function, text, model, x.clone(), y, examples)
            if not isinstance(result, Mapping) or not all(isinstance(key, str) for key in result):
                raise InputError(f"{text}: expected arrays by name, it returned {kind_of(result)}")
            for key in result:
                if key in _TAKEN or key.startswith(_TAKEN_STARTS) or key.endswith("_se") or not _NAME.fullmatch(key):
                    raise InputError(f"{text}: {key!r} cannot be the name of a score of your own, return another")
            return result

        return score

    return Score(name, start, (), source=source_digest(function))


def values_of(score: Score, batch: Mapping[str, Any], size: int) -> dict[str, np.ndarray]:
    """Return what a score gave to a batch as float32 arrays after checking it.

    Raises:
        InputError: An array has another length, or is not of real numbers.
    """
    found = {}
    for name, values in batch.items():
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
        if array.shape != (size,):
            raise InputError(
                f"score {score.name}: {name!r} has shape {array.shape} for a batch of {size}, not ({size},)"
            )
        if array.dtype.kind not in "fiub":
            raise InputError(f"score {score.name}: {name!r} holds {array.dtype}, not numbers")
        found[name] = array.astype(np.float32)
    return found
