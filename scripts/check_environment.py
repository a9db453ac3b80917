"""Exit with 0 if this Python is 3.11 and has every package of requirements.txt at its version."""

import sys
from importlib import metadata
from pathlib import Path


def missing() -> list[str]:
    """Return a line for every requirement that this Python does not meet."""
    if sys.version_info[:2] != (3, 11):
        return [f"Python 3.11 is wanted, this is {sys.version.split()[0]}"]
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        return ["pip is missing"]
    lines = (Path(__file__).resolve().parent.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "nothing"
        if version == "nothing" or not requirement.specifier.contains(version.split("+")[0]):
            found.append(f"{requirement.name}{requirement.specifier} is wanted, {version} is installed")
    return found


if __name__ == "__main__":
    problems = missing()
    print("\n".join(problems) or "the environment meets requirements.txt", file=sys.stderr)
    sys.exit(bool(problems))
