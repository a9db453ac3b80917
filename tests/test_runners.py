"""Job files through GNU parallel, xargs, ssh and a private one-node Slurm: what runs, what is skipped, what is said."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ENSEMBLE_FLAGS, ROOT, assert_refused, tree, write_config

SCRIPTS = ROOT / "scripts"
SAVER = """
import pathlib, signal, sys, time
ran, stop, end = pathlib.Path(sys.argv[1]), [], time.monotonic() + 60
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
ran.with_name("started").open("a").write("x\\n")
while not stop and time.monotonic() < end and not ran.with_name("go").exists():
    time.sleep(0.02)
if stop:
    time.sleep(0.7)
    ran.with_name("saved").open("a").write(f"{len(stop)}\\n")
    sys.exit(143)
"""


def needs(*programs: str) -> None:
    """Skip where a system package is missing; where CI_REQUIRE_SYSTEM=1, fail."""
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [program for program in programs if not shutil.which(program, path=path)]
    if missing and os.environ.get("CI_REQUIRE_SYSTEM") == "1":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Study:
    """A folder with job files, and the commands typed there."""

    def __init__(self, folder: Path, **environment: object) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "saver.py").write_text(SAVER)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "HOME": str(folder), "WORK": str(folder)}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            self.environment.pop(name, None)
        self.environment |= {key: str(value) for key, value in environment.items()}

    def without_parallel(self) -> None:
        """As where moreutils has installed its own parallel."""
        other = self.folder / "bin" / "parallel"
        other.parent.mkdir()
        other.write_text("#!/bin/sh\necho parallel: invalid option >&2\nexit 1\n")
        other.chmod(0o755)
        self.environment["PATH"] = f"{other.parent}:{self.environment['PATH']}"

    def write(self, *lines: str, name: str = "jobs.sh", end: str = "\n") -> str:
        (self.folder / name).write_text("\n".join(lines) + end)
        return name

    def start(self, script: str, *args: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", str(SCRIPTS / script), *map(str, args)], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def sh(self, script: str, *args: object) -> subprocess.CompletedProcess[str]:
        return self.end(self.start(script, *args))

    @staticmethod
    def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def ran(self) -> list[str]:
        """The words that lines have left in the file `ran` since the last call."""
        words = sorted(self.read("ran"))
        (self.folder / "ran").unlink(missing_ok=True)
        return words

    def log(self, line: int, name: str = "jobs.sh") -> str:
        return (self.folder / f"{name}.run" / "log" / f"{line}.log").read_text()

    def exits(self, name: str = "jobs.sh") -> dict[int, str]:
        folder = self.folder / f"{name}.run" / "exit"
        return {int(path.name): path.read_text().strip() for path in folder.iterdir()}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "a study")


@pytest.fixture(params=["parallel", "xargs"])
def runner(request: pytest.FixtureRequest, study: Study) -> str:
    """Let the runs of the study use GNU parallel, or xargs as where it is not installed."""
    needs(request.param)
    if request.param == "xargs":
        study.without_parallel()
    return str(request.param)


def note(word: object) -> str:
    return f'echo {word} >>"$WORK/ran"'


FAILS = f'{note("fails")}; echo "it is  broken" >&2; test -e "$WORK/mended"'


def test_only_what_is_not_done_runs_again(study: Study, runner: str) -> None:
    lines = [
        f"{note(1)}; echo \"don't  {{}} ; split\" '$HOME' | cat && echo $((1+2))",
        "  # a comment, then a blank line",
        "",
        FAILS,
        f"printf 'one\\ttwo\\\\\\n'; sh -c 'exit 255' || exit 255; {note('never')}",
        f"{note(6)}; pwd",
        f"{note(7)}; kill -9 $$",
        f"{note(8)}; cat; echo $OMP_NUM_THREADS $MKL_NUM_THREADS",
    ]
    study.write(*lines, end="")
    first = study.sh("run_jobs.sh", "jobs.sh", "-j", 2)
    assert first.returncode == 1
    assert study.ran() == ["1", "6", "7", "8", "fails"]
    assert study.exits() == {1: "0", 4: "1", 5: "255", 6: "0", 7: "137", 8: "0"}
    assert study.log(1) == "don't  {} ; split $HOME\n3\n"
    assert study.log(6) == f"{ROOT}\n"
    threads = max((os.cpu_count() or 1) // 2, 1)
    assert study.log(8) == f"{threads} {threads}\n"
    assert "6 of 6 lines to run, 0 done before" in first.stdout
    assert re.search(r"^line 6 done, \d of 6, (under a minute|about \d+ h \d+ min) left: ", first.stdout, re.MULTILINE)
    run = study.folder / "jobs.sh.run"
    assert f"line 4 FAILED with status 1, see {run}/log/4.log: it is  broken\n" in first.stderr
    summary = first.stdout.partition("3 of 6 lines done, 0 running, 0 waiting, 3 failed, 0 not run\n")[2]
    assert f"line 4, exit status 1: {lines[3]}\n    log: {run}/log/4.log\n" in summary
    assert "/log/5.log: one\ttwo\\\n" in first.stderr and f"line 5, exit status 255: {lines[4]}\n" in summary
    assert "line 7, exit status 137: " in summary
    assert "\r" not in first.stdout + first.stderr

    (study.folder / "mended").touch()
    second = study.sh("run_jobs.sh", "jobs.sh")
    assert second.returncode == 1 and study.ran() == ["7", "fails"]
    assert "3 of 6 lines to run, 3 done before" in second.stdout and ": 4 of 6 lines done" in second.stdout
    study.write(*lines[:4], note(5), lines[5], note(7), lines[7])
    third = study.sh("run_jobs.sh", "jobs.sh")
    assert third.returncode == 0 and study.ran() == ["5", "7"] and not third.stderr
    assert third.stdout.endswith(": 6 of 6 lines done, 0 running, 0 waiting, 0 failed, 0 not run\n")
    again = study.sh("run_jobs.sh", "jobs.sh")
    assert again.returncode == 0 and study.ran() == []
    assert "all 6 lines" in again.stdout and "were done before; --again" in again.stdout
    forced = study.sh("run_jobs.sh", "jobs.sh", "--again")
    assert forced.returncode == 0 and study.ran() == ["1", "5", "6", "7", "8", "fails"]


def test_a_changed_job_file_runs_new_lines_and_keeps_done_ones(study: Study) -> None:
    study.write(note("a"), FAILS, note("b"), note("b"), note("gone"))
    assert study.sh("run_jobs.sh", "jobs.sh").returncode == 1
    assert study.ran() == ["a", "b", "b", "fails", "gone"]
    study.write("# a new head", note("new"), note("a"), note("b"), FAILS, note("b"))
    changed = study.sh("run_jobs.sh", "jobs.sh")
    assert changed.returncode == 1 and "2 of 5 lines to run, 3 done before" in changed.stdout
    assert study.ran() == ["fails", "new"]
    assert study.exits() == {1: "0", 2: "1", 3: "0", 4: "0", 5: "0", 7: "0"}, "a line keeps its number"
    assert study.log(2) == "it is  broken\n" and f"line 2, exit status 1: {FAILS}\n" in changed.stdout
    study.write(note("gone"), FAILS, note("new"))
    (study.folder / "mended").touch()
    assert study.sh("run_jobs.sh", "jobs.sh").returncode == 0
    assert study.ran() == ["fails"]


def test_exit_files_are_the_truth_whoever_has_run_the_lines(study: Study) -> None:
    needs("parallel")
    study.write(note(1), note(2), note(3))
    assert "at a time with parallel" in study.sh("run_jobs.sh", "jobs.sh").stdout
    run = study.folder / "jobs.sh.run"
    rows = [row.split("\t") for row in (run / "joblog").read_text().splitlines()]
    assert sorted(row[0] for row in rows[1:]) == ["1", "2", "3"] and all(float(row[3]) > 0 for row in rows[1:])
    study.ran()
    (run / "exit" / "1").unlink()
    (run / "exit" / "2").write_text("")  # as after a loss of power
    assert study.sh("run_jobs.sh", "jobs.sh").returncode == 0
    assert study.ran() == ["1", "2"]
    (run / "exit" / "3").unlink()
    study.without_parallel()
    assert "at a time with xargs" in study.sh("run_jobs.sh", "jobs.sh").stdout
    assert study.ran() == ["3"]


@pytest.mark.parametrize(("how", "status"), [("TERM", -15), ("INT", -2), ("HUP", -1)])
def test_a_stopped_runner_lets_its_jobs_save_and_goes_on(study: Study, runner: str, how: str, status: int) -> None:
    line = f'python "$WORK/saver.py" "$WORK/ran"; {note("done")}'
    study.write(*[line] * 4)
    process = study.start("run_jobs.sh", "jobs.sh", "-j", 2)
    wait_until(lambda: len(study.read("started")) == 2, "two jobs at work")
    status_now = study.sh("status.sh", "jobs.sh")
    assert status_now.returncode == 3 and ": 0 of 4 lines done, 2 running, 2 waiting, 0 failed" in status_now.stdout
    if how == "INT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(getattr(signal, f"SIG{how}"))
    stopped = study.end(process)
    assert study.read("saved") == ["1", "1"], "each job gets one TERM and the time to save"
    assert stopped.returncode == status
    assert "run_jobs.sh: stopped; run the same command again to go on" in stopped.stderr
    assert stopped.stderr.count(" stopped with status 143") == 2 and "FAILED" not in stopped.stderr
    assert study.ran() == [] and len(study.read("started")) == 2 and set(study.exits().values()) == {"143"}
    (study.folder / "jobs.sh.run/exit/3").write_text("1\n")
    (study.folder / "jobs.sh.run/exit/4").write_text("130\n")
    left = study.sh("status.sh", "jobs.sh")
    assert left.returncode == 1
    assert ": 0 of 4 lines done, 0 running, 0 waiting, 1 failed, 3 stopped, 0 not run\n" in left.stdout
    assert left.stdout.count("stopped, to go on with: python") == 3 and "line 3, exit status 1: python" in left.stdout
    (study.folder / "go").touch()
    assert study.sh("run_jobs.sh", "jobs.sh", "-j", 2).returncode == 0
    assert study.ran() == ["done"] * 4


def test_a_killed_runner_starts_nothing_new_and_its_jobs_are_waited_for(study: Study, runner: str) -> None:
    study.write(*[f'python "$WORK/saver.py" "$WORK/ran"; {note(line)}' for line in range(1, 6)])
    process = study.start("run_jobs.sh", "jobs.sh", "-j", 2)
    wait_until(lambda: len(study.read("started")) == 2, "two jobs at work")
    process.kill()
    process.wait()
    status = study.sh("status.sh", "jobs.sh")
    assert status.returncode == 3 and ": 0 of 5 lines done, 2 running, 0 waiting, 0 failed, 3 not run" in status.stdout
    second = study.start("run_jobs.sh", "jobs.sh", "-j", 2)
    assert second.stdout
    said = [second.stdout.readline() for _ in range(3)]
    assert "5 of 5 lines to run" in said[0] and all("still runs in another process" in text for text in said[1:])
    (study.folder / "go").touch()
    assert study.end(second).returncode == 0
    assert study.ran() == ["1", "2", "3", "4", "5"]


def test_a_loop_that_is_a_line_gets_one_signal(study: Study, runner: str) -> None:
    """The training of a loop within a job file, with a program in place of Python that saves like one."""
    python = study.folder / "stand_in"
    skip = f'case $2 in *setsid*) exec python "$@" ;; *libcli*) echo "{study.folder}"; exit ;; esac'
    skip = f'{skip}; [ -z "$FLAGS_ONLY" ] || exit 0'
    python.write_text(f'#!/bin/sh\n{skip}\nexec python "$WORK/saver.py" "$WORK/ran"\n')
    python.chmod(0o755)
    study.environment["PYTHON"] = str(python)
    study.write("sh sensitivity/run_loop.sh --runs 3 --jobs 2")
    process = study.start("run_jobs.sh", "jobs.sh")
    wait_until(lambda: len(study.read("started")) == 2, "two runs at work")
    process.terminate()
    stopped = study.end(process)
    assert stopped.returncode == -15 and "run_jobs.sh: stopped; " in stopped.stderr
    assert study.read("saved") == ["1", "1"] and len(study.read("started")) == 2, study.log(1)
    assert "run_loop.sh: stopped; run the same command again" in study.log(1)
    (study.folder / "go").touch()
    assert study.sh("run_jobs.sh", "jobs.sh").returncode == 0 and len(study.read("started")) == 5


def kill_all(study: Study) -> None:
    """Kill every process of a study at once, as a loss of power does."""
    mark = f"WORK={study.folder}".encode()
    while True:
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    pids.append(int(path.parent.name))
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_any_moment_of_a_kill_loses_no_line(study: Study, runner: str) -> None:
    random = np.random.default_rng(0)
    lines: list[str] = []
    counted: Counter[str] = Counter()
    for kill in range(10):
        lines.insert(int(random.integers(len(lines) + 1)), f"{note(kill)}; sleep 0.0{random.integers(1, 6)}")
        study.write(*lines)
        process = study.start("run_jobs.sh", "jobs.sh", "-j", 2)
        time.sleep(float(random.uniform(0, 0.4)))
        kill_all(study)
        study.end(process)
        counted.update(study.ran())
    done = study.sh("run_jobs.sh", "jobs.sh", "-j", 2)
    assert done.returncode == 0, done.stderr
    counted.update(study.ran())
    assert set(counted) == {str(kill) for kill in range(10)}
    assert study.exits() == dict.fromkeys(range(1, 11), "0")
    run = study.folder / "jobs.sh.run"
    assert sorted(study.read("jobs.sh")) == sorted(study.read("jobs.sh.run/jobs.sh"))
    assert study.sh("run_jobs.sh", "jobs.sh").returncode == 0 and study.ran() == []
    kept = {"exit", "log", "jobs.sh", "lock"} | ({"joblog"} if runner == "parallel" else set())
    assert {path.name for path in run.iterdir()} == kept


def with_gpus(study: Study, *names: str) -> None:
    """Let PyTorch find these GPUs, as far as the runner asks: none is needed to run the tests."""
    visible = 'os.environ["CUDA_VISIBLE_DEVICES"].split(",")'
    (study.folder / "torch.py").write_text(
        f"import os\nclass cuda:\n    device_count = lambda: len({set(names)} & set({visible}))\n"
    )
    study.environment["PYTHONPATH"] = str(study.folder)


def test_gpus_that_are_not_there_are_refused(study: Study) -> None:
    study.write(note(1))
    assert_refused(study.sh("run_jobs.sh", "jobs.sh", "--gpus", "0,1"), "--gpus 0,1: PyTorch", "finds of these: 0")
    with_gpus(study, "0", "1")
    for gpus in ("1,7", "0,,1x"):
        assert_refused(study.sh("run_jobs.sh", "jobs.sh", "--gpus", gpus), f"--gpus {gpus}: PyTorch", "of these: 1")
    (study.folder / "torch.py").write_text("raise ImportError('no PyTorch')")
    assert_refused(study.sh("run_jobs.sh", "jobs.sh", "--gpus", "0"), "PyTorch in this environment", "no PyTorch")
    assert not (study.folder / "jobs.sh.run").exists() and study.ran() == []


def test_lines_run_on_the_gpu_unless_they_say_otherwise(study: Study) -> None:
    """The line that asks for nothing must not go to the CPU: here it is refused, as there is no GPU."""
    with_gpus(study, "3")
    train = f"PYTHONPATH= python calc_curv_fz_models.py --config '{study.folder}/none.json'"
    study.write(train, f"{train} --device cpu", 'echo "$RUN_DEVICE $CUDA_VISIBLE_DEVICES"')
    assert study.sh("run_jobs.sh", "jobs.sh", "--gpus", "3", "-j", "3").returncode == 1
    assert "device 'cuda' is not available here" in study.log(1) and study.log(3) == "cuda 3\n"
    first, second = study.log(2).splitlines()
    assert re.fullmatch(r"device cpu \(\d+ threads\)", first) and "none.json" in second
    study.write('echo "$RUN_DEVICE"', name="cpu.sh")
    assert study.sh("run_jobs.sh", "cpu.sh").returncode == 0 and study.log(1, "cpu.sh") == "\n"


def test_threads_the_user_has_set_are_kept(study: Study) -> None:
    study.write("echo $OMP_NUM_THREADS $MKL_NUM_THREADS")
    study.environment["OMP_NUM_THREADS"] = "3"
    result = study.sh("run_jobs.sh", "jobs.sh")
    assert result.returncode == 0 and study.log(1) == "3 3\n" and "3 threads each" in result.stdout
    study.environment["MKL_NUM_THREADS"] = "2"
    assert study.sh("run_jobs.sh", "jobs.sh", "--again").returncode == 0 and study.log(1) == "3 2\n"


@pytest.mark.parametrize("answer", ["echo flock: 9: No locks available >&2; exit 71", ""])
def test_nothing_else_changes_without_locks_and_setsid(study: Study, answer: str) -> None:
    """What flock answers on a file system without locks; no util-linux (flock, setsid), as on macOS."""
    study.without_parallel()
    programs, path = study.folder / "bin", study.environment["PATH"]
    for program in (program for folder in path.split(":") for program in Path(folder).glob("*")):
        if program.name not in ("flock", "setsid") and not (programs / program.name).exists():
            (programs / program.name).symlink_to(program)
    study.environment["PATH"] = str(programs)
    if answer:
        (programs / "flock").write_text(f"#!/bin/sh\n{answer}\n")
        (programs / "flock").chmod(0o755)
    study.write(note(1), note(2), FAILS)
    result = study.sh("run_jobs.sh", "jobs.sh")
    assert result.returncode == 1 and study.ran() == ["1", "2", "fails"], result.stdout + result.stderr
    assert "1 failed, 0 not run" in result.stdout and len(result.stderr.splitlines()) == 1
    study.write('python "$WORK/saver.py" "$WORK/ran"')
    process = study.start("run_jobs.sh", "jobs.sh")
    wait_until(lambda: study.read("started"), "a job at work")
    process.terminate()
    assert study.end(process).returncode == -15 and study.read("saved") == ["1"]


def test_jobs_are_spread_over_gpus(study: Study) -> None:
    with_gpus(study, "4", "6", "0", "GPU-1b")
    meet = 'touch "$WORK/at.$$"; until [ "$(ls "$WORK" | grep -c "^at[.]")" -ge %d ]; do sleep 0.05; done'
    use = 'sh -c "echo \\$CUDA_VISIBLE_DEVICES" >>"$WORK/gpus"'
    study.write(*[f"{meet % 4}; {use}"] * 4)
    assert study.sh("run_jobs.sh", "jobs.sh", "-j", 4, "--gpus", "4,6").returncode == 0
    assert sorted(study.read("gpus")) == ["4", "4", "6", "6"]
    study.write(*[f"{meet % 6}; {use}"] * 2, name="default.sh")
    assert study.sh("run_jobs.sh", "default.sh", "--gpus", "0,GPU-1b").returncode == 0
    assert sorted(study.read("gpus")[4:]) == ["0", "GPU-1b"]


def test_retries(study: Study) -> None:
    needs("parallel")
    study.write('echo try | tee -a "$WORK/tries"; test "$(wc -l <"$WORK/tries")" -ge 3', note("other"))
    assert study.sh("run_jobs.sh", "jobs.sh", "--retries", 1).returncode == 1
    assert study.read("tries") == ["try"] * 2
    (study.folder / "tries").unlink()
    assert study.sh("run_jobs.sh", "jobs.sh", "--retries", 2).returncode == 0
    assert study.read("tries") == ["try"] * 3 and study.ran() == ["other"]
    assert study.exits() == {1: "0", 2: "0"}
    study.without_parallel()
    for flags in (["--retries", "1"], ["--sshloginfile", "jobs.sh"]):
        assert_refused(study.sh("run_jobs.sh", "jobs.sh", *flags), "need GNU parallel", "apt")


@pytest.mark.parametrize(
    ("content", "flags", "mentions"),
    [
        (None, [], ["jobs.sh", "no such job file"]),
        ("# only this\n\n", [], ["jobs.sh", "holds no jobs"]),
        ("true\necho a \\\necho b\n", [], ["jobs.sh", "line 2", "backslash"]),
        ("true\r\n", [], ["jobs.sh", "line 1", "carriage return"]),
        ("true\n", ["-j", "0"], ["-j 0"]),
        ("true\n", ["-j"], ["-j"]),
        ("true\n", ["-j", "two"], ["-j two"]),
        ("true\n", ["--retries", "x"], ["--retries x"]),
        ("true\n", ["--sshloginfile", "nowhere"], ["--sshloginfile nowhere"]),
        ("true\n", ["--verbose"], ["--verbose"]),
        ("true\n", ["jobs.sh"], ["one job file"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(
    study: Study, content: str | None, flags: list[str], mentions: list[str]
) -> None:
    if content is not None:
        (study.folder / "jobs.sh").write_text(content)
    before = sorted(study.folder.rglob("*"))
    assert_refused(study.sh("run_jobs.sh", "jobs.sh", *flags), *mentions)
    assert sorted(study.folder.rglob("*")) == before


@pytest.mark.parametrize("script", ["run_jobs.sh", "submit_slurm.sh", "status.sh"])
def test_help_and_no_arguments(study: Study, script: str) -> None:
    result = study.sh(script, "--help")
    assert result.returncode == 0 and f"sh scripts/{script} FILE" in result.stdout and "Exit status" in result.stdout
    assert "#" not in result.stdout
    assert_refused(study.sh(script), "job file is needed")


def test_a_folder_that_cannot_be_written_is_named(study: Study) -> None:
    study.write(note(1))
    (study.folder / "jobs.sh.run").touch()
    assert_refused(study.sh("run_jobs.sh", "jobs.sh"), "jobs.sh.run", "File exists")
    assert study.ran() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_or_read_only_disk_loses_nothing(small_disk: Path, study: Study) -> None:
    small = Study(small_disk, WORK=study.folder)
    small.write(note(1), f"{note(2)}; head -c 200000 /dev/zero", note(3))
    full = small.sh("run_jobs.sh", "jobs.sh", "-j", 1)
    assert full.returncode == 1 and ": 1 of 3 lines done" in full.stdout, full.stdout + full.stderr
    assert "jobs.sh.run/exit/2 cannot be written (disk full?); it will be run again" in full.stderr
    assert study.ran()[:2] == ["1", "2"] and small.exits()[1] == "0" and small.exits().get(2) != "0"
    small.write(note(1), note(2), note(3), note(4))
    assert_refused(small.sh("run_jobs.sh", "jobs.sh"), "jobs.sh", "No space left on device")
    assert study.ran() == []
    (small_disk / "jobs.sh.run" / "log" / "2.log").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_refused(small.sh("run_jobs.sh", "jobs.sh"), "jobs.sh.run", "Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    small.write(note(1), note(2), note(3), note(4))
    assert small.sh("run_jobs.sh", "jobs.sh").returncode == 0
    assert {"2", "4"} <= set(study.ran()) <= {"2", "3", "4"}


@pytest.fixture
def ssh_host(tmp_path: Path) -> Iterator[str]:
    """A private sshd on the loopback interface; yields the login as GNU parallel writes it."""
    needs("parallel", "sshd", "ssh", "ssh-keygen")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    program = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [f"AuthorizedKeysFile={tmp_path}/user.pub", "StrictModes=no", "UsePAM=no", "ListenAddress=127.0.0.1",
               "PidFile=none", f"Port={port}", f"HostKey={tmp_path}/host"]  # fmt: skip
    command = [str(program), "-D", "-e", "-f", "/dev/null", *(f"-o{option}" for option in options)]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}")
    login = f"ssh -F none -p {port} -i {tmp_path}/user -o BatchMode=yes -o UserKnownHostsFile={known} 127.0.0.1"
    with open(tmp_path / "sshd.log", "w") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            reach = [*login.split(), "true"]
            wait_until(lambda: subprocess.run(reach, capture_output=True).returncode == 0, "sshd answers", 30)
            yield login
        finally:
            server.terminate()


def test_lines_run_on_other_hosts(tmp_path: Path, ssh_host: str) -> None:
    study = Study(tmp_path / "shared")
    (study.folder / "hosts").write_text(f"2/{ssh_host}\n")
    work = study.folder
    line = f'[ -n "$SSH_CONNECTION" ] && python {work}/saver.py {work}/ran && echo $OMP_NUM_THREADS >>{work}/ran'
    study.write(*[line] * 3)
    command = "run_jobs.sh", "jobs.sh", "-j", 2, "--sshloginfile", "hosts"
    process = study.start(*command)
    wait_until(lambda: len(study.read("started")) == 2, "two jobs at work")
    process.terminate()
    stopped = study.end(process)
    assert stopped.returncode == -15 and study.read("saved") == ["1", "1"] and study.ran() == []
    (work / "go").touch()
    result = study.sh(*command)
    assert result.returncode == 0, result.stderr
    assert study.ran() == [str(max((os.cpu_count() or 1) // 2, 1))] * 3
    assert "line 3 done, " in result.stdout


@pytest.fixture(scope="module")
def slurm() -> Iterator[str]:
    """A private Slurm whose arrays have at most four tasks; yields its slurm.conf."""
    needs("munged", "slurmctld", "slurmd", "sbatch")
    folder = tempfile.mkdtemp(prefix="slurm.", dir="/tmp")
    try:
        up = subprocess.run(["sh", "tests/slurm_up.sh", folder, "5"], cwd=ROOT, capture_output=True, text=True)
        assert up.returncode == 0, up.stderr
        yield up.stdout.strip()
    finally:
        subprocess.run(["sh", "tests/slurm_down.sh", folder], cwd=ROOT, timeout=60)
        shutil.rmtree(folder)


@pytest.fixture
def cluster(tmp_path: Path, slurm: str) -> Study:
    return Study(tmp_path / "50 % done", SLURM_CONF=slurm)


def queue(study: Study) -> list[str]:
    command = ["squeue", "-h", "-r", "-o", "%F %K %T"]
    return subprocess.run(
        command, env=study.environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def submitted(study: Study, *args: object) -> list[str]:
    """Submit and return the job ids that the user is told."""
    result = study.sh("submit_slurm.sh", *args)
    assert result.returncode == 0, result.stderr
    return re.findall(r"\d+", " ".join(re.findall(r"submitted as ([\d ]+)", result.stdout)))


@pytest.mark.slow
def test_a_chain_on_slurm_is_split_limited_and_resumed(cluster: Study) -> None:
    crowd = 'touch "$WORK/at.$$"; ls "$WORK" | grep -c "^at[.]" >>"$WORK/crowd"; sleep 0.3; rm "$WORK/at.$$"'
    many = [f"{crowd}; {note(line)}" for line in range(1, 10)]
    cluster.write(*many[:2], "# no job", FAILS, *many[4:], name="train.sh")
    cluster.write(f"{note('score')}; echo $OMP_NUM_THREADS $MKL_NUM_THREADS; python -c 'import torch'", name="score.sh")
    chain = "train.sh", "score.sh"
    status = cluster.sh("status.sh", *chain)
    assert status.returncode == 1
    assert "train.sh: 0 of 8 lines done, 0 running, 0 waiting, 0 failed, 8 not run" in status.stdout

    flags = "--max-jobs", 2, "--mem=1", "--comment=it's  one", "--cpus-per-task=2"
    ids = submitted(cluster, *chain, *flags)
    assert len(ids) == 3, "eight lines in arrays of four and a chained file"
    assert len(queue(cluster)) == 9
    status = cluster.sh("status.sh", *chain)
    assert status.returncode == 3
    assert re.search(r"train.sh: 0 of 8 lines done, [02] running, [68] waiting \(", status.stdout)
    assert "score.sh: 0 of 1 lines done, 0 running, 1 waiting (" in status.stdout
    for script, names in (("submit_slurm.sh", chain), ("run_jobs.sh", chain[:1])):
        assert_refused(cluster.sh(script, *names), "train.sh", "queued on Slurm as jobs " + " ".join(ids[:2]))
    wait_until(lambda: cluster.sh("status.sh", *chain).returncode != 3, "the array is over")

    status = cluster.sh("status.sh", *chain)
    assert status.returncode == 1 and queue(cluster) == []
    assert "train.sh: 7 of 8 lines done, 0 running, 0 waiting, 1 failed, 0 not run" in status.stdout
    assert f"line 4, exit status 1: {FAILS}\n    log: {cluster.folder}/train.sh.run/log/4.log" in status.stdout
    assert "score.sh: 0 of 1 lines done, 0 running, 0 waiting, 0 failed, 1 not run" in status.stdout
    assert cluster.ran() == ["1", "2", "5", "6", "7", "8", "9", "fails"]
    assert max(map(int, cluster.read("crowd"))) == 2
    assert cluster.log(4, "train.sh") == "it is  broken\n"

    (cluster.folder / "mended").touch()
    assert len(submitted(cluster, *chain, *flags)) == 2
    wait_until(lambda: cluster.sh("status.sh", *chain).returncode != 3, "the rest is over")
    status = cluster.sh("status.sh", *chain)
    assert status.returncode == 0 and "train.sh: 8 of 8" in status.stdout and "score.sh: 1 of 1" in status.stdout
    assert cluster.ran() == ["fails", "score"]
    assert cluster.log(1, "score.sh") == "2 2\n"
    done = cluster.sh("submit_slurm.sh", *chain)
    assert done.returncode == 0 and "all 8 lines are done" in done.stdout and queue(cluster) == []


@pytest.mark.slow
def test_requeued_and_cancelled_lines_on_slurm_go_on(cluster: Study) -> None:
    line = f'echo begun; python "$WORK/saver.py" "$WORK/ran"; {note("done")}'
    cluster.write(line, line, note("short"))
    ids = submitted(cluster, "jobs.sh")
    wait_until(lambda: len(cluster.read("started")) == 2, "two lines at work")
    wait_until(lambda: cluster.exits() == {3: "0"}, "the short line is done")
    assert "1 of 3 lines done, 2 running" in cluster.sh("status.sh", "jobs.sh").stdout
    subprocess.run(["scontrol", "requeue", f"{ids[0]}_1"], env=cluster.environment, check=True)
    subprocess.run(["scancel", f"{ids[0]}_2"], env=cluster.environment, check=True)
    wait_until(lambda: len(cluster.read("saved")) == 2, "both have saved")
    wait_until(lambda: len(cluster.read("started")) == 3, "the requeued line is at work again")
    assert cluster.read("saved") == ["1", "1"]
    status = cluster.sh("status.sh", "jobs.sh")
    assert status.returncode == 3 and "1 of 3 lines done, 1 running, 0 waiting, 0 failed, 1 stopped" in status.stdout
    assert "line 2, stopped, to go on with" in status.stdout
    (cluster.folder / "go").touch()
    wait_until(lambda: queue(cluster) == [], "the requeued line is done")
    assert cluster.log(1) == "begun\nbegun\n" and cluster.exits() == {1: "0", 2: "143", 3: "0"}
    assert len(submitted(cluster, "jobs.sh")) == 1
    wait_until(lambda: cluster.sh("status.sh", "jobs.sh").returncode == 0, "all done")
    assert cluster.ran() == ["done", "done", "short"]


def test_what_slurm_cannot_take_is_refused(cluster: Study) -> None:
    cluster.write("true")
    for flag in ("--array=1-3", "-a1", "--output=x", "-ox", "--dependency=singleton", "--wrap=true", "-W"):
        assert_refused(cluster.sh("submit_slurm.sh", "jobs.sh", flag), flag)
    for flags in (["--max-jobs", "0"], ["--max-jobs=x"], ["--max-jobs"]):
        assert_refused(cluster.sh("submit_slurm.sh", "jobs.sh", *flags), "--max-jobs")
    assert_refused(cluster.sh("submit_slurm.sh", "jobs.sh", "-p", "gpu"), "gpu", "--partition=gpu")
    assert_refused(cluster.sh("submit_slurm.sh", "jobs.sh", "nowhere.sh"), "nowhere.sh")
    assert not (cluster.folder / "jobs.sh.run").exists()
    refused = cluster.sh("submit_slurm.sh", "jobs.sh", "--partition=none")
    assert refused.returncode == 2 and "invalid partition" in refused.stderr and "not submitted" in refused.stderr
    cluster.write("", name="slurm.conf")
    cluster.environment["SLURM_CONF"] = str(cluster.folder / "slurm.conf")
    ids = cluster.folder / "jobs.sh.run" / "slurm" / "ids"
    ids.write_text("1 0\n")
    for script in ("status.sh", "submit_slurm.sh", "run_jobs.sh"):
        assert_refused(cluster.sh(script, "jobs.sh"), "Slurm")


@pytest.mark.slow
def test_a_study_gives_the_same_bytes_whoever_runs_it(tmp_path: Path, slurm: str) -> None:
    needs("parallel")
    made = {}
    for way in ("sh", "parallel", "slurm"):
        study = Study(tmp_path / way, SLURM_CONF=slurm, OMP_NUM_THREADS=1)
        config = write_config(study.folder)
        for generator, runs_per_job, *flags in (
            ("create_fz_train_jobs.sh", 3, "--data_subset", 200, "--epochs", 2),
            ("create_fz_curve_scorer_jobs.sh", 6, "--n_probes", 2),
        ):
            flags = ["--runs", 6, "--runs_per_job", runs_per_job, *ENSEMBLE_FLAGS, *flags, "--config", config]
            lines = Study(study.folder, PATH="/usr/bin:/bin").sh(generator, *flags).stdout.splitlines()
            study.write(*lines, name="train.sh" if generator.endswith("train_jobs.sh") else "score.sh")
        if way == "slurm":
            draw = "sh scripts/run_notebook.sh notebooks/analyze_cifar100_curv_fz.ipynb"
            parameters = f"-p config {config} -p dataset mnist -p arch smallcnn -p n_groups 5"
            study.write(f"{draw} {study.folder}/figure_dir {parameters}", name="notebook.sh")
            chain = "train.sh", "score.sh", "notebook.sh"
            assert len(submitted(study, *chain)) == 3
            done = ["status.sh", *chain]
            wait_until(lambda study=study, done=done: study.sh(*done).returncode != 3, "the study is over", 300)
            result = study.sh(*done)
            assert result.returncode == 0, result.stdout + study.log(1, "notebook.sh")
            assert (study.folder / "figure_dir" / "link1_mnist_smallcnn.png").stat().st_size > 10_000
        for name in ("train.sh", "score.sh"):
            if way == "sh":
                subprocess.run(["sh", study.folder / name], cwd=ROOT, env=study.environment, check=True)
            elif way != "slurm":
                result = study.sh("run_jobs.sh", name, "-j", 2)
                assert result.returncode == 0, result.stderr
        made[way] = {key: tree(study.folder / key) for key in ("fz_model_dir", "score_dir")}
    assert made["sh"] == made["parallel"] == made["slurm"]
    assert Counter(Path(name).name for name in made["sh"]["fz_model_dir"])["model.pt"] == 6
    assert sum(name.endswith(".npy") for name in made["sh"]["score_dir"]) == 19
