"""Notebooks show what their one parameters cell says: as committed, by the README, and as a user edits them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import ROOT, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_lines import DEMO, README, assigned, prepared, read, run_cells, tagged
from released_files import write_config, write_scored_imagenet

from libplots.notebooks import data_path, draw_example, draw_examples, set_parameters
from libstore.config import load_config
from libstore.errors import InputError
from scripts import execute_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_executed_notebooks_of_several_data_sets_have_short_names_of_their_own(tmp_path: Path) -> None:
    def name(*flags: str) -> str:
        return execute_notebook.parse(["notebooks/n.ipynb", "out", *flags]).name

    assert name("-p", "h", "0.1") == "n"
    assert name("-p", "arch", "resnet18", "-p", "dataset", "~/my data/set.npz") == "n_set_resnet18"
    long = f"{tmp_path}/a folder/of pictures"
    assert name("-y", f"datasets: ['{long}', mnist]") == "n_of_pictures_mnist"
    own = ("-p", "dataset", f"{long}/read.py:letters", "-p", "arch", f"{long}/nets.py:table")
    assert name(*own) == "n_letters_table" and name(*own, "-p", "dataset_name", "mine") == "n_mine_table"
    assert name("-y", "datasets: [cifar10, cifar100]", "-p", "ratio", "0.7") == "n_cifar10_cifar100_0.7"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_show_what_their_one_parameters_cell_says(path: Path) -> None:
    notebook = read(path)
    assert not tagged(notebook, "injected-parameters") and len(tagged(notebook, "parameters")) == 1
    assert not {"papermill", "execution"} & {key for part in (notebook, *notebook["cells"]) for key in part["metadata"]}
    said, code = assigned(notebook), [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    first = next(output for cell in code for output in cell["outputs"])["text"].splitlines()
    assert first[0] == f"configuration: {said['config']}"
    named = str(said.get("dataset", "mnist")) if "imagenet" not in path.stem else "imagenet"
    assert first[1] in (f"data set: {named}", f"data sets: {named}") and first[2].startswith("models: ")
    assert any(line.startswith("figure_dir: ") for line in first)
    for word in ("arch", "suffix", "ratio"):
        assert str(said.get(word, "")) in first[2]
    assert not re.search(r"/(home|root|work|tmp|Users)/", json.dumps([cell["outputs"] for cell in code]))


@pytest.mark.parametrize(
    ("words", "path"),
    [(words, ROOT / words[0]) for words in DEMO],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_committed_parameters_are_those_of_the_line_that_made_the_outputs(words: list[str], path: Path) -> None:
    assert assigned(prepared(words)) == assigned(read(path))


def test_the_demo_makes_every_committed_notebook() -> None:
    assert {words[0] for words in DEMO} == {
        f"notebooks/{path.name}" for path in NOTEBOOKS if "imagenet" not in path.name
    }


@pytest.mark.parametrize("words", README, ids=lambda words: Path(words[0]).stem)
def test_lines_of_the_readme_look_where_their_configuration_says(
    words: list[str], bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names its configuration; without results it says what was looked for, what is there and what makes it."""
    notebook = prepared(words, bare)
    said = assigned(notebook)
    config = words[words.index("--config") + 1]
    assert said["config"] == config in ("config.json", "scripts/demo_config.json")
    assert bare / words[1] == load_config(bare / config).figure_dir
    with pytest.raises(InputError) as error:
        run_cells(notebook)
    folder = "results/demo" if "demo" in config else "sensitivity" if "runs" in said else "results/"
    assert str(bare / folder) in str(error.value)
    made_by = re.search(r"there is none; to make it: (?:python|sh) (\S+) .*--config (\S+)$", str(error.value))
    assert made_by and (ROOT / made_by[1]).exists() and made_by[2] == config, error.value
    for kind in ("dataset", "arch"):
        assert f"--{kind} {said.get(kind, '')}" in str(error.value) or kind not in said or "runs" in said
    monkeypatch.setenv("FLAGS_ONLY", "1")
    for line in str(error.value).split("; to make it: ")[1].split(" && "):
        program, script, *flags = shlex.split(line)
        assert flags[-2:] == ["--config", config]
        if program == "python":
            assert run_script(script, *flags).returncode == 0, line


