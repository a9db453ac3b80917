"""Shell scripts, generators, the pinned environment, the help texts and the notebook, run as a user runs them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT, run_script, write_config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from libdata.results import ResultRow, save_results

SHELL = sorted((ROOT / "scripts").glob("*.sh"))
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def sh(*args: object, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def requirements(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


def test_lock_holds_the_direct_requirements_and_all_they_need() -> None:
    direct, lock = requirements("requirements.txt"), requirements("requirements.lock")
    for name, requirement in direct.items():
        assert str(requirement.specifier) == str(lock[name].specifier)
    for name, requirement in lock.items():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(need.name)
                if needed in ("setuptools", "wheel", "pip"):
                    continue
                version = str(lock[needed].specifier).removeprefix("==")
                assert need.specifier.contains(version, prereleases=True), f"{name} needs {need}, locked {version}"


def test_installed_packages_are_the_locked_ones() -> None:
    for name, requirement in requirements("requirements.lock").items():
        assert requirement.specifier.contains(metadata.version(name).split("+")[0], prereleases=True), name


def test_conda_installs_the_same_requirements() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.txt" in text
    assert re.findall(r"python=(\S+)", text) == ["3.11"]
    assert sys.version_info[:2] == (3, 11)


def test_tensorflow_is_the_cpu_build_on_linux() -> None:
    names = requirements("requirements.txt")
    if sys.platform == "linux":
        assert "tensorflow-cpu" in names and "tensorflow" not in names


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_posix(path: Path) -> None:
    shell = shutil.which("dash") or "sh"
    assert subprocess.run([shell, "-n", path], capture_output=True).returncode == 0
    assert path.read_text().startswith(("#!/bin/sh\n", "# Sourced"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_and_its_default(script: str) -> None:
    result = run_script(script, "--help")
    assert result.returncode == 0
    entries = re.split(r"\n  (?=-)", result.stdout.split("options:\n")[1])[1:]
    assert len(entries) > 3
    for entry in entries:
        words = " ".join(entry.split())
        explained = re.search(r"\(default: .+\)$", words) or "by default" in words or words.startswith("-h")
        assert explained and len(words.split()) > 4, words


def generated(script: str, *flags: object) -> list[str]:
    result = sh(ROOT / "scripts" / script, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("generator", "script"),
    [("create_fz_train_jobs.sh", "train_fz_models.py"), ("create_fz_curve_scorer_jobs.sh", "calc_curv_fz_models.py")],
)
def test_generators_cover_every_run_once(generator: str, script: str) -> None:
    lines = generated(generator, "--runs", 25, "--runs_per_job", 10, "--config", "it's a file.json")
    words = [shlex.split(line) for line in lines]
    assert [w[:4] for w in words] == [["python", script, "--config", "it's a file.json"]] * 3
    assert [tuple(w[-3::2]) for w in words] == [("0", "10"), ("10", "20"), ("20", "25")]
    assert len(generated(generator)) == 1000
    for bad in (["--runs", "0"], ["--runs"], ["--runs_per_job", "x"], ["--start_run", "3"]):
        refused = sh(ROOT / "scripts" / generator, *bad)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and bad[0] in refused.stderr


def test_setup_takes_an_environment_that_fits_and_explains_a_wrong_python(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    active = {"PATH": f"{folder}:/usr/bin:/bin", "VIRTUAL_ENV": str(folder.parent)}
    result = sh(ROOT / "scripts" / "setup.sh", env=active)
    assert result.returncode == 0 and Path(result.stdout.strip()) == folder / "python"
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    result = sh(tmp_path / "scripts" / "setup.sh", env={"PATH": "/usr/bin:/bin", "PYTHON": "python2.2"})
    assert result.returncode == 1 and "Python 3.11" in result.stderr and "conda env create" in result.stderr


def test_setup_says_what_to_do_after_a_failed_download_and_goes_on_later(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    lock = tmp_path / "requirements.lock"
    lock.write_text("no-such-package-of-this-name==1.0\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    failed = sh(tmp_path / "scripts" / "setup.sh", env=environment)
    assert failed.returncode == 1 and "Check the network" in failed.stderr
    lock.write_text("# nothing to install\n")
    for _ in range(2):
        result = sh(tmp_path / "scripts" / "setup.sh", env=environment)
        assert result.returncode == 0 and result.stdout.strip() == str(tmp_path / ".venv" / "bin" / "python")
    assert "installing" not in result.stderr


def test_notebook_runs_on_a_small_ensemble(ensemble: Path, tmp_path: Path) -> None:
    name = "analyze_cifar100_curv_fz"
    dirs = {key: str(ensemble / key) for key in ("fz_model_dir", "score_dir")}
    config = write_config(tmp_path, **dirs)
    parameters = {"config": config, "dataset": "mnist", "arch": "smallcnn", "n_resamples": "5", "stop_run": "7"}
    flags = [word for key, value in parameters.items() for word in ("-p", key, value)]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    result = sh(
        "scripts/run_notebook.sh", f"notebooks/{name}.ipynb", tmp_path / "figure_dir", *flags, cwd=ROOT, env=environment
    )
    assert result.returncode == 0, result.stderr
    figures = tmp_path / "figure_dir"
    notebook = json.loads((figures / f"{name}.ipynb").read_text())
    printed = "".join("".join(out.get("text", "")) for cell in notebook["cells"] for out in cell.get("outputs", []))
    assert "6 scored runs, 200 examples" in printed and "not scored: [6]" in printed
    for stem in ("link1_mnist_smallcnn", "link1_mnist_smallcnn_examples"):
        assert (figures / f"{stem}.png").stat().st_size > 10_000 and (figures / f"{stem}.pdf").exists()
    assert (figures / f"{name}.html").exists()
    rows = json.loads((figures / "results_link1_mnist_smallcnn_0.7_ensemble.json").read_text())
    assert {row["statistic"] for row in rows} >= {
        "Spearman(mem, curvature), correctness",
        "control: random pairs, prob",
    }
    table = subprocess.run(
        [sys.executable, "scripts/print_results.py", str(figures)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    row = next(line for line in table.splitlines() if "Spearman(mem, curvature), correctness" in line)
    assert "mnist smallcnn 0.7 ensemble" in row and str(figures / "link1_mnist_smallcnn.png") in table


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_name_no_machine(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    outputs = json.dumps(
        [out for cell in cells for out in cell["outputs"] if "data" not in out or "image/png" not in out["data"]]
    )
    assert not re.search(r"/(home|root|work|tmp|Users)/", outputs)
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell["outputs"])


def test_the_readmes_loops_pasted_whole_follow_each_other(tmp_path: Path) -> None:
    """Its own lines, with scripts in place of the loops that note when they begin and end."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (block,) = [block for block in blocks if "./run_loop.sh" in block]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name in set(re.findall(r"\./(\w+\.sh)", block)):
        script = tmp_path / "sensitivity" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\necho "begin {name} $*" >> ../log\nsleep 0.2\necho "end {name} $*" >> ../log\n')
        script.chmod(0o755)
    assert subprocess.run(["sh", "-c", f"{block}\nwait"], cwd=tmp_path).returncode == 0
    log = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(log) >= 6 and log[0][1].startswith("run_loop.sh")
    for (begin, what), (end, same) in zip(log[::2], log[1::2], strict=True):
        assert (begin, end) == ("begin", "end") and what == same


