"""Recipes: where --config goes, what stands in one line, and what a private training of few examples takes."""

from __future__ import annotations

import shlex

import pytest

from libstore.recipes import flags_of, in_one_line, lines_with, recipe, smaller, told

TWO = recipe("# in words", "", "python a.py --x 1", "sh b.sh | sh")


def test_each_command_of_a_recipe_gets_the_configuration() -> None:
    assert lines_with(TWO) == ["# in words", "python a.py --x 1", "sh b.sh | sh"]
    wanted = ["# in words", "python a.py --x 1 --config 'my file'", "sh b.sh --config 'my file' | sh"]
    assert lines_with(TWO, "my file") == wanted
    assert in_one_line(TWO, "c") == "python a.py --x 1 --config c && sh b.sh --config c | sh"
    assert in_one_line("# not here\n# nor there", "c") == "not here; nor there"


def test_a_recipe_is_told_once_for_all_that_it_makes() -> None:
    lines = list(told({"p": "python a.py", "q": TWO, "r": "python a.py"}, "c"))
    assert lines[:2] == ["missing: p, r; to make them:", "    python a.py --config c"]
    assert lines[2:4] == ["missing: q; to make it:", "    # in words"] and len(lines) == 6


def test_flags_are_read_back_as_the_words_they_are() -> None:
    words = shlex.split(flags_of({"a": 0.1, "b": None, "c": ["x y", "*"], "d": [], "e": "$HOME"}))
    assert words == ["--a", "0.1", "--c", "x y", "*", "--d", "--e", "$HOME"]


@pytest.mark.parametrize("n", [1, 9, 200, 1023, 1024, 60_000, 99_999, 100_000, 999_999, 1_281_167])
def test_a_private_training_of_these_flags_is_not_refused(n: int) -> None:
    given = dict(zip(*[iter(shlex.split(smaller(n)))] * 2, strict=True))
    assert 1 <= int(given.get("--batch_size", 256)) <= n and float(given.get("--delta", 1e-5)) < 1 / n
