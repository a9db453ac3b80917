"""Every command line of the two original works, typed as their users know it, where their models are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DATA, ROOT, assert_refused, run_script

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
GENERATORS = {
    "create_privacy_vs_curve_dp_train_jobs.sh": ("train_dp.py", 420),
    "create_privacy_vs_curve_scorer_job.sh": ("calc_curv_private_models.py", 420),
    "create_privacy_vs_memorization_dp_train_jobs.sh": ("train_dp.py", 240),
    "create_imagenet_curve_scorer_jobs.sh": ("calc_curv_fz_imagenet_models.py", 25),
    "create_fz_curve_scorer_jobs.sh": ("calc_curv_fz_models.py", 1000),
    "create_per_instance_renyi_jobs.sh": ("sensitivity/compute_sensitivity.py", 10),
}


@pytest.fixture
def papers_config(tmp_path: Path) -> Path:
    """config.json with the keys of the original works alone, two of them with a folder for each data set."""
    values = {
        "data_dir": "data",
        "fz_model_dir": {"cifar100": "fz/cifar100", "imagenet": "fz/imagenet"},
        "fz_precomputed_score_dir": {"cifar100": "fz_scores/cifar100", "imagenet": "fz_scores/imagenet"},
        "private_model_dir": "private",
        "private_precomputed_score_dir": {"cifar10": "scores/cifar10", "cifar100": "scores/cifar100"},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("script", "flags", "mentions"),
    [
        ("calc_curv_fz_models.py", (), ("cifar100_small_inception/0.7", "train_fz_models.py")),
        ("calc_curv_fz_imagenet_models.py", ("--start_idx", 0, "--stop_idx", 100), ("imagenet_index.npz",)),
        ("loss_v_priv.py", (), ("cifar100", "resnet18", "seed_*", "train_dp.py")),
        (
            "calc_private_memorization.py",
            (),
            ("memorization_seed_*", "dp_train_jobs.sh --dataset cifar100 --arch resnet18"),
        ),
        ("calc_curv_private_models.py", (), ("cifar100", "resnet18", "train_dp.py")),
        ("sensitivity/compo_res/rank.py", (), ("compo_res_all_totals.csv", "renyi_per_instance_sum_compo.py")),
    ],
)
def test_scripts_mean_the_papers_settings(papers_config: Path, script: str, flags: tuple, mentions: tuple) -> None:
    assert_refused(run_script(script, *flags, "--config", papers_config), *mentions)


@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_print_lines_that_their_scripts_take(generator: str) -> None:
    script, count = GENERATORS[generator]
    environment = os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(
        ["sh", f"scripts/{generator}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    lines = printed.splitlines()
    assert len(lines) == count and len(set(lines)) == count
    assert all(line.startswith(f"python {script} ") for line in lines)
    checked = subprocess.run(
        ["sh", "-c", lines[-1]], cwd=ROOT, env=environment | {"FLAGS_ONLY": "1"}, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("loop", ["run.sh", "run_loop.sh", "run_compo.sh", "run_loop_rm.sh"])
def test_loops_start_from_their_folder(loop: str, papers_config: Path) -> None:
    flags = ("--config", str(papers_config), *(() if loop == "run_compo.sh" else ("--points", "5")))
    environment = os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [f"./{loop}", *flags], cwd=ROOT / "sensitivity", env=environment, capture_output=True, text=True
    )
    assert result.returncode == (1 if loop == "run_loop.sh" else 2)  # a loop's runs are lines of a job file
    assert "Traceback" not in result.stderr
    wanted = "res1.csv" if loop in ("run_compo.sh", "run_loop_rm.sh") else "data/MNIST/raw"
    assert wanted in result.stderr


def test_what_is_there_is_listed(papers_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "fz" / "cifar100" / "mnist_smallcnn" / "0.7" / "3"
    run.mkdir(parents=True)
    (run / "aux_arrays.npz").write_bytes(b"")
    settings = {"data": {"dataset": "mnist"}, "model": {"arch": "smallcnn"}}
    (run / "aux_arrays.json").write_text(json.dumps({"settings": settings, "sha256": "0"}))
    result = run_script("calc_curv_fz_models.py", "--config", papers_config)
    assert_refused(result, "there are: 1 runs by --dataset mnist --arch smallcnn --ratio 0.7")
    settings = {"data": {"dataset": "letters"}, "model": {"arch": "build", "source": "0"}}
    (run / "aux_arrays.json").write_text(json.dumps({"settings": settings, "sha256": "0"}))
    said = "--dataset_name letters --arch_name build --ratio 0.7 with the --dataset and --arch of that name"
    assert_refused(run_script("calc_curv_fz_models.py", "--config", papers_config), f"there are: 1 runs by {said}")


def test_each_data_set_may_have_folders_of_its_own(tmp_path: Path) -> None:
    """What is trained under a folder by data set is found there by what reads it."""
    kinds = ("fz_model_dir", "fz_precomputed_score_dir", "private_model_dir")
    values: dict[str, object] = {key: {"mnist": f"{key}/of_mnist"} for key in kinds}
    values["private_precomputed_score_dir"] = {"mnist": "private_scores"}
    (tmp_path / "config.json").write_text(json.dumps(values | {"data_dir": str(DATA)}))
    both = ("--dataset", "mnist", "--arch", "smallcnn", "--config", tmp_path / "config.json")
    subset = ("--data_subset", 60, "--epochs", 1, "--stop_run", 2)
    private = ("--data_subset", 60, "--batch_size", 20, "--epochs", 1, "--accountant", "rdp", "--epsilon", 8)
    for line in (
        ("train_fz_models.py", *both, *subset),
        ("calc_curv_fz_models.py", *both, "--n_probes", 1),
        ("scripts/make_memorization_subsets.py", *both, "--top_k", 10, "--seeds", 0),
        ("train_dp.py", *both, *private),
        ("calc_curv_private_models.py", *both, "--n_probes", 1),
    ):
        result = run_script(*line)
        assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("fz_precomputed_score_dir/of_mnist/*/curv_scores_*.npy"))) == 2
    assert list(tmp_path.glob("private_model_dir/of_mnist/subsets/mnist/subset_0.npy"))
    assert len(list(tmp_path.glob("private_scores/*/curv_scores_*.npy"))) == 1
