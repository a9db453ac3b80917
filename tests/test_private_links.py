"""Links 2 and 3 end to end through the shipped scripts, on a small family of private models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
from conftest import ROOT, TRAIN_FLAGS, assert_refused, run_script, tree, write_config

from libscores.accounting import total_variation
from libscores.statistics import Estimate
from libscores.verdicts import within_bound
from libstore.errors import InputError
from libstore.fz import read_run
from libstore.index import load_array
from libstore.private_models import (
    ADDS,
    EXCHANGES,
    PrivateChoice,
    PrivateModel,
    exchanges_or_adds,
    find_private_models,
    read_curvature,
    scored_models,
)
from libstore.scores import score_path
from libstore.store import load_scores, read_sidecar

CHOICE = ("--dataset", "mnist", "--arch", "smallcnn")
DP_FLAGS = (*CHOICE, "--data_subset", "200", "--batch_size", "32", "--epochs", "2", "--accountant", "rdp")
SEEDS, EPSILONS = (0, 1, 2, 3), (2, 50)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight private models on memorization subsets of 200 digits; returns the folder with config.json."""
    folder = tmp_path_factory.mktemp("family")
    config = write_config(folder)
    subsets = folder / "private_model_dir" / "subsets" / "mnist"
    commands = [("train_fz_models.py", *TRAIN_FLAGS, "--stop_run", 4)]
    commands += [("scripts/make_memorization_subsets.py", *CHOICE, "--top_k", 40, "--seeds", *SEEDS)]
    for seed in SEEDS:
        flags = ("--seed", seed, "--train_subset", subsets / f"subset_{seed}.npy", "--suffix", "memorization_seed_*")
        commands += [("train_dp.py", *DP_FLAGS, "--epsilon", epsilon, *flags) for epsilon in EPSILONS]
    for command in commands:
        result = run_script(*command, "--config", config)
        assert result.returncode == 0, result.stderr
    return folder


def test_subsets_are_as_the_design_says_and_seeded(family: Path, tmp_path: Path) -> None:
    subsets = family / "private_model_dir" / "subsets" / "mnist"
    top = load_array(subsets / "top_k.npy")
    assert len(top) == 40 and np.all(np.isin(top, np.arange(200)))
    drawn = [load_array(subsets / f"subset_{seed}.npy") for seed in SEEDS]
    for subset in drawn:
        assert (~np.isin(subset, top)).sum() == 112
    for one, other in zip(drawn[::2], drawn[1::2], strict=True):  # coins, in complementary pairs
        assert np.array_equal(np.sort(np.r_[np.intersect1d(one, top), np.intersect1d(other, top)]), top)
    assert read_sidecar(subsets / "subset_0.npy")["settings"]["planned"] == 20 + 112
    models = find_private_models(family / "private_model_dir", "mnist", "smallcnn", PrivateChoice(epsilon=(2.0,)))
    plans = {tuple(model.provenance["privacy"][key] for key in ("sample_rate", "steps")) for model in models}
    assert plans == {(32 / 132, round(2 * 132 / 32))} and exchanges_or_adds(models, subsets) == ADDS
    assert len({model.settings["train_on"]["n_examples"] for model in models}) > 1
    assert len({tuple(subset) for subset in drawn}) == len(SEEDS)
    shutil.copytree(family / "fz_model_dir", tmp_path / "fz_model_dir")
    config = write_config(tmp_path)
    command = ("scripts/make_memorization_subsets.py", *CHOICE, "--top_k", 40, "--config", config)
    assert run_script(*command, "--seeds", "3 1").returncode == 0
    for seed in (1, 3):
        again = tmp_path / "private_model_dir" / "subsets" / "mnist" / f"subset_{seed}.npy"
        assert again.read_bytes() == (subsets / f"subset_{seed}.npy").read_bytes()
    before = tree(tmp_path)
    assert_refused(run_script(*command, "--seeds", 1, "--ratio", 0.5), "ratio: 0.7 there, 0.5 asked for")
    assert_refused(run_script(*command, "--top_k", 201), "--top_k 201", "found 201")
    assert_refused(run_script(*command, "--scores", "nowhere.npy"), "nowhere.npy")
    assert tree(tmp_path) == before


