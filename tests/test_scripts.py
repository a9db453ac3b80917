"""Shell scripts, generators, the pinned environment, the help texts and the notebook, run as a user runs them."""

from __future__ import annotations

import libcli as cli
from libcli.settings import add_settings, read_settings, words_of

import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT, run_script, write_config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from libdata.choice import DataChoice
from libstore.results import ResultRow, save_results
from libtrain.settings import MeasureSettings

SHELL = sorted((ROOT / "scripts").glob("*.sh"))
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
OTHERS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("scripts", "sensitivity", "build_fz_imagenet")
    for path in (ROOT / folder).rglob("*.py")
    if "cli.run" in path.read_text() and path.name != "print_results.py"
)


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
    assert re.findall(r"python=(\S+) .*3\.12 and 3\.13", text) == ["3.11"]
    assert (3, 11) <= sys.version_info[:2] <= (3, 13)


def test_tensorflow_is_the_cpu_build_on_linux() -> None:
    names = requirements("requirements.txt")
    if sys.platform == "linux":
        assert "tensorflow-cpu" in names and "tensorflow" not in names


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_posix(path: Path) -> None:
    shell = shutil.which("dash") or "sh"
    assert subprocess.run([shell, "-n", path], capture_output=True).returncode == 0
    assert path.read_text().startswith(("#!/bin/sh\n", "# Sourced"))


@pytest.mark.parametrize("script", [*SCRIPTS, *OTHERS, "libdata.download", "libdata.tfds_order"])
def test_an_ascii_terminal_shows_every_help(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        cli.run(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main)
    shown.flush()
    text = shown.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert end.value.code == 0 and "usage:" in text and "(default: None)" not in text


def test_an_ascii_terminal_shows_results_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "Ergebnisse für René"
    folder.mkdir()
    row = {
        "study": "Link 2",
        "statistic": "ε",
        "value": 1.0,
        "low": None,
        "high": None,
        "published": "≤",
        "verdict": "–",
    }
    (folder / "results_x.json").write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    (folder / "f.png").touch()
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    result = run_script("scripts/print_results.py", folder, **plain)
    assert result.returncode == 0 and "\\u03b5" in result.stdout and "f.png" in result.stdout, result.stderr
    (folder / "results_y.json").write_text(json.dumps([row | {"statistic": "loss", "verdict": "no claim"}]))
    for flags, there in (((), False), (("--all",), True)):
        text = run_script("scripts/print_results.py", folder, *flags).stdout
        assert ("loss" in text, "1 rows without a claim are left out" in text) == (there, not there)
    result = run_script("sensitivity/compo_res/rank.py", folder / "none.csv", **plain)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "Ren" in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("script", "flag", "says"), [
        ("train_fz_models.py", "--stop_run", "left out itself, unlike ImageNet's --stop_idx"),
        ("calc_curv_fz_imagenet_models.py", "--stop_idx", "last model, included, unlike --stop_run"),
        ("train_fz_models.py", "--norm", "batch or group, batch by default"),
        ("train_dp.py", "--norm", "batch or group, group by default"),
        ("sensitivity/compute_sensitivity.py", "--seed", "(default: the run's number)"),
        ("train_dp.py", "--epsilon", "(required)"),
        ("train_fz_models.py", "--arch", "calc_curv_fz_models.py without flags scores the papers'"),
        ("calc_curv_fz_models.py", "--arch", "train_fz_models.py without flags trains on MNIST"),
    ],
)  # fmt: skip
def test_help_says_what_a_flag_does(script: str, flag: str, says: str) -> None:
    text = " ".join(run_script(script, "--help").stdout.split())
    assert flag in text and says in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_and_its_default(script: str) -> None:
    result = run_script(script, "--help")
    assert result.returncode == 0
    entries = re.split(r"\n  (?=-)", result.stdout.split("options:\n")[1])[1:]
    assert len(entries) > 3
    for entry in entries:
        words = " ".join(entry.split())
        explained = re.search(r"\((default: .+|required)\)$", words) or "by default" in words or words.startswith("-h")
        assert explained and len(words.split()) > 4, words


def generated(script: str, *flags: object) -> list[str]:
    no_python = {"PATH": "/usr/bin:/bin"}  # then flags are not checked, which takes seconds
    result = sh(ROOT / "scripts" / script, *flags, cwd="/", env=no_python)
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


