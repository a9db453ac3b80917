"""Calibrations that jobs share: computed once, found again, and never taken from a file that is not what it says."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path

import pytest

from libstore.remembered import remembered
from libtrain.private_study import plan_privacy
from libtrain.settings import DPSettings

KEY = {"what": "a sum", "of": [1, 2], "sample_rate": 0.1}


def test_a_result_is_computed_once_for_a_key(tmp_path: Path) -> None:
    asked: list[str] = []

    def compute() -> list[float]:
        asked.append("")
        return [0.1 + 0.2, 1e-300]

    for _ in range(2):
        assert remembered(tmp_path / "kept", KEY, compute) == [0.1 + 0.2, 1e-300]
    assert len(asked) == 1 and len(list((tmp_path / "kept").iterdir())) == 1
    remembered(tmp_path / "kept", KEY | {"sample_rate": 0.2}, compute)
    assert len(asked) == 2


@pytest.mark.parametrize("harm", ["value", "key", "cut", "text", "folder"])
def test_a_file_that_is_not_what_it_says_is_not_taken(tmp_path: Path, harm: str) -> None:
    remembered(tmp_path, KEY, lambda: 3)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    if harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        harmed = {"value": json.dumps(content | {"value": 4}), "cut": path.read_text()[:-9], "text": "[]"}
        harmed["key"] = json.dumps(content | {"key": KEY | {"of": [1, 3]}})
        path.write_text(harmed[harm])
    for _ in range(2):
        assert remembered(tmp_path, KEY, lambda: 3) == 3
    assert harm == "folder" or json.loads(path.read_text()) == content


def test_where_nothing_can_be_kept_the_result_is_there_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert remembered(tmp_path / "file" / "kept", KEY, lambda: 3) == 3


def _many(folder: str, wait: object) -> float:
    wait.wait()  # type: ignore[attr-defined]
    return sum(remembered(Path(folder), KEY | {"number": number}, lambda n=number: n) for number in range(40))


def test_several_jobs_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(4) as pool:
        barrier = manager.Barrier(4)
        assert pool.starmap(_many, [(str(tmp_path), barrier)] * 4) == [780] * 4
    assert len(list(tmp_path.iterdir())) == 40  # and no temporary file


def test_noise_is_calibrated_once_for_all_seeds(tmp_path: Path) -> None:
    settings = DPSettings(epsilon=3.0, batch_size=50, epochs=2, accountant="rdp")
    plan = plan_privacy(settings, 500, tmp_path)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["value"] == [plan.noise_multiplier, plan.spent_epsilon] and plan.spent_epsilon <= 3
    assert {"epsilon", "delta", "sample_rate", "steps", "accountant", "dp-accounting"} <= set(content["key"])
    for seed in (0, 1):
        assert plan_privacy(dataclasses.replace(settings, seed=seed), 500, tmp_path) == plan
    assert list(tmp_path.iterdir()) == [path]
    path.write_text(json.dumps(content | {"value": [plan.noise_multiplier / 2, plan.spent_epsilon]}))
    assert plan_privacy(settings, 500, tmp_path) == plan
