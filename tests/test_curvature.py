"""Curvature against quadratic losses, exact Hessian products, a batch-of-one loop and the published procedure."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from libmodels import build_model
from libscores.curvature import check_model, curvature, rademacher


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


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_finite_differences_count_kinks_that_the_exact_product_does_not(activation: type[nn.Module]) -> None:
    """Across a kink the gradient jumps, so a few differences over h grow as h shrinks while the median is right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), activation(), nn.Linear(64, 3)).double()
    x, y, examples = torch.randn(400, 8, dtype=torch.float64), torch.arange(400) % 3, np.arange(400)
    exact = curvature(model, x, y, examples, n_probes=4, exact=True).curvature
    means, medians = [], []
    for h in (1e-4, 1e-3, 1e-2, 0.1):
        found = curvature(model, x, y, examples, h=h, n_probes=4).curvature
        means.append(found.mean() / exact.mean())
        medians.append(np.median(found / exact))
    if activation is nn.Tanh:
        assert np.allclose(means[:3], 1, atol=0.01) and np.allclose(medians[:3], 1, atol=0.01)
    else:  # the fewer differences cross a kink, the larger they are: the mean does not become right with a small h
        assert min(means) > 5 and abs(medians[0] - 1) < 1e-3 and medians[3] > 2


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


