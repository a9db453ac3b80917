"""Networks trained in one step each are those trained one by one, to rounding."""

from __future__ import annotations

import libcli as cli

from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script, tree, write_config
from torch import nn

from libmodels import build_model
from libstore.errors import InputError
from libstore.store import Output, read_sidecar
from libtrain.settings import SGDSettings
from libtrain.together import train_together
from libtrain.training import train_sgd
from libtrain.unfinished import Unfinished

N, RUNS = 90, (3, 4, 7)
SETTINGS = SGDSettings(epochs=2, batch_size=16, weight_decay=1e-3)


def networks(arch: str) -> list[nn.Module]:
    models = []
    for run in RUNS:
        torch.manual_seed(run)
        models.append(build_model(arch, num_classes=10, in_channels=1))
    models[0].classifier[0].bias.requires_grad_(False)
    for model in models[1:]:
        model.classifier[0].bias.requires_grad_(False)
    return models


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randperm(N, generator=draw)[:70].sort().values for _ in RUNS])
    return torch.rand(N, 1, 32, 32, generator=draw), torch.randint(10, (N,), generator=draw), rows


def weights(models: list[nn.Module]) -> torch.Tensor:
    return torch.stack([torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models])


@pytest.mark.parametrize("arch", ["lenet5", "smallcnn"])
def test_weights_are_those_of_one_by_one(arch: str, tmp_path: Path) -> None:
    images, labels, rows = data()
    alone, before = networks(arch), weights(networks(arch))
    for model, run, own in zip(alone, RUNS, rows, strict=True):
        state = Unfinished(Output(tmp_path / f"{run}.pt", {}))
        train_sgd(model, images[own], labels[own], SETTINGS, seed=5, run=run, unfinished=state)
    stacked = networks(arch)
    state = Unfinished(Output(tmp_path / "all.pt", {}))
    train_together(stacked, images, labels, rows, SETTINGS, seed=5, runs=RUNS, unfinished=state)
    moved = (weights(alone) - before).norm(dim=1)
    assert (moved > 0.1).all()
    assert ((weights(stacked) - weights(alone)).norm(dim=1) <= 1e-4 * moved).all()  # what the help calls rounding


def test_stopped_and_called_again_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    images, labels, rows = data()
    made = []
    for name, stops in (("whole", ()), ("stopped", (0, 15, 0, 0))):
        answers, epochs = iter(stops), []
        state = Unfinished(Output(tmp_path / f"{name}.pt", {}), stopping=partial(next, answers, 0))
        while not epochs or epochs[-1] < SETTINGS.epochs:
            models = networks("lenet5")
            how = {"seed": 5, "runs": RUNS, "unfinished": state, "on_epoch": epochs.append}
            with suppress(cli.Stopped):
                train_together(models, images, labels, rows, SETTINGS, **how)
        assert epochs == [0, 1, 1, 2] if stops else epochs == [0, 1, 2]
        made.append(weights(models))
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("layer", "named"), [(nn.BatchNorm1d(32), "buffer, 2.running_mean"), (nn.Dropout(), "draws random numbers")]
)
def test_what_has_its_own_statistics_or_draws_is_refused(layer: nn.Module, named: str, tmp_path: Path) -> None:
    images, labels, rows = data()
    models = [nn.Sequential(nn.Flatten(), nn.Linear(1024, 32), layer, nn.Linear(32, 10)) for _ in RUNS]
    state = Unfinished(Output(tmp_path / "all.pt", {}))
    with pytest.raises(InputError, match=f"--together: Sequential .*{named}"):
        train_together(models, images, labels, rows, SETTINGS, seed=5, runs=RUNS, unfinished=state)


def test_script_trains_groups_says_so_and_skips_what_is_there(tmp_path: Path) -> None:
    flags = ("--data_subset", 60, "--dataset", "mnist", "--epochs", 1, "--stop_run", 3, "--device", "cpu")
    roots = []
    for together in (1, 2):
        (tmp_path / str(together)).mkdir()
        config = write_config(tmp_path / str(together))
        command = ("train_fz_models.py", *flags, "--together", together, "--config", config)
        result = run_script(*command)
        assert result.returncode == 0 and result.stdout.count("accuracy") == 3, result.stderr
        roots.append(tmp_path / str(together) / "fz_model_dir/mnist_smallcnn/0.7")
    before = tree(roots[1])
    assert not list(roots[1].rglob("state*"))
    for run in range(3):
        alone, grouped = (root / str(run) / "aux_arrays.npz" for root in roots)
        said = read_sidecar(grouped)
        assert said["settings"] == read_sidecar(alone)["settings"]
        assert said["provenance"]["together"] == [[0, 1], [0, 1], [2]][run]
        with np.load(alone) as one, np.load(grouped) as other:
            for name in one.files:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5)
    assert run_script(*command).stdout.count("skipped") == 3 and tree(roots[1]) == before
    (roots[1] / "1" / "aux_arrays.npz").unlink()
    again = run_script(*command)
    assert (again.stdout.count("skipped"), again.stdout.count("accuracy")) == (2, 1) and tree(roots[1]) == before
    refused = run_script(*command[:-4], "--arch", "resnet18", "--together", 2, "--config", config)
    assert_refused(refused, "--together", "ResNet18 has a buffer")
