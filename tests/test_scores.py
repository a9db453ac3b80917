"""The table of scores: every row against one example at a time in float64, scores from outside, submodules."""

from __future__ import annotations

from libcli import warn_once

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from libdata.datasets import Dataset
from libmodels import build_model
from libscores import logit_scores
from libscores.curvature import at_module, curvature
from libscoring.scoring import Batches, Scoring, check_scorable, score_batch, score_model
from libscoring.settings import ScoreSettings
from libscoring.table import SCORES, find_scores
from libstore.errors import InputError
from libstore.scores import score_path
from libstore.store import read_sidecar
from libtrain.self_check import FirstBatch, check_trainable

COUNT = 23


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, Tensor, Tensor, np.ndarray]:
    torch.manual_seed(3)
    model = build_model("smallcnn", num_classes=10, in_channels=1).eval()
    return model, torch.rand(COUNT, 1, 28, 28), torch.arange(COUNT) % 10, np.arange(COUNT) + 100


def scored(task: tuple, scores: str, batch_size: int = 8, **settings: object) -> Mapping[str, Mapping[str, np.ndarray]]:
    chosen = ScoreSettings(scores=scores, **settings)  # type: ignore[arg-type]
    scoring = Scoring(Path(), chosen, find_scores(scores), torch.device("cpu"), Batches(batch_size))
    return score_batch(task[0], "model", *task[1:], scoring, lambda count: None)


def checked(model: nn.Module, scores: str, inputs: Tensor) -> None:
    chosen = Scoring(Path(), ScoreSettings(scores=scores), find_scores(scores), torch.device("cpu"), Batches(8))
    check_scorable(model, "net", inputs, torch.arange(len(inputs)) % 3, chosen)


