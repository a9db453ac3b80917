"""compute_sensitivity.py run as a user runs it, and its results through the accounting and the rankings."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATA, assert_refused, run_script, start_script, tree, write_config
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional as F

from libdata.datasets import load_dataset
from libmodels.checkpoints import ModelSpec, load_model, own_names, read_checkpoint, read_weights
from libscores.ranking import same_stages
from libstore.sensitivity_results import read_results
from libstore.store import read_sidecar

SCRIPT = "sensitivity/compute_sensitivity.py"
BATCH, EXAMPLES, EPOCHS, TOTAL, CLIP = 32, 200, 3, 19, 2.5
TRAINING = (
    "--data_subset",
    EXAMPLES,
    "--batch_size",
    BATCH,
    "--epochs",
    EPOCHS,
    "--accountant",
    "rdp",
    "--max_grad_norm",
    CLIP,
)
FLAGS = (*TRAINING, "--stages", 5, "--save_freq", 2)
STEPS = [0, 4, 10, 14, 19]  # the checkpoints 0, 2, ..., 18, 19 nearest to 0, 4.75, 9.5, 14.25 and 19
PUBLISHED = [
    "distance (sum)", "step", "p", "point", "sigma", "correct", "accuracy", "batch_size", "lr", "cn", "epochs", "eps",
    "dataset", "model", "seed", "reduction",
]  # fmt: skip


def compute(folder: Path, *flags: object) -> str:
    result = run_script(SCRIPT, *FLAGS, *flags, "--config", folder / "config.json")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs 1 and 2 on 200 digits and their result files; returns the folder with config.json."""
    folder = tmp_path_factory.mktemp("sensitivity")
    write_config(folder)
    for run in (1, 2):
        compute(folder, "--run", run, "--points", 20, "--points-sample", 5, "--points-seed", 4)
    return folder


def results(study: Path, run: object) -> Path:
    return study / "sensitivity_dir" / "res" / f"res{run}.csv"


def test_rows_and_columns(study: Path) -> None:
    table = pd.read_csv(results(study, 1))
    assert {*PUBLISHED, "grad_norm", "clipped_norm", "delta", "total_steps", "run"} == set(table)
    assert sorted(table["step"].unique()) == STEPS and len(table) == 5 * 25
    sample = table["point"].unique()[20:]
    assert table["point"].unique()[:20].tolist() == list(range(20))
    assert len(sample) == 5 and sample.min() >= 20 and sample.max() < EXAMPLES
    other = pd.read_csv(results(study, 2))
    assert np.array_equal(table["point"], other["point"])  # the sample belongs to its own seed, not to the run's
    assert table["seed"].unique().tolist() == [1] and other["seed"].unique().tolist() == [2]
    for column, value in {
        "p": BATCH / EXAMPLES,
        "batch_size": BATCH,
        "cn": CLIP,
        "total_steps": TOTAL,
        "eps": 10,
    }.items():
        assert table[column].unique().tolist() == [value]


@pytest.mark.parametrize("step", [0, 10, TOTAL])
def test_norms_agree_with_a_batch_of_one_loop_over_saved_weights(study: Path, step: int) -> None:
    table = pd.read_csv(results(study, 1))
    rows = table[table["step"] == step]
    model = load_model(study / "sensitivity_dir" / "models" / "ckpt1" / f"step_{step}.pt")[0]
    digits = load_dataset(
        "mnist", "train", DATA, index=rows["point"].to_numpy(), normalization="standard", image_size=32
    )
    test = load_dataset("mnist", "test", DATA, normalization="standard", image_size=32)
    norms, correct = [], []
    for image, label in zip(digits.images, digits.labels, strict=True):
        logits = model(image[None])
        gradients = torch.autograd.grad(F.cross_entropy(logits, label[None]), list(model.parameters()))
        norms.append(float(torch.cat([g.flatten() for g in gradients]).double().norm()))
        correct.append(int(logits.argmax() == label))
    np.testing.assert_allclose(rows["grad_norm"], norms, rtol=1e-4)
    assert rows["correct"].tolist() == correct
    np.testing.assert_array_equal(rows["clipped_norm"], np.minimum(rows["grad_norm"], CLIP))
    np.testing.assert_array_equal(rows["distance (sum)"], rows["clipped_norm"] / BATCH)
    with torch.no_grad():
        accuracy = (model(test.images).argmax(1) == test.labels).double().mean()
    assert rows["accuracy"].unique() == pytest.approx([float(accuracy)], abs=2e-4)


