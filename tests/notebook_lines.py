"""Lines of documents and scripts that run a notebook, and notebooks run in this process."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
from IPython.display import display
from released_files import ROOT

from libplots.notebooks import set_parameters
from scripts import execute_notebook


def read(path: Path) -> dict:
    return nbformat.read(path, as_version=4)


def tagged(notebook: dict, tag: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]


def lines_of(path: Path) -> list[list[str]]:
    """The words of every line of a document or script that runs a notebook, with the demo's folder filled in."""
    text = path.read_text().replace("\\\n", " ").replace("$out", "results/demo")
    found = re.findall(r"(?:^|&&) *(sh scripts/run_notebook\.sh [^&\n]*)", text, re.M)
    return [shlex.split(line)[2:] for line in found]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README, DEMO = [line for page in PAGES for line in lines_of(page)], lines_of(ROOT / "scripts" / "demo.sh")


def prepared(words: list[str], root: Path = ROOT) -> dict:
    """The notebook that a line executes, before it is executed."""
    args = execute_notebook.parse([str(root / words[0]), *words[1:]])
    notebook = read(args.notebook)
    set_parameters(notebook, args.given)
    return notebook


def assigned(notebook: dict) -> dict[str, object]:
    """What the parameters cell assigns when it runs."""
    scope: dict[str, object] = {}
    exec(tagged(notebook, "parameters")[0]["source"], scope)
    return {name: value for name, value in scope.items() if name != "__builtins__"}


def run_cells(notebook: dict) -> str:
    """Run a notebook's code in this process and return what it prints."""
    scope, printed = {"display": display}, io.StringIO()
    with redirect_stdout(printed):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec(cell["source"], scope)
    return printed.getvalue()