class Output(nn.Linear):
    """A linear layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(super().forward(x))


@pytest.mark.parametrize("scores", ["loss", "curvature"])
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda z: z - z.mean(0), "mixes the examples"),
        (lambda z: z.softmax(0) @ torch.eye(3), "mixes the examples"),
        (nn.BatchNorm1d(3, track_running_stats=False), "mixes the examples"),
        (lambda z: z + torch.randn(3), "random in evaluation mode"),
    ],
)
def test_a_score_of_more_than_one_example_is_refused(scores: str, function: Callable, reason: str) -> None:
    """Also where no score differentiates: else it would be blamed on the order of the data, or go unseen."""
    with pytest.raises(InputError, match=f"net: .*{reason}"):
        checked(Output(function), scores, torch.rand(9, 4))


@pytest.mark.parametrize("scores", ["loss", "curvature"])
def test_layouts_that_a_network_cannot_take(scores: str) -> None:
    """Scores are taken in channels-last where that can be: volumes are not, nor is what some views ask for."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)

    images = torch.rand(9, 2, 3, 4, 4)
    volumes = nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3))
    checked(volumes, scores, images)
    labels = torch.arange(9) % 3
    found = scored((volumes, images, labels, np.arange(9)), "loss")["loss"]["loss"]
    want = nn.functional.cross_entropy(volumes(images), labels, reduction="none").detach()
    np.testing.assert_allclose(found, want, rtol=1e-5)
    viewed, same = (nn.Sequential(nn.Conv2d(2, 3, 2), flat, nn.Linear(27, 3)) for flat in (Flat(), nn.Flatten()))
    same.load_state_dict(viewed.state_dict())
    pictures, columns = images[:, :, 0], []
    for net in (viewed, same):
        checked(net, scores, pictures)
        columns.append(scored((net, pictures, labels, np.arange(9)), scores)[scores])
    for name, values in columns[1].items():
        np.testing.assert_allclose(columns[0][name], values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scores", ["loss", "curvature"])
def test_probabilities_in_place_of_logits_are_told_once(scores: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_once.cache_clear()
    for function in (lambda z: z, lambda z: z.log_softmax(1), lambda z: z.abs()):
        checked(Output(function), scores, torch.rand(9, 4))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        checked(Output(lambda z: z.softmax(1)), scores, torch.rand(9, 4))
    (line,) = capsys.readouterr().err.splitlines()
    assert "gives probabilities" in line and "logits are expected" in line


def test_probabilities_are_told_when_training_starts(capsys: pytest.CaptureFixture[str]) -> None:
    for check in (check_trainable, FirstBatch):
        warn_once.cache_clear()
        check(Output(lambda z: z.softmax(1)), torch.rand(9, 4), torch.arange(9) % 3)
        assert capsys.readouterr().err.count("gives probabilities") == 1


def one_by_one(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Every score from its definition, an example at a time, in float64."""
    model = build_copy(model).double()
    found: dict[str, list[float]] = {name: [] for name in SCORES if name != "curvature"}
    for image, label in zip(images.double(), labels.tolist(), strict=True):
        x = image[None].requires_grad_()
        logits = model(x)[0]
        probabilities = logits.softmax(0)
        loss = -probabilities[label].log()
        target = torch.zeros(10, dtype=torch.float64)
        target[label] = 1
        gradients = torch.autograd.grad(loss, [x, *model.parameters()])
        others = [z for k, z in enumerate(logits.tolist()) if k != label]
        found["loss"].append(loss.item())
        found["margin"].append(logits[label].item() - max(others))
        found["el2n"].append((probabilities - target).norm().item())
        found["input_gradient_norm"].append(float(gradients[0].norm()))
        found["grand"].append(float(torch.cat([g.flatten() for g in gradients[1:]]).norm()))
    return {name: np.array(values) for name, values in found.items()}


def build_copy(model: nn.Module) -> nn.Module:
    copy = build_model("smallcnn", num_classes=10, in_channels=1)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_every_row_is_its_definition(task) -> None:
    names = [name for name in SCORES if name != "curvature"]
    found, expected = scored(task, ",".join(names)), one_by_one(*task[:3])
    for name in names:
        assert found[name][name].dtype == np.float32
        np.testing.assert_allclose(found[name][name], expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_scores_do_not_depend_on_batches_and_leave_the_model_as_it_was(task) -> None:
    model = task[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    everything = ",".join(SCORES)
    one, other = scored(task, everything, 8), scored(task, everything, 23)
    for name, columns in one.items():
        for column, values in columns.items():
            np.testing.assert_allclose(values, other[name][column], rtol=2e-3, atol=1e-5, err_msg=column)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_grand_of_batch_norm_in_evaluation_mode_is_that_of_single_examples() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10, in_channels=3).eval()
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([1, 5, 7])
    found = scored((model, images, labels, np.arange(3)), "grand", 3)["grand"]["grand"]
    for i in range(3):
        loss = nn.functional.cross_entropy(model(images[i : i + 1]), labels[i : i + 1])
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm()
        assert found[i] == pytest.approx(float(expected), rel=1e-3)


def test_scores_of_confident_examples_keep_their_digits() -> None:
    logits, label = torch.tensor([[30.0, 0.0, -3.0]]), torch.tensor([0])
    exact = torch.tensor([[30.0, 0.0, -3.0]], dtype=torch.float64)
    p = float((exact[0, 1].exp() + exact[0, 2].exp()) / exact[0].exp().sum())  # 1 - the label's probability
    assert float(logit_scores.losses(logits, label)) == pytest.approx(-np.log1p(-p), rel=1e-5)
    assert float(logit_scores.log_odds(logits, label)) == pytest.approx(np.log((1 - p) / p), rel=1e-5)
    shares = exact[0, 1:].exp() / exact[0].exp().sum()
    assert float(logit_scores.el2n(logits, label)) == pytest.approx(
        float((p**2 + shares.square().sum()) ** 0.5), rel=1e-5
    )


OWN = """
import time

import torch

def margin_of_two(model, x, y, examples):
    with torch.no_grad():
        top = model(x).topk(2).values
    return {"gap": top[:, 0] - top[:, 1], "position": examples}

def short(model, x, y, examples):
    return {"short": x.new_zeros(len(x) - 1)}

def nothing_by_name(model, x, y, examples):
    return x.flatten(1).sum(1)

def endless(model, x, y, examples):
    return {"endless": x.flatten(1).sum(1) / 0}

def fails(model, x, y, examples):
    raise RuntimeError("no such thing")

def changing(model, x, y, examples):
    return {f"of_{len(x)}": x.flatten(1).sum(1)}

def el2n(model, x, y, examples):
    return {}

def as_loss(model, x, y, examples):
    return {"loss": y * 0.0}

def as_label(model, x, y, examples):
    return {"label": y * 0.0}

def as_path(model, x, y, examples):
    return {"a/b": y * 0.0}

def slow(model, x, y, examples):
    time.sleep(0.1)
    return {"slow": y * 0.0}

not_callable = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "my_scores.py"
    file.write_text(OWN)
    return file


def test_a_score_from_outside(task, own: Path) -> None:
    found = scored(task, f"loss,{own}:margin_of_two")
    assert set(found) == {"loss", "margin_of_two"} and set(found["margin_of_two"]) == {"gap", "position"}
    top = task[0](task[1]).detach().topk(2).values
    np.testing.assert_allclose(found["margin_of_two"]["gap"], top[:, 0] - top[:, 1], rtol=1e-4)
    np.testing.assert_array_equal(found["margin_of_two"]["position"], task[3])


def test_the_seconds_of_a_score_are_its_own_where_several_are_taken_in_one_go(task, own: Path, tmp_path: Path) -> None:
    scores = f"loss,{own}:slow"
    scoring = Scoring(tmp_path, ScoreSettings(scores=scores), find_scores(scores), torch.device("cpu"), Batches(8))
    data = Dataset(
        "digits", "train", task[1], task[2], task[3], num_classes=10, normalization="unit", split_size=200,
        content_sha256="0",
    )  # fmt: skip
    assert score_model(scoring, "model", task[0], {"sha256": "1"}, data)
    took = {
        name: read_sidecar(score_path(tmp_path, name, "model", 1e-3))["provenance"]["seconds"]
        for name in ("loss", "slow")
    }
    assert took["slow"] >= 0.3  # it sleeps for 0.1 s in each of three batches
    assert took["loss"] < took["slow"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"'short' has shape \(7,\) for a batch of 8"),
        ("nothing_by_name", "expected arrays by name, it returned a Tensor"),
        ("endless", "endless of example 100 is not finite"),
        ("fails", "it raised RuntimeError: no such thing"),
        ("changing", "for one batch"),
        ("el2n", "el2n is the name of a built-in score"),
        ("as_loss", "'loss' cannot be the name of a score of your own"),
        ("as_label", "'label' cannot be the name of a score of your own"),
        ("as_path", "'a/b' cannot be the name of a score of your own"),
        ("not_callable", "cannot be called"),
        ("missing", "has no 'missing'"),
    ],
)
def test_a_bad_score_from_outside_is_refused(task, own: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scored(task, f"{own}:{name}")


def test_unknown_scores_are_refused() -> None:
    for text, message in (("curvatur", "known: curvature"), ("loss,loss", "loss is there twice"), ("", "unknown")):
        with pytest.raises(InputError, match=message):
            find_scores(text)
    with pytest.raises(InputError, match="'los' is unknown; known: curvature"):
        ScoreSettings(scores="loss,los")


class Sentences(nn.Module):
    """An embedding and a network on it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rest(self.embedding(tokens))


def test_curvature_at_a_submodule_is_that_of_the_rest_of_the_network() -> None:
    torch.manual_seed(1)
    model, tokens, labels = Sentences().eval(), torch.randint(0, 50, (9, 5)), torch.arange(9) % 3
    examples, vectors = np.arange(9), model.embedding(tokens).detach()
    at_embedding = scored(
        (model, tokens, labels, examples), "curvature,input_gradient_norm", 4, input_module="embedding"
    )
    rest = curvature(model.rest, vectors, labels, examples, batch_size=4)
    np.testing.assert_allclose(at_embedding["curvature"]["curvature"], rest.curvature, rtol=1e-4)
    np.testing.assert_allclose(at_embedding["curvature"]["trace"], rest.trace, rtol=1e-3, atol=1e-5)
    inputs = vectors.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model.rest(inputs), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    expected = gradient.flatten(1).norm(dim=1)
    np.testing.assert_allclose(at_embedding["input_gradient_norm"]["input_gradient_norm"], expected, rtol=1e-4)


def test_submodules_that_cannot_be_perturbed_are_refused() -> None:
    model, tokens = Sentences().eval(), torch.randint(0, 50, (4, 5))
    for name, message in (("embeding", "no such part; it has: embedding, rest"), ("", "no such part")):
        with pytest.raises(ValueError, match=message):
            at_module(model, name, tokens)
    twice = nn.Sequential(layer := nn.Linear(3, 3), layer, nn.Linear(3, 2))
    with pytest.raises(ValueError, match="called 2 times"):
        at_module(twice, "0", torch.rand(4, 3))