def test_stages_are_tested_on_the_examples_asked_for_and_the_last_on_all(study: Path) -> None:
    flags = ("--run", 1, "--points", 20, "--points_sample", 5, "--points_seed", 4)
    compute(study, *flags, "--res_name", "_few", "--test_examples", 150)
    all_of_them, few = pd.read_csv(results(study, 1)), pd.read_csv(results(study, "_few"))
    last = few["step"] == TOTAL
    pd.testing.assert_frame_equal(few[last], all_of_them[last])
    pd.testing.assert_frame_equal(few.drop(columns="accuracy"), all_of_them.drop(columns="accuracy"))
    test = load_dataset("mnist", "test", DATA, index=np.arange(150), normalization="standard", image_size=32)
    for step in STEPS[:-1]:
        model = load_model(study / "sensitivity_dir" / "models" / "ckpt1" / f"step_{step}.pt")[0]
        right = int((model(test.images).argmax(1) == test.labels).sum())
        assert few["accuracy"][few["step"] == step].unique() == pytest.approx([right / 150])


def test_runs_have_their_own_seed(study: Path) -> None:
    weights = [read_checkpoint(study / f"sensitivity_dir/models/ckpt{run}/step_0.pt")["state_dict"] for run in (1, 2)]
    assert not any(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    first, second = (pd.read_csv(results(study, run)) for run in (1, 2))
    assert np.mean(first["grad_norm"] == second["grad_norm"]) < 0.05
    assert len(read_results([results(study, 1), results(study, 2)]).runs) == 2


def test_one_stage_is_the_row_of_the_full_run(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libtrain.dp_training.DPTrainer.take_step", lambda *_: pytest.fail("trained again"))
    for stage, step in ((0.5, 10), (1, TOTAL)):
        compute(study, "--run", 1, "--points", 20, "--points-sample", 5, "--points-seed", 4, "--stage", stage)
        whole = pd.read_csv(results(study, 1))
        alone = pd.read_csv(results(study, f"1_stage_{stage}"))
        pd.testing.assert_frame_equal(alone, whole[whole["step"] == step].reset_index(drop=True))
    compute(study, "--run", 1, "--points", "30-34", "--res_name", "_more")
    more = pd.read_csv(results(study, "_more"))
    assert more["point"].unique().tolist() == [30, 31, 32, 33, 34] and sorted(more["step"].unique()) == STEPS
    assert "skipped" in compute(study, "--run", 1, "--points", "30-34", "--res_name", "_more")


def test_mean_rule_of_one_step(study: Path) -> None:
    line = ("sensitivity/mean_rule.py", *FLAGS, "--run", 1, "--points", 3, "--config", study / "config.json")
    small = ("--stage", 0.5, "--alpha", 2, "--batches", 6, "--tuples", 3)
    assert run_script(*line, *small).returncode == 0
    path = study / "sensitivity_dir" / "compo_res" / "mean_rule1.csv"
    table, norms = pd.read_csv(path), pd.read_csv(results(study, 1))
    assert table["point"].tolist() == [0, 1, 2] and table["step"].unique().tolist() == [10]
    now = norms[(norms["step"] == 10) & (norms["point"] < 3)]
    sigma, q = now["sigma"].iloc[0], BATCH / EXAMPLES
    expected = np.log1p(q**2 * np.expm1((now["clipped_norm"].to_numpy() / CLIP / sigma) ** 2))  # order 2, closed form
    np.testing.assert_allclose(table["sum rule"], expected, rtol=1e-4)
    assert (table["epsilon, sum rule"] <= table["epsilon, data-independent"]).all()
    before = path.read_bytes()
    assert "skipped" in run_script(*line, *small).stdout
    assert_refused(run_script(*line, *small, "--batches", 9), "mean_rule1.csv", "batches: 6 there, 9")
    assert_refused(run_script(*line, *small, "--batches", 2), "--batches 2", "order 2")
    assert_refused(run_script(*line, *small, "--name", "_none"), "ckpt_none", "compute_sensitivity.py")
    assert path.read_bytes() == before


class PublishedLeNet(nn.Module):
    """LeNet with the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.fc1, self.fc2 = nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        x = torch.tanh(self.conv3(x)).flatten(1)
        return self.fc2(torch.tanh(self.fc1(x)))


def other_programs_state(model: nn.Module, accountant: object) -> dict[str, object]:
    """What the published program saves: state dicts of Opacus's wrappers, and the accountant itself."""
    private = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(private.parameters(), lr=0.1), noise_multiplier=0.6, max_grad_norm=1.0, expected_batch_size=8
    )
    private(torch.zeros(2, 1, 32, 32, requires_grad=True)).sum().backward()
    optimizer.step()
    return {
        "net": private.state_dict(), "optimizer": optimizer.state_dict(), "privacy_engine_accountant": accountant
    }  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, nn.Module]]:
    """A folder of checkpoints as another program leaves them, in both forms of torch.save, and their networks."""
    folder, models = tmp_path_factory.mktemp("published") / "ckpt1", {}
    folder.mkdir()
    for step, accountant in ((0, PRVAccountant()), (10, RDPAccountant()), (TOTAL, PRVAccountant())):
        torch.manual_seed(step)
        accountant.step(noise_multiplier=0.6, sample_rate=BATCH / EXAMPLES)
        models[step] = PublishedLeNet()
        state = other_programs_state(models[step], accountant)
        torch.save(state, folder / f"model_step_{step}", _use_new_zipfile_serialization=step != 10)
    return folder, models