def test_tables_of_two_data_sets_stand_beside_each_other(tmp_path: Path) -> None:
    row = ResultRow("Link 1", "Spearman", 0.5, 0.4, float("nan"), "rises", "yes")
    about = [("mnist", "smallcnn", "seed_*"), ("mnist", "smallcnn", "other_*"), ("fashionmnist", "smallcnn", "seed_*")]
    paths = [save_results(tmp_path, "link1", what, [row]) for what in about]
    assert [path.name for path in paths] == [
        "results_link1_mnist_smallcnn_seed.json",
        "results_link1_mnist_smallcnn_other.json",
        "results_link1_fashionmnist_smallcnn_seed.json",
    ]
    (tmp_path / "results_old.json").write_text(json.dumps([{**asdict(row), "low": None, "high": None}]))
    command = [sys.executable, "scripts/print_results.py", str(tmp_path)]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for what in [*map(" ".join, about), "old"]:
        assert sum(line.startswith(f"Link 1  {what} ") for line in table.splitlines()) == 1


def test_every_difference_names_a_test_that_exists() -> None:
    found = 0
    for line in (ROOT / "docs" / "differences.md").read_text().splitlines():
        file = ""
        for name, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", line):
            file = name or file
            source = (ROOT / "tests" / file).read_text() if file else ""
            assert source and (not test or f"def {test}(" in source), line
            found += bool(source)
    assert found > 10


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_start_as_the_readme_types_them(path: Path) -> None:
    command = [sys.executable, str(path.relative_to(ROOT)), "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "usage:" in result.stdout, result.stderr
