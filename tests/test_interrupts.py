"""Ctrl-C and TERM: scripts end by the signal, in one line, also while they load, and job files stop with them."""

from __future__ import annotations

import libcli as cli

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

WORK = """
import sys
sys.path.insert(0, {root!r})
import libcli as cli
import pathlib, time

def main():
    with cli.stop_requests() as stopping:
        pathlib.Path(sys.argv[1]).touch()
        while not stopping():
            time.sleep(0.01)
    pathlib.Path(sys.argv[1] + ".saved").touch()
    raise cli.Stopped(stopping(), "saved")

cli.run(main)
"""
LOADING = """
import sys
sys.path.insert(0, {root!r})
import libcli as cli
import pathlib, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)  # as a library that takes long to load
cli.run(lambda: None)
"""


def shells() -> list[str]:
    return [shell for shell in ("dash", "bash") if shutil.which(shell)]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "work.py"
    path.write_text(WORK.format(root=str(ROOT)))
    return path


def start(*command: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*map(str, command)], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def saved(begun: Path) -> bool:
    """Tell whether the script saves within a minute: dash leaves at once, its job goes on."""
    end = time.monotonic() + 60
    while time.monotonic() < end and not begun.with_name(f"{begun.name}.saved").exists():
        time.sleep(0.01)
    return time.monotonic() < end


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_script_ends_by_the_signal_after_saving(tmp_path: Path, script: Path, signum: signal.Signals) -> None:
    process = start(sys.executable, script, tmp_path / "begun")
    wait_for(tmp_path / "begun", process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signum, "", "work.py: saved\n") and (tmp_path / "begun.saved").exists()


def test_a_stop_that_comes_too_late_for_one_job_starts_no_other() -> None:
    done: list[int] = []

    def work(job: int) -> int:
        done.append(job)
        return signal.SIGTERM if job == 2 else 0

    with pytest.raises(cli.Stopped, match="stopped, 2 of 3 done; run the same command again") as stopped:
        cli.one_after_another(work, [1, 2, 3])
    assert (done, stopped.value.signum) == ([1, 2], signal.SIGTERM)
    cli.one_after_another(work, [1, 2])
    assert done == [1, 2, 1, 2]


def test_interrupted_while_loading_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "loading.py"
    path.write_text(LOADING.format(root=str(ROOT)))
    process = start(sys.executable, path, tmp_path / "begun")
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err == "loading.py: interrupted; run the same command again to go on\n"


SWALLOWING = """
try:
    import pathlib, sys, time
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
except Exception:
    pass
pathlib.Path(sys.argv[1] + ".went_on").touch()
"""


def test_stopped_while_main_loads_a_library_that_catches_everything(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(SWALLOWING)
    path = tmp_path / "loading.py"
    start_here = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport libcli as cli\n"
    path.write_text(f"{start_here}def main():\n    import library\ncli.run(main)\n")
    process = start(sys.executable, path, tmp_path / "begun")
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGTERM, "loading.py: stopped; run the same command again to go on\n")
    assert not (tmp_path / "begun.went_on").exists()


def test_the_loading_of_this_very_process_keeps_its_handler() -> None:
    """Notebooks and tests import the scripts; their Ctrl-C stays theirs."""
    code = "import renyi_per_instance_sum_compo, signal as s; assert s.getsignal(s.SIGINT) is s.default_int_handler"
    code = f"exec({code!r}, {{'__name__': 'a_library'}})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


SLOW = {"torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "opacus"}
TYPED = sorted(
    path for path in ROOT.rglob("*.py")
    if path.parts[len(ROOT.parts)] not in (".venv", "tests", "benchmarks", "data", "results", "libmodels")
    and "cli.run(main)" in path.read_text()
)  # fmt: skip


@pytest.mark.parametrize("path", TYPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_script_is_ready_for_it_before_slow_libraries_load(path: Path) -> None:
    imports = [
        line.split()[1].split(".")[0] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))
    ]
    ready = path.read_text().splitlines().index("import libcli as cli")
    before = [line for line in path.read_text().splitlines()[:ready] if line.startswith(("import ", "from "))]
    assert "libcli" in imports and not SLOW & {line.split()[1].split(".")[0] for line in before}


@pytest.mark.parametrize("shell", shells())
def test_ctrl_c_in_a_job_file_starts_no_other_line(tmp_path: Path, script: Path, shell: str) -> None:
    jobs = tmp_path / "jobs.sh"
    line = f"{shlex.quote(sys.executable)} {script} {tmp_path}"
    jobs.write_text(f"{line}/first\n{line}/second\n")
    process = start(shell, jobs)
    wait_for(tmp_path / "first", process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert saved(tmp_path / "first") and not (tmp_path / "second").exists() and "Traceback" not in err


@pytest.mark.parametrize("shell", shells())
@pytest.mark.parametrize("runner", ["run_jobs.sh", "run_loop.sh"])
def test_a_study_file_stops_when_its_runner_is_interrupted(
    tmp_path: Path, script: Path, shell: str, runner: str
) -> None:
    """Whichever shell is the outer one: the runners end by the signal, too."""
    jobs, study = tmp_path / "jobs.sh", tmp_path / "study.sh"
    jobs.write_text(f"{shlex.quote(sys.executable)} {script} {tmp_path}/first\n")
    command = f"{shell} {ROOT}/scripts/run_jobs.sh {jobs}"
    if runner == "run_loop.sh":  # a stand-in for Python that works like a training
        python = tmp_path / "python"
        train = f"exec {sys.executable} {script} {tmp_path}/first"
        skip = f'case $2 in *setsid*) exec {sys.executable} "$@" ;; *libcli*) echo {tmp_path}; exit ;; esac'
        skip = f'{skip}; [ -z "$FLAGS_ONLY" ] || exit 0'
        python.write_text(f"#!/bin/sh\n{skip}\n{train}\n")
        python.chmod(0o755)
        command = f"PYTHON={python} {shell} {ROOT}/sensitivity/run_loop.sh --runs 1"
    study.write_text(f"{command}\ntouch {tmp_path}/second\n")
    process = start(shell, study)
    wait_for(tmp_path / "first", process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert saved(tmp_path / "first") and process.returncode == -signal.SIGINT and not (tmp_path / "second").exists(), (
        err
    )