def measuring(checkpoints: Path, folder: Path) -> tuple:
    return (SCRIPT, *TRAINING, "--config", write_config(folder), "--checkpoints", checkpoints)


def lenet_state(**changed: torch.Tensor) -> dict[str, dict]:
    return {"net": PublishedLeNet().state_dict() | {name.replace("_", "."): part for name, part in changed.items()}}


def single_norms(model: nn.Module, points: int) -> list[float]:
    digits = load_dataset("mnist", "train", DATA, index=np.arange(points), normalization="standard", image_size=32)
    norms = []
    for image, label in zip(digits.images, digits.labels, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))
        norms.append(float(torch.cat([g.flatten() for g in gradients]).double().norm()))
    return norms


def test_norms_under_checkpoints_of_another_program(published: tuple, tmp_path: Path) -> None:
    folder, models = published
    before = tree(folder)
    line = (*measuring(folder, tmp_path), "--points", 6, "--stages", 3)
    result = run_script(*line)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(results(tmp_path, 1))
    assert sorted(table["step"].unique()) == [0, 10, TOTAL] and set(PUBLISHED) <= set(table)
    for step, model in models.items():
        plain = PublishedLeNet()
        plain.load_state_dict({name.removeprefix("_module."): value for name, value in model.state_dict().items()})
        np.testing.assert_allclose(table.loc[table["step"] == step, "grad_norm"], single_norms(plain, 6), rtol=1e-4)
    assert tree(folder) == before and not (tmp_path / "sensitivity_dir" / "models").exists()
    assert "skipped" in run_script(*line).stdout
    assert_refused(run_script(*line, "--stages", 2), "res1.csv", "stages")
    # The same run given as another one counts once.
    again = run_script(*line, "--run", 2)
    assert again.returncode == 0, again.stderr
    compo = run_script("renyi_per_instance_sum_compo.py", results(tmp_path, 1), results(tmp_path, 2))
    assert_refused(compo, "res2.csv", "identical bit for bit", "res1.csv")
    mean_rule = ("sensitivity/mean_rule.py", *line[1:], "--alpha", 2, "--batches", 4, "--tuples", 2, "--stage", 1)
    assert run_script(*mean_rule).returncode == 0


