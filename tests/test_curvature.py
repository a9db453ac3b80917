"""Curvature against quadratic losses, exact Hessian products, a batch-of-one loop and the published procedure."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from libmodels import build_model
from libscores.curvature import curvature, rademacher


class QuadraticLoss(nn.Module):
    """Two logits whose cross-entropy for label 0 is exactly 0.5 x'Ax + b'x + c, with H = A."""

    def __init__(self, matrix: np.ndarray, slope: np.ndarray) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.from_numpy(matrix))
        self.slope = nn.Parameter(torch.from_numpy(slope))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss = 0.5 * torch.einsum("bi,ij,bj->b", x, self.matrix, x) + x @ self.slope + 40.0
        return torch.stack([torch.zeros_like(loss), loss + torch.log(-torch.expm1(-loss))], dim=1)


def quadratic(seed: int, d: int, n: int) -> tuple[QuadraticLoss, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(d, d))
    matrix = (matrix + matrix.T) / 4
    return QuadraticLoss(matrix, rng.normal(size=d)), matrix, torch.from_numpy(rng.normal(size=(n, d)))


@given(seed=st.integers(0, 2**32), d=st.integers(1, 12), n=st.integers(1, 5), n_probes=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_quadratic_loss_gives_the_known_hessian(seed: int, d: int, n: int, n_probes: int) -> None:
    model, matrix, x = quadratic(seed, d, n)
    examples = np.arange(n) + 7
    signs = rademacher(seed, examples, n_probes, (d,)).astype(float)
    want = np.linalg.norm(signs @ matrix, axis=-1).mean(1)
    want_trace = np.einsum("nki,ij,nkj->nk", signs, matrix, signs).mean(1)
    for exact in (False, True):
        got = curvature(
            model, x, torch.zeros(n, dtype=torch.int64), examples, h=1e-3, n_probes=n_probes, seed=seed, exact=exact
        )
        np.testing.assert_allclose(got.curvature, want, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(got.trace, want_trace, rtol=2e-4, atol=2e-3)


def test_trace_of_a_diagonal_hessian_has_no_variance() -> None:
    model = QuadraticLoss(np.diag([1.0, 2.0, 4.0]), np.zeros(3))
    got = curvature(
        model, torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), np.arange(2), n_probes=1
    )
    np.testing.assert_allclose(got.trace, 7.0, rtol=1e-5)
    np.testing.assert_allclose(got.curvature, np.sqrt(21.0), rtol=1e-5)


def test_a_loss_linear_in_the_input_has_no_curvature() -> None:
    model = QuadraticLoss(np.zeros((3, 3)), np.ones(3))
    got = curvature(model, torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), np.arange(1))
    np.testing.assert_allclose([got.curvature, got.trace], 0, atol=1e-6)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor, np.ndarray]:
    torch.manual_seed(1)
    model = build_model("smallcnn", num_classes=10, in_channels=1).double()
    return model, torch.rand(11, 1, 28, 28, dtype=torch.float64), torch.randint(10, (11,)), np.arange(100, 111)


def test_difference_converges_to_the_exact_hessian_product(network) -> None:
    model, x, y, examples = network
    exact = curvature(model, x, y, examples, exact=True)
    errors = []
    for h in (1e-2, 1e-3, 1e-4):
        scores = curvature(model, x, y, examples, h=h)
        errors.append(np.abs(scores.curvature / exact.curvature - 1).max())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[1] < 1e-2


def test_equals_a_loop_over_single_examples(network) -> None:
    model, x, y, examples = network
    h, temp, seed = 1e-3, 2.0, 5
    got = curvature(model, x, y, examples, h=h, temp=temp, seed=seed, n_probes=4, batch_size=4)
    for i, example in enumerate(examples):

        def gradient(point: torch.Tensor, label: torch.Tensor = y[i]) -> torch.Tensor:
            point = point.clone().requires_grad_()
            F.cross_entropy(model(point[None])[0] / temp, label).backward()
            return point.grad

        norms, products = [], []
        for sign in torch.from_numpy(rademacher(seed, np.array([example]), 4, (1, 28, 28))[0]).double():
            difference = (gradient(x[i] + h * sign) - gradient(x[i])) / h
            norms.append(float(difference.norm()))
            products.append(float((sign * difference).sum()))
        assert got.curvature[i] == pytest.approx(np.mean(norms), rel=1e-5)
        assert got.trace[i] == pytest.approx(np.mean(products), rel=1e-4, abs=1e-5)


@given(batch_size=st.integers(1, 11), order=st.permutations(range(11)), cut=st.integers(1, 10))
@settings(max_examples=15, deadline=None)
def test_batches_order_and_splits_do_not_matter(network, batch_size: int, order: list[int], cut: int) -> None:
    model, x, y, examples = network
    whole = curvature(model, x, y, examples, n_probes=3)
    parts = [
        curvature(model, x[part], y[part], examples[part], n_probes=3, batch_size=batch_size)
        for part in (order[:cut], order[cut:])
    ]
    for name in ("curvature", "trace"):
        got = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(got, getattr(whole, name)[order], rtol=1e-5, atol=1e-6)


def test_float32_batches_agree_to_rounding(network) -> None:
    model, x, y, examples = network
    single, x = build_model("smallcnn", num_classes=10, in_channels=1), x.float()
    single.load_state_dict(model.state_dict())
    whole = curvature(single, x, y, examples)
    parts = curvature(single, x, y, examples, batch_size=2)
    np.testing.assert_allclose(parts.curvature, whole.curvature, rtol=2e-3)


def test_published_numbers_after_the_conversion(network) -> None:
    """The published code takes the batch-mean loss and does not divide by h: its number is ours h / B."""
    spec = importlib.util.spec_from_file_location("benchmark_curvature", ROOT / "benchmarks" / "curvature.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model, x, y, examples = network
    signs = torch.from_numpy(rademacher(0, examples, benchmark.N_PROBES, (1, 28, 28))).transpose(0, 1)
    norm, inner = benchmark.published(model, x.clone(), y, ((signs + 1) // 2).double())
    ours = curvature(model, x, y, examples, h=benchmark.H, n_probes=benchmark.N_PROBES)
    np.testing.assert_allclose(norm * len(x) / benchmark.H, ours.curvature, rtol=1e-4)
    np.testing.assert_allclose(inner * len(x) / benchmark.H**2, ours.trace, rtol=1e-4, atol=1e-4)
    half, _ = benchmark.published(model, x[:4].clone(), y[:4], ((signs[:, :4] + 1) // 2).double())
    np.testing.assert_allclose(half / norm[:4], len(x) / 4, rtol=1e-4)


def test_model_is_left_as_it_was(network) -> None:
    model = build_model("resnet18", num_classes=10, in_channels=1)
    model.classifier.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curvature(model, torch.rand(2, 1, 16, 16), torch.tensor([0, 1]), np.arange(2), n_probes=1)
    assert model.training and model.blocks.training
    assert not model.classifier.weight.requires_grad and model.classifier.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@given(seed=st.integers(0, 2**63 - 1), n_probes=st.integers(1, 5), more=st.integers(0, 5), d=st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_probes_belong_to_seed_example_and_number(seed: int, n_probes: int, more: int, d: int) -> None:
    signs = rademacher(seed, np.array([3, 9, 4]), n_probes + more, (d,))
    assert set(np.unique(signs)) <= {-1, 1}
    np.testing.assert_array_equal(signs[1:2, :n_probes], rademacher(seed, np.array([9]), n_probes, (d,)))


def test_probes_are_fair_and_independent() -> None:
    signs = rademacher(0, np.arange(200), 10, (64,)).reshape(2000, 64).astype(float)
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    covariance = signs.T @ signs / len(signs)
    assert np.abs(covariance - np.eye(64)).max() < 6 / np.sqrt(len(signs))


@pytest.mark.parametrize(
    "argument", [{"h": 0.0}, {"h": -1.0}, {"h": np.nan}, {"n_probes": 0}, {"temp": 0.0}, {"batch_size": 0}]
)
def test_arguments_out_of_range_are_refused(network, argument: dict) -> None:
    model, x, y, examples = network
    with pytest.raises(ValueError, match=next(iter(argument))):
        curvature(model, x, y, examples, **argument)


def test_a_score_that_is_not_finite_names_its_example(network) -> None:
    model, x, y, examples = network
    x = x.clone()
    x[4] = torch.nan
    with pytest.raises(ValueError, match="example 104"):
        curvature(model, x, y, examples)