def edited(path: Path, **values: object) -> dict:
    """A notebook after a user has typed other values into its parameters cell."""
    notebook = read(path)
    cell = tagged(notebook, "parameters")[0]
    for name, value in values.items():
        cell["source"], count = re.subn(
            rf"(?m)^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", cell["source"]
        )
        assert count == 1, name
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_other_data_than_there_are_is_one_line_that_says_what_is_there(path: Path, bare: Path) -> None:
    said = assigned(read(path))
    if "runs" in said:
        (bare / "sensitivity" / "res").mkdir(parents=True)
        (bare / "sensitivity" / "res" / "res7.csv").touch()
        changes, there = {"runs": [8]}, "there is res7.csv;"
    elif "datasets" in said:
        folder = bare / "results" / "private_models" / "one"
        folder.mkdir(parents=True)
        (folder / "model.pt").touch()
        settings = {"data": {"dataset": "mnist"}, "model": {"arch": "lenet5"}, "suffix": "seed_3"}
        (folder / "model.json").write_text(json.dumps({"settings": settings, "sha256": ""}))
        changes, there = {"datasets": ["cifar10"]}, "there is mnist lenet5, suffix seed_* (1 models, 0 scored"
    elif "target" in said:
        (bare / "results" / "scores").mkdir(parents=True)
        (bare / "results" / "scores" / "table_mnist_lenet5.parquet").touch()
        changes, there = {"arch": "resnet18"}, "there is table_mnist_lenet5; to make it: python score_table.py"
    else:
        write_scored_imagenet(bare / "results", 20, [3, 4])
        shutil.copytree(bare / "results" / "scores", bare / "results" / "score_dir")
        changes, there = {"ratio": "0.5"}, "there is imagenet-resnet50/0.7 (2 runs,"
    with pytest.raises(InputError) as error:
        run_cells(edited(path, config="config.json", **changes))
    assert there in str(error.value) and len(str(error.value).splitlines()) == 1
    assert error.value._render_traceback_() == [f"InputError: {error.value}"]


def test_an_edited_parameters_cell_decides_what_jupyter_shows(tmp_path: Path) -> None:
    shown = {}
    for name, runs in (("one", [0, 1, 2]), ("two", [0, 1, 2, 5])):
        folder = tmp_path / name
        write_scored_imagenet(folder, 300 + 100 * len(runs), runs)
        places = {"fz_model_dir": "fz_models", "score_dir": "scores", "imagenet_index": "imagenet_index.npz"}
        config = write_config(folder, **places)
        values = {"config": str(config), "stop_run": 6, "n_permutations": 9, "note": ""}
        notebook = edited(ROOT / "notebooks" / "analyze_imagenet_curv_fz.ipynb", **values)
        notebook["cells"] = notebook["cells"][:3]
        nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}).execute()
        shown[name] = "".join(output["text"] for output in notebook["cells"][2]["outputs"])
        assert shown[name].startswith(f"configuration: {config}\n")
    assert "3 scored models, 600 examples" in shown["one"] and "4 scored models, 700 examples" in shown["two"]


