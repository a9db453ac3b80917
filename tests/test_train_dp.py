"""train_dp.py and calc_curv_private_models.py run as a user runs them: results, kills, refusals, job lines."""

from __future__ import annotations

from libcli.private import numbered

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT, assert_refused, run_script, start_script, tree, write_config

from libdata.datasets import load_dataset
from libmodels.checkpoints import load_model, read_checkpoint
from libscores.accounting import spent_epsilon
from libscores.curvature import curvature
from libstore.fz import read_run
from libstore.index import index_digest
from libstore.scores import CURVATURE, LABELS, TRACE, score_path
from libstore.store import load_scores, read_sidecar
from libtrain.training import evaluate

KIND = ("--dataset", "mnist", "--arch", "smallcnn")
FLAGS = (*KIND, "--data_subset", "300", "--batch_size", "32", "--epochs", "2")
GENERATORS = {
    "create_privacy_vs_curve_dp_train_jobs.sh": ("train_dp.py", 420),
    "create_privacy_vs_curve_scorer_job.sh": ("calc_curv_private_models.py", 420),
    "create_privacy_vs_memorization_dp_train_jobs.sh": ("train_dp.py", 240),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model on 200 of 300 digits; returns its folder."""
    folder = tmp_path_factory.mktemp("private")
    np.save(folder / "subset.npy", np.arange(299, 99, -1))
    config = write_config(folder)
    result = run_script(
        "train_dp.py", *FLAGS, "--epsilon", 5, "--seed", 7, "--train_subset", folder / "subset.npy", "--config", config
    )
    assert result.returncode == 0, result.stderr
    device, *lines = result.stdout.splitlines()
    assert device.startswith("device cpu (") and [line.split(":")[0] for line in lines[:-1]] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    assert "loss" in lines[0] and "accuracy" in lines[0] and "of 5 spent" in lines[0]
    return folder / "private_model_dir" / "mnist_smallcnn_eps_5_seed_7"


def test_files_hold_what_the_model_does(trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == [
        "aux_arrays.json", "aux_arrays.npz", "model.json", "model.pt",
    ]  # fmt: skip
    model, spec = load_model(trained / "model.pt")
    assert (spec.dataset, spec.arch, spec.normalization) == ("mnist", "smallcnn", "standard")
    arrays = read_run(trained)
    np.testing.assert_array_equal(arrays.index["train"], np.arange(100, 300))
    np.testing.assert_array_equal(arrays.index["removed"], np.arange(100))
    np.testing.assert_array_equal(arrays.index["test"], np.arange(10_000))
    for group, split in (("train", "train"), ("removed", "train"), ("test", "test")):
        data = load_dataset("mnist", split, DATA, index=arrays.index[group], normalization="standard")
        found = evaluate(model, data.images, data.labels)
        np.testing.assert_array_equal(arrays.correctness[group], found["correctness"])
        np.testing.assert_allclose(arrays.prob[group], found["prob"], atol=1e-6)
        with torch.no_grad():
            logits = model(data.images).double()
        others = logits.scatter(1, data.labels[:, None], -torch.inf).logsumexp(1)
        odds = logits.gather(1, data.labels[:, None])[:, 0] - others
        np.testing.assert_allclose(arrays.logodds[group], odds, rtol=1e-4, atol=1e-5)
    losses = found["loss"]
    with np.load(trained / "aux_arrays.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["loss_test"], losses, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.exp(-losses), file["prob_test"], atol=1e-5)
    outcome = read_sidecar(trained / "model.pt")["provenance"]["outcome"]
    assert outcome["test_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert outcome["test_accuracy"] == arrays.correctness["test"].mean()


def test_recorded_privacy_is_what_was_spent(trained: Path) -> None:
    privacy = read_checkpoint(trained / "model.pt")["privacy"]
    assert privacy["sample_rate"] == 32 / 200 and privacy["steps"] == round(2 * 200 / 32)
    assert (privacy["epsilon"], privacy["delta"], privacy["max_grad_norm"]) == (5.0, 1e-5, 1.0)
    recorded = privacy["noise_multiplier"], privacy["sample_rate"], privacy["steps"], 1e-5
    assert 4.99 < privacy["spent_epsilon"] <= 5
    assert spent_epsilon(*recorded) == pytest.approx(privacy["spent_epsilon"], abs=2e-3)
    assert spent_epsilon(*recorded, "prv") == pytest.approx(privacy["spent_epsilon"], abs=0.02)
    assert read_sidecar(trained / "model.pt")["provenance"]["privacy"] == privacy
    settings = read_sidecar(trained / "model.pt")["settings"]
    digest = index_digest(np.arange(100, 300))
    assert settings["train_on"] == {"n_examples": 200, "planned": 200, "index_sha256": digest}


def test_same_line_skips_and_other_settings_are_refused(trained: Path) -> None:
    folder = trained.parent.parent
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    own = ("--seed", 7, "--train_subset", folder / "subset.npy", "--config", folder / "config.json")
    line = ("train_dp.py", *FLAGS, "--epsilon", 5, *own)
    assert "finished before, skipped" in run_script(*line).stdout
    before_names = ["--subset" if word == "--train_subset" else word for word in line]
    assert "finished before, skipped" in run_script(*before_names, "--suffix", "seed_*").stdout
    for flags, mention in (
        (("--lr", "0.01"), "optimization.lr: 0.001 there, 0.01 asked for"),
        (("--optimizer", "adam"), "optimization.optimizer"),
        (("--delta", "1e-6"), "privacy.delta: 1e-05 there, 1e-06 asked for"),
        (("--accountant", "rdp"), "privacy.accountant"),
        (("--lr_drops",), "optimization.lr_drops"),
        (("--activation", "relu"), "model.options.activation"),
        (("--data_subset", "400"), "data.n_examples: 300 there, 400 asked for"),
    ):
        assert_refused(run_script(*line, *flags), trained / "", mention, "--overwrite")
    assert before == {path: path.stat().st_mtime_ns for path in trained.iterdir()}


def test_no_resume_begins_anew(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    line = ("train_dp.py", *FLAGS, "--epsilon", 5, "--config", config)
    assert run_script(*line).returncode == 0
    folder = tmp_path / "private_model_dir/mnist_smallcnn_eps_5_seed_0"
    want = tree(folder)
    (folder / "model.pt").unlink()
    (folder / "state.pt").write_bytes(b"not a state")
    (folder / "state.json").write_text("{}")
    assert_refused(run_script(*line), "state.json")
    assert run_script(*line, "--no-resume").returncode == 0
    assert tree(folder) == want


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (["--epsilon", "0"], ["--epsilon", "0 is out of range"]),
        (["--epsilon", "-3"], ["--epsilon", "-3"]),
        (["--epsilon", "nan"], ["--epsilon", "nan"]),
        ([], ["--epsilon"]),
        (["--epsilon", "1", "--delta", "0"], ["--delta", "0 is out of range"]),
        (["--epsilon", "1", "--delta=-1e-5"], ["--delta", "-1e-5"]),
        (["--epsilon", "1", "--delta", "0.01"], ["--delta 0.01", "1/300", "--allow_large_delta"]),
        (["--epsilon", "1", "--batch_size", "301"], ["--batch_size 301", "300"]),
        (["--epsilon", "1", "--arch", "resnet18", "--norm", "batch"], ["resnet18", "BatchNorm", "--norm group"]),
        (["--epsilon", "1", "--norm", "group"], ["--norm group", "'smallcnn'"]),
        (["--epsilon", "1", "--train_subset", "{tmp}/far.npy"], ["far.npy", "position 60000"]),
        (["--epsilon", "1", "--train_subset", "{tmp}/twice.npy"], ["twice.npy", "position 4 is repeated"]),
        (
            ["--epsilon", "1", "--train_subset", "{tmp}/outside.npy"],
            ["outside.npy", "example 300", "--data_subset 300"],
        ),
        (["--epsilon", "1", "--train_subset", "{tmp}/none.npy"], ["none.npy"]),
        (["--epsilon", "1", "--data_subset", "70000"], ["70000", "60000"]),
        (["--epsilon", "1", "--optimizer", "adam", "--momentum", "0.9"], ["--momentum 0.9", "adam"]),
        (["--epsilon", "1", "--suffix", "../up"], ["--suffix", "../up"]),
        (["--epsilon", "1", "--suffix", "last", "--more_seeds", "1"], ["--suffix last", "--more_seeds", "*"]),
        (["--epsilon", "1", "--more_seeds", "1", "0"], ["--more_seeds 0", "twice"]),
        (["--epsilon", "1", "--optimizer", "adagrad"], ["--optimizer", "adagrad"]),
        (["--epsilon", "1", "--device", "cuda:77"], ["cuda:77"]),
    ],
)
def test_bad_input_is_refused_before_any_work(flags: list[str], mentions: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", np.array([1, 60_000]))
    np.save(tmp_path / "twice.npy", np.array([4, 4]))
    np.save(tmp_path / "outside.npy", np.array([1, 300]))
    config = write_config(tmp_path)
    result = run_script("train_dp.py", *FLAGS, *(flag.format(tmp=tmp_path) for flag in flags), "--config", config)
    assert_refused(result, *mentions)
    assert not (tmp_path / "private_model_dir").exists()


def test_a_large_delta_needs_to_be_allowed(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    flags = ("--epsilon", 1, "--delta", 0.01, "--allow_large_delta", "--epochs", 1, "--config", config)
    assert run_script("train_dp.py", *FLAGS, *flags).returncode == 0


def test_curvature_of_a_private_model_is_the_estimator_on_it(trained: Path) -> None:
    folder = trained.parent.parent
    line = ("calc_curv_private_models.py", *KIND, "--n_probes", 2, "--config", folder / "config.json")
    np.save(folder / "few.npy", np.arange(40))
    result = run_script(*line)
    assert result.returncode == 0 and result.stdout.splitlines()[1:] == [f"{trained.name}: scored"], result.stderr
    assert "skipped" in run_script(*line, "--epsilon", 5, "--seed", 7, "--suffix", "seed_7").stdout
    data = load_dataset("mnist", "train", DATA, index=np.arange(300), normalization="standard")
    model, _ = load_model(trained / "model.pt")
    want = curvature(model, data.images, data.labels, data.index, n_probes=2)
    for kind, array in zip((CURVATURE, TRACE, LABELS), (want.curvature, want.trace, data.labels.numpy()), strict=True):
        got, sidecar = load_scores(score_path(folder / "score_dir", kind, trained.name, 1e-3))
        np.testing.assert_array_equal(got, array)
        assert sidecar["settings"]["model"]["sha256"] == read_sidecar(trained / "model.pt")["sha256"]
    missing = run_script(*line, "--epsilon", 5, 20)
    assert missing.returncode == 0 and "no model with epsilon 20" in missing.stderr
    for flags, mention in (
        (["--epsilon", "9"], "epsilon 9"),
        (["--arch", "lenet5"], "lenet5"),
        (["--dataset", "fashionmnist"], "fashionmnist"),
        (["--seed", "8"], "seed 8"),
    ):
        assert_refused(run_script(*line, *flags), "no private model", mention)


def test_a_checkpoint_of_another_network_or_damaged_is_refused(trained: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    copy = tmp_path / "private_model_dir" / trained.name
    shutil.copytree(trained, copy)
    line = ("calc_curv_private_models.py", *KIND, "--n_probes", 1, "--config", config)
    content = torch.load(copy / "model.pt", weights_only=True)
    content["spec"] |= {"arch": "lenet5", "options": {}}
    torch.save(content, copy / "model.pt")
    assert_refused(run_script(*line), "model.pt", "damaged or of another model")
    sidecar = json.loads((copy / "model.json").read_text())
    sidecar["settings"]["data"]["dataset"] = "fashionmnist"
    (copy / "model.json").write_text(json.dumps(sidecar))
    assert_refused(run_script(*line), "no private model of mnist")


def generated(generator: str, *flags: object) -> list[str]:
    command = ["sh", ROOT / "scripts" / generator, *map(str, flags)]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=path)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_print_the_papers_grid_once(generator: str) -> None:
    script, n_lines = GENERATORS[generator]
    words = [shlex.split(line) for line in generated(generator)]
    assert len(words) == n_lines and len({tuple(line) for line in words}) == n_lines
    assert all(line[:2] == ["python", script] for line in words)
    flags = [dict(zip(line[2::2], line[3::2], strict=True)) for line in words]
    epsilons = {float(line["--epsilon"]) for line in flags}
    seeds = {int(line["--seed"]) for line in flags}
    if "memorization" in generator:
        assert epsilons == {1, 10, 20, 30, 40, 50} and seeds == set(range(40))
        assert {line["--dataset"] for line in flags} == {"cifar100"}
        assert all(Path(line["--train_subset"]).name == f"subset_{line['--seed']}.npy" for line in flags)
    else:
        assert epsilons == {1.0, *range(5, 101, 5)}
        assert seeds == {10655, 11005, 12177, 14838, 20392, 21497, 25716, 41616, 42601, 54400}
        assert {line["--dataset"] for line in flags} == {"cifar10", "cifar100"}
    assert {line["--arch"] for line in flags} == {"resnet18"}
    assert all(line["--suffix"].endswith(f"seed_{line['--seed']}") for line in flags)


@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_pass_other_flags_on_and_refuse_what_they_cannot_read(generator: str, tmp_path: Path) -> None:
    flags = ("--epsilons", "0.5 2", "--seeds=3", "--dataset", "mnist", "--arch", "smallcnn", "--suffix", "x_")
    config = str(write_config(tmp_path).rename(tmp_path / "it's a file.json"))
    lines = generated(generator, *flags, "--config", config, "--overwrite")
    words = [shlex.split(line) for line in lines]
    assert len(words) == 2 and [line[line.index("--epsilon") + 1] for line in words] == ["0.5", "2"]
    assert all(line[-5:] == ["--suffix", "x_3", "--config", config, "--overwrite"] for line in words)
    for suffix, seeds in (("x_*", ["--seeds", "3"]), ("x_*", ["--seeds", "3 4"]), ("x_", ["--seeds", "3", "4"])):
        more = generated(generator, *flags[:2], *seeds, *flags[3:-1], suffix, "--config", config, "--overwrite")
        assert set(lines) <= set(more) and len(more) == 2 * len(" ".join(seeds[1:]).split())
    for bad in (["--epsilons", "1 two"], ["--epsilons", "1.2.3"], ["--seeds", "1.5"], ["--epsilon", "3"], ["--seeds"]):
        refused = subprocess.run(["sh", ROOT / "scripts" / generator, *bad], capture_output=True, text=True)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and bad[0] in refused.stderr


def test_link_3_trains_on_the_subsets_of_its_configuration(tmp_path: Path) -> None:
    generator, grid = "create_privacy_vs_memorization_dp_train_jobs.sh", ("--seeds", "3", "--epsilons", "2")
    moved = write_config(tmp_path, private_model_dir=tmp_path / "moved")
    for flags, folder in (
        ((), "results/private_models/subsets"),
        (("--config", moved), tmp_path / "moved/subsets"),
        ((f"--config={moved}",), tmp_path / "moved/subsets"),
        (("--config", moved, "--subset_dir", "elsewhere"), "elsewhere"),
    ):
        words = shlex.split(generated(generator, *grid, *flags)[0])
        assert words[words.index("--train_subset") + 1] == f"{folder}/cifar100/subset_3.npy"
    command = ["sh", ROOT / "scripts" / generator, "--config", tmp_path / "nowhere.json"]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    refused = subprocess.run(command, capture_output=True, text=True, env=path)
    assert refused.returncode == 2 and "nowhere.json" in refused.stderr and not refused.stdout
    assert len(refused.stderr.splitlines()) == 1
    subsets = tmp_path / "moved/subsets/cifar100"
    subsets.mkdir(parents=True)
    for name, missing in (("other_3.npy", 2), ("subset_4.npy", 1), ("subset_3.npy", 0)):
        (subsets / name).touch()
        command[2:] = ["--config", moved, "--seeds", "3 4", "--epsilons", "2"]
        printed = subprocess.run(command, capture_output=True, text=True, env=path)
        assert printed.returncode == 0 and len(printed.stdout.splitlines()) == 2
        told = f"{missing} of 2 subsets are missing in {subsets}, so their lines cannot run yet: python "
        told += f"scripts/make_memorization_subsets.py --dataset cifar100 --config {moved} makes them\n"
        assert printed.stderr.partition(": ")[2] == (told if missing else "")


def test_sampled_lines_of_every_generator_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "subsets/mnist").mkdir(parents=True)
    np.save(tmp_path / "subsets/mnist/subset_3.npy", np.arange(0, 100, 2))
    grid = ("--dataset", "mnist", "--arch", "smallcnn", "--epsilons", "2 4", "--seeds", "3")
    train = ("--data_subset", 100, "--batch_size", 10, "--epochs", 1)
    lines = [
        generated("create_privacy_vs_curve_dp_train_jobs.sh", *grid, *train, "--config", config)[1],
        generated(
            "create_privacy_vs_memorization_dp_train_jobs.sh", *grid, *train,
            "--subset_dir", tmp_path / "subsets", "--config", config,
        )[0],
        generated("create_privacy_vs_curve_scorer_job.sh", *grid, "--n_probes", 1, "--config", config)[1],
    ]  # fmt: skip
    for line in lines:
        words = shlex.split(line)
        result = run_script(*words[1:])
        assert result.returncode == 0, result.stderr
    models = tmp_path / "private_model_dir"
    names = ["mnist_smallcnn_eps_2_memorization_seed_3", "mnist_smallcnn_eps_4_seed_3"]
    assert sorted(path.name for path in models.iterdir()) == ["calibrations", *names]
    np.testing.assert_array_equal(read_run(models / names[0]).index["train"], np.arange(0, 100, 2))
    assert (tmp_path / "score_dir" / names[1]).is_dir()


def test_a_job_file_runs_with_sh(trained: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.sh"
    folder = trained.parent.parent
    flags = ("--dataset", "mnist", "--arch", "smallcnn", "--epsilons", "5", "--seeds", "7", "--n_probes", 2)
    line = generated("create_privacy_vs_curve_scorer_job.sh", *flags, "--config", folder / "config.json")
    jobs.write_text("\n".join(line) + "\n")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(["sh", jobs], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and trained.name in result.stdout, result.stderr


def test_models_trained_by_one_process_are_those_of_a_process_each(tmp_path: Path) -> None:
    """In any grouping, on the subset of their seed, also where some are there already or the process is killed."""
    for seed in (3, 4):
        np.save(tmp_path / f"subset_{seed}.npy", np.arange(seed, 60))
    folders = [tmp_path / name for name in ("each", "grouped")]
    study = ("--data_subset", 60, "--batch_size", 20, "--epochs", 1, "--accountant", "rdp")
    lines = [(8, 3), (8, 4), (4, 3), (4, 4)], [(4, 3)]
    for folder, few in zip(folders, lines, strict=True):
        folder.mkdir()
        for epsilon, seed in few:
            flags = ("--epsilon", epsilon, "--seed", seed, "--train_subset", tmp_path / f"subset_{seed}.npy")
            result = run_script("train_dp.py", "--config", write_config(folder), *study, *flags)
            assert result.returncode == 0, result.stderr
    models = folders[1] / "private_model_dir"
    several = ("--epsilon", 8, "--more_epsilons", 4, "--seed", 3, "--more_seeds", 4)
    line = ("train_dp.py", "--config", folders[1] / "config.json", *study, *several)
    late = (*line, "--more_seeds", 4, 5, "--train_subset", tmp_path / "subset_*.npy")
    assert_refused(run_script(*late), "subset_5.npy")
    assert not (models / "mnist_smallcnn_eps_8_seed_3").exists()
    line = (*line, "--train_subset", tmp_path / "subset_*.npy")
    process = start_script(*line, "--save_every", 0)
    while not (models / "mnist_smallcnn_eps_8_seed_4").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (models / "mnist_smallcnn_eps_4_seed_4" / "model.pt").exists()
    result = run_script(*line)
    assert result.returncode == 0 and result.stdout.count("skipped") in (2, 3), result.stderr
    each, grouped = (tree(folder / "private_model_dir") for folder in folders)
    assert each == grouped and sum(name.endswith("model.pt") for name in each) == 4


def test_a_star_is_the_number_unless_it_is_in_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a*.npy"
    assert numbered(str(path), 7) == str(tmp_path / "a7.npy")
    path.touch()
    assert numbered(str(path), 7) == str(path)


def test_lines_of_several_models_are_the_grid_in_groups() -> None:
    def printed(*flags: str) -> list[str]:
        generator, *flags = flags
        grid = ["--dataset", "mnist", "--arch", "smallcnn", "--epsilons", "1 5 10 20", "--seeds", "0 1 2"]
        command = ["sh", f"scripts/create_privacy_vs_{generator}_dp_train_jobs.sh", *grid, *flags]
        no_python = {"PATH": "/usr/bin:/bin"}  # then flags are not checked, which takes seconds
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=no_python).stdout
        return out.splitlines()

    start = "python train_dp.py --dataset mnist --arch smallcnn --epsilon"
    assert printed("curve", "--epsilons_per_job", "3") == [
        f"{start} {epsilon} --seed {seed}{more} --suffix seed_{seed}"
        for seed in (0, 1, 2)
        for epsilon, more in ((1, " --more_epsilons 5 10"), (20, ""))
    ]
    assert printed("memorization", "--epsilons_per_job", "4", "--seeds_per_job", "2", "--subset_dir", "a b") == [
        f"{start} 1 --seed {seed} --more_epsilons 5 10 20{more} --train_subset {subset} --suffix {suffix}"
        for seed, more, subset, suffix in (
            (0, " --more_seeds 1", "'a b/mnist/subset_*.npy'", "'memorization_seed_*'"),
            (2, "", "'a b/mnist/subset_2.npy'", "memorization_seed_2"),
        )
    ]
