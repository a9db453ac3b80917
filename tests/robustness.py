"""docs/robustness.md: what the tests tried, written by the tests (`python -m pytest --write-docs`).

Every kill, fault and bad input is recorded as a row. A row that the committed page does not list fails its test, and so
does a listed test that is no more. With --write-docs the rows of the tests that ran replace theirs on the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "robustness.md"

SECTIONS = {
    "Kills": (
        "Each script is killed (SIGKILL) at the moments at which what is on disk differs (at all of them, or at evenly "
        "spaced ones where a run takes long), and at random times, and started again. Each time the tree ends byte for "
        "byte like that of an undisturbed run (but for the provenance in the sidecars, which holds seconds), nothing "
        "is left over, and whatever the kill left under a final name was whole. Then two processes get the same job at "
        "the same time, with the same result. A moment is before a file is opened for writing, right after, and "
        "before a name is moved, made or removed.",
        ("script", "moments", "killed at", "killed at random", "different states left"),
    ),
    "Faults": (
        "Earlier results stay as they are, and the same line, once the cause is mended, gives the bytes of an "
        "undisturbed run.",
        ("script", "fault", "its answer", "exit status"),
    ),
    "Hostile files": (
        "Files that carry code or lies. None of the code has run.",
        ("script", "file", "its answer, exit status 2"),
    ),
    "Bad input": (
        "Each is answered by one line on stderr and exit status 2, before any work and with nothing overwritten.",
        ("script", "given", "its answer"),
    ),
}
HEAD = """# What was tried to break it

Written by the tests: `python -m pytest --write-docs` brings the rows of the tests that ran up to date, and a test fails
whose rows are not listed here. Paths are shortened to names. The last column is the test.
"""


@dataclass(frozen=True)
class Row:
    """One line of a table; `cells` begin with the script and what was tried, which identify it with the test."""

    section: str
    cells: tuple[str, ...]
    test: str

    @property
    def identity(self) -> tuple[str, ...]:
        """What the committed page is compared by: numbers and wordings may differ between machines."""
        return (self.section, *self.cells[: 1 if self.section == "Kills" else 2], self.test)

    def text(self) -> str:
        """The line."""
        cells = (f"`{cell}`" if re.search(r"[_*<]|--", cell) else cell for cell in self.cells)
        return _line((*cells, self.test))


rows: list[Row] = []
writing = False


def record(section: str, *cells: object) -> None:
    """Note a row for the running test, which fails if the committed page does not list it."""
    test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].split("[")[0].removeprefix("tests/")
    row = Row(section, tuple(plain(str(cell)) for cell in cells), test)
    rows.append(row)
    if not writing:
        assert row.identity in {listed.identity for listed in read_page()}, (
            f"{PAGE.name} does not list {row.identity}; write it anew: python -m pytest --write-docs tests/{test}"
        )


def refused(result: subprocess.CompletedProcess[str], section: str, what: str) -> None:
    """Note a refusal, by `what` was tried or else by the flags its answer speaks of or what the test is called."""
    arguments = [str(argument) for argument in result.args]
    while arguments[0].startswith(("/", "-m")):
        arguments.pop(0)
    answer = result.stderr.strip()
    status = (str(result.returncode),) if section == "Faults" else ()
    record(section, arguments[0], what or _spoken_of(arguments[1:], answer) or _test_in_words(), answer, *status)


def _spoken_of(arguments: list[str], answer: str) -> str:
    flags: dict[str, str] = {}
    for argument in arguments:
        if argument.startswith("--"):
            flags[argument] = ""
        elif flags:
            flags[list(flags)[-1]] += f" {argument}"
    named = [flag for flag in flags if re.search(rf"(?<![\w/]){flag[2:].replace('-', '[-_]')}(?![\w/])", answer)]
    words = re.findall(r"(?<![\w/.-])[\w./-]+(?![\w/])", answer)
    valued = [flag for flag, value in flags.items() if len(value) > 2 and Path(value.split()[-1]).name in words]
    return ", ".join(f"{flag}{flags[flag]}" for flag in named or valued[-1:] if flag != "--config")


def _test_in_words() -> str:
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].rsplit(" ", 1)[0]
    name, _, parameter = test.removeprefix("test_").removesuffix("]").partition("[")
    told = parameter and not re.fullmatch(r"[a-z_]+\d+(-[a-z_]+\d+)*", parameter)
    return name.replace("_", " ") + (f": {parameter}" if told else "")


def plain(text: str) -> str:
    """Return a cell without machine paths and without what Markdown would take for layout."""
    text = re.sub(r"[^\s'\"(=:]*/pytest-\d+/(?:popen-gw\d+/)?[^/\s'\"):;,]+/?", "", text)
    text = re.sub(rf"{re.escape(str(ROOT))}/?|{re.escape(str((ROOT / 'data').resolve()))}/?", "", text)
    text = re.sub(r"(127\.0\.0\.1):\d+/inputs/", r"\1/", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x...", text)
    text = " ".join(text.split()).replace("|", "/").replace("`", "'")
    return text if len(text) <= 240 else text[:239] + "…"


def read_page() -> set[Row]:
    """Return the rows of the committed page."""
    found: set[Row] = set()
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else ():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and line.count(".py::"):
            *cells, test = line.strip("| ").split(" | ")
            found.add(Row(section, tuple(cell.strip("`") for cell in cells), test))
    return found


def exists(test: str) -> bool:
    """Tell whether a listed test is still there."""
    module, _, name = test.partition("::")
    path = ROOT / "tests" / module
    return path.exists() and f"def {name}(" in path.read_text(encoding="utf-8")


def write_page(new: list[Row]) -> None:
    """Replace the rows of the tests that ran, drop those of tests that are no more, keep the others."""
    ran = {row.test for row in new}
    kept = {row for row in read_page() if row.test not in ran and exists(row.test)}
    every = {*kept, *new}
    parts = [HEAD]
    for section, (text, columns) in SECTIONS.items():
        chosen = sorted((row for row in every if row.section == section), key=lambda row: row.text())
        if section == "Kills":
            text += f" In all: {sum(int(n) for row in chosen for n in row.cells[2:4])} kills."
        table = [_line((*columns, "test")), _line(("---",) * (len(columns) + 1)), *(row.text() for row in chosen)]
        parts.append(f"## {section}\n\n{textwrap.fill(text, 120)}\n\n" + "\n".join(table) + "\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