def small_notebook(*extra: dict) -> dict:
    code = nbformat.v4.new_code_cell
    asked = code(
        'dataset = "cifar10"  # which\nruns = [\n    1,\n    2,\n]\nh = 1e-3', metadata={"tags": ["parameters"]}
    )
    notebook = nbformat.v4.new_notebook(cells=[asked, *extra, code("print(dataset, runs, h)")])
    notebook["metadata"]["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook


def test_a_second_cell_of_an_older_version_is_left_out_and_values_go_into_the_first(tmp_path: Path) -> None:
    code = nbformat.v4.new_code_cell
    old = code(
        '# Parameters\ndataset = "mnist"', metadata={"tags": ["injected-parameters"], "papermill": {"duration": 1}}
    )
    path, out = tmp_path / "old.ipynb", tmp_path / "out"
    nbformat.write(small_notebook(old), path)

    def execute(path: Path, *flags: str) -> tuple[str, dict]:
        command = ["sh", "scripts/run_notebook.sh", str(path), str(out), *flags]
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stderr, read(out / path.name)

    said, made = execute(path, "-p", "h", "0.01", "-y", "runs: [_both1, 3]")
    assert len(said.splitlines()) == 1 and "old.ipynb" in said and 'dataset = "mnist"' in said
    assert not tagged(made, "injected-parameters") and "papermill" not in made["metadata"]
    source = tagged(made, "parameters")[0]["source"]
    assert source == 'dataset = "cifar10"  # which\nruns = ["_both1", 3]\nh = 0.01'
    assert made["cells"][-1]["outputs"][0]["text"] == "cifar10 ['_both1', 3] 0.01\n"
    said, again = execute(out / "old.ipynb")
    assert not said and again == made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-p", "dataste", "mnist"], "no parameter 'dataste' (value 'mnist'); there is dataset, runs, h"),
        (["-p", "runs", "1"], "parameter 'runs': '1' is not a list, such as [1]"),
        (["-p", "h", "small"], "parameter 'h': 'small' is not a number"),
        (["-y", "h: .nan"], "the value nan"),
        (["-y", "dataset: [mnist]"], "parameter 'dataset': ['mnist'] is not text"),
        (["-y", "mnist"], 'not of the form "name: value"'),
        (["-y", "a: ["], "not YAML"),
    ],
)
def test_parameters_that_would_change_nothing_or_the_kind_are_refused(flags, message, tmp_path: Path) -> None:
    path = tmp_path / "small.ipynb"
    nbformat.write(small_notebook(), path)
    with pytest.raises(InputError, match=re.escape(message)):
        execute_notebook.main([str(path), str(tmp_path), *flags])
    assert not (tmp_path / "small.html").exists()


def test_two_parameters_cells_are_refused() -> None:
    notebook = small_notebook(nbformat.v4.new_code_cell("h = 2.0", metadata={"tags": ["parameters"]}))
    with pytest.raises(InputError, match="2 cells have the tag"):
        set_parameters(notebook, {})