@pytest.mark.parametrize(
    ("generator", "flags", "mentions"), [
        ("create_fz_curve_scorer_jobs.sh", ["--run", "4"], ["calc_curv_fz_models.py", "--run 4"]),
        ("create_privacy_vs_curve_dp_train_jobs.sh", ["--dataset", "mnist nosuch"], ["train_dp.py", "nosuch is"]),
    ],
)  # fmt: skip
def test_flags_a_script_does_not_take_are_refused_once(
    tmp_path: Path, generator: str, flags: list[str], mentions: list[str]
) -> None:
    """By the script itself, which does nothing else; without a Python that runs it, this is said."""
    python = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    refused = sh(ROOT / "scripts" / generator, *flags, cwd=tmp_path, env=python)
    assert refused.returncode == 2 and not refused.stdout and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert all(text in refused.stderr for text in mentions)
    (tmp_path / "python").write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    unable = sh(ROOT / "scripts" / generator, *flags, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert unable.returncode == 0 and len(unable.stdout.splitlines()) > 100
    assert "flags are not checked" in unable.stderr and len(unable.stderr.splitlines()) == 1


def test_setup_takes_an_environment_that_fits() -> None:
    folder = Path(sys.executable).parent
    active = {"PATH": f"{folder}:/usr/bin:/bin", "VIRTUAL_ENV": str(folder.parent)}
    result = sh(ROOT / "scripts" / "setup.sh", env=active)
    assert result.returncode == 0 and Path(result.stdout.strip()) == folder / "python"


BACKEND = """# What setuptools does for the project, without the network
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "tiny_project-1.0-py3-none-any.whl", "tiny_project-1.0.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("tiny_project.pth", f"{pathlib.Path.cwd()}\\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny-project\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "tiny_project.pth,,\\n" + f"{info}/RECORD,,\\n")
    return name
"""
PIP = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the scripts with a lock of one small package, set up; the package comes from its folder wheels/."""
    root = tmp_path_factory.mktemp("set up")
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "wheels").mkdir()
    for version in ("1.0", "2.0"):
        with zipfile.ZipFile(root / "wheels" / f"tiny_one-{version}-py3-none-any.whl", "w") as wheel:
            info, record = f"tiny_one-{version}.dist-info", f"tiny_one/deep/__init__.py,,\n{version},,\n"
            for name in ("tiny_one/__init__.py", "tiny_one/deep/__init__.py"):
                wheel.writestr(name, f"version = {version!r}\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-one\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", record.replace(f"{version},,", f"{info}/RECORD,,"))
    (root / "requirements.lock").write_text("# a comment\ntiny-one==1.0\n")
    (root / "libstore").mkdir()
    (root / "libstore" / "__init__.py").touch()
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "tiny-project"\nversion = "1.0"\n'
    )
    (root / "backend.py").write_text(BACKEND)
    first = [start_setup(root) for _ in range(2)]
    said = [process.communicate() for process in first]
    assert [process.returncode for process in first] == [0, 0], said
    assert [out for out, _ in said] == [f"{root}/.venv/bin/python\n"] * 2
    assert sorted("making .venv" in err for _, err in said) == [False, True]
    assert sum("another set-up is at work" in err for _, err in said) <= 1
    return root


def start_setup(root: Path, **env: str) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PIP_FIND_LINKS": (root / "wheels").as_uri()}
    return subprocess.Popen(
        ["sh", str(root / "scripts" / "setup.sh")], env=PIP | environment | env, text=True, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def setup_of(root: Path, **env: str) -> tuple[int, str, str]:
    process = start_setup(root, **env)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def works(root: Path, version: str) -> bool:
    """Tell whether the package can be imported, and pip's own script started, in the copy's .venv."""
    code = "import tiny_one.deep; print(tiny_one.version)"
    found = subprocess.run([root / ".venv/bin/python", "-c", code], capture_output=True, text=True)
    pip = subprocess.run([root / ".venv/bin/pip", "--version"], capture_output=True, text=True)
    return found.stdout.strip() == version and pip.returncode == 0 and str(root) in pip.stdout


def link_to_nothing(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nonexistent/python3.11")


def other_python(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")  # one that cannot read what set-up asks it to run
    (venv / "bin" / "python").chmod(0o755)


def site(venv: Path, name: str) -> Path:
    return next(venv.glob(f"lib/python3*/site-packages/{name}"))


DAMAGE = {
    "its bin/python is gone": link_to_nothing,
    "": other_python,
    "the installation of tiny_one-1.0 is unfinished": lambda venv: site(venv, "tiny_one-1.0.dist-info/RECORD").unlink(),
    "tiny_one/deep of tiny_one-1.0 is gone": lambda venv: shutil.rmtree(site(venv, "tiny_one/deep")),
    "tiny-one==1.0 is wanted, nothing is installed": lambda venv: shutil.rmtree(site(venv, "tiny_one-1.0.dist-info")),
    "pip": lambda venv: shutil.rmtree(site(venv, "pip")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_venv_is_not_used(set_up: Path, damage: str) -> None:
    """Where it cannot be mended either, as without any Python, no path is printed."""
    whole = set_up / "whole"
    shutil.copytree(set_up / ".venv", whole, symlinks=True)
    try:
        assert setup_of(set_up) == (0, f"{set_up}/.venv/bin/python\n", "")
        DAMAGE[damage](set_up / ".venv")
        looked = subprocess.run(
            [set_up / ".venv/bin/python", "-I", set_up / "scripts/check_environment.py", "--venv"],
            capture_output=True, text=True,
        ).stderr if "bin/python" not in damage else damage  # fmt: skip
        assert damage in looked
        status, out, err = setup_of(set_up, PYTHON="python2.2")
        assert status == 1 and not out and "Python 3.11, 3.12 or 3.13" in err and "conda env create" in err
        demo = sh(set_up / "scripts" / "demo.sh", env={"PATH": "/usr/bin:/bin", "PYTHON": "python2.2"})
        assert demo.returncode == 1 and not demo.stdout and not (set_up / "results").exists()
    finally:
        shutil.rmtree(set_up / ".venv")
        whole.rename(set_up / ".venv")


def test_another_lock_is_installed_and_a_failure_says_what_to_do(set_up: Path) -> None:
    lock, marked = set_up / "requirements.lock", set_up / ".venv" / "mark"
    marked.touch()
    lock.write_text("tiny-one==3.0\n")
    status, out, err = setup_of(set_up)
    assert status == 1 and not out and "Check the network" in err
    for version in ("2.0", "1.0"):
        lock.write_text(f"tiny-one=={version}\n")
        status, out, err = setup_of(set_up)
        assert (status, out) == (0, f"{set_up}/.venv/bin/python\n") and "installing" in err, err
        assert works(set_up, version)
    assert marked.exists(), "a sound .venv is kept"


@pytest.mark.slow
def test_a_moved_or_broken_venv_is_made_again(set_up: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(set_up, moved, symlinks=True)
    status, out, err = setup_of(moved)
    assert (status, out) == (0, f"{moved}/.venv/bin/python\n") and f"it was made in {set_up}/.venv/bin" in err, err
    assert works(moved, "1.0") and works(set_up, "1.0")
    elsewhere = tmp_path / "big disk"
    (moved / ".venv").rename(elsewhere)
    (moved / ".venv").symlink_to(elsewhere)
    shutil.rmtree(elsewhere)
    assert setup_of(moved)[0] == 1 and f"is a link to {elsewhere}, which is no folder" in setup_of(moved)[2]
    (elsewhere / "bin").mkdir(parents=True)
    (elsewhere / "bin" / "python").symlink_to("/nonexistent/python3.11")
    shutil.copy(set_up / ".venv" / "lock.cksum", elsewhere)
    status, out, err = setup_of(moved)
    assert (status, out) == (0, f"{moved}/.venv/bin/python\n") and "its bin/python is gone" in err, err
    assert setup_of(moved) == (0, f"{moved}/.venv/bin/python\n", "")


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_python_311_to_313_are_accepted(version: str) -> None:
    """The interpreters that are installed here say which they are."""
    found = shutil.which(f"python{version}")
    if not found or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    command = [found, ROOT / "scripts" / "check_environment.py"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert ("3.12 or 3.13 is wanted" in said) == (version not in ("3.11", "3.12", "3.13")), said


@pytest.mark.parametrize("script", ["setup.sh", "test.sh", "demo.sh"])
def test_help_of_the_three_commands(script: str, tmp_path: Path) -> None:
    result = sh(ROOT / "scripts" / script, "--help", cwd=tmp_path)
    assert result.returncode == 0 and f"sh scripts/{script}" in result.stdout and "#" not in result.stdout
    assert "shellcheck disable" not in result.stdout
    if script != "test.sh":
        refused = sh(ROOT / "scripts" / script, "--nonsense")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and "--nonsense" in refused.stderr


def test_notebook_runs_on_a_small_ensemble(ensemble: Path, tmp_path: Path) -> None:
    name = "analyze_cifar100_curv_fz"
    dirs = {key: str(ensemble / key) for key in ("fz_model_dir", "score_dir")}
    config = write_config(tmp_path, **dirs)
    parameters = {"config": config, "dataset": "mnist", "arch": "smallcnn", "n_groups": "5", "stop_run": "7"}
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
    notebook = json.loads((figures / f"{name}_mnist_smallcnn.ipynb").read_text())
    printed = "".join("".join(out.get("text", "")) for cell in notebook["cells"] for out in cell.get("outputs", []))
    assert "6 scored runs, 200 examples" in printed and "not scored: [6]" in printed
    for stem in ("link1_mnist_smallcnn", "link1_mnist_smallcnn_examples"):
        assert (figures / f"{stem}.png").stat().st_size > 10_000 and (figures / f"{stem}.pdf").exists()
    assert (figures / f"{name}_mnist_smallcnn.html").exists()
    rows = json.loads((figures / "results_link1_mnist_smallcnn_0.7_ensemble.json").read_text())
    assert {row["statistic"] for row in rows} >= {
        "Spearman(mem, curvature), correctness",
        "reference: random pairs, prob",
        "Spearman(mem, curvature) given loss, prob",
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


def test_the_documented_loops_pasted_whole_follow_each_other(tmp_path: Path) -> None:
    """Its own lines, with scripts in place of the loops that note when they begin and end."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/per_instance.md").read_text(), re.S)
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


