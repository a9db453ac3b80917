"""Recipes: the commands that make what is missing, to be typed at the top of the repository.

A recipe is lines of text, a command each; words about what no command can know are lines that begin with "# ", so that
a recipe may be pasted whole. Recipes are kept without --config, whose path is of one machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libdata.choice import BUILT_IN, IMAGENET

WORDS = "# "
SMALL = 1024
"""Fewer examples than that take smaller batches than the papers' 256."""


def recipe(*lines: str) -> str:
    """Join lines, empty ones left out."""
    return "\n".join(filter(None, lines))


def command(program: str, *flags: str) -> str:
    """Return the command that runs a script with flags, which are quoted already; empty ones are left out."""
    return " ".join(filter(None, ("sh" if program.endswith(".sh") else "python", program, *flags)))


def flags_of(values: Mapping[str, Any]) -> str:
    """Return the flags that give these values, as a sidecar keeps them; None is left out, a list is several words."""
    words: list[str] = []
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def named_by(settings: Mapping[str, Any], **more: str) -> str:
    """Return the flags by which a script finds what has these settings, and more flags.

    Where data or network are a user's own, a sidecar knows what they are called but not where they are.
    """
    data, model = str(settings["data"]["dataset"]), settings["model"]
    own = {"dataset": data not in (*BUILT_IN, IMAGENET), "arch": model.get("source") is not None}
    flags = {f"{key}_name" if own[key] else key: value for key, value in (("dataset", data), ("arch", model["arch"]))}
    wanted = " and ".join(f"--{key}" for key, mine in own.items() if mine)
    return flags_of(flags | more) + (f" with the {wanted} of that name" if wanted else "")


def lines_with(recipe: str, config: str = "") -> list[str]:
    """Return the lines of a recipe, commands with --config where one is given; what follows a | takes none."""
    given = f" --config {shlex.quote(config)}" if config else ""
    lines = []
    for line in recipe.splitlines():
        first, bar, rest = line.partition(" | ")
        lines.append(line if line.startswith(WORDS) else f"{first}{given}{bar}{rest}")
    return lines


def in_one_line(recipe: str, config: str = "") -> str:
    """Return the commands of a recipe as one, for messages of one line; of words alone, the words."""
    lines = lines_with(recipe, config)
    commands = [line for line in lines if not line.startswith(WORDS)]
    return " && ".join(commands) or "; ".join(line.removeprefix(WORDS) for line in lines)


def told(missing: Mapping[str, str], config: str = "") -> Iterator[str]:
    """Yield what to print of missing scores, by name the recipe of each: a recipe once, below all that it makes."""
    names: dict[str, list[str]] = {}
    for name, how in missing.items():
        names.setdefault(how, []).append(name)
    for how, made in names.items():
        yield f"missing: {', '.join(made)}; to make {'it' if len(made) == 1 else 'them'}:"
        yield from (f"    {line}" for line in lines_with(how, config))


def smaller(n_examples: int) -> str:
    """Return the flags without which a private training refuses so many examples, or makes little of them."""
    batch = f"--batch_size {max(1, n_examples // 8)}" if n_examples < SMALL else ""
    delta = f"--delta 1e-{len(str(n_examples))}" if n_examples >= 100_000 else ""
    return " ".join(filter(None, (batch, delta)))


def spaced(values: Sequence[Any]) -> str:
    """Return values as one word of a command, as the generators of job lines take lists."""
    return shlex.quote(" ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values))