def test_names_that_wrappers_change(tmp_path: Path) -> None:
    spec = ModelSpec("lenet5", 10, 1, "mnist", "standard")
    model = spec.build()
    own = model.state_dict()
    wrapped: dict[str, dict] = {
        "own": own,
        "Opacus": GradSampleModule(spec.build()).state_dict(),
        "DataParallel": nn.DataParallel(spec.build()).state_dict(),
        "compiled": {f"_orig_mod.{name}": value for name, value in own.items()},
        "compiled and parallel": {f"module._orig_mod.{name}": value for name, value in own.items()},
        "a part": {name.replace("features.", "features.module."): value for name, value in own.items()},
    }
    for what, weights in wrapped.items():
        path = tmp_path / "x.pt"
        torch.save({"state_dict": weights, "epoch": 3}, path)
        assert list(sorted(read_weights(path, model))) == sorted(own), what
    named = nn.ModuleDict({"module": nn.Linear(2, 2), "plain": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    assert own_names(named.state_dict(), named.state_dict().keys()).keys() == named.state_dict().keys()
    prefixed = {f"module.{name}": value for name, value in named.state_dict().items()}
    assert own_names(prefixed, named.state_dict().keys()).keys() == named.state_dict().keys()


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.system, (f"mkdir {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["privacy_engine_accountant", "net", "a weight", "everything"])
def test_code_in_checkpoints_does_not_run(tmp_path: Path, zipped: bool, place: str) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "ckpt1"
    folder.mkdir()
    state: Any = other_programs_state(PublishedLeNet(), Trap(marker))
    if place == "a weight":
        state["net"]["_module.conv1.bias"] = Trap(marker)
    elif place == "everything":
        state = Trap(marker)
    else:
        state[place] = Trap(marker)
    torch.save(state, folder / f"model_step_{TOTAL}", _use_new_zipfile_serialization=zipped)
    line = (*measuring(folder, tmp_path), "--points", 2)
    result = run_script(*line, "--stage", 1)
    assert not marker.exists()
    if place == "privacy_engine_accountant":
        assert result.returncode == 0, result.stderr
    else:
        assert_refused(result, f"model_step_{TOTAL}", "no state dict")


def script(path: Path) -> None:
    """What PyTorch takes for a TorchScript program, and would run."""
    torch.save(lenet_state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0].split("/")[0] + "/constants.pkl", b"")


def grown(path: Path) -> None:
    """A tensor of 10^12 values in a storage of a few."""
    small = torch.zeros(4)
    reduced = small.__reduce_ex__(2)
    arguments = list(reduced[1])
    arguments[2], arguments[3] = (10**12,), (1,)

    class Announced:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, tuple(arguments)

    torch.save({"net": {"fc1.weight": Announced()}}, path)


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "not a checkpoint": (lambda path: path.write_bytes(b"text"), ["cannot read"]),
    "empty": (lambda path: path.write_bytes(b""), ["cannot read"]),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:5000]), ["cannot read"]),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({"net": {}})), ["cannot read"]),
    "TorchScript": (script, ["TorchScript"]),
    "too large a tensor": (grown, ["does not fit into its 4 values"]),
    "another network": (
        lambda path: torch.save({"net": nn.Linear(2, 2).state_dict()}, path), ["'bias' is too much"]
    ),
    "another shape": (
        lambda path: torch.save(lenet_state(fc2_bias=torch.zeros(9)), path), ["'classifier.2.bias' is missing"]
    ),
    "not finite": (
        lambda path: torch.save(lenet_state(fc2_bias=torch.full((10,), np.nan)), path),
        ["classifier.2.bias", "not finite"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused(published: tuple, tmp_path: Path, what: str) -> None:
    folder = Path(shutil.copytree(published[0], tmp_path / "ckpt1"))
    spoil, mentions = BAD_CHECKPOINTS[what]
    spoil(folder / "model_step_10")
    line = (*measuring(folder, tmp_path), "--points", 2)
    assert_refused(run_script(*line, "--stage", 0.5), "model_step_10", *mentions)
    assert not results(tmp_path, 1).exists()


def test_folders_of_checkpoints(published: tuple, tmp_path: Path) -> None:
    config, folder = write_config(tmp_path), tmp_path / "ckpt1"
    line = (SCRIPT, *TRAINING, "--config", config, "--points", 2, "--save_freq", 5)
    assert_refused(run_script(*line, "--checkpoints", folder), "--checkpoints", "ckpt1", "no file whose name ends")
    folder.mkdir()
    for name in ("notes.txt", "step_3.json", ".hidden_4"):
        (folder / name).write_text("")
    assert_refused(run_script(*line, "--checkpoints", folder), "--checkpoints", "ckpt1", "no file whose name ends")
    shutil.copy(published[0] / "model_step_0", folder / "epoch-3-step-02.pth.tar")
    early = run_script(*line, "--checkpoints", folder)
    assert_refused(early, "--checkpoints", "stage 0.375 is step 7.125", "the nearest checkpoint is of step 2")
    shutil.copy(published[0] / "model_step_0", folder / "model_step_2")
    assert_refused(run_script(*line, "--checkpoints", folder), "model_step_2", "same step as epoch-3-step-02.pth.tar")
    (folder / "model_step_2").rename(folder / "model_step_20")
    assert_refused(run_script(*line, "--checkpoints", folder), "model_step_20", f"beyond the {TOTAL} steps")
    place = tmp_path / "sensitivity_dir" / "models" / "ckpt1"
    shutil.copytree(published[0], place)
    assert_refused(run_script(*line), place / "model_step_0", "--checkpoints", "--name")


def test_runs_of_one_process_are_those_of_a_process_each(study: Path, tmp_path: Path) -> None:
    """Also after a stop in the first, which does not go on to the second, and a kill in the second."""
    points = ("--points", 20, "--points-sample", 5, "--points-seed", 4)
    line = (SCRIPT, *FLAGS, *points, "--more_runs", 2, "--config", write_config(tmp_path), "--save_every", 0)
    models = tmp_path / "sensitivity_dir" / "models"
    for run, signum in ((1, signal.SIGTERM), (2, signal.SIGKILL)):
        process = start_script(*line)
        while not (models / f"ckpt{run}" / "step_0.pt").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signum)
        process.communicate()
        assert process.returncode == -signum
        assert not results(tmp_path, run).exists() and not (models / f"ckpt{run + 1}").exists()
    result = run_script(*line)
    assert result.returncode == 0 and f"{results(tmp_path, 1)}: finished before, skipped" in result.stdout
    each, one = (
        {path: tree(folder / "sensitivity_dir" / path) for path in ("models/ckpt1", "models/ckpt2", "res")}
        for folder in (study, tmp_path)
    )
    each["res"] = {name: content for name, content in each["res"].items() if name in one["res"]}
    assert each == one and len(one["res"]) == 4


def test_all_runs_of_a_process_are_looked_at_before_one_is_trained(study: Path, tmp_path: Path) -> None:
    before = tree(study / "sensitivity_dir")
    line = (SCRIPT, *FLAGS, "--config", study / "config.json", "--points", 20)
    assert_refused(run_script(*line, "--run", 3, "--more_runs", 1), "res1.csv", "points_sha256")
    for run in (1, 2):
        for suffix in (".csv", ".json"):
            shutil.copy(results(study, run).with_suffix(suffix), tmp_path / f"like{run}{suffix}")
    sidecar = json.loads((tmp_path / "like2.json").read_text())
    sidecar["settings"]["optimization"]["lr"] = 0.4
    (tmp_path / "like2.json").write_text(json.dumps(sidecar))
    named = ("--more_runs", 2, "--name", "_new*", "--compare_with")
    assert_refused(run_script(*line, *named, tmp_path / "like*.csv"), "res_new2.csv", "like2.csv", "(0.1 and 0.4)")
    assert_refused(run_script(*line, *named, tmp_path / "other*.csv"), "--compare_with", "other1.csv: no such file")
    assert tree(study / "sensitivity_dir") == before


def test_removal_trains_without_the_points_by_the_same_mechanism(study: Path, tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone.txt", tmp_path / "kept.npy"
    gone.write_text(" ".join(map(str, range(0, 40, 2))) + "\n")
    np.save(kept, np.arange(1, 20, 2))
    compute(study, "--run", 1, "--remove-points", gone, "--points", kept, "--name", "_rm1")
    before, after = pd.read_csv(results(study, 1)), pd.read_csv(results(study, "_rm1"))
    for column in ("total_steps", "p", "sigma", "batch_size", "seed"):
        assert after[column].unique().tolist() == before[column].unique().tolist()
    assert after["point"].unique().tolist() == list(range(1, 20, 2))
    trained_on = read_sidecar(results(study, "_rm1"))["settings"]["train_on"]
    assert (trained_on["n_examples"], trained_on["planned"]) == (EXAMPLES - 20, EXAMPLES)
    same = before[(before["step"] == 0) & before["point"].isin(after["point"])]
    np.testing.assert_array_equal(same["grad_norm"], after.loc[after["step"] == 0, "grad_norm"])
    # A study of the others alone is another mechanism.
    subset = tmp_path / "subset.npy"
    np.save(subset, np.setdiff1d(np.arange(EXAMPLES), np.arange(0, 40, 2)))
    compute(study, "--run", 1, "--train_subset", subset, "--points", kept, "--name", "_subset")
    alone = pd.read_csv(results(study, "_subset"))
    assert alone["total_steps"].unique().tolist() == [round(EPOCHS * (EXAMPLES - 20) / BATCH)] == [17]
    assert alone["p"].unique().tolist() == [BATCH / (EXAMPLES - 20)]


def test_weights_batches_and_noise_are_seeded_apart(study: Path) -> None:
    first = pd.read_csv(results(study, 1))
    points = ("--points", 20, "--points-sample", 5, "--points-seed", 4)
    norms = {}
    for stream in ("init", "order", "noise"):
        compute(study, "--run", 1, f"--{stream}_seed", 7, *points, "--name", f"_{stream}")
        norms[stream] = pd.read_csv(results(study, f"_{stream}"))["grad_norm"]
        start = first["step"] == 0
        assert (norms[stream][start] == first["grad_norm"][start]).all() == (stream != "init")
        assert not np.allclose(norms[stream][~start], first["grad_norm"][~start])
    assert not np.allclose(norms["order"], norms["noise"])
    compute(study, "--run", 1, *(f"--{stream}_seed=1" for stream in norms), *points, "--name", "_same")
    pd.testing.assert_series_equal(pd.read_csv(results(study, "_same"))["grad_norm"], first["grad_norm"])


def test_results_go_through_accounting_ranking_and_comparison(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "res").mkdir(parents=True)
    files = [Path(shutil.copy(results(study, run), folder / "res")) for run in (1, 2)]
    assert run_script("renyi_per_instance_sum_compo.py", *files).returncode == 0
    totals = folder / "compo_res" / "compo_res_all_totals.csv"
    table = pd.read_csv(totals)
    assert len(table) == 25 and np.all(
        table["epsilon largest of R runs"] <= table["epsilon data-independent"] * (1 + 1e-9)
    )
    # The noise was made for 10 by whole orders: fractional ones say a little less, loss distributions less still.
    assert 9.3 < table["epsilon data-independent"].iloc[0] <= 10
    tighter = table["epsilon data-independent, loss distributions"].iloc[0]
    assert 8 < tighter < table["epsilon data-independent"].iloc[0]
    ranked = run_script("sensitivity/compo_res/rank.py", totals, "--select", 5)
    assert ranked.returncode == 0, ranked.stderr
    gone, kept = (folder / "compo_res" / f"compo_res_all_cheapest_5{end}.txt" for end in ("", "_kept"))
    for run in (1, 2):
        compute(study, "--run", run, "--remove-points", gone, "--points", kept, "--name", f"_removed{run}")
    after = [results(study, f"_removed{run}") for run in (1, 2)]
    compo = ("renyi_per_instance_sum_compo.py", *after, "--output_dir", folder / "compo_rm")
    assert run_script(*compo).returncode == 0
    assert run_script("sensitivity/compo_res/rank.py", folder / "compo_rm/compo_res_all_totals.csv").returncode == 0
    rankings = [folder / part / "compo_res_all_ranked.csv" for part in ("compo_res", "compo_rm")]
    lists = ("--results_before", *files, "--results_after", *after, "--paired", "--resamples", 20)
    compared = run_script("sensitivity/rank_eval.py", *rankings, *lists, "--output", tmp_path / "table.csv")
    assert compared.returncode == 0, compared.stderr
    values = pd.read_csv(tmp_path / "table.csv").set_index("metric")["value"]
    assert values["points"] == 20 and values["points_removed"] == 5 and -1 <= values["spearman"] <= 1


def test_stages_of_shorter_trainings_are_matched() -> None:
    assert same_stages(np.array([0, 0.24, 0.51, 1]), np.array([0, 0.26, 0.49, 1]))
    assert not same_stages(np.array([0, 0.5, 1]), np.array([0, 0.25, 0.5, 1]))
    assert not same_stages(np.array([0, 0.25, 1]), np.array([0, 0.5, 1]))


def point_file(folder: Path, text: str) -> Path:
    path = folder / "points.txt"
    path.write_text(text)
    return path


BAD = {
    "out of the data": (["--points", "60001"], ["60000", "outside"]),
    "out of the study": (["--points", 201], ["--points 201", "point 200", "not among the training examples"]),
    "none": (["--points", 0], ["0:"]),
    "no number": (["--points", "few"], ["few", "cannot read points"]),
    "too large a sample": (["--points", 150, "--points-sample", 51], ["--points_sample 51", "50 other points"]),
    "stage above 1": (["--stage", 1.5], ["--stage", "1.5"]),
    "stage below 0": (["--stage", -0.5], ["--stage", "-0.5"]),
    "one stage": (["--stages", 1], ["--stages", "1"]),
    "stage without checkpoints": (["--points", 5, "--stage", 0.5], ["ckpt1", "train first", "--stage"]),
    "batch": (["--points", 5, "--batch_size", 201], ["--batch_size 201", "200"]),
    "epsilon": (["--epsilon", 0], ["--epsilon", "0"]),
    "delta": (["--points", 5, "--delta", 0.1], ["--delta 0.1", "1/200"]),
    "name": (["--name", "../x"], ["--name", "../x"]),
    "run": (["--run", 0], ["--run", "0"]),
    "run twice": (["--run", 3, "--more_runs", 4, 3], ["--more_runs 3", "twice"]),
    "runs of one seed": (["--more_runs", 2, "--seed", 5], ["--seed 5", "--more_runs", "the same"]),
    "runs of one training": (["--more_runs", 2, "--checkpoints", "there"], ["--checkpoints there", "the same"]),
    "runs of one name": (["--more_runs", 2, "--name", "x"], ["--name x", "*"]),
    "runs of one result": (["--more_runs", 2, "--name", "x*", "--res_name", "y"], ["--res_name y", "*"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    flags, mentions = BAD[name]
    config = write_config(tmp_path)
    assert_refused(run_script(SCRIPT, *FLAGS, *flags, "--config", config), *mentions)
    assert not [path for path in (tmp_path / "sensitivity_dir").rglob("*") if path.name != ".lock" and path.is_file()]


@pytest.mark.parametrize(
    ("points", "removed", "mentions"), [
        ("1 2 2", None, ["points.txt", "2 is repeated"]),
        ("1 -2", None, ["points.txt", "-2 is outside"]),
        ("1 x", None, ["points.txt", "cannot read points"]),
        ("", None, ["points.txt", "non-empty"]),
        ("1 2 3", "3 4", ["point 3 is among the removed"]),
        ("1", "5 5", ["removed.txt", "5 is repeated"]),
        ("1", "300", ["point 300 cannot be left out"]),
        ("1", "70000", ["removed.txt", "70000 is outside"]),
    ],
)  # fmt: skip
def test_bad_lists_of_points_are_refused(tmp_path: Path, points: str, removed: str | None, mentions: list) -> None:
    flags = ["--points", point_file(tmp_path, points)]
    if removed is not None:
        (tmp_path / "removed.txt").write_text(removed)
        flags += ["--remove-points", tmp_path / "removed.txt"]
    assert_refused(run_script(SCRIPT, *FLAGS, *flags, "--config", write_config(tmp_path)), *mentions)
    assert not (tmp_path / "sensitivity_dir").exists()


def test_other_settings_are_refused_and_nothing_is_lost(study: Path) -> None:
    before = tree(study / "sensitivity_dir")
    line = (SCRIPT, *FLAGS, "--run", 1, "--config", study / "config.json")
    assert_refused(run_script(*line, "--points", 21), "res1.csv", "points_sha256")
    assert_refused(run_script(*line, "--points", 5, "--res_name", "_x", "--lr", 0.2), "step_0.pt", "lr: 0.1 there, 0.2")
    refused = run_script(*line, "--points", 5, "--res_name", "_x", "--save_freq", 3, "--stage", 0.5)
    assert_refused(refused, "ckpt1", "train first")
    assert tree(study / "sensitivity_dir") == before
