"""Architectures: shapes, layers as published, no in-place operations, checkpoints that come back whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from libmodels import ARCHITECTURES, build_model
from libmodels.checkpoints import ModelSpec, load_model, model_bytes
from libmodels.smallcnn import GridAverages
from libstore.errors import InputError
from libtrain.training import predict

VARIANTS = [
    (name, {option: value})
    for name, row in ARCHITECTURES.items()
    for option, values in (row.options or {"": ("",)}).items()
    for value in values
]
SMALL = [
    (name, {k: v for k, v in options.items() if k})
    for name, options in VARIANTS
    if name in ("lenet5", "smallcnn", "resnet18")
]


@pytest.mark.parametrize(("name", "options"), SMALL)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 100)])
def test_logits_and_gradients_for_any_input(name: str, options: dict, channels: int, classes: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=classes, in_channels=channels, **options)
    x = torch.rand(3, channels, 32, 32, requires_grad=True)
    kept = x.detach().clone()
    model.eval()(x).sum().backward()
    assert model(x).shape == (3, classes)
    assert torch.equal(x, kept) and x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_lenet5_is_the_published_network() -> None:
    model = build_model("lenet5", num_classes=10, in_channels=1)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [
        (6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 16, 5, 5), (120,), (84, 120), (84,), (10, 84), (10,),
    ]  # fmt: skip
    assert sum(map(torch.numel, model.parameters())) == 61_706


def test_resnet18_is_the_published_network() -> None:
    """11,173,962 parameters for CIFAR-10, as in the CIFAR variant of torchvision's ResNet-18."""
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = build_model("resnet18", num_classes=10, in_channels=3)
    shapes = sorted(tuple(parameter.shape) for parameter in ours.parameters())
    assert shapes == sorted(tuple(parameter.shape) for parameter in theirs.parameters())
    names = {id(parameter): parameter for parameter in theirs.parameters()}
    for mine, other in zip(ours.parameters(), names.values(), strict=True):
        other.data.copy_(mine.data)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_group_norm_leaves_no_batch_norm() -> None:
    modules = list(build_model("resnet18", num_classes=10, in_channels=3, norm="group").modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert sum(isinstance(module, nn.GroupNorm) for module in modules) == 20


def test_activation_is_what_was_asked_for() -> None:
    for activation, kind in (("tanh", nn.Tanh), ("relu", nn.ReLU)):
        modules = list(build_model("smallcnn", num_classes=10, in_channels=1, activation=activation).modules())
        assert sum(isinstance(module, kind) for module in modules) == 3


@pytest.mark.parametrize(
    ("name", "options", "mention"),
    [
        ("vgg", {}, "'vgg'"),
        ("lenet5", {"norm": "group"}, "'norm'"),
        ("resnet18", {"norm": "layer"}, "'layer'"),
        ("smallcnn", {"activation": "gelu"}, "'gelu'"),
    ],
)
def test_unknown_names_and_options_are_refused(name: str, options: dict, mention: str) -> None:
    with pytest.raises(ValueError, match=mention):
        build_model(name, num_classes=10, in_channels=1, **options)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_checkpoints_come_back_whole_and_with_the_same_bytes(name: str, options: dict, tmp_path) -> None:
    spec = ModelSpec(
        name, 10, 1, "mnist", "unit", {key: row[0] for key, row in ARCHITECTURES[name].options.items()} | options
    )
    model = spec.build()
    path = tmp_path / "model.pt"
    path.write_bytes(model_bytes(model, spec, epoch=3))
    assert path.read_bytes() == model_bytes(model.to(memory_format=torch.channels_last), spec, epoch=3)
    loaded, loaded_spec = load_model(path)
    assert loaded_spec == spec and not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
    path.write_bytes(model_bytes(model, replace(spec, num_classes=11)))
    with pytest.raises(InputError, match="do not fit"):
        load_model(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot read"):
        load_model(path)


def test_predictions_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = build_model("smallcnn", num_classes=10, in_channels=1)
    x, y = torch.rand(25, 1, 28, 28), torch.randint(10, (25,))
    correct, prob = predict(model, x, y, batch_size=7)
    logits = model(x).detach()
    assert correct.tolist() == (logits.argmax(1) == y).tolist()
    want = torch.softmax(logits, 1)[torch.arange(25), y]
    torch.testing.assert_close(torch.from_numpy(prob), want)


@pytest.mark.parametrize("shape", [(4, 4), (7, 7), (8, 6), (5, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_averages_are_adaptive_pooling_to_rounding(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(3, 2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.inference_mode():
        GridAverages(4)(x)  # what is kept of this must do for training, and of the next one after it
    torch.func.vmap(torch.func.grad(lambda image: GridAverages(4)(image[None]).sum()))(x.detach())
    ours, theirs = GridAverages(4)(x), torch.nn.functional.adaptive_avg_pool2d(x, 4)
    upstream = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(out, x, upstream)[0] for out in (ours, theirs)]
    eps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=eps, atol=eps)
    torch.testing.assert_close(*gradients, rtol=eps, atol=eps)


def test_weights_of_the_small_cnn_with_adaptive_pooling_are_read() -> None:
    model = build_model("smallcnn", num_classes=10, in_channels=1)
    assert [name for name in model.state_dict() if name.startswith("features")] == [
        "features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias",
    ]  # fmt: skip
    images = torch.randn(5, 1, 28, 28)
    ours = model(images)
    model.features[4] = torch.nn.AdaptiveAvgPool2d(4)
    torch.testing.assert_close(ours, model(images), rtol=1e-5, atol=1e-6)