def test_patterns_of_result_files_take_the_runs_of_one_experiment(tmp_path: Path) -> None:
    """As a shell reads them, where removals, folds and redrawn seeds lie beside the runs."""
    folder, runs = tmp_path / "sensitivity" / "res", ("1", "2", "3")
    folder.mkdir(parents=True)
    (tmp_path / "res").symlink_to(folder)
    for prefix in ("", "_cheapest_100_", "_cheapest_10_", "_random_100_", "_without_1_"):
        for run in runs:
            (folder / f"res{prefix}{run}.csv").touch()
    (folder / "res_order.csv").touch()
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.py"), *ROOT.glob("sensitivity/**/*.py")]
    text = "\n".join(page.read_text() for page in pages)
    patterns = set(re.findall(r"[\w/]*\bres/res[\w/]*[*\[][^\s`]*", text))
    assert len(patterns) >= 4
    for pattern in patterns:
        found = subprocess.run(
            ["sh", "-c", f"ls -- {pattern}"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        names = [Path(name).stem for name in found.stdout.split()]
        assert [name[-1] for name in names] == list(runs) and len({name[:-1] for name in names}) == 1, pattern


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))], ids=lambda p: p.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= (150 if page.name == "README.md" and page.parent == ROOT else 200)
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_flags_are_read_with_hyphens_too() -> None:
    parser = cli.Parser(None)
    add_settings(parser, MeasureSettings)
    same = [
        parser.parse_args(words)
        for words in (["--points_sample", "3"], ["--points-sample", "3"], ["--points-sample=3"])
    ]
    assert [args.points_sample for args in same] == [3, 3, 3]
    with pytest.raises(SystemExit):
        parser.parse_args(["--no-such", "3"])


def test_settings_are_written_as_the_flags_that_make_them() -> None:
    made = DataChoice("own.npz", dataset_name="own data", image_size=8, tokens=True)
    parser = cli.Parser(None)
    add_settings(parser, DataChoice)
    assert read_settings(DataChoice, parser.parse_args(words_of(made))) == made
    assert words_of(DataChoice()) == [] and words_of(DataChoice(), "dataset") == ["--dataset", "mnist"]


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