VALUES = {
    "text": st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Z"))),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "whole": st.integers() | st.none(),
    "flag": st.booleans(),
    "several": st.lists(st.integers() | st.text("aµ'\"\\{}") | st.none() | st.booleans(), max_size=3),
    "any": st.none() | st.integers() | st.lists(st.floats(-1, 1)),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_the_cell_assigns_what_was_given_and_keeps_the_rest(values: dict[str, object]) -> None:
    source = (
        '# µ: first\ntext = "µ # no comment"  # µ: kept\nnumber = 0.5\nwhole = 3\nflag = True\n'
        "several = [\n    1,  # gone\n    2,\n]\nany = None; other = (\n    1 + 1\n)  # kept"
    )
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    before = assigned(notebook)
    typed = {name: value if isinstance(value, str) else str(value) for name, value in values.items()}
    set_parameters(notebook, {name: (value, typed[name]) for name, value in values.items()})
    assert assigned(notebook) == before | values
    assert cell["source"].count("kept") == 2 and cell["source"].startswith("# µ: first\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_notebook_says_so_in_one_line_and_leaves_nothing(signum: signal.Signals, tmp_path: Path) -> None:
    begun, path = tmp_path / "begun", tmp_path / "slow.ipynb"
    source = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(600)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook["metadata"]["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    process = subprocess.Popen(
        ["sh", "scripts/run_notebook.sh", str(path), str(tmp_path / "out")], cwd=ROOT, env=environment,
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not begun.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    _, said = process.communicate(timeout=120)
    assert process.returncode == -signum
    lines = [line for line in said.splitlines() if line != "Terminated"]  # which is the shell's
    assert len(lines) == 1 and "stopped before the end of slow.ipynb" in said, said
    assert not list((tmp_path / "out").iterdir())


NET = """
from torch import nn

def table(num_classes, in_channels):
    return nn.Sequential(nn.Linear(in_channels, 8), nn.Tanh(), nn.Linear(8, num_classes))
"""


def test_the_first_link_of_a_table_of_ones_own(bare: Path) -> None:
    """Data by path, named on disk as everywhere; rows of a table are numbers, not images; loss beside curvature."""
    rng = np.random.default_rng(0)
    arrays = {f"{split}_x": rng.normal(size=(n, 5)) for split, n in (("train", 60), ("test", 10))}
    arrays |= {f"{split}_y": np.arange(n) % 3 for split, n in (("train", 60), ("test", 10))}
    (bare / "mine").mkdir()
    np.savez(bare / "mine" / "letters.npz", **arrays)
    (bare / "net.py").write_text(NET)
    config = write_config(bare)
    own = ("--dataset", bare / "mine" / "letters.npz", "--arch", f"{bare}/net.py:table", "--config", config)
    for command in (
        ("train_fz_models.py", *own, "--epochs", 3, "--stop_run", 6),
        ("calc_curv_fz_models.py", *own, "--n_probes", 2),
    ):
        assert run_script(*command).returncode == 0
    values = {"config": str(config), "dataset": "mine/letters.npz", "arch": "table", "values": ["prob"]}
    printed = run_cells(edited(ROOT / "notebooks" / "analyze_cifar100_curv_fz.ipynb", **values))
    assert "data set: letters\n" in printed and "letters table, ratio 0.7: 6 scored runs, 60 examples" in printed
    rows = json.loads(next((bare / "figure_dir").glob("results_link1_letters_table_0.7_ensemble.json")).read_text())
    statistics = {row["statistic"]: row for row in rows}
    assert "Spearman(mem, loss), prob" in statistics and "Spearman(mem, curvature) given loss, prob" in statistics
    assert statistics["control: membership of another run, prob"]["verdict"] == "control"
    for end in ("", "_runs", "_examples"):
        assert (bare / "figure_dir" / f"link1_letters_table{end}.png").stat().st_size > 10_000


def test_examples_are_drawn_as_what_they_are() -> None:
    import matplotlib.pyplot as plt

    drawn = {
        "gray": np.zeros((1, 4, 4)),
        "colour": np.full((3, 4, 4), -2.5),
        "row": np.arange(30.0),
        "ids": np.arange(3),
    }
    figure = plt.figure()
    for axis, example in zip(figure.subplots(1, 4), drawn.values(), strict=True):
        draw_example(axis, example)
    kinds = [(len(axis.images), len(axis.texts)) for axis in figure.axes]
    assert kinds == [(1, 0), (1, 0), (0, 1), (0, 1)]
    assert figure.axes[2].texts[0].get_text().split()[-2:] == ["11", "..."]
    figure.clear()
    draw_examples(figure, "five", np.zeros((5, 1, 4, 4)), list("abcde"), list("vwxyz"), columns=3)
    assert [axis.get_title() + axis.get_xlabel() for axis in figure.axes] == ["av", "bw", "cx", "dy", "ez", ""]
    assert [len(axis.images) * axis.axison for axis in figure.axes] == [1, 1, 1, 1, 1, 0]
    figure.clear()
    draw_examples(figure, "two", np.zeros((2, 7)), ["a", "b"])
    assert [axis.get_title() + axis.get_xlabel() for axis in figure.axes] == ["a", "b", *[""] * 8]
    plt.close(figure)


def test_paths_of_data_count_from_the_top_of_the_repository(tmp_path: Path) -> None:
    for name in ("photos", "mnist"):
        (tmp_path / name).mkdir()
    (tmp_path / "data.py").touch()
    assert data_path(tmp_path, "photos") == str(tmp_path / "photos")
    assert data_path(tmp_path, "data.py:load") == f"{tmp_path}/data.py:load"
    for as_it_is in ("mnist", "package.module:load", "/elsewhere/a.npz"):
        assert data_path(tmp_path, as_it_is) == as_it_is
