"""libmodels.tanh beside PyTorch's tanh in double precision, and under every derivative."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from libmodels.tanh import Tanh


def test_values_are_those_of_double_precision_within_two_units_in_the_last_place() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-40, 2, 50_001), -torch.logspace(-40, 2, 50_001)])
    truth = torch.tanh(x.double())
    unit = torch.nextafter(truth.float().abs(), torch.tensor(math.inf)) - truth.float().abs()
    assert ((Tanh()(x).double() - truth).abs() <= 2 * unit.double()).all()


def test_special_values() -> None:
    found = Tanh()(torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]))
    assert found[:2].tolist() == [1, -1] and found[2].isnan()
    assert torch.signbit(found[3:]).tolist() == [False, True]


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 6, 5).transpose(0, 2),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(8)[::2],
        torch.randn(3, 1).expand(3, 4),
        torch.empty(0, 3),
        torch.randn(()),
        torch.randn(5, dtype=torch.float64),
        torch.randn(5).bfloat16(),
    ],
    ids=["transposed", "channels last", "every second", "expanded", "empty", "scalar", "double", "bfloat16"],
)
def test_layouts_and_types_are_kept(x: Tensor) -> None:
    found, expected = Tanh()(x), torch.tanh(x)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)
    with torch.inference_mode():
        assert torch.equal(Tanh()(x), found)


def network(act: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 1))


@pytest.mark.parametrize(
    "derive",
    [
        grad,
        lambda f: grad(lambda x: grad(f)(x).square().sum()),
        hessian,
        jacfwd,
        lambda f: jacfwd(jacfwd(f)),
        lambda f: jacrev(jacrev(f)),
        lambda f: lambda x: vmap(grad(f))(torch.stack([x, 2 * x])),
        lambda f: lambda x: vmap(hessian(f), in_dims=1)(torch.stack([x, 2 * x], 1)),
    ],
    ids=["grad", "grad of grad", "hessian", "forward", "forward twice", "reverse twice", "vmap", "vmap of hessian"],
)
def test_derivatives_are_those_of_pytorch(derive: Callable) -> None:
    ours, theirs = (network(act) for act in (Tanh, nn.Tanh))
    x = torch.tensor([0.3, -1.2, 2.0])
    found, expected = (derive(lambda x, net=net: net(x).sum())(x) for net in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_forward_mode_by_hand() -> None:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.tensor([0.3]), torch.tensor([2.0]))
        value, tangent = forward_ad.unpack_dual(Tanh()(x))
    assert float(tangent) == pytest.approx(2 * (1 - float(value) ** 2), rel=1e-6)


def test_what_is_traced_depends_on_the_input() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        traced = torch.jit.trace(network(Tanh), torch.zeros(2, 3))
    recorded = make_fx(network(Tanh))(torch.zeros(2, 3))
    x = torch.randn(2, 3)
    for found in (traced(x), recorded(x)):
        torch.testing.assert_close(found, network(nn.Tanh)(x), rtol=1e-5, atol=1e-6)


def test_second_derivatives_by_autograd() -> None:
    x = torch.randn(7, requires_grad=True)
    (first,) = torch.autograd.grad(Tanh()(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    y = torch.tanh(x.detach().double())
    torch.testing.assert_close(second.double(), -2 * y * (1 - y.square()), rtol=1e-5, atol=1e-6)


def test_it_is_a_tanh_and_copies() -> None:
    layer = copy.deepcopy(Tanh())
    assert isinstance(layer, nn.Tanh) and not list(layer.parameters())
    assert torch.equal(layer(torch.ones(2)), Tanh()(torch.ones(2)))
