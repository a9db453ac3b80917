"""The fast gradient by images of one channel, beside PyTorch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from libmodels.smallcnn import SmallCNN
from libscores.curvature import check_model, curvature
from libscores.one_channel import fast_gradients_by_gray_images

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.normal(size=(12, 1, 28, 28))).float()
LABELS = torch.arange(12) % 10


def gradients(layer: nn.Conv2d, images: Tensor, toward: Tensor | None = None) -> list[Tensor]:
    x = images.clone().requires_grad_()
    y = layer(x)
    wanted = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.cos(y.detach()) if toward is None else toward)]


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.integers(1, 2),
    st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(11, 20), st.integers(11, 20)), st.booleans(),
)  # fmt: skip
def test_it_is_the_gradient_that_pytorch_computes(
    stride: tuple[int, int], padding: tuple[int, int], dilation: int, kernel: tuple[int, int], size: tuple[int, int],
    bias: bool,
) -> None:  # fmt: skip
    layer = nn.Conv2d(1, 3, kernel, stride, padding, dilation, bias=bias).double()
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 1, *size)))
    own = gradients(layer, images)
    with fast_gradients_by_gray_images(nn.Sequential(layer)) as there:
        assert there and "_Convolution" in str(layer(images.clone().requires_grad_()).grad_fn)
        other = gradients(layer, images)
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert "forward" not in vars(layer)


def test_values_and_gradients_by_the_weights_are_the_same_bits() -> None:
    layer = nn.Conv2d(1, 16, 5, stride=2, padding=2)
    own = gradients(layer, IMAGES)
    with fast_gradients_by_gray_images(layer):
        other = gradients(layer, IMAGES)
    assert all(torch.equal(own[i], other[i]) for i in (0, 2, 3)) and not torch.equal(own[1], other[1])


def test_it_has_second_derivatives() -> None:
    layer = nn.Conv2d(1, 2, 3, stride=2).double()
    with fast_gradients_by_gray_images(layer):
        x = torch.from_numpy(RNG.normal(size=(2, 1, 6, 6))).requires_grad_()
        parts = (x, *layer.parameters())
        assert torch.autograd.gradgradcheck(lambda x, *_: layer(x).tanh(), parts)


def test_curvature_is_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = SmallCNN(10, 1)
    fast = curvature(model, IMAGES, LABELS, np.arange(12), h=1e-3, n_probes=4, seed=0)
    monkeypatch.setattr("libscores.one_channel._is_slow", lambda _: False)
    slow = curvature(model, IMAGES, LABELS, np.arange(12), h=1e-3, n_probes=4, seed=0)
    np.testing.assert_allclose(fast.curvature, slow.curvature, rtol=1e-3)
    assert not np.array_equal(fast.curvature, slow.curvature)


def test_a_gradient_that_is_not_pytorch_s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = torch.nn.functional.fold
    monkeypatch.setattr(torch.nn.functional, "fold", lambda *how: fold(*how).roll(1, 3))
    with pytest.raises(ValueError, match="not those that PyTorch computes"):
        check_model(SmallCNN(10, 1), IMAGES, LABELS)


def test_images_by_the_portion_are_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(1, 4, 5)
    with fast_gradients_by_gray_images(layer):
        at_once = gradients(layer, IMAGES)[1]
        monkeypatch.setattr("libscores.one_channel._PASSED", 5 * 25 * 24 * 24)  # 5 of 12
        torch.testing.assert_close(gradients(layer, IMAGES)[1], at_once, rtol=1e-5, atol=1e-6)
