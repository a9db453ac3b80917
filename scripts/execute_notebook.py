"""Execute a notebook and keep it, as .ipynb and .html, in a folder: what run_notebook.sh does, less the tidying.

Both are named by the notebook and what is given of data set, network and ratio.

    python scripts/execute_notebook.py notebooks/curv_privacy.ipynb FOLDER -p arch resnet18 -y "datasets: [cifar10]"

Parameters are written into the notebook's parameters cell, so that what the cell says is what the notebook shows.
"""

from __future__ import annotations

import libcli as cli

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from libdata.own_data import own_name
from libplots.notebooks import drop_injected, set_parameters
from libstore.config import DEFAULT_CONFIG
from libstore.errors import InputError
from libstore.results import file_name
from libstore.store import write_atomic

ROOT = DEFAULT_CONFIG.parent


def parse(argv: Sequence[str] | None) -> cli.Namespace:
    """Read the command line; `given` is what libplots.notebooks.set_parameters takes."""
    parser = cli.Parser(__doc__)
    own = "the notebook's own"
    parser.set_defaults(config=own)
    add = parser.add_argument
    add("notebook", type=Path, help="the notebook")
    add("folder", type=Path, help="where to")
    pair: dict[str, Any] = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    add("-p", "--parameters", **pair, help="a parameter; none by default")
    add("-r", "--parameters_raw", **pair, help="a parameter whose value is text; none by default")
    text = 'parameters as YAML, such as "runs: [1, 2]"; none by default'
    add("-y", "--parameters_yaml", action="append", default=[], metavar="YAML", help=text)
    add("-f", "--parameters_file", type=Path, action="append", default=[], help="the same, a file; none by default")
    add("-k", "--kernel", default="", help="Jupyter kernel; the notebook's own by default")
    args = parser.parse_args(argv)
    args.given = {}
    for path in args.parameters_file:
        args.given |= from_yaml(path.read_text(encoding="utf-8"), f"--parameters_file {path}")
    for content in args.parameters_yaml:
        args.given |= from_yaml(content, f"--parameters_yaml {content}")
    for name, value in args.parameters:
        args.given[name] = plain(value), value
    args.given |= {name: (value, value) for name, value in args.parameters_raw}
    args.name = file_name(args.notebook.stem, *about({name: value for name, (value, _) in args.given.items()}))
    if args.config != own:
        path = Path(args.config).resolve()
        config = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
        args.given["config"] = config, config
    return args


def about(given: Mapping[str, object]) -> list[str]:
    """Return what parameters say of data set, network and ratio, data and networks of one's own as on disk."""
    words = []
    for name in ("datasets", "dataset", "arch", "ratio"):
        values = given.get(name)
        if name in ("datasets", "dataset") and given.get("dataset_name"):
            values = values and given["dataset_name"]
        for value in map(str, values if isinstance(values, list) else [] if values is None else [values]):
            own = ":" in value or (name != "arch" and ("/" in value or value.endswith(".npz")))
            words.append(own_name(value) if own else value)
    return words


def plain(text: str) -> object:
    """Return the number, list or other value that a text spells, else the text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def from_yaml(content: str, flag: str) -> dict[str, tuple[object, object]]:
    """Return the values of a YAML mapping, and how they were typed."""
    try:
        values, typed = yaml.safe_load(content), yaml.load(content, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{flag}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f'{flag}: not of the form "name: value"')
    return {name: (values[name], typed.get(str(name))) for name in values}


def execute(notebook: Any, name: str, kernel: str) -> None:
    """Execute a notebook in place, with the top of the repository as its working directory.

    Raises:
        cli.Stopped: A signal came; the kernel is gone.
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    from nbclient import NotebookClient

    received: list[int] = []

    def take_signals(**_: object) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(signum: int) -> None:
            received.append(signum)
            if task:
                task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop, signum)

    options: dict[str, Any] = {"kernel_name": kernel} if kernel else {}
    options |= {"timeout": None, "record_timing": False, "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]}
    options |= {"resources": {"metadata": {"path": str(ROOT)}}, "on_notebook_start": take_signals}
    try:
        NotebookClient(notebook, **options).execute()
    except BaseException:
        if received:
            raise cli.Stopped(received[0], f"stopped before the end of {name}; nothing is kept") from None
        raise


def main(argv: Sequence[str] | None = None) -> None:
    """Read, set the parameters, execute, save."""
    args = parse(argv)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    # For nbformat, jsonschema would build a grammar of web addresses in 0.7 s, by which no notebook is checked.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    import nbformat
    from nbclient.exceptions import CellExecutionError
    from nbconvert import HTMLExporter

    try:
        notebook = nbformat.read(args.notebook, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise InputError(f"{args.notebook}: not a notebook: {str(error).splitlines()[0]}") from error
    left_out = drop_injected(notebook)
    if left_out:
        cli.warn(f"{args.notebook}: a second cell of parameters is left out, the first counts: {'; '.join(left_out)}")
    try:
        set_parameters(notebook, args.given)
    except InputError as error:
        raise InputError(f"{args.notebook}: {error}") from error
    try:
        execute(notebook, args.notebook.name, args.kernel)
    except CellExecutionError as error:
        if error.ename == InputError.__name__:
            raise InputError(f"{args.notebook}: {error.evalue}") from error
        print(error, file=sys.stderr)
        sys.exit(1)
    for suffix, content in (
        (".ipynb", nbformat.writes(notebook) + "\n"),
        (".html", HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": args.notebook.stem}})[0]),
    ):
        write_atomic(args.folder / f"{args.name}{suffix}", content.encode())


if __name__ == "__main__":
    cli.run(main)