def confident_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network in float32 with examples classified at 1 - p from 1e-5 down to 1e-13."""
    torch.manual_seed(3)
    model = build_model("smallcnn", num_classes=10, in_channels=1)
    x = torch.rand(400, 1, 28, 28)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        y = model(x).argmax(1)
        top = model(x).topk(2).values
        scale = 22 / (top[:, 0] - top[:, 1]).median()
        head.weight *= scale
        head.bias *= scale
    return model.eval(), x, y


def test_confident_examples_keep_their_digits() -> None:
    """Against float64; the usual cross-entropy in float32 is far off on the same examples."""
    model, x, y = confident_network()
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        others = exact(x.double()).softmax(1).scatter(1, y[:, None], 0).sum(1).numpy()  # 1 - p without cancellation
    chosen = np.flatnonzero((others < 1e-8) & (others > 1e-13))[:60]
    assert len(chosen) > 20
    x, y, h, signs = x[chosen], y[chosen], 1e-3, torch.from_numpy(rademacher(0, chosen, 1, (1, 28, 28))[:, 0])

    def by_cross_entropy(network: nn.Module, dtype: torch.dtype) -> np.ndarray:
        def gradient(point: torch.Tensor) -> torch.Tensor:
            point = point.requires_grad_()
            return torch.autograd.grad(F.cross_entropy(network(point), y, reduction="sum"), point)[0]

        x0, v = x.to(dtype), signs.to(dtype)
        return ((gradient(x0 + h * v) - gradient(x0.clone())) / h).flatten(1).norm(dim=1).numpy()

    truth = by_cross_entropy(exact, torch.float64)
    got = curvature(model, x, y, chosen, h=h, n_probes=1).curvature
    assert np.median(np.abs(got / truth - 1)) < 0.02
    assert np.median(np.abs(by_cross_entropy(model, torch.float32) / truth - 1)) > 0.1
    both = curvature(exact, x.double(), y, chosen, exact=True), curvature(model, x, y, chosen, exact=True)
    assert np.median(np.abs(both[1].curvature / both[0].curvature - 1)) < 1e-3


def test_two_classes_are_logistic_regression() -> None:
    weight = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.cat([torch.zeros_like(weight), weight])
    x = torch.randn(5, 3, dtype=torch.float64)
    got = curvature(model, x, torch.tensor([0, 1, 0, 1, 1]), np.arange(5), exact=True, n_probes=2)
    p = torch.sigmoid(x @ weight[0]).numpy()
    signs = rademacher(0, np.arange(5), 2, (3,)).astype(float)
    want = p * (1 - p) * np.abs(signs @ weight[0].numpy()).mean(1) * float(weight.norm())
    np.testing.assert_allclose(got.curvature, want, rtol=1e-6)


class Head(nn.Module):
    """A linear classifier with a step of its own in between."""

    def __init__(self, step: Callable[[nn.Module, torch.Tensor], object]) -> None:
        super().__init__()
        self.linear, self.out, self.norm = nn.Linear(12, 8), nn.Linear(8, 4), nn.BatchNorm1d(8)
        self.step = step

    def forward(self, x: torch.Tensor) -> object:
        return self.step(self, self.linear(x.flatten(1)))


class AlwaysDropout(nn.Dropout):
    def train(self, mode: bool = True) -> AlwaysDropout:
        return super().train(True)


class AlwaysBatchNorm(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> AlwaysBatchNorm:
        return super().train(True)


class RoundedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.bfloat16().float()


def under_autocast(m: nn.Module, z: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    with torch.autocast("cpu", dtype=dtype):
        return m.out(z).float()


def rarely_random(m: nn.Module, z: torch.Tensor) -> torch.Tensor:
    return m.out(F.dropout(z, 1e-9))  # hardly ever drops anything


NUMPY = np.random.default_rng(0)


def numpy_noise(m: nn.Module, z: torch.Tensor) -> torch.Tensor:
    return m.out(z + float(NUMPY.standard_normal()) * 1e-3)


def counting(m: nn.Module, z: torch.Tensor) -> torch.Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return m.out(z) * m.calls


def attention_over_the_batch(m: nn.Module, z: torch.Tensor) -> torch.Tensor:
    return m.out(F.scaled_dot_product_attention(z[None], z[None], z[None])[0])


HALF, RANDOM, MIXES = "computes in|of the model is|logits are", "random in evaluation mode", "mixes the examples"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bfloat16 weights": (lambda: bfloat16_out(), "'out.weight'.*bfloat16"),
    "float16 buffer": (lambda: with_buffer(torch.ones(8).half()), "'scale'.*float16"),
    "bfloat16 output": (lambda: Head(lambda m, z: m.out(z).bfloat16()), HALF),
    "half inside": (lambda: Head(lambda m, z: m.out(z.half().float())), r"computes in torch\.float16"),
    "autocast bfloat16": (lambda: Head(under_autocast), r"computes in torch\.bfloat16"),
    "autocast float16": (lambda: Head(lambda m, z: under_autocast(m, z, torch.float16)), r"computes in torch\.float16"),
    "float8 inside": (lambda: Head(lambda m, z: m.out(z.to(torch.float8_e4m3fn).float())), "float8_e4m3fn"),
    "half backward": (lambda: Head(lambda m, z: m.out(RoundedGradient.apply(z))), r"computes in torch\.bfloat16"),
    "functional dropout": (lambda: Head(lambda m, z: m.out(F.dropout(z))), f"{RANDOM}.*dropout|{RANDOM}.*bernoulli"),
    "rare dropout": (lambda: Head(rarely_random), RANDOM),
    "noise": (lambda: Head(lambda m, z: m.out(z + 1e-3 * torch.randn_like(z))), f"{RANDOM}.*randn"),
    "NumPy's noise": (lambda: Head(numpy_noise), RANDOM),
    "dropout that stays on": (lambda: nn.Sequential(nn.Linear(12, 8), AlwaysDropout(), nn.Linear(8, 4)), RANDOM),
    "a counter": (lambda: Head(counting), RANDOM),
    "batch statistics": (lambda: Head(lambda m, z: m.out(F.batch_norm(z, None, None, training=True))), MIXES),
    "BatchNorm that stays on": (lambda: nn.Sequential(nn.Linear(12, 8), AlwaysBatchNorm(8), nn.Linear(8, 4)), MIXES),
    "centred batch": (lambda: Head(lambda m, z: m.out(z - z.mean(0).detach())), MIXES),
    "slightly mixed": (lambda: Head(lambda m, z: m.out(z + 1e-5 * z.mean(0))), MIXES),
    "softmax over the batch": (lambda: Head(lambda m, z: m.out(z.softmax(0))), MIXES),
    "attention over the batch": (lambda: Head(attention_over_the_batch), MIXES),
    "neighbour": (lambda: Head(lambda m, z: m.out(z + z.roll(1, 0))), MIXES),
    "one logit": (lambda: nn.Linear(12, 1), r"shape \(\d, 1\) for \d examples"),
    "no class axis": (lambda: Head(lambda m, z: m.out(z)[:, 0]), r"shape \(\d,\)"),
    "too few classes": (lambda: nn.Linear(12, 3), r"label 3 of image \d is none of the model's 3 classes"),
    "tuple": (lambda: Head(lambda m, z: (m.out(z), z)), "returns a tuple"),
    "complex": (lambda: Head(lambda m, z: m.out(z) + 0j), "logits are torch.complex64"),
    "detached": (lambda: Head(lambda m, z: m.out(z.detach())), "no gradient with respect to the images"),
    "other input": (lambda: nn.Linear(13, 4), "no gradient with respect to the images.*12"),
}  # fmt: skip


def bfloat16_out() -> nn.Module:
    model = Head(lambda m, z: m.out(z.bfloat16()).float())
    model.out.bfloat16()
    return model


def with_buffer(buffer: torch.Tensor) -> nn.Module:
    model = Head(lambda m, z: m.out(z * m.scale.float()))
    model.register_buffer("scale", buffer)
    return model


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_deterministic_float32_function_of_one_example_is_refused(what: str, n: int) -> None:
    build, message = REFUSED[what]
    torch.manual_seed(0)
    model = build()
    x, y = torch.randn(6, 12)[-n:], torch.tensor([0, 1, 2, 3, 0, 3])[-n:]
    if n == 1 and what in ("batch statistics", "BatchNorm that stays on"):
        message = "more than 1 value"
    with pytest.raises(ValueError, match=message):
        curvature(model, x, y, np.arange(n), n_probes=1)
    with pytest.raises(ValueError, match=message):
        check_model(model, x, y)


def fourier(m: nn.Module, z: torch.Tensor) -> torch.Tensor:
    return m.out(torch.fft.ifft(torch.fft.fft(z) * 1j).abs())


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(12, 8), nn.Dropout(), nn.RReLU(), nn.Linear(8, 4)),
    "BatchNorm": lambda: Head(lambda m, z: m.out(m.norm(z))),
    "normalised over features": lambda: Head(lambda m, z: m.out(F.layer_norm(z, (8,)).softmax(1))),
    "instance statistics": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(12, 4)
    ),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 4)
    ),
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), Last(), nn.Linear(5, 4)),
    "Fourier": lambda: Head(fourier),
    "changes its input": lambda: Head(lambda m, z: m.out(z.mul_(0.5).relu_())),
    "in-place first": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 4)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 4))),
    "float64": lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).double(),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))),
}


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True, num_layers=2, dropout=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0][:, -1]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("what", ACCEPTED)
def test_what_is_one_is_scored_and_left_alone(what: str) -> None:
    torch.manual_seed(0)
    model = ACCEPTED[what]()
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(6, 12, dtype=dtype), torch.tensor([0, 1, 2, 3, 0, 3])
    kept = x.clone()
    whole = curvature(model, x, y, np.arange(6), h=0.1)
    assert torch.equal(x, kept)
    alone = curvature(model, x[3:4], y[3:4], np.array([3]), h=0.1)
    np.testing.assert_allclose(alone.curvature, whole.curvature[3:4], rtol=1e-3, atol=1e-6)


def test_a_callers_reduced_precision_does_not_reach_the_model(network) -> None:
    model, x, y, examples = network
    single, x = build_model("smallcnn", num_classes=10, in_channels=1), x.float()
    single.load_state_dict(model.state_dict())
    want = curvature(single, x, y, examples)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = curvature(single, x, y, examples)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    np.testing.assert_array_equal(got.curvature, want.curvature)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 12).bfloat16(), torch.tensor([0, 1]), "images are torch.bfloat16"),
        (torch.zeros(2, 12, dtype=torch.uint8), torch.tensor([0, 1]), "images are torch.uint8"),
        (torch.zeros(2, 12), torch.tensor([0, -100]), "label -100 of image 1"),
        (torch.zeros(2, 12), torch.tensor([0.0, 1.0]), "whole numbers"),
        (torch.zeros(2, 12), torch.eye(2), "whole numbers"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        curvature(nn.Linear(12, 2), images, labels, np.arange(2))
