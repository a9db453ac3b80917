"""What private training accepts: networks whose gradients are right by autograd, and those refused in one line."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script, write_config
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from libmodels.checkpoints import ModelSpec
from libstore.errors import InputError
from libtrain.dp_training import DPTrainer, seeded_model
from libtrain.per_example import PerExampleGradients
from libtrain.settings import GRAD_SAMPLE_MODES, DPSettings, PrivacyPlan

CLIP = 0.5


class Net(nn.Module):
    """A network of one expression over its layers and x, (B, 1, 12, 12)."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def image_net(conv: nn.Module, act: nn.Module | None = None, maps: int = 4) -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(F.adaptive_avg_pool2d(net.act(net.conv(x)), 3).flatten(1))

    return Net(forward, conv=conv, act=act or nn.Tanh(), out=nn.Linear(9 * maps, 5))


def token_net(*layers: nn.Module, width: int = 12) -> nn.Module:
    """Layers on 12 tokens of 12 numbers, non-contiguous."""

    def forward(net: Net, x: Tensor) -> Tensor:
        found = net.layers(x.squeeze(1).transpose(1, 2))
        return net.out((found[0] if isinstance(found, tuple) else found).mean(1))

    return Net(forward, layers=nn.Sequential(*layers), out=nn.Linear(width, 5))


def time_first(net: Net, x: Tensor) -> Tensor:
    """As many steps as examples where the batch is 12: a formula that takes rows for examples gets a sum right."""
    return net.out(torch.tanh(net.a(x.squeeze(1).transpose(0, 1))).mean(0))


def flat_net(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), layer, nn.Linear(8, 5))


def attention(net: Net, x: Tensor) -> Tensor:
    h = net.a(x.squeeze(1))
    return net.out(net.mix(h, h, h)[0].mean(1))


def tied() -> nn.Module:
    net = Net(
        lambda net, x: net.out(torch.tanh(net.c(torch.tanh(net.b(torch.tanh(net.a(x.flatten(1)))))))),
        a=nn.Linear(144, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), out=nn.Linear(8, 5),
    )  # fmt: skip
    net.c.weight = net.b.weight
    return net


def two(forward) -> nn.Module:
    return Net(forward, a=nn.Linear(144, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 5))


