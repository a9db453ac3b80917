"""Exit with 0 if this Python is 3.11, 3.12 or 3.13 and has every package of requirements.txt at its version.

It must have the project itself, too (pip install --no-deps -e .): where only that is missing, exit with NOT_INSTALLED.
With --venv, for the .venv of set-up: every package of requirements.lock, whole and where it was installed. Exit with
LACKING if installing them mends it, with another status if it has to be made again. The tests run on Python 3.11.
"""

import importlib.util
import os
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LACKING, NOT_INSTALLED = 4, 5


def unsupported():
    """Return what is wrong with the version of this Python; no annotations, so that old ones get as far as this."""
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return []
    return ["Python 3.11, 3.12 or 3.13 is wanted, this is " + sys.version.split()[0]]


def missing(requirements: str) -> "list[str]":
    """Return a line for every requirement of a file that this Python does not meet; raises ImportError without pip."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import InvalidRequirement, Requirement  # type: ignore[assignment]
    found = []
    for line in (ROOT / requirements).read_text(encoding="utf-8").splitlines():
        try:
            requirement = Requirement(re.split(r"(?:^|\s)[#\\-]", line)[0])
        except InvalidRequirement:  # a blank line, a path, an option of pip
            continue
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "nothing"
        if version == "nothing" or not requirement.specifier.contains(version.split("+")[0], prereleases=True):
            found.append(f"{requirement.name}{requirement.specifier} is wanted, {version} is installed")
    return found


def broken() -> "list[str]":
    """Return what an interrupted installation, a removal by hand or a move to another folder have left."""
    here = Path(sys.executable).parent
    pip = here / "pip"
    if pip.is_file():  # its first line, or the second where paths are long or hold blanks, names its Python
        made_for = re.match(rb"#!(?:/bin/sh\n'''exec' )?\"?(/.*?)/python[\d.]*[\"\s]", pip.read_bytes())
        if made_for and not (os.path.isdir(made_for[1]) and os.path.samefile(made_for[1], here)):
            return [f"it was made in {os.fsdecode(made_for[1])}"]
    for folder in sys.path:
        if not folder.startswith(sys.prefix):
            continue
        for package in Path(folder).glob("*.dist-info"):
            try:
                lines = (package / "RECORD").read_text(encoding="utf-8").splitlines()
            except OSError:
                return [f"the installation of {package.stem} is unfinished"]
            files = {line.split(",")[0].strip('"') for line in lines if "__pycache__" not in line}
            for place in sorted({os.path.dirname(file) or file for file in files if not file.startswith("../")}):
                if not os.path.exists(os.path.join(folder, place)):
                    return [f"{place} of {package.stem} is gone"]
    return []


def installed() -> "str | None":
    """Return the folder that this Python imports the project from, None if it does not know it."""
    found = importlib.util.find_spec("libstore")
    return str(Path(found.origin).resolve().parent.parent) if found and found.origin else None


def main() -> int:
    """Print what is wrong and return the exit status."""
    venv = sys.argv[1:] == ["--venv"]
    problems, status = unsupported() or (broken() if venv else []), 1
    if not problems:
        try:
            problems, status = missing("requirements.lock" if venv else "requirements.txt"), LACKING
            if problems:
                import pip  # noqa: F401
        except ImportError:
            problems, status = ["pip is missing"], 1
    if not problems and installed() != str(ROOT):
        where = installed()
        problems = [f"the project is installed from {where}" if where else "the project is not installed"]
        status = 1 if where and not venv else NOT_INSTALLED
    print("\n".join(problems) or "the environment meets the requirements", file=sys.stderr)
    return status if problems else 0


if __name__ == "__main__":
    sys.exit(main())