def test_loss_against_epsilon(family: Path) -> None:
    config = family / "config.json"
    result = run_script("loss_v_priv.py", *CHOICE, "--suffix", "*", "--epsilon", 2, 20, 50, "--config", config)
    assert result.returncode == 0 and "no model with epsilon 20" in result.stderr and "no fit" in result.stdout
    losses, sidecar = load_scores(family / "score_dir" / "loss_v_priv" / "mnist_smallcnn.npy")
    assert sidecar["settings"]["epsilons"] == [2, 50] and sidecar["settings"]["seeds"] == list(SEEDS)
    for row, epsilon in enumerate(EPSILONS):
        for column, seed in enumerate(SEEDS):
            run = read_run(family / f"private_model_dir/mnist_smallcnn_eps_{epsilon}_memorization_seed_{seed}")
            assert losses[row, column] == pytest.approx(-np.log(run.prob["test"], dtype=float).mean(), rel=1e-4)
    for suffix in ("png", "pdf"):
        assert (family / "figure_dir" / f"loss_v_priv_mnist_smallcnn.{suffix}").stat().st_size > 5_000
    rows = json.loads((family / "figure_dir" / "results_link2_loss_mnist_smallcnn.json").read_text())
    assert rows[0]["statistic"] == "slope of ln test loss on ln epsilon" and rows[0]["published"].startswith("falls")
    slopes = np.log(losses[1] / losses[0]) / np.log(EPSILONS[1] / EPSILONS[0])
    assert rows[0]["value"] == pytest.approx(slopes.mean())
    assert rows[0]["verdict"] == ("yes" if rows[0]["high"] < 0 else "no" if rows[0]["low"] > 0 else "cannot say")
    refused = run_script("loss_v_priv.py", *CHOICE, "--suffix", "*", "--epsilon", 50, "--config", config)
    assert_refused(refused, "epsilons: [2.0, 50.0] there, [50.0] asked for", "--overwrite")


def renamed(models: Path, suffix: str, seed: int, of: int) -> None:
    """Add models of another suffix: copies of those on the subset of a seed, as if trained with a seed and suffix."""
    for epsilon in EPSILONS:
        folder = models / f"mnist_smallcnn_eps_{epsilon}_{suffix}"
        shutil.copytree(models / f"mnist_smallcnn_eps_{epsilon}_memorization_seed_{of}", folder)
        for path in folder.glob("*.json"):
            sidecar = json.loads(path.read_text())
            sidecar["settings"] |= {"suffix": suffix, "seed": seed}
            path.write_text(json.dumps(sidecar))


def test_losses_of_two_kinds_of_models_are_kept_side_by_side(family: Path, tmp_path: Path) -> None:
    models, line = copied(family, tmp_path, SEEDS), ("loss_v_priv.py", *CHOICE, "--config", tmp_path / "config.json")
    for seed in (0, 1):
        renamed(models, f"seed_{seed}", seed, of=seed)
    names = {"mnist_smallcnn": ((), 2), "mnist_smallcnn_memorization_seed": (("--suffix", "memorization_seed_*"), 4)}
    for _ in range(2):
        for name, (flags, seeds) in names.items():
            result = run_script(*line, *flags)
            assert result.returncode == 0 and "made again" not in result.stdout, result.stderr
            assert load_scores(tmp_path / f"score_dir/loss_v_priv/{name}.npy")[0].shape == (2, seeds)
            assert f"{seeds} seeds" in result.stdout and f"loss_v_priv/{name}.npy and figure" in result.stdout
            rows = json.loads((tmp_path / f"figure_dir/results_link2_loss_{name}.json").read_text())
            assert " ".join(name.split("_", 2)) == rows[0]["about"]
            assert (tmp_path / f"figure_dir/loss_v_priv_{name}.png").exists()
    plt.close("all")
    renamed(models, "other_seed_3", 3, of=0)
    for seed in (0, 1):
        for epsilon in EPSILONS:
            shutil.rmtree(models / f"mnist_smallcnn_eps_{epsilon}_seed_{seed}")
            shutil.rmtree(models / f"mnist_smallcnn_eps_{epsilon}_memorization_seed_{seed}")
    mixed = run_script(*line, "--suffix", "*")
    assert_refused(mixed, "_memorization_seed_3", "_other_seed_3", "epsilon 2 and seed 3", "--suffix")