def frozen_backbone() -> nn.Module:
    norm = nn.BatchNorm2d(4).requires_grad_(False).eval()
    norm.running_mean.uniform_(-1, 1)
    return image_net(nn.Conv2d(1, 4, 3).requires_grad_(False), norm)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Flattening(nn.Module):
    """What many write: a view that channels-last does not allow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


RIGHT = {
    "padding reflect": lambda: image_net(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")),
    "padding circular": lambda: image_net(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")),
    "padding same": lambda: image_net(nn.Conv2d(1, 4, 3, padding="same", dilation=2)),
    "strides": lambda: image_net(nn.Conv2d(1, 4, 3, stride=2, dilation=2, padding=1)),
    "groups": lambda: image_net(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2))),
    "transposed convolution": lambda: image_net(nn.ConvTranspose2d(1, 4, 3, stride=2)),
    "in-place ReLU": lambda: image_net(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)),
    "view": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3), Flattening(), nn.Linear(128, 5)),
    "Conv1d": lambda: token_net(nn.Conv1d(12, 12, 3, padding=1)),
    "Conv3d": lambda: Net(
        lambda net, x: net.out(net.a(x[:, None]).flatten(1)),
        a=nn.Conv3d(1, 2, (1, 4, 4), stride=4), out=nn.Linear(18, 5),
    ),
    "GroupNorm": lambda: image_net(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)),
    "InstanceNorm": lambda: image_net(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True)),
    "InstanceNorm in eval mode": lambda: image_net(
        nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval()
    ),
    "BatchNorm in eval mode": frozen_backbone,
    "trained BatchNorm in eval mode": lambda: flat_net(nn.BatchNorm1d(8).eval()),
    "tokens": lambda: token_net(nn.Linear(12, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 12)),
    "time first": lambda: Net(time_first, a=nn.Linear(12, 8), out=nn.Linear(8, 5)),
    "LayerNorm without bias": lambda: token_net(nn.Linear(12, 12), nn.LayerNorm(12, bias=False)),
    "LSTM": lambda: token_net(nn.LSTM(12, 6, batch_first=True), width=6),
    "GRU": lambda: token_net(nn.GRU(12, 6, batch_first=True), width=6),
    "attention": lambda: Net(
        attention, a=nn.Linear(12, 8), mix=nn.MultiheadAttention(8, 2, batch_first=True), out=nn.Linear(8, 5)
    ),
    "embedding": lambda: Net(
        lambda net, x: net.out(net.e((x.flatten(1) * 9).long()).mean(1)),
        e=nn.Embedding(10, 6, padding_idx=0), out=nn.Linear(6, 5),
    ),
    "PReLU": lambda: image_net(nn.Conv2d(1, 4, 3), nn.PReLU()),
    "weight_norm": lambda: image_net(weight_norm(nn.Conv2d(1, 4, 3))),
    "weight_norm, parametrized": lambda: image_net(parametrizations.weight_norm(nn.Conv2d(1, 4, 3))),
    "own parameter": lambda: flat_net(Scale()),
    "tied weights": tied,
    "weight used twice": lambda: two(lambda net, x: net.out(F.linear(net.b(net.a(x.flatten(1))), net.b.weight.t()))),
    "layer used twice": lambda: two(lambda net, x: net.out(net.b(torch.tanh(net.b(net.a(x.flatten(1))))))),
    "weight used without its layer": lambda: two(lambda net, x: net.out(F.linear(net.a(x.flatten(1)), net.b.weight))),
    "unused layer": lambda: two(lambda net, x: net.out(net.a(x.flatten(1)))),
    "unused output": lambda: two(lambda net, x: (net.b(net.a(x.flatten(1))), net.out(net.a(x.flatten(1))))[1]),
    "frozen layer": lambda: image_net(nn.Conv2d(1, 4, 3).requires_grad_(False)),
}  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 12, 12, generator=generator), torch.randint(5, (12,), generator=generator)


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Norms, and the clipped sum, by one plain backward pass an example."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = [
        torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), parameters, allow_unused=True)
        for a, b in zip(x, y, strict=True)
    ]
    zero = [torch.zeros_like(p) for p in parameters]
    rows = torch.stack(
        [torch.cat([(z if g is None else g).flatten() for g, z in zip(row, zero, strict=True)]) for row in found]
    )
    norms = rows.norm(dim=1)
    return norms, (rows * (CLIP / (norms + 1e-6)).clamp(max=1)[:, None]).sum(0)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def private(mode: str = "ghost") -> tuple[DPSettings, PrivacyPlan]:
    return DPSettings(1, batch_size=12, grad_sample_mode=mode), PrivacyPlan(1.0, 9, 1.0)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
@pytest.mark.parametrize("kind", RIGHT)
def test_a_step_is_that_of_autograd(kind: str, mode: str, batch, capsys) -> None:
    torch.manual_seed(1)
    model = RIGHT[kind]()
    norms, total = one_by_one(model, *batch)
    before, modes = weights(model), [layer.training for layer in model.modules()]
    settings = DPSettings(1, batch_size=12, max_grad_norm=CLIP, optimizer="sgd", lr=1.0, grad_sample_mode=mode)
    trainer = DPTrainer(model, *batch, settings, PrivacyPlan(1.0, 1, 0.0))
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    trainer.take_step()
    torch.testing.assert_close((before - weights(model)) * 12 / CLIP, total / CLIP, rtol=1e-3, atol=2e-5)
    assert modes == [layer.training for layer in model.modules()]
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(before, [p for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(trainer.gradient_norms(torch.arange(12), 5), norms, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trainer.clipped_sum(torch.arange(12)), total, rtol=1e-3, atol=1e-5)
    assert modes == [layer.training for layer in model.modules()]
    assert all("gradients" in line or "ghost is taken" in line for line in capsys.readouterr().err.splitlines())


class Mean(nn.Module):
    """Keeps a mean, as a buffer or out of sight, for training or for evaluation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mean = torch.zeros(8)
        if kind == "buffer":
            self.register_buffer("kept", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "buffer" and self.training:
            self.kept.mul_(0.9).add_(x.detach().mean(0))
        if self.kind != "buffer" and self.training:
            self.mean = 0.9 * self.mean + x.detach().mean(0)
        return x - self.mean if self.kind == "used at once" or not self.training else x


class FirstBatchScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fresh = nn.Parameter(torch.ones(8)), True

    def forward(self, x: Tensor) -> Tensor:
        if self.fresh:
            self.scale.data, self.fresh = 1 / (x.std(0) + 0.1), False
        return x * self.scale


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape, generator=self.generator)


class MyNorm(nn.BatchNorm1d):
    pass


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def flat(function) -> nn.Module:
    return Net(lambda net, x: function(net.out(x.flatten(1))), out=nn.Linear(144, 5))


