"""Per-example gradient norms and clipped sums against a batch-of-one loop and against Opacus."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from libmodels import build_model
from libtrain.per_example import PerExampleGradients

NETWORKS = [
    ("lenet5", 32, 1, {}),
    ("smallcnn", 28, 1, {}),
    ("smallcnn", 32, 3, {"activation": "relu"}),
    ("resnet18", 32, 3, {"norm": "group"}),
]


def batch_of_one(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> tuple[Tensor, list[Tensor]]:
    """Norms and the clipped sum, one example and one plain backward pass at a time, in double precision."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms, sums = [], [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        norms.append(norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient * min(1.0, clip / (norm.item() + 1e-6))
    return torch.stack(norms), sums


def check(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> None:
    model, x = model.double(), x.double() if x.is_floating_point() else x
    norms, sums = batch_of_one(model, x, y, clip)
    compare(model, x, y, clip, norms, sums)
    if x.ndim == 4:
        model.to(memory_format=torch.channels_last)
        compare(model, x.contiguous(memory_format=torch.channels_last), y, clip, norms, sums)


def compare(model: nn.Module, x: Tensor, y: Tensor, clip: float, norms: Tensor, sums: list[Tensor]) -> None:
    gradients = PerExampleGradients(model)
    torch.testing.assert_close(gradients.norms(x, y), norms, rtol=1e-9, atol=1e-12)
    got, losses, logits = gradients.clipped_sum(x, y, clip)
    for parameter, want in zip((p for p in model.parameters() if p.requires_grad), sums, strict=True):
        torch.testing.assert_close(got[parameter], want, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(logits, model(x).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, F.cross_entropy(logits, y, reduction="none"))


@pytest.mark.parametrize(("arch", "size", "channels", "options"), NETWORKS)
def test_networks_equal_a_batch_of_one_loop(arch: str, size: int, channels: int, options: dict) -> None:
    torch.manual_seed(0)
    model = build_model(arch, num_classes=10, in_channels=channels, **options)
    n = 4 if arch == "resnet18" else 12
    x, y = torch.randn(n, channels, size, size), torch.randint(10, (n,))
    clip = PerExampleGradients(model).norms(x, y).median().item()  # half of the examples are clipped
    check(model, x, y, clip)


@given(
    channels=st.sampled_from([1, 2, 4]),
    maps=st.sampled_from([2, 6]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    size=st.sampled_from([(8, 9), (7, 7)]),
    n=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None, phases=[Phase.generate])
def test_any_convolution_equals_a_batch_of_one_loop(
    channels, maps, kernel, stride, padding, dilation, groups, bias, size, n
) -> None:
    torch.manual_seed(1)
    groups = groups if channels % groups == 0 else 1
    conv = nn.Conv2d(
        channels, maps, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias
    )
    features = conv(torch.zeros(1, channels, *size)).numel()
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3, bias=bias))
    check(model, torch.randn(n, channels, *size), torch.randint(3, (n,)), 0.5)


def test_small_blocks_of_patches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = build_model("smallcnn", num_classes=10, in_channels=3)
    x, y = torch.randn(7, 3, 28, 28), torch.randint(10, (7,))
    whole = PerExampleGradients(model).norms(x, y)
    monkeypatch.setattr("libtrain.per_example._PATCHES_CPU", 1)
    torch.testing.assert_close(PerExampleGradients(model).norms(x, y), whole, rtol=1e-6, atol=0)


def test_frozen_parameters_and_other_layers() -> None:
    torch.manual_seed(3)
    layers = [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)]
    model = nn.Sequential(*layers)
    layers[0].bias.requires_grad_(False)
    layers[5].weight.requires_grad_(False)
    check(model, torch.randn(5, 2, 6, 6), torch.randint(3, (5,)), 0.3)


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
@pytest.mark.parametrize("padding", [None, 2])
def test_tokens_that_come_again_are_added_up(shape: tuple[int, ...], padding: int | None, capsys) -> None:
    torch.manual_seed(6)
    features = 5 * torch.Size(shape).numel()
    model = nn.Sequential(nn.Embedding(4, 5, padding_idx=padding), nn.Flatten(), nn.Tanh(), nn.Linear(features, 3))
    x = torch.randint(4, (9, *shape))
    x[:4] = torch.randint(2, (4, *shape))  # no padding among the first
    check(model, x, torch.randint(3, (9,)), 0.3)
    assert not capsys.readouterr().err  # not one of the slower ways


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(("arch", "size", "channels", "options"), NETWORKS[:3])
def test_norms_are_those_of_opacus(arch: str, size: int, channels: int, options: dict) -> None:
    torch.manual_seed(4)
    model = build_model(arch, num_classes=10, in_channels=channels, **options)
    x, y = torch.randn(9, channels, size, size), torch.randint(10, (9,))
    ours = PerExampleGradients(model).norms(x, y)
    ghost = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
    F.cross_entropy(ghost(x), y, reduction="sum").backward()
    torch.testing.assert_close(ours, ghost.get_norm_sample(), rtol=2e-6, atol=0)


def test_no_contribution_is_above_the_clipping_norm() -> None:
    torch.manual_seed(5)
    model = build_model("smallcnn", num_classes=10, in_channels=1)
    gradients = PerExampleGradients(model)
    x, y = torch.randn(20, 1, 28, 28) * torch.logspace(-2, 3, 20)[:, None, None, None], torch.randint(10, (20,))
    for clip in (1e-4, 0.5, 1e3):
        for i in range(20):
            sums, _, _ = gradients.clipped_sum(x[i : i + 1], y[i : i + 1], clip)
            norm = torch.cat([g.flatten() for g in sums.values()]).double().norm().item()
            own = gradients.norms(x[i : i + 1], y[i : i + 1]).item()
            assert norm <= clip * (1 + 1e-6)
            assert norm == pytest.approx(min(own, clip), rel=2e-2 if clip < 1e-3 else 1e-4)