def test_memorization_against_epsilon(family: Path) -> None:
    config = family / "config.json"
    result = run_script("calc_private_memorization.py", *CHOICE, "--config", config)
    assert result.returncode == 0, result.stderr
    scores, sidecar = load_scores(family / "score_dir" / "private_memorization" / "mnist_smallcnn.npy")
    assert scores.shape == (2, 2, 40) and sidecar["settings"]["epsilons"] == [2, 50]
    top = load_array(family / "private_model_dir/subsets/mnist/top_k.npy")
    for row, epsilon in enumerate(EPSILONS):
        runs = [
            read_run(family / f"private_model_dir/mnist_smallcnn_eps_{epsilon}_memorization_seed_{s}") for s in SEEDS
        ]
        for column, example in enumerate(top):
            seen = [r.prob["train"][r.index["train"] == example][0] for r in runs if example in r.index["train"]]
            held = [r.prob["removed"][r.index["removed"] == example][0] for r in runs if example in r.index["removed"]]
            want = np.mean(seen, dtype=float) - np.mean(held, dtype=float) if seen and held else np.nan
            assert scores[0, row, column] == pytest.approx(want, nan_ok=True, abs=1e-6)
    rows = json.loads((family / "figure_dir/results_link3_mnist_smallcnn.json").read_text())
    assert [row["verdict"] == "control" for row in rows] == [False, True] * 2
    assert result.stdout.count("(2 independent)") == 2 and "0 of 40 examples undefined" in result.stdout
    for row, epsilon in zip(rows[::2], EPSILONS, strict=True):
        privacy = read_sidecar(family / f"private_model_dir/mnist_smallcnn_eps_{epsilon}_memorization_seed_0/model.pt")
        plan = privacy["provenance"]["privacy"]
        bound = total_variation(plan["noise_multiplier"], plan["sample_rate"], plan["steps"])
        assert f"<= {bound:.3f}" in row["published"] and f"{row['value'] / bound:.2f} of the bound" in row["statistic"]
        assert row["verdict"] == within_bound(Estimate(row["value"], row["low"], row["high"]), bound)
    assert (family / "figure_dir" / "private_memorization_mnist_smallcnn.png").exists()


@pytest.mark.parametrize(
    ("sizes", "planned", "said"),
    [
        ((131, 133, 132), (132, 132, 132), "one example added"),
        ((132, 132, 132), (132, 132, 132), "one example exchanged"),  # drawn with one size, by earlier versions
        ((131, 133, 132), (131, 133, 132), "one example exchanged"),  # each with a mechanism of its own
        ((131, 133), (None, None), "one example exchanged"),
    ],
)
def test_sizes_tell_what_neighbours_are_where_nothing_else_does(tmp_path: Path, sizes, planned, said: str) -> None:
    train_on = [
        {"n_examples": n, "planned": p, "index_sha256": str(i)}
        for i, (n, p) in enumerate(zip(sizes, planned, strict=True))
    ]
    models = [PrivateModel(tmp_path, {"settings": {"train_on": one}}) for one in train_on]
    assert exchanges_or_adds(models, tmp_path) == said


