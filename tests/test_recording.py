"""What training records: the numbers against a loop over single examples, and that it changes nothing."""

from __future__ import annotations

import libcli as cli

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ENSEMBLE_FLAGS, assert_refused, run_script, start_script, tree
from released_files import write_config
from torch import nn

from libmodels.smallcnn import SmallCNN
from libscores import trajectory
from libstore.errors import InputError
from libstore.score_table import read_table, table_path
from libstore.store import Output
from libstore.trajectories import read_trajectory
from libtrain.recording import Recorder
from libtrain.settings import RecordSettings, SGDSettings
from libtrain.streams import ORDER, stream_seed
from libtrain.training import train_sgd
from libtrain.unfinished import Unfinished

ALL = RecordSettings(record=True, record_input_gradients=True, record_vog=True)
SETTINGS = SGDSettings(epochs=3, batch_size=8, lr=0.05)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20, 1, 28, 28, generator=generator), torch.randint(0, 10, (20,), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(1)
    return SmallCNN(num_classes=10, in_channels=1, activation="tanh")


def trained(
    folder: Path, recorder: Recorder | None = None, stopping: Callable[[], int] = lambda: 0, save_every: float = 1e9
) -> nn.Module:
    model, (images, labels) = network(), digits()
    unfinished = Unfinished(Output(folder / "state.pt", {}), save_every=save_every, stopping=stopping)
    train_sgd(model, images, labels, SETTINGS, seed=0, run=0, unfinished=unfinished, recorder=recorder)
    return model


def slow() -> dict[str, np.ndarray]:
    """The same training, one example at a time."""
    model, (images, labels) = network(), digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    kept = {"loss": np.zeros((3, 20)), "correct": np.zeros((3, 20), bool), "input_gradient_norm": np.zeros((3, 20))}
    norms, gradients = [], np.zeros((3, 20, 28 * 28))
    for epoch in range(3):
        order = torch.Generator().manual_seed(stream_seed(0, 0, ORDER, epoch))
        for batch in torch.randperm(20, generator=order).split(8):
            optimizer.zero_grad()
            for i in batch.tolist():
                x = images[i : i + 1].clone().requires_grad_()
                logits = model(x)
                loss = F.cross_entropy(logits, labels[i : i + 1])
                (loss / len(batch)).backward()
                kept["loss"][epoch, i], kept["correct"][epoch, i] = loss.item(), logits.argmax() == labels[i]
                kept["input_gradient_norm"][epoch, i] = float(x.grad.norm()) * len(batch)
            optimizer.step()
            scheduler.step()
        norms.append(sum(float((p.detach() ** 2).sum()) for p in model.parameters()) ** 0.5)
        for i in range(20):
            x = images[i : i + 1].clone().requires_grad_()
            gradients[epoch, i] = torch.autograd.grad(model(x)[0, labels[i]], x)[0].flatten().numpy()
    return kept | {"weight_norm": np.array(norms), "vog": gradients.std(axis=0).mean(axis=1)}


def test_recorded_numbers_are_those_of_a_loop_over_examples_and_the_weights_stay(tmp_path: Path) -> None:
    recorder = Recorder(ALL, 3, *digits())
    recorded, plain = trained(tmp_path, recorder), trained(tmp_path)
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    found, expected = recorder.arrays(), slow()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(found[name], values, rtol=2e-3, atol=1e-5), name


def test_a_stopped_training_goes_on_to_the_same_record(tmp_path: Path) -> None:
    whole = Recorder(ALL, 3, *digits())
    trained(tmp_path, whole)
    asked = iter([0, 0, 15])
    with pytest.raises(cli.Stopped):
        trained(tmp_path, Recorder(ALL, 3, *digits()), lambda: next(asked), 0.0)
    resumed = Recorder(ALL, 3, *digits())
    trained(tmp_path, resumed)
    for name, values in whole.arrays().items():
        assert np.array_equal(values, resumed.arrays()[name]), name


def test_token_ids_have_no_gradient_and_networks_that_write_to_their_input_are_fine() -> None:
    tokens = torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(InputError, match="--record_vog: the inputs are token ids"):
        Recorder(RecordSettings(record_vog=True), 1, tokens, tokens[:, 0])
    Recorder(RecordSettings(record=True), 1, tokens, tokens[:, 0])
    recorder = Recorder(ALL, 1, *digits())
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 10))
    logits, rows = model(recorder.inputs(digits()[0][:8])), torch.arange(8)
    F.cross_entropy(logits, digits()[1][:8]).backward()
    recorder.batch(0, rows, logits)
    recorder.end_epoch(0, model)
    assert (recorder.arrays()["input_gradient_norm"][0, :8] > 0).all()


