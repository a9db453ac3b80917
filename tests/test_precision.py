"""Coarser products in training: what is bounded stays bounded, and results from before the setting stay finished."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from libmodels import build_model
from libstore.errors import InputError
from libstore.store import Output
from libtrain.dp_training import DPTrainer
from libtrain.per_example import PerExampleGradients
from libtrain.settings import PRECISIONS, DPSettings, PrivacyPlan, SGDSettings
from libtrain.training import train_sgd
from libtrain.unfinished import Unfinished


def network(arch: str) -> nn.Module:
    torch.manual_seed(0)
    if arch == "groupnorm":
        layers = nn.Conv2d(1, 8, 3, stride=2, bias=False), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(8 * 15 * 15, 10))
    return build_model(arch, num_classes=10, in_channels=1)


def digits(n: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, size, size, generator=draw), torch.randint(10, (n,), generator=draw)


def plain_sum(model: nn.Module, x: torch.Tensor, y: torch.Tensor, c: float) -> torch.Tensor:
    """The clipped sum by one backward pass an example, in float64."""
    model = model.double()
    total = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for image, label in zip(x.double(), y, strict=True):
        gradient = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))
        flat = torch.cat([g.flatten() for g in gradient])
        total += flat * min(1, c / float(flat.norm() + 1e-6))
    return total


@pytest.mark.parametrize("arch", ["lenet5", "smallcnn", "groupnorm"])
def test_clipped_sum_in_bf16_is_near_and_keeps_the_bound(arch: str) -> None:
    x, y = digits(6)
    got = {}
    for precision in PRECISIONS:
        model = network(arch)
        gradients = PerExampleGradients(model, precision)
        sums, _, logits = gradients.clipped_sum(x, y, 0.5)
        got[precision] = torch.cat([sums[p].flatten() for p in model.parameters()])
        assert {value.dtype for value in sums.values()} | {logits.dtype} == {torch.float32}
        for i in range(2):  # alone, an example adds no more than C, to float32's rounding
            one, *_ = gradients.clipped_sum(x[i : i + 1], y[i : i + 1], 0.5)
            assert sum(float(v.double().square().sum()) for v in one.values()) ** 0.5 <= 0.5 * (1 + 1e-5)
    want = plain_sum(network(arch), x, y, 0.5)
    off = {precision: float((value - want).norm() / want.norm()) for precision, value in got.items()}
    assert off["float32"] < 1e-4 and off["tf32"] < 2e-2
    assert 1e-4 < off["bf16"] < 0.1, off  # bfloat16 was used, and did no harm


def test_a_network_that_bf16_breaks_is_refused() -> None:
    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = self.first(x) + 512  # bfloat16 keeps nothing of what was added to
            return self.second(torch.sin((x - 512) * 50))

    torch.manual_seed(0)
    x, y = torch.randn(8, 16), torch.arange(8) % 3
    PerExampleGradients(Fine()).check(x, y)
    with pytest.raises(InputError, match="--precision bf16: beside float32, .*gradient"):
        PerExampleGradients(Fine(), "bf16").check(x, y)


def test_hooks_do_not_take_norms_in_bf16() -> None:
    with pytest.raises(InputError, match="--precision bf16: --grad_sample_mode hooks"):
        DPSettings(epsilon=1, precision="bf16", grad_sample_mode="hooks")


def test_private_training_takes_the_precision_and_measures_alike() -> None:
    x, y = digits(64)
    weights = {}
    for precision in PRECISIONS:
        settings = DPSettings(epsilon=1, batch_size=32, precision=precision, optimizer="sgd", lr=0.1, lr_drops=())
        trainer = DPTrainer(network("lenet5"), x, y, settings, PrivacyPlan(0.5, 3, 0.5))
        for _ in range(3):
            trainer.take_step()
        weights[precision] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert torch.equal(weights["float32"], weights["tf32"])  # a CPU has no TF32
    apart = float((weights["bf16"] - weights["float32"]).norm() / weights["float32"].norm())
    assert 0 < apart < 1e-2


def test_plain_training_takes_the_precision(tmp_path: Path) -> None:
    x, y = digits(64)
    weights = {}
    for precision in PRECISIONS:
        model = network("lenet5")
        state = Unfinished(Output(tmp_path / precision / "state.pt", {}))
        train_sgd(model, x, y, SGDSettings(epochs=1, precision=precision), seed=0, run=0, unfinished=state)
        weights[precision] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights["float32"], weights["tf32"])
    assert 0 < float((weights["bf16"] - weights["float32"]).abs().max()) < 1e-2


@pytest.mark.parametrize("place", ["sgd", "optimization"])
def test_results_from_before_the_setting_are_finished(tmp_path: Path, place: str) -> None:
    before = {place: {"lr": 0.1}}
    Output(tmp_path / "a.npy", before, 2).save(b"x", {})
    now = {place: {"lr": 0.1, "precision": "float32"}}
    assert Output(tmp_path / "a.npy", now, 2).finished()
    other = {place: {"lr": 0.1, "precision": "bf16"}}
    with pytest.raises(InputError, match='precision: "float32" there, "bf16" asked for'):
        Output(tmp_path / "a.npy", other, 2).finished()


def test_auto_is_512_where_there_is_no_gpu(tmp_path: Path) -> None:
    from libcli import Parser
    from libcli.settings import add_settings, read_settings

    parser = Parser("x")
    add_settings(parser, DPSettings)
    args = parser.parse_args(["--epsilon", "1", "--max_physical_batch_size", "auto", "--batch_size", "32"])
    x, y = digits(64)
    made = []
    for settings in (read_settings(DPSettings, args), DPSettings(epsilon=1, batch_size=32)):
        trainer = DPTrainer(network("lenet5"), x, y, settings, PrivacyPlan(0.5, 3, 0.5))
        trainer.take_step()
        made.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        assert trainer.state()["physical"] == 512
    assert torch.equal(*made)
