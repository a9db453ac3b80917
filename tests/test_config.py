"""config.json: exactly the known keys, paths relative to the file, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused, run_script

from libdata.config import DEFAULT_CONFIG, load_config
from libdata.errors import InputError

GOOD = json.loads(DEFAULT_CONFIG.read_text())


def write(folder: Path, values: object) -> Path:
    path = folder / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_defaults_count_from_the_file() -> None:
    config = load_config()
    assert config.data_dir == ROOT / "data" and config.score_dir == ROOT / "results" / "scores"


def test_relative_and_absolute_paths(tmp_path) -> None:
    config = load_config(write(tmp_path, GOOD | {"data_dir": "../d", "score_dir": "/abs/s", "figure_dir": "~/f"}))
    assert config.data_dir == tmp_path.parent / "d"
    assert config.score_dir == Path("/abs/s")
    assert config.figure_dir == Path("~/f").expanduser()


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"extra": "x"}, ["'extra'", "'x'"]),
        ({"data_dir": None}, ["'data_dir'", "None"]),
        ({"data_dir": ""}, ["'data_dir'", "''"]),
        ({"data_dir": 3}, ["'data_dir'", "3"]),
        ({"data_dir": "/set path/"}, ["'data_dir'", "placeholder", "/set path/"]),
        ({"score_dir": "/path/to/scores"}, ["'score_dir'", "placeholder"]),
        ({"score_dir": "<your scores>"}, ["'score_dir'", "placeholder"]),
    ],
)
def test_bad_values_name_key_value_and_file(tmp_path, changes: dict, mentions: list[str]) -> None:
    path = write(tmp_path, GOOD | changes)
    with pytest.raises(InputError) as error:
        load_config(path)
    for text in [*mentions, str(path)]:
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("text", "mention"),
    [("{", "not valid JSON"), ("[]", "JSON object"), ('{"data_dir": "a", "data_dir": "b"}', "more than once")],
)
def test_files_that_are_no_configuration(tmp_path, text: str, mention: str) -> None:
    with pytest.raises(InputError, match=mention):
        load_config(write(tmp_path, text))


def test_a_missing_key_or_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="'fz_model_dir' is missing"):
        load_config(write(tmp_path, {key: value for key, value in GOOD.items() if key != "fz_model_dir"}))
    with pytest.raises(InputError, match="nowhere.json"):
        load_config(tmp_path / "nowhere.json")


def test_scripts_refuse_a_bad_configuration_in_one_line(tmp_path) -> None:
    path = write(tmp_path, GOOD | {"extra": "x"})
    for script in ("train_fz_models.py", "calc_curv_fz_models.py"):
        assert_refused(run_script(script, "--config", path), path, "'extra'")
    assert_refused(run_script("libdata.download", "mnist", "--config", path), path, "'extra'")
