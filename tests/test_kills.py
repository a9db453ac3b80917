"""Every script that writes is killed at every moment that differs on disk, and at random ones, and run again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from script_cases import CASES, Case, Trees, files, snapshot

from libstore.store import flatten

TRANSIENT = ("state.pt", "state.json", "scores.npz", "scores.json")


def check_whole(found: dict[str, Any], allowed: list[dict[str, Any]], work: Path) -> None:
    """Check that everything under a final name is whole: as before, as at the end, or as its own sidecar says."""
    for name, content in files(found).items():
        path = Path(name)
        if any(part.startswith(".") for part in path.parts) or any(tree.get(name) == content for tree in allowed):
            continue
        if path.name in TRANSIENT:
            assert path.suffix == ".json" or zipfile.ZipFile(io.BytesIO(content)).testzip() is None, name
        elif path.name.endswith("-manifest.json"):
            for line in content["files"]:
                assert hashlib.sha256((work / path.parent / line["file"]).read_bytes()).hexdigest() == line["sha256"]
        else:
            raise AssertionError(f"{name} is half-written")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_moment_ends_the_same(trees: Trees, tmp_path: Path, name: str) -> None:
    case, whole = CASES[name], snapshot(trees.whole(name))
    prepare = trees.prepare(name)

    def fresh() -> tuple[Path, str, list[str]]:
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        trees.begin(name, work)
        return work, *trees.line(name, work)

    work, script, argv = fresh()
    start = snapshot(work)
    undisturbed = trees.server.run(script, argv, prepare=prepare)
    assert undisturbed.status == 0, undisturbed.errors
    assert snapshot(work) == whole, "the same line gives other bytes"
    check_sidecars(work, case, start)
    tried = range(0, undisturbed.moments, case.every)
    seen: set[str] = set()
    for moment in tried:
        work, script, argv = fresh()
        ended = trees.server.run(script, argv, prepare=prepare, at=moment)
        if ended.status != -signal.SIGKILL:  # threads have come to fewer moments than before
            assert ended.status == 0 and "--workers" in argv, ended.errors
        left = snapshot(work)
        check_whole(left, [start, whole], work)
        state = repr(left)
        if state not in seen:
            seen.add(state)
            ended = trees.server.run(script, argv, prepare=prepare)
            assert ended.status == 0, (moment, ended.errors)
            assert files(snapshot(work)) == files(whole), moment

    rng, killed = random.Random(name), 0
    while killed < case.randomly:
        work, script, argv = fresh()
        for _ in range(2):
            ended = trees.server.run(script, argv, prepare=prepare, after=rng.uniform(0, undisturbed.seconds))
            killed += ended.status == -signal.SIGKILL
            check_whole(snapshot(work), [start, whole], work)
        ended = trees.server.run(script, argv, prepare=prepare)
        assert ended.status == 0, ended.errors
        assert files(snapshot(work)) == files(whole)

    work, script, argv = fresh()
    for ended in trees.server.run_twice_at_once(script, argv, prepare=prepare):
        assert ended.status == 0, ended.errors
    assert files(snapshot(work)) == files(whole), "two at once"
    title = case.script + (" --overwrite" if "--overwrite" in case.argv else "")
    title += f" {case.argv[0]}" if case.script == "libdata.download" else ""


def check_sidecars(work: Path, case: Case, start: dict[str, Any]) -> None:
    """Check that every sidecar that was written says how: versions, commit, and the seed where there is one."""
    made = 0
    for path in work.rglob("*.json"):
        if str(path.relative_to(work)) in start or path.name == "config.json":
            continue
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or "sha256" not in content:
            continue
        made += 1
        commit, versions = content["provenance"]["commit"], content["provenance"]["versions"]
        assert {"python", "torch", "numpy"} <= versions.keys() and "unknown" not in versions.values()
        assert len(commit.removesuffix("-dirty")) == 40 or not (ROOT / ".git").exists()
        if any(word in case.script for word in ("train", "calc_curv", "compute_", "loss_v", "subset_")):
            assert any("seed" in key for key in flatten(content["settings"])), path
    assert made or "download" in case.script or "build" in case.script or "--overwrite" in case.argv


@pytest.mark.slow
def test_killed_conversion_ends_the_same(trees: Trees, released: Path, tmp_path: Path) -> None:
    """Each start of TensorFlow takes seconds: the kills follow each other, at the moments that differ most."""
    source, whole = str(released / "small_inception"), tmp_path / "whole"
    undisturbed = trees.server.run("libmodels.tf_checkpoint", [source, str(whole / "run.pt")])
    assert undisturbed.status == 0, undisturbed.errors
    line = ("libmodels.tf_checkpoint", [source, str(tmp_path / "killed" / "run.pt")])
    tried = (2, 3, undisturbed.moments - 2, undisturbed.moments - 1)
    for moment in tried:
        ended = trees.server.run(*line, at=moment)
        assert ended.status in (-signal.SIGKILL, 0), ended.errors
        check_whole(snapshot(tmp_path / "killed"), [snapshot(whole)], tmp_path / "killed")
    ended = trees.server.run(*line)
    assert ended.status == 0, ended.errors
    assert snapshot(tmp_path / "killed") == snapshot(whole)


@pytest.mark.slow
def test_killed_notebook_is_whole_or_absent(tmp_path: Path) -> None:
    """The script and all it started are killed; executed notebooks hold times, so bytes are not compared."""
    notebook = tmp_path / "one.ipynb"
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": "6 * 7"}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    folder = tmp_path / "figures"
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start() -> subprocess.Popen[str]:
        command = ["sh", str(ROOT / "scripts/run_notebook.sh"), str(notebook), str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=os.environ | path, start_new_session=True, **pipes)  # type: ignore[call-overload]

    def parts() -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    for wanted in ("one.ipynb", "one.html"):
        process = start()
        while not [part for part in parts() if part.startswith(".one.") and part.endswith(wanted)]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not {"one.ipynb", "one.html"} & set(parts())
    process = start()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert parts() == ["one.html", "one.ipynb"]
    assert json.loads((folder / "one.ipynb").read_text())["cells"][-1]["outputs"][0]["data"]["text/plain"] == ["42"]
    assert (folder / "one.html").read_text().rstrip().endswith("</html>")