def test_scores_of_a_trajectory_by_hand() -> None:
    correct = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)
    assert trajectory.forgetting_events(correct).tolist() == [2, 4, 1, 0]
    assert trajectory.first_learned_epoch(correct).tolist() == [1, 5, 2, 1]
    loss = np.array([[4.0, 1], [2, 1], [1, 1], [0, 1]])
    assert trajectory.cumulative(loss).tolist() == [7, 4]
    assert trajectory.cumulative(loss, np.array([1.0, 3, 3, 2])).tolist() == [6, 2]
    assert trajectory.loss_range(loss).tolist() == [2.5 - 0.75, 0]


FLAGS = (*ENSEMBLE_FLAGS, "--data_subset", "60", "--epochs", "3", "--batch_size", "32", "--stop_run", "4")


def test_finished_runs_are_recorded_later_and_their_scores_come_into_the_table(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    line = ("train_fz_models.py", *FLAGS, "--config", config)
    assert run_script(*line).returncode == 0
    before = tree(tmp_path)
    record = (*line, "--record", "--record_input_gradients")
    assert "accuracy" in run_script(*record).stdout
    after = tree(tmp_path)
    new = {name for name in after if name not in before}
    assert all(after[name] == content for name, content in before.items())
    ratio = "fz_model_dir/mnist_smallcnn/0.7"
    assert new == {f"{ratio}/{run}/trajectory.{end}" for run in range(4) for end in ("npz", "json")}
    for less in (line, (*line, "--record"), record):
        assert run_script(*less).stdout.count("finished before, skipped") == 4
    assert tree(tmp_path) == after
    assert_refused(run_script(*line, "--record", "--together", "2"), "--together 2")
    assert_refused(run_script(*line, "--record_vog"), "trajectory.npz", "record.vog: false there, true asked for")

    result = run_script("score_table.py", *ENSEMBLE_FLAGS, "--config", config, "--no-influence")
    assert result.returncode == 0, result.stderr
    table, about = read_table(table_path(tmp_path / "score_dir", "mnist", "smallcnn"))
    expected: dict[str, dict[int, list[float]]] = {"csl": {}, "csg_stopped": {}}
    for run in range(4):
        one = np.load(tmp_path / ratio / str(run) / "trajectory.npz")
        arrays = np.load(tmp_path / ratio / str(run) / "aux_arrays.npz")
        assert np.array_equal(one["index_train"], np.sort(arrays["index_train"]))
        stop = int(np.argmax(one["weight_norm"])) + 1
        for row, example in enumerate(one["index_train"].tolist()):
            expected["csl"].setdefault(example, []).append(float(one["loss"][:, row].astype(float).sum()))
            csg = float(one["input_gradient_norm"][:stop, row].astype(float).sum())
            expected["csg_stopped"].setdefault(example, []).append(csg)
    for name, by_example in expected.items():
        values = [np.mean(by_example[i]) if i in by_example else np.nan for i in table["example"]]
        assert table[name].to_numpy() == pytest.approx(np.array(values), nan_ok=True)
    assert about["columns"]["csl"]["kind"] == "training trajectory" and "lt_iqr" in table
    assert "--record_vog" in about["missing"]["vog"] and "vog" not in table

    sidecar = tmp_path / ratio / "1" / "trajectory.json"
    said = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(said | {"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match="different weights"):
        read_trajectory(sidecar.parent)


def test_weights_that_come_out_otherwise_are_not_recorded_beside_the_old_ones(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    line = ("train_fz_models.py", *FLAGS, "--stop_run", "1", "--config", config)
    assert run_script(*line).returncode == 0
    model = tmp_path / "fz_model_dir" / "mnist_smallcnn" / "0.7" / "0" / "checkpoints" / "model.pt"
    content = model.read_bytes()
    other = content.replace(b"smallcnn", b"smallcnm")  # as another version would have left
    model.write_bytes(other)
    digests = [hashlib.sha256(part).hexdigest() for part in (content, other)]
    for sidecar in (model.with_suffix(".json"), model.parent.with_name("aux_arrays.json")):
        sidecar.write_text(sidecar.read_text().replace(*digests))
    before = tree(tmp_path)
    assert_refused(run_script(*line, "--record"), "model.pt", "trained again for --record", "--overwrite")
    assert tree(tmp_path) == before


def test_a_killed_recording_ends_in_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    lines = [("train_fz_models.py", *FLAGS, "--stop_run", "1", "--record", "--record_input_gradients", "--record_vog",
              "--save_every", "0", "--config", write_config(folder)) for folder in folders]  # fmt: skip
    assert run_script(*lines[0]).returncode == 0
    state = folders[1] / "fz_model_dir" / "mnist_smallcnn" / "0.7" / "0" / "checkpoints" / "state.pt"
    process = start_script(*lines[1])
    while not state.exists() and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    assert run_script(*lines[1]).returncode == 0
    trees = [tree(folder / "fz_model_dir") for folder in folders]
    assert trees[0] == trees[1]
