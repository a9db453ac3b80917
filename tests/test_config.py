"""config.json: the known keys, paths relative to the file, what people write by hand, clear refusals."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused, run_script

from libstore.config import DEFAULT_CONFIG, load_config
from libstore.errors import InputError

GOOD = json.loads(DEFAULT_CONFIG.read_text())


def write(folder: Path, values: object) -> Path:
    path = folder / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_defaults_count_from_the_file() -> None:
    config = load_config()
    assert config.data_dir == (ROOT / "data").resolve() and config.score_dir == ROOT / "results" / "scores"


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
        ({"data_dir": "/data/<mnist>"}, ["'data_dir'", "placeholder"]),
        ({"data_dir": "/mnt/your-lab/x"}, ["'data_dir'", "placeholder"]),
        ({"data_dir": "TODO"}, ["'data_dir'", "placeholder"]),
        ({"data_dir": ".../data"}, ["'data_dir'", "placeholder"]),
        ({"data_dir": "$NOT_SET_ANYWHERE/d"}, ["'data_dir'", "NOT_SET_ANYWHERE", "'$NOT_SET_ANYWHERE/d'"]),
        ({"data_dir": "/x/${NOT_SET_ANYWHERE}"}, ["'data_dir'", "NOT_SET_ANYWHERE"]),
        ({"data_dir": "${EMPTY}/d"}, ["'data_dir'", "EMPTY is not set"]),
        ({"data_dir": "${PWD:-x}/d"}, ["'data_dir'", "only $NAME and ${NAME}"]),
        ({"data_dir": "~nobody_of_this_name/d"}, ["'data_dir'", "no home directory", "~nobody_of_this_name/d"]),
        ({"data_dir": "C:\\Users\\me"}, ["'data_dir'", "Windows"]),
        ({"data_dir": "C:\temp"}, ["'data_dir'", "control character"]),
        ({"data_dir": "a\0b"}, ["'data_dir'", "control character"]),
        ({"data_dir": "\ud800"}, ["'data_dir'", "not a path"]),
        ({"data_dir": {"mnist": "x"}}, ["'data_dir'", "path in quotes"]),
        ({"fz_model_dir": {}}, ["'fz_model_dir'", "for each data set"]),
        ({"fz_model_dir": {"cifar100": 3}}, ["'fz_model_dir', 'cifar100',", "3"]),
        ({"private_precomputed_score_dir": {"cifar10": "$NOT_SET_ANYWHERE"}}, ["'cifar10'", "NOT_SET_ANYWHERE"]),
    ],
)
def test_bad_values_name_key_value_and_file(tmp_path, monkeypatch, changes: dict, mentions: list[str]) -> None:
    monkeypatch.setenv("EMPTY", "")
    path = write(tmp_path, GOOD | changes)
    with pytest.raises(InputError) as error:
        load_config(path)
    for text in [*mentions, str(path)]:
        assert text in str(error.value)


@pytest.mark.parametrize(
    "value",
    ["/home/todorov", "/home/todor/mnist", "/data/xpath_tools", "/data/autodoc", "/x/todo_lists", "/s/amyour data",
     "/home/me/...hidden", "/data/set_path_planning", "/data/my_path_to_glory", "/data/a<b>c", "/data/$", "/d/\u00e9"],
)  # fmt: skip
def test_names_of_people_and_tools_are_no_placeholders(tmp_path, value: str) -> None:
    assert load_config(write(tmp_path, GOOD | {"data_dir": value})).data_dir == Path(value)


def test_a_folder_that_exists_is_no_placeholder(tmp_path) -> None:
    path = write(tmp_path, GOOD | {"data_dir": "your lab/mnist"})
    with pytest.raises(InputError, match="placeholder"):
        load_config(path)
    (tmp_path / "your lab").mkdir()
    assert load_config(path).data_dir == tmp_path / "your lab" / "mnist"


def test_home_and_variables_are_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("SUB", "a b")
    own = pwd.getpwuid(os.getuid())
    for value, expected in {
        "~/data": "/home/me/data", "~": "/home/me", "$HOME/data": "/home/me/data", "$SCRATCH": "/scratch/me",
        "${SCRATCH}/x$SUB": "/scratch/me/xa b", "${SCRATCH}_2": "/scratch/me_2", "/data/~x": "/data/~x",
        f"~{own.pw_name}/data": f"{own.pw_dir}/data", "$SUB": str(tmp_path / "a b"),
    }.items():  # fmt: skip
        assert load_config(write(tmp_path, GOOD | {"data_dir": value})).data_dir == Path(expected), value
    monkeypatch.setenv("HOME", "")
    with pytest.raises(InputError, match="no home directory for '~/data'"):
        load_config(write(tmp_path, GOOD | {"data_dir": "~/data"}))


def test_no_home_directory_is_one_line() -> None:
    """As in a container that runs under a number without an account."""
    if os.geteuid():
        pytest.skip("only root becomes another user")
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); import libcli as cli; from libstore import config"
    code += "; os.setuid(54321); os.environ.pop('HOME', 0); cli.run(lambda: config.load_config(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = write(Path(folder), GOOD | {"data_dir": "~/data"})
        result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "no home directory for '~/data'" in result.stderr and str(path) in result.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_any_editor_are_read(tmp_path, encoding: str, end: str) -> None:
    text = json.dumps(GOOD | {"data_dir": "/d/\u00e9t\u00e9"}, indent=2, ensure_ascii=False).replace("\n", end)
    (tmp_path / "config.json").write_bytes(text.encode(encoding))
    assert load_config(tmp_path / "config.json").data_dir == Path("/d/\u00e9t\u00e9")


def test_the_keys_of_the_original_works_are_enough(tmp_path) -> None:
    papers = {
        "data_dir": "d", "fz_model_dir": "fz", "fz_precomputed_score_dir": {"cifar100": "s/c", "imagenet": "s/i"},
        "private_model_dir": {"cifar10": "p10", "cifar100": "/p100"}, "private_precomputed_score_dir": "ps",
    }  # fmt: skip
    config = load_config(write(tmp_path, papers))
    assert config.fz_model_dir == config.fz_models("imagenet") == tmp_path / "fz"
    assert (config.fz_score_dir("cifar100"), config.fz_score_dir("imagenet")) == (tmp_path / "s/c", tmp_path / "s/i")
    assert config.private_models("cifar100") == Path("/p100") and config.private_models("cifar10") == tmp_path / "p10"
    assert config.private_score_dir("cifar10") == config.private_score_dir("mnist") == tmp_path / "ps"
    assert config.score_dir == tmp_path / "results/scores" and config.imagenet_dir == tmp_path / "data/imagenet"
    with pytest.raises(InputError, match=r"'fz_precomputed_score_dir' has no folder for 'mnist'; it has: cifar100, im"):
        config.fz_score_dir("mnist")
    with pytest.raises(InputError, match=r"'private_model_dir' has a folder for each of cifar10, cifar100; one path"):
        _ = config.private_model_dir
    for key in papers:
        if "score" not in key:
            with pytest.raises(InputError, match=f"'{key}' is missing"):
                load_config(write(tmp_path, {name: value for name, value in papers.items() if name != key}))


def test_score_dir_serves_both_kinds_of_scores_without_keys_of_their_own(tmp_path) -> None:
    config = load_config(write(tmp_path, GOOD | {"score_dir": "all"}))
    assert config.fz_score_dir("mnist") == config.private_score_dir("mnist") == config.score_dir == tmp_path / "all"
    config = load_config(write(tmp_path, GOOD | {"score_dir": "all", "private_precomputed_score_dir": "own"}))
    assert (config.fz_score_dir("mnist"), config.private_score_dir("mnist")) == (tmp_path / "all", tmp_path / "own")


def test_folders_of_data_sets_that_go_elsewhere_are_shown(tmp_path, capsys) -> None:
    load_config(write(tmp_path, GOOD | {"fz_precomputed_score_dir": {"mnist": "in", "imagenet": "/elsewhere/i"}}))
    assert "fz_precomputed_score_dir /elsewhere/i" in capsys.readouterr().err
    load_config(write(tmp_path, GOOD))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("{", "not valid JSON"),
        ("[" * 10**5, "not valid JSON"),
        ("[]", "JSON object"),
        ('{"data_dir": "a", "data_dir": "b"}', "more than once"),
    ],
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
