"""Runs scripts of the repository in forks of one warm process and kills them at a chosen file operation or time.

Python announces every operation that changes what is on disk to an audit hook, which can send SIGKILL to its own
process between any two of them. Importing PyTorch once instead of once per kill, and calibrating noise once, is what
makes hundreds of kills affordable. Started by `KillServer`; requests and answers are JSON lines.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR
CALIBRATED = (5.0, 10.0)
WARM = (
    "calc_curv_fz_imagenet_models", "calc_private_memorization", "loss_v_priv", "renyi_per_instance_sum_compo",
    "train_dp", "train_fz_models", "sensitivity.compute_sensitivity", "libdata.download", "libdata.tfds_order",
    "libmodels.tf_checkpoint", "libplots.figures", "libscores.link2", "libscores.link3", "libscoring.shard_scoring",
    "libtrain.fz_training", "libtrain.gradient_norms", "libtrain.mean_rule", "libstore.gathered_private", "pandas",
    "pyarrow.parquet", "scipy.stats", "torchvision.datasets",
)  # fmt: skip


def count_moments(at: int | None, signum: int, remove: str | None) -> list[int]:
    """Count the moments that differ on disk; at one of them, send the process a signal or remove a folder.

    They are: before a file is opened for writing, just after (it is there, empty), and before a name is moved, made or
    removed. What a file operation leaves is what the next moment finds.
    """
    passed, lock, here = [0], threading.Lock(), threading.local()

    def moment(just_opened: str | None = None) -> None:
        with lock:
            now = passed[0]
            passed[0] += 1
        if now != at:
            return
        if remove is not None:
            shutil.rmtree(remove)
            return
        if just_opened is not None:
            os.close(os.open(just_opened, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        os.kill(os.getpid(), signum)

    def hook(event: str, arguments: tuple) -> None:
        if getattr(here, "busy", False):
            return
        here.busy = True
        try:
            if event in OPERATIONS:
                moment()
            elif event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & WRITING:
                path = os.fspath(arguments[0])
                if arguments[1] is not None or path != here.__dict__.get("opening"):  # an opener is announced twice
                    moment()
                    moment(just_opened=path)
                here.opening = path if arguments[1] is not None else None
        finally:
            here.busy = False

    sys.addaudithook(hook)
    return passed


def child(
    script: str, argv: list[str], prepare: str, at: int | None, signum: int, remove: str | None, out: str, answer: int
) -> None:
    """Run one script as `python script argv` does, with its output in two files."""
    os.setpgid(0, 0)
    for number, name in ((1, out), (2, f"{out}.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv = [script, *argv]
    import libcli as cli

    exec(prepare, {})
    passed = count_moments(at, signum, remove)
    try:
        if script.endswith(".py"):
            runpy.run_path(script, run_name="__main__")
        else:
            cli.run(importlib.import_module(script).main)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(answer, str(passed[0]).encode())
    os._exit(status)


def serve() -> None:
    """Answer requests, each a list of jobs that run at the same time."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(name)
    from libscores import accounting

    accounting.spent_epsilon = functools.cache(accounting.spent_epsilon)  # its values, found once
    for epsilon in CALIBRATED:
        accounting.calibrate_noise_multiplier(epsilon, 1e-5, 0.5, 4, "rdp")
    gc.freeze()
    for line in sys.stdin:
        running = []
        for job in json.loads(line):
            read, write = os.pipe()
            after = job.pop("after")
            process = os.fork()
            if not process:
                try:
                    child(**job, answer=write)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(99)
            os.close(write)
            running.append((process, read, after))
        reports = []
        for process, read, after in running:
            if after is not None:
                time.sleep(after)
                os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            with os.fdopen(read) as pipe:
                reports.append({"status": os.waitstatus_to_exitcode(status), "moments": int(pipe.read() or 0)})
        print(json.dumps(reports), file=answers, flush=True)


@dataclass(frozen=True)
class Ended:
    """How a script ended: exit status (negative: the signal), moments counted, seconds and what it wrote."""

    status: int
    moments: int
    seconds: float
    output: str
    errors: str


class KillServer:
    """A warm process that runs scripts, each after `prepare`; a context manager."""

    def __init__(self, folder: Path, prepare: str = "") -> None:
        self.folder, self.prepare = folder, prepare
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> KillServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        script: str,
        argv: list[str],
        *,
        prepare: str = "",
        at: int | None = None,
        signum: int = signal.SIGKILL,
        remove: Path | None = None,
        after: float | None = None,
    ) -> Ended:
        """Run a script; kill it `after` seconds, or at a moment send it a signal or remove a folder."""
        kind = {"prepare": prepare, "at": at, "signum": int(signum), "remove": remove and str(remove), "after": after}
        return self._run(1, {"script": script, "argv": argv, **kind})[0]

    def run_twice_at_once(self, script: str, argv: list[str], *, prepare: str = "") -> list[Ended]:
        """Run a script in two processes at the same time."""
        kind = {"prepare": prepare, "at": None, "signum": 0, "remove": None, "after": None}
        return self._run(2, {"script": script, "argv": argv, **kind})

    def _run(self, count: int, job: dict[str, object]) -> list[Ended]:
        assert self._process.stdin and self._process.stdout
        job["prepare"] = f"{self.prepare}{job['prepare']}"
        logs = [self.folder / f"log{number}" for number in range(count)]
        started = time.monotonic()
        self._process.stdin.write(json.dumps([job | {"out": str(log)} for log in logs]) + "\n")
        self._process.stdin.flush()
        reports = json.loads(self._process.stdout.readline())
        seconds = time.monotonic() - started
        return [
            Ended(report["status"], report["moments"], seconds, log.read_text(), Path(f"{log}.err").read_text())
            for report, log in zip(reports, logs, strict=True)
        ]


if __name__ == "__main__":
    serve()