REFUSED = {
    "BatchNorm": (lambda: flat_net(nn.BatchNorm1d(8)), "layer 2 (BatchNorm1d)"),
    "BatchNorm with nothing to train": (lambda: flat_net(nn.BatchNorm1d(8, affine=False)), "layer 2 (BatchNorm1d)"),
    "frozen BatchNorm": (lambda: flat_net(nn.BatchNorm1d(8).requires_grad_(False)), "build it in .eval()"),
    "subclass of BatchNorm": (lambda: flat_net(MyNorm(8)), "layer 2 (MyNorm)"),
    "SyncBatchNorm": (lambda: flat_net(nn.SyncBatchNorm(8)), "layer 2 (SyncBatchNorm)"),
    "BatchNorm without fixed statistics": (
        lambda: flat_net(nn.BatchNorm1d(8, track_running_stats=False).eval()), "layer 2 (BatchNorm1d)",
    ),
    "tracking InstanceNorm": (
        lambda: image_net(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)),
        "layer act (InstanceNorm2d)",
    ),
    "batch_norm as a function": (
        lambda: two(lambda net, x: net.out(F.batch_norm(net.a(x.flatten(1)), None, None, training=True))),
        "before layer out (Linear)",
    ),
    "difference from the mean": (lambda: flat_net(Function(lambda x: x - x.mean(0))), "layer 2 (Function)"),
    "softmax over the batch": (lambda: flat_net(Function(lambda x: x.softmax(0))), "layer 2 (Function)"),
    "neighbour": (lambda: flat_net(Function(lambda x: x + 0.1 * x.roll(1, 0))), "layer 2 (Function)"),
    "size of the batch": (lambda: flat_net(Function(lambda x: x * (1 + 0.01 * len(x)))), "layer 2 (Function)"),
    "mean in a buffer": (lambda: flat_net(Mean("buffer")), "layer 2 (Mean) changes its kept"),
    "mean out of sight": (lambda: flat_net(Mean("used at once")), "layer 2 (Mean)"),
    "mean for evaluation": (lambda: flat_net(Mean("used later")), "keeps something"),
    "scale of the first batch": (lambda: flat_net(FirstBatchScale()), "layer 2 (FirstBatchScale) changes its scale"),
    "own generator": (lambda: flat_net(OwnGenerator()), "layer 2 (OwnGenerator)"),
    "spectral_norm": (lambda: flat_net(parametrizations.spectral_norm(nn.Linear(8, 8))), "(_SpectralNorm) changes its"),
    "all frozen": (lambda: flat_net(nn.Tanh()).requires_grad_(False), "nothing to train"),
    "tuple": (lambda: flat(lambda logits: (logits, logits)), "gives a tuple"),
    "too few logits": (lambda: flat(lambda logits: logits[:, :2]), "gives 2 logits, but there is a label"),
    "another shape": (lambda: flat(lambda logits: logits.squeeze()[:, :, None]), "(12, 5, 1)"),
    "not of one example": (lambda: flat(torch.squeeze), "(5,)"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "layer 1 (LazyLinear)"),
    "double": (lambda: flat_net(nn.Tanh()).double(), "dtype"),
    "other inputs": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 5)), "(12, 1, 12, 12)"),
    "not finite": (lambda: flat(lambda logits: logits / 0), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_breaks_the_guarantee_is_refused_in_a_line(kind: str, mode: str, batch) -> None:
    build, mention = REFUSED[kind]
    torch.manual_seed(1)
    with pytest.raises(InputError) as refusal:
        DPTrainer(build(), *batch, *private(mode))
    assert mention in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["difference from the mean", "mean out of sight", "BatchNorm"])
def test_a_measurement_refuses_what_a_training_does(kind: str, batch) -> None:
    torch.manual_seed(1)
    gradients = PerExampleGradients(REFUSED[kind][0]())
    for n in (1, 2, 12):
        with pytest.raises(InputError, match=r"layer 2"):
            gradients.norms(batch[0][:n], batch[1][:n])
    with pytest.raises(InputError, match=r"layer 2"):
        gradients.clipped_sum(*batch, 1.0)


def test_gradients_that_are_zero_at_the_start_are_checked_all_the_same(batch) -> None:
    torch.manual_seed(1)
    net = two(lambda net, x: net.out(F.linear(torch.tanh(net.b(net.a(x.flatten(1)))), net.b.weight)))
    nn.init.zeros_(net.out.weight)
    gradients = PerExampleGradients(net)
    gradients.norms(*batch)
    assert not net.out.weight.any()
    nn.init.normal_(net.out.weight)
    torch.testing.assert_close(gradients.norms(*batch), one_by_one(net, *batch)[0], rtol=1e-4, atol=1e-6)


