"""docs/robustness.md and its rows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import robustness
from robustness import Row


def test_the_page_lists_no_test_that_is_gone() -> None:
    rows = robustness.read_page()
    assert {row.section for row in rows} == set(robustness.SECTIONS)
    for row in rows:
        assert robustness.exists(row.test), (
            f"{row.test} is no more; python -m pytest --write-docs takes it off the page"
        )


def test_rows_come_back_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "PAGE", tmp_path / "page.md")
    here = "test_robustness.py::test_rows_come_back_as_they_were_written"
    old = Row("Bad input", ("train_dp.py", "--epsilon 0", "old words"), here)
    gone = Row("Kills", ("train_dp.py", "63", "63", "4", "40"), "test_robustness.py::test_that_never_was")
    other = Row(
        "Faults",
        ("a.py", "full disk", "no_space < left", "2"),
        "test_robustness.py::test_the_page_lists_no_test_that_is_gone",
    )
    robustness.write_page([old, gone, other])
    assert robustness.read_page() == {old, gone, other}
    new = Row("Bad input", ("train_dp.py", "--epsilon 0", "new words"), here)
    robustness.write_page([new])
    assert robustness.read_page() == {new, other}
    assert new.identity == old.identity != other.identity


def test_an_unlisted_row_fails_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(robustness, "rows", [])
    monkeypatch.setattr(robustness, "writing", False)
    result = subprocess.CompletedProcess(
        ["train_dp.py", "--lr", "-1", "--config", "c.json"], 2, "", f"{tmp_path}/x: --lr: -1"
    )
    with pytest.raises(AssertionError, match="does not list"):
        robustness.refused(result, "Bad input", "")
    assert robustness.rows[0].cells == ("train_dp.py", "--lr -1", "x: --lr: -1")
    robustness.write_page(robustness.rows)
    robustness.refused(result, "Bad input", "")
