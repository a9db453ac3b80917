"""The score store: whole or absent, compared before reuse, never torn."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from libstore import store
from libstore.errors import InputError
from libstore.store import Output, array_bytes, exclusive, load_scores, write_atomic

SETTINGS = {"h": 0.001, "model": {"name": "m", "seed": 3}}


@pytest.fixture
def output(tmp_path):
    made = Output(tmp_path / "curv_scores_m_0.001.npy", SETTINGS)
    made.save(array_bytes(np.arange(5.0)), {"seconds": 1})
    return made


def test_what_is_saved_is_read_back_with_its_sidecar(output) -> None:
    array, sidecar = load_scores(output.path)
    np.testing.assert_array_equal(array, np.arange(5.0))
    assert sidecar["settings"] == SETTINGS and sidecar["provenance"] == {"seconds": 1}
    assert sorted(os.listdir(output.path.parent)) == ["curv_scores_m_0.001.json", "curv_scores_m_0.001.npy"]


def test_same_settings_are_finished_and_others_refused_with_both_shown(output) -> None:
    assert output.finished()
    other = Output(output.path, {"h": 0.01, "model": {"name": "m", "seed": 3}})
    with pytest.raises(InputError, match=r"h: 0.001 there, 0.01 asked for") as error:
        other.finished()
    assert "model" not in str(error.value).split("(")[1]
    assert not other.finished(overwrite=True)


def test_an_array_without_a_sidecar_is_not_ours_to_replace(output) -> None:
    output.sidecar.unlink()
    with pytest.raises(InputError, match="sidecar"):
        output.finished()
    assert not output.finished(overwrite=True)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"x" * 300])
def test_a_damaged_array_is_named_when_read_and_made_again(output, damage: bytes) -> None:
    output.path.write_bytes(damage)
    with pytest.raises(InputError, match=output.path.name):
        load_scores(output.path)
    assert not output.finished()


def test_a_damaged_sidecar_is_named(output) -> None:
    for text in ("{", "[]", "{}"):
        output.sidecar.write_text(text)
        with pytest.raises(InputError, match=output.sidecar.name):
            load_scores(output.path)


def test_pickled_objects_are_neither_written_nor_read(tmp_path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        array_bytes(np.array([{}], dtype=object))
    path = tmp_path / "x.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    made = Output(path, SETTINGS)
    made.save(path.read_bytes(), {})
    with pytest.raises(InputError, match="x.npy"):
        load_scores(path)


def test_a_failed_write_leaves_nothing(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "missing" / "x.npy", b"abc")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_process_are_cleared(tmp_path) -> None:
    (tmp_path / ".x.npy.tmp").write_bytes(b"half")
    with exclusive(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_second_process_waits_for_the_first(tmp_path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from libstore.store import exclusive
with exclusive(Path({str(tmp_path)!r})):
    order = Path({str(tmp_path)!r}, "order")
    before = order.read_text() if order.exists() else ""
    time.sleep(0.5)
    order.write_text(before + sys.argv[1])
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted((tmp_path / "order").read_text()) == ["a", "b"]


@pytest.mark.parametrize(("patience", "said"), [(60.0, False), (0.0, True)])
def test_a_short_wait_is_not_said(tmp_path, monkeypatch, capsys, patience: float, said: bool) -> None:
    monkeypatch.setattr("libstore.store._PATIENCE", patience)

    def wait() -> None:
        with exclusive(tmp_path):
            pass

    second = threading.Thread(target=wait)
    with exclusive(tmp_path):
        second.start()
        time.sleep(0.3)
        assert second.is_alive()
    second.join(60)
    assert ("another process is at work here" in capsys.readouterr().err) == said


def test_the_sidecar_does_not_hold_what_json_cannot(tmp_path) -> None:
    with pytest.raises(TypeError):
        Output(tmp_path / "x.npy", {"bad": {1, 2}}).save(b"", {})
    assert not list(tmp_path.iterdir())


def test_sidecar_is_stable_json(output) -> None:
    text = output.sidecar.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_is_said_once_and_work_goes_on(tmp_path, monkeypatch, capsys, number: int) -> None:
    """What such file systems answer; none can be mounted here."""

    def no_locks(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(store, "_UNLOCKED", set())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".other.tmp").touch()  # perhaps of a process that is at work
    for name in ("a", "a", "b"):
        with exclusive(tmp_path / name):
            Output(tmp_path / name / "x.npy", SETTINGS).save(array_bytes(np.arange(5.0)), {})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{tmp_path}/a: no locks" in lines[0] and os.strerror(number) in lines[0]
    assert (tmp_path / "a" / ".other.tmp").exists() and (tmp_path / "b" / "x.npy").exists()


def test_a_folder_of_somebody_else_is_refused_with_its_owner() -> None:
    """As under umask 022: results may be read, new ones are refused by name."""
    if os.geteuid():
        pytest.skip("only root becomes another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chmod(folder, 0o755)
        with exclusive(folder / "theirs"):
            Output(folder / "theirs" / "x.npy", SETTINGS).save(array_bytes(np.arange(5.0)), {})
        (folder / "theirs" / ".old.tmp").touch()
        try:
            os.seteuid(54321)
            with exclusive(folder / "theirs"):
                assert Output(folder / "theirs" / "x.npy", SETTINGS).finished()
                with pytest.raises(
                    InputError, match=r"y.npy: cannot write: Permission denied; .*theirs belongs to root"
                ):
                    write_atomic(folder / "theirs" / "y.npy", b"")
            with (
                pytest.raises(InputError, match=r"new: cannot create .*: Permission denied; .*theirs belongs to root"),
                exclusive(folder / "theirs" / "deep" / "new"),
            ):
                pass
        finally:
            os.seteuid(0)
        (folder / "closed").mkdir(mode=0o700)
        try:
            os.seteuid(54321)
            with (
                pytest.raises(InputError, match="closed: cannot be opened: Permission denied"),
                exclusive(folder / "closed"),
            ):
                pass
        finally:
            os.seteuid(0)