def test_a_measurement_is_checked_in_its_own_mode(batch) -> None:
    def mixes_in_evaluation(net: Net, x: Tensor) -> Tensor:
        logits = net.out(x.flatten(1))
        return logits if net.training else logits * (1 + logits.detach().square().mean())

    trainer = DPTrainer(Net(mixes_in_evaluation, out=nn.Linear(144, 5)), *batch, *private())
    trainer.take_step()
    for measure in (trainer.gradient_norms, trainer.clipped_sum):
        with pytest.raises(InputError, match="companions"):
            measure(torch.tensor([3]))
    assert trainer.model.training


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
def test_a_layer_that_is_put_in_training_mode_later_is_refused(mode: str, batch) -> None:
    trainer = DPTrainer(frozen_backbone(), *batch, *private(mode))
    kept = trainer.model.act.running_mean.clone()
    trainer.take_step()
    trainer.gradient_norms(torch.arange(3))
    assert not trainer.model.act.training and trainer.model.training
    trainer.model.train()
    with pytest.raises(InputError, match=r"layer act \(BatchNorm2d\)"):
        trainer.take_step()
    assert torch.equal(trainer.model.act.running_mean, kept)


def test_a_check_leaves_no_trace(batch) -> None:
    torch.manual_seed(1)
    model = flat_net(nn.Dropout())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    streams = torch.get_rng_state(), pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002
    assert PerExampleGradients(model).check(*batch).draws
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert pickle.dumps((np.random.get_state(), random.getstate())) == streams[1]  # noqa: NPY002
    assert all(p.grad is None for p in model.parameters())


def test_another_batch_as_large_as_many_chunks(batch, monkeypatch) -> None:
    """Whole gradients are made a few examples at a time; the sums are those of the batch."""
    torch.manual_seed(1)
    model = tied()
    norms, total = one_by_one(model, *batch)
    monkeypatch.setattr("libtrain.per_example._GRADIENTS_CPU", 5 * weights(model).numel())
    gradients = PerExampleGradients(model)
    torch.testing.assert_close(gradients.norms(*batch), norms, rtol=1e-4, atol=1e-6)
    sums, losses, logits = gradients.clipped_sum(*batch, CLIP)
    torch.testing.assert_close(torch.cat([sums[p].flatten() for p in model.parameters()]), total, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(logits, model(batch[0]).detach())
    torch.testing.assert_close(losses, F.cross_entropy(logits, batch[1], reduction="none"))


USER_NETWORK = """
from torch import nn

class Pair(nn.Module):
    def forward(self, x):
        return x, x

def build(num_classes, in_channels, kind):
    layers = {
        "in-place": lambda: nn.ReLU(inplace=True),
        "fixed": lambda: nn.BatchNorm1d(16).eval(),
        "statistics": lambda: nn.BatchNorm1d(16, affine=False),
        "pair": Pair,
        "lazy": lambda: nn.LazyLinear(16),
    }
    body = [nn.Flatten(), nn.Linear(784 * in_channels, 16), layers[kind]()]
    return nn.Sequential(*body, nn.Linear(16, num_classes)) if kind != "pair" else nn.Sequential(*body)
"""


@pytest.mark.parametrize(
    ("kind", "mention"),
    [("in-place", ""), ("fixed", ""), ("statistics", "layer 2 (BatchNorm1d)"), ("pair", "it returns a tuple of 2"),
     ("lazy", "")],
)  # fmt: skip
def test_scripts_train_a_users_network_or_say_why_not(kind: str, mention: str, tmp_path) -> None:
    (tmp_path / "nets.py").write_text(USER_NETWORK)
    own = ("--arch", f"{tmp_path}/nets.py:build", "--arch_name", "user", "--arch_options", f"kind={kind}")
    own += ("--epochs", 1, "--config", write_config(tmp_path))
    few = ("--data_subset", 100, "--batch_size", 20, "--epsilon", 8, "--accountant", "rdp")
    plain = ("train_fz_models.py", *own, "--data_subset", 60, "--stop_run", 1)
    for line, folder in ((("train_dp.py", *own, *few), "private_model_dir"), (plain, "fz_model_dir")):
        result = run_script(*line)
        if mention and not (line is plain and kind == "statistics"):
            assert result.returncode == 2 and mention in result.stderr and len(result.stderr.splitlines()) == 1
            assert not (tmp_path / folder).exists()
        else:
            assert result.returncode == 0, result.stderr
            assert not result.stderr or "gradients by vmap" in result.stderr or "training" in result.stderr
            assert next((tmp_path / folder).iterdir()).name.startswith("mnist_user")


def test_a_network_with_batch_norm_is_told_of_its_option() -> None:
    with pytest.raises(InputError, match=r"resnet18.*\(BatchNorm2d\).*--norm group"):
        seeded_model(ModelSpec("resnet18", 10, 1, "mnist", "standard", {"norm": "batch"}), 0)