def test_curvature_of_private_models_needs_no_calibration(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libtrain.private_study.plan_privacy", lambda *_: pytest.fail("calibrated again"))
    command = ("calc_curv_private_models.py", *CHOICE, "--n_probes", 2, "--seed", 1, "--config", family / "config.json")
    assert run_script(*command).stdout.count(": scored") == 2
    assert run_script(*command).stdout.count("skipped") == 2
    scores, sidecar = load_scores(
        score_path(family / "score_dir", "curvature", "mnist_smallcnn_eps_50_memorization_seed_1", 1e-3)
    )
    assert scores.shape == (200,) and sidecar["settings"]["data"]["normalization"] == "standard"


def test_too_few_models_are_said_and_the_rest_goes_on(family: Path) -> None:
    config = family / "config.json"
    refused = run_script("calc_private_memorization.py", *CHOICE, "--seed", 1, "--config", config)
    assert refused.returncode == 2 and "epsilon 2: memorization needs at least two models" in refused.stderr
    for script in ("loss_v_priv.py", "calc_private_memorization.py", "calc_curv_private_models.py"):
        assert_refused(run_script(script, "--dataset", "cifar10", "--config", config), "no private model of cifar10")


def copied(family: Path, folder: Path, seeds: Sequence[int]) -> Path:
    """Copy the models of some seeds; return the folder of all."""
    for epsilon in EPSILONS:
        for seed in seeds:
            name = f"mnist_smallcnn_eps_{epsilon}_memorization_seed_{seed}"
            shutil.copytree(family / "private_model_dir" / name, folder / "private_model_dir" / name)
    shutil.copytree(family / "private_model_dir/subsets", folder / "private_model_dir/subsets", dirs_exist_ok=True)
    write_config(folder)
    return folder / "private_model_dir"


def test_subsets_that_are_equally_large_by_chance_still_add_an_example(family: Path) -> None:
    """What a bound is of follows from how sets were drawn: two complementary halves of 40 may have 20 each."""
    root = family / "private_model_dir"
    subsets = root / "subsets" / "mnist"
    models = find_private_models(root, "mnist", "smallcnn", PrivateChoice())
    sizes = {"n_examples": 132, "planned": 132}
    equal = [
        PrivateModel(m.folder, {**m.sidecar, "settings": {**m.settings, "train_on": m.settings["train_on"] | sizes}})
        for m in models
    ]
    assert exchanges_or_adds(equal, family / "none") == ADDS
    before = [PrivateModel(m.folder, {**m.sidecar, "provenance": {**m.provenance, "drawn": None}}) for m in equal]
    assert exchanges_or_adds(before, subsets) == ADDS  # their sidecars did not tell
    assert exchanges_or_adds(before, family / "none") == EXCHANGES
    assert exchanges_or_adds([*equal[:-1], before[-1]], family / "none") == EXCHANGES


@pytest.mark.parametrize("script", ["loss_v_priv.py", "calc_private_memorization.py"])
def test_results_grow_with_the_models(family: Path, tmp_path: Path, script: str) -> None:
    line = (script, *CHOICE, "--suffix", "*", "--config", tmp_path / "config.json")
    models = copied(family, tmp_path, SEEDS[:3])
    assert "made again" not in run_script(*line).stdout
    (kept,) = (tmp_path / "score_dir").rglob("*.npy")
    pilot, bytes_of_pilot = json.loads(kept.with_suffix(".json").read_text()), kept.read_bytes()
    copied(family, tmp_path, SEEDS[3:])
    grown = run_script(*line)
    assert grown.returncode == 0 and f"{kept}: made again, 2 models added\n" in grown.stdout
    assert "made again" not in run_script(*line).stdout
    assert len(read_sidecar(kept)["settings"]["models"]) == 8
    refused = run_script(*line, "--epsilon", 2)  # the others are still there: another question
    assert refused.returncode == 2 and "--overwrite replaces it" in refused.stderr and len(refused.stderr) < 1000
    shutil.rmtree(models / "mnist_smallcnn_eps_50_memorization_seed_3")
    (models / "mnist_smallcnn_eps_2_memorization_seed_3" / "model.json").unlink()
    fewer = run_script(*line)
    assert f"{kept}: made again, 2 models gone\n" in fewer.stdout and fewer.stderr.count("left out") == 1
    assert kept.read_bytes() == bytes_of_pilot
    path = models / "mnist_smallcnn_eps_2_memorization_seed_0" / "model.json"  # as if it were trained again
    path.write_text(path.read_text().replace(read_sidecar(path)["sha256"], "0" * 64))
    arrays = path.with_name("aux_arrays.json")
    arrays.write_text(arrays.read_text().replace(read_sidecar(arrays)["weights_sha256"], "0" * 64))
    assert f"{kept}: made again, 1 model changed\n" in run_script(*line).stdout
    del pilot["format"]
    kept.with_suffix(".json").write_text(json.dumps(pilot))  # as an earlier version left it
    assert "made again, 1 model changed" in run_script(*line).stdout
    kept.with_suffix(".json").write_text(json.dumps(pilot | {"format": 0}))
    assert "made again" in run_script(*line).stdout


def test_another_list_of_examples_is_another_question(family: Path, tmp_path: Path) -> None:
    copied(family, tmp_path, SEEDS)
    line = ("calc_private_memorization.py", *CHOICE, "--config", tmp_path / "config.json")
    assert run_script(*line).returncode == 0
    np.save(tmp_path / "other.npy", np.arange(30))
    refused = run_script(*line, "--top_k", tmp_path / "other.npy")
    assert refused.returncode == 2 and "top_k_sha256" in refused.stderr and "--overwrite" in refused.stderr
    assert_refused(run_script(*line, "--top_k", tmp_path / "none.npy"), "none.npy: cannot read the array")


def test_what_is_advised_leads_to_what_is_missing(family: Path, tmp_path: Path) -> None:
    models = copied(family, tmp_path, SEEDS)
    line = ("calc_private_memorization.py", *CHOICE, "--config", tmp_path / "config.json")
    trained = "create_privacy_vs_memorization_dp_train_jobs.sh --dataset mnist --arch smallcnn"
    drawn = "scripts/make_memorization_subsets.py"
    assert_refused(run_script(*line, "--suffix", "none_*"), "with suffix 'none_*'", trained, drawn)
    for name, examples in (("outside", [3, 200]), ("seen", [7])):
        np.save(tmp_path / f"{name}.npy", np.array(examples))
    outside = run_script(*line, "--top_k", tmp_path / "outside.npy")
    assert_refused(outside, "example 200 is not in the --data_subset", "--top_k FILE")
    held = [seed for seed in SEEDS if 7 in load_array(models / f"subsets/mnist/subset_{seed}.npy")]
    seen = ("--top_k", tmp_path / "seen.npy", "--seed", *held)
    for flags, why in ((("--seed", 1), "at least two models"), (seen, "no example has both a model")):
        refused = run_script(*line, *flags)
        assert refused.returncode == 2 and refused.stderr.count(why) == 2, refused.stderr  # once an epsilon
        assert trained in refused.stderr.splitlines()[-1] and "train more models" not in refused.stderr
    arrays = models / "mnist_smallcnn_eps_2_memorization_seed_0/aux_arrays.json"  # as of a training on another device
    arrays.write_text(arrays.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    assert_refused(run_script(*line), "belong to different weights", "run its line of train_dp.py again")
    again = ("train_dp.py", *DP_FLAGS, "--epsilon", 2, "--suffix", "memorization_seed_*", "--config", line[-1])
    for said in ("test accuracy", "skipped"):
        assert said in run_script(*again, "--train_subset", models / "subsets/mnist/subset_0.npy").stdout
    assert run_script(*line).returncode == 0
    moved = models / "subsets/mnist/top_k.json"
    moved.write_text(moved.read_text().replace('"content_sha256": "', '"content_sha256": "0'))
    assert_refused(run_script(*line), "top_k.npy: chosen on data", "was trained on the latter", "train again")
    moved.with_suffix(".npy").unlink()
    assert_refused(run_script(*line), "top_k.npy: missing", f"{drawn} --dataset mnist makes it", "--top_k FILE")


def test_what_is_no_whole_model_is_named_and_left_out(family: Path, tmp_path: Path) -> None:
    models = copied(family, tmp_path, SEEDS)
    name = "mnist_smallcnn_eps_2_memorization_seed_{}".format
    shutil.copytree(models / name(0), models / f"{name(0)} (copy)")
    shutil.copytree(models / name(0), models / "mnist_smallcnn_eps_50_other")
    (models / name(1) / "model.json").unlink()
    (models / name(2) / "aux_arrays.json").write_text("{")
    (models / "cifar10_smallcnn_eps_2_seed_0").mkdir()
    (models / "cifar10_smallcnn_eps_2_seed_0/model.pt").touch()  # nobody asked for it
    for command in (
        ("loss_v_priv.py", *CHOICE, "--suffix", "*"),
        ("calc_curv_private_models.py", *CHOICE, "--n_probes", 1),
    ):
        result = run_script(*command, "--config", tmp_path / "config.json")
        assert result.returncode == 0, result.stderr
        told = result.stderr.splitlines()
        assert len(told) == 4 and all(line.startswith(f"left out: {models}") for line in told)
        for folder in ("(copy)", "eps_50_other"):
            assert f"{folder}: its settings are those of {name(0)}, a copy of the folder beside it" in result.stderr
        assert f"{name(1)}/model.pt: its sidecar model.json" in result.stderr
        assert f"{name(2)}/aux_arrays.json: not valid JSON" in result.stderr
    losses, sidecar = load_scores(tmp_path / "score_dir/loss_v_priv/mnist_smallcnn.npy")
    assert len(sidecar["settings"]["models"]) == 6 and np.isnan(losses).sum() == 2
    assert len(list((tmp_path / "score_dir").glob("mnist_*"))) == 6
    shutil.move(models / f"{name(0)} (copy)", tmp_path / f"{name(0)} (copy)")
    for path in models.glob("mnist_*"):
        shutil.rmtree(path)
    shutil.move(tmp_path / f"{name(0)} (copy)", models)
    nothing = run_script("loss_v_priv.py", *CHOICE, "--suffix", "*", "--config", tmp_path / "config.json")
    assert nothing.returncode == 2 and len(nothing.stderr.splitlines()) == 1 and "1 left out" in nothing.stderr


def test_models_of_another_kind_and_scores_of_other_weights_are_refused(family: Path, tmp_path: Path) -> None:
    models = copied(family, tmp_path, SEEDS[:2])
    config = ("--config", tmp_path / "config.json")
    subset = ("--train_subset", models / "subsets/mnist/subset_2.npy", "--suffix", "memorization_seed_2")
    train = ("train_dp.py", *DP_FLAGS, "--epsilon", 2, "--seed", 2, *subset)
    score = ("calc_curv_private_models.py", *CHOICE, "--n_probes", 1)

    def read() -> list[np.ndarray]:
        found = find_private_models(models, "mnist", "smallcnn", PrivateChoice())
        scored, missing = scored_models(found, tmp_path / "score_dir", 1e-3)
        assert not missing
        return list(read_curvature(scored, tmp_path / "score_dir", 1e-3))

    with pytest.raises(InputError, match="run calc_curv_private_models.py"):
        read()
    for command in (train, score):
        assert run_script(*command, *config).returncode == 0
    assert len(read()) == 5
    for command, flags, said in (
        (score, ("--temp", 10), r"temp \(10.0 and 1.0\)"),
        (score, (), ""),
        (train, ("--lr", 0.01), r"optimization.lr \(0.01 and 0.001\); choose models of one kind with --seed and"),
    ):
        again = run_script(*command, *flags, "--overwrite", *(("--seed", 2) if command == score else ()), *config)
        assert again.returncode == 0, again.stderr
        if said:
            with pytest.raises(InputError, match=said):
                read()
    for script in ("loss_v_priv.py", "calc_private_memorization.py"):
        refused = run_script(script, *CHOICE, "--suffix", "*", *config)
        assert refused.returncode == 2 and "optimization.lr (0.01 and 0.001)" in refused.stderr
    assert run_script(*train, "--max_physical_batch_size", 8, "--overwrite", *config).returncode == 0
    path = models / "mnist_smallcnn_eps_2_memorization_seed_2"
    for name in ("model", "aux_arrays"):  # the settings of the others, but trained again
        text = (path / f"{name}.json").read_text()
        (path / f"{name}.json").write_text(
            text.replace('"max_physical_batch_size": 8', '"max_physical_batch_size": 512')
        )
    with pytest.raises(InputError, match="curv_scores_.*seed_2.* and .*seed_2/model.pt belong to different weights"):
        read()
    shutil.copy(models / "mnist_smallcnn_eps_2_memorization_seed_1/aux_arrays.npz", path)
    refused = run_script("loss_v_priv.py", *CHOICE, "--suffix", "*", *config)
    assert refused.returncode == 2 and f"{path / 'aux_arrays.npz'}: missing, damaged or of another" in refused.stderr


def test_notebook_of_link_2(family: Path, tmp_path: Path) -> None:
    choice = ("--dataset", "mnist", "--arch", "smallcnn", "--n_probes", 2, "--config", family / "config.json")
    assert run_script("calc_curv_private_models.py", *choice).returncode == 0
    dirs = {key: family / key for key in ("private_model_dir", "score_dir")}
    config = write_config(tmp_path, **dirs)
    parameters = ["-p", "config", str(config), "-y", "datasets: [mnist]", "-p", "arch", "smallcnn"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "sh",
        "scripts/run_notebook.sh",
        "notebooks/curv_privacy.ipynb",
        str(tmp_path / "figure_dir"),
        *parameters,
    ]
    result = subprocess.run(
        [*command, "-p", "suffix", "memorization_*", "-p", "dataset_name", "mnist"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(
        (tmp_path / "figure_dir" / "results_link2_curvature_mnist_smallcnn_memorization.json").read_text()
    )
    slopes = {row["statistic"]: row for row in rows if row["statistic"].startswith("slope")}
    groups = ("all", "members", "held out", "members, most memorized", "members, the rest")
    assert set(slopes) == {
        f"slope of ln {statistic} curvature, {group} on ln epsilon"
        for statistic in ("mean", "median", "trimmed mean")
        for group in groups
    }
    assert {name for name, row in slopes.items() if row["verdict"] != "no claim"} == {
        "slope of ln mean curvature, members on ln epsilon"
    }
    models = family / "private_model_dir"
    scores = {
        (epsilon, seed): np.load(score_path(family / "score_dir", "curvature", name, 1e-3))
        for epsilon in EPSILONS for seed in SEEDS
        for name in [f"mnist_smallcnn_eps_{epsilon}_memorization_seed_{seed}"]
    }  # fmt: skip
    expected = []
    for seed in SEEDS:
        members = load_array(models / "subsets/mnist" / f"subset_{seed}.npy")
        low, high = (scores[epsilon, seed][members].mean(dtype=float) for epsilon in EPSILONS)
        expected.append(np.log(high / low) / np.log(EPSILONS[1] / EPSILONS[0]))
    assert slopes["slope of ln mean curvature, members on ln epsilon"]["value"] == pytest.approx(np.mean(expected))
    figure = tmp_path / "figure_dir" / "curv_privacy_mnist_smallcnn.png"
    assert figure.stat().st_size > 10_000

    # Papermill's own way leads to the same, and its second cell of parameters is not left in force.
    figure.unlink()
    values = {"config": str(config), "datasets": ["mnist"], "arch": "smallcnn", "suffix": "memorization_*"}
    executed = tmp_path / "by_papermill.ipynb"
    papermill.execute_notebook(ROOT / "notebooks/curv_privacy.ipynb", executed, values, progress_bar=False)
    assert figure.stat().st_size > 10_000
    again = [*command[:2], str(executed), *command[3:4], "-p", "suffix", "nothing_*"]
    result = subprocess.run(again, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0 and "nothing_*" in result.stderr
