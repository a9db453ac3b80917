"""Conversion of Feldman-Zhang checkpoints, against dm-sonnet's own networks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script

from libmodels import tf_checkpoint
from libmodels.checkpoints import load_model
from libmodels.tf_checkpoint import convert, converted, find_checkpoint, identify, read_variables
from libstore.errors import InputError
from libstore.store import read_sidecar

RUNS = {
    "small_inception": "small_inception",
    "resnet50_v1": "fz_models/imagenet-resnet50/0.7/1",
    "resnet50_v2": "resnet50_v2",
}


@pytest.fixture(scope="module")
def variables(released):
    return {name: read_variables(find_checkpoint(released / run)) for name, run in RUNS.items()}


@pytest.fixture
def inception(variables):
    """SmallInception's variables in a dictionary that a test may change, and what they are."""
    arrays = dict(variables["small_inception"])
    return arrays, identify(arrays, Path("run"))


@pytest.mark.parametrize("name", RUNS)
def test_logits_equal_sonnets(released, variables, name):
    arrays, run = variables[name], released / RUNS[name]
    spec = identify(arrays, run)
    model = convert(arrays, spec, run)
    sizes = sorted(run.glob("inputs_*.npy"))
    assert len(sizes) == 2  # an even and an odd size, which "SAME" pads differently
    for path in sizes:
        images = torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)
        expected = np.load(path.with_name(path.name.replace("inputs", "logits")))
        assert expected.std() > 0.1
        with torch.no_grad():
            np.testing.assert_allclose(model(images).numpy(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_the_checkpoints_hold_training_leftovers(variables, name):
    """Otherwise the parity above would not tell the debiased average from the running sum."""
    arrays = variables[name]
    counters = [value for path, value in arrays.items() if path.endswith("/_counter")]
    assert counters and all(value == 3 for value in counters)
    for path in (path for path in arrays if path.endswith("/average")):
        assert not np.allclose(arrays[path], arrays[path.replace("average", "_hidden")])


def test_every_variable_is_used_and_every_tensor_filled(variables):
    for name, arrays in variables.items():
        spec = identify(arrays, Path(name))
        state = convert(arrays, spec, Path(name)).state_dict()
        used = [path for path in arrays if path.startswith("model/")]
        hidden = sum(path.endswith("/_hidden") for path in used)
        counters = sum(path.endswith("/_counter") for path in used)
        assert len(used) == len(state) + hidden + counters // 2  # mean and variance share one counter in PyTorch
        drawn_again = spec.build().state_dict()
        assert not [key for key, value in state.items() if torch.equal(value, drawn_again[key])]


def test_the_parameters_are_the_published_networks(variables):
    counts = {}
    for name, arrays in variables.items():
        spec = identify(arrays, Path(name))
        counts[name] = sum(value.numel() for value in convert(arrays, spec, Path(name)).parameters())
        assert spec.in_channels == 3
    # ResNet-50: torchvision's resnet50 has 25,557,032 parameters, whichever convolution has the stride.
    assert counts["resnet50_v1"] == 25_557_032
    assert identify(variables["small_inception"], Path("run")).dataset == "cifar100"
    assert identify(variables["resnet50_v2"], Path("run")).options == {"resnet_version": "v2"}


def test_command_line_converts_once_and_needs_no_tensorflow_afterwards(released, tmp_path, monkeypatch, capsys):
    target = tmp_path / "kept" / "run.pt"
    tf_checkpoint.main([str(released / "small_inception"), str(target)])
    assert "small_inception for cifar100" in capsys.readouterr().out
    assert set(read_sidecar(target)["settings"]["source"]) == {"ckpt-160.index", "ckpt-160.data-00000-of-00001"}
    before = target.read_bytes()

    monkeypatch.delattr(tf_checkpoint, "read_variables")
    tf_checkpoint.main([str(released / "small_inception"), str(target)])
    assert target.read_bytes() == before
    images = torch.from_numpy(np.load(released / "small_inception" / "inputs_32.npy")).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = load_model(target)[0](images).numpy()
    np.testing.assert_allclose(logits, np.load(released / "small_inception" / "logits_32.npy"), atol=1e-4, rtol=0)


def test_another_source_is_refused_by_the_command_and_converted_by_the_cache(
    released, variables, tmp_path, monkeypatch
):
    monkeypatch.setattr(tf_checkpoint, "read_variables", lambda prefix: variables["small_inception"])
    run, target = tmp_path / "run", tmp_path / "run.pt"
    shutil.copytree(released / "small_inception" / "checkpoints", run / "checkpoints")
    converted(run, target, keep=True)
    first = target.read_bytes()
    data = run / "checkpoints" / "ckpt-160.data-00000-of-00001"
    data.write_bytes(data.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"run\.pt: made with other settings"):
        converted(run, target, keep=True, overwrite=False)
    assert target.read_bytes() == first
    sidecar = read_sidecar(target)
    converted(run, target, keep=True)
    assert read_sidecar(target)["settings"] != sidecar["settings"]
    converted(run, tmp_path / "dropped.pt", keep=False)
    assert not (tmp_path / "dropped.pt").exists()


def test_missing_tensorflow_is_told(released, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no tensorflow here')\n")
    result = run_script(
        "-m", "libmodels.tf_checkpoint", released / "small_inception", tmp_path / "x.pt", PYTHONPATH=str(tmp_path)
    )
    assert_refused(result, "ckpt-160: cannot convert, TensorFlow does not run here", "no tensorflow here")
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("tensorflow", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"TensorFlow was ended by SIGKILL \(too little memory\?\)"),
        ("raise SystemExit(1)", r"TensorFlow does not run here \(it ended without a word\)"),
    ],
)
def test_a_process_that_fails_is_told_with_the_checkpoint(tmp_path, monkeypatch, tensorflow, message):
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=f"ckpt-160: cannot convert, {message}"):
        read_variables(tmp_path / "ckpt-160")


def test_names_of_a_checkpoint_name_no_member_and_what_it_prints_is_no_answer(tmp_path, monkeypatch):
    """A module in TensorFlow's place, so that variables may be called anything."""
    (tmp_path / "tensorflow.py").write_text(
        """import os, types
print("hello")
values = {"../x": 1, "names": 2, "array_0": 3, "": 4, "a/.ATTRIBUTES/VARIABLE_VALUE": 5}
values["_CHECKPOINTABLE_OBJECT_GRAPH"] = b""
assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
reader = types.SimpleNamespace(get_variable_to_shape_map=lambda: values, get_tensor=values.get)
train = types.SimpleNamespace(load_checkpoint=lambda prefix: reader)
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert read_variables(tmp_path / "ckpt-1") == {"../x": 1, "names": 2, "array_0": 3, "": 4, "a": 5}


def test_none_several_and_half_checkpoints_are_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with pytest.raises(InputError, match=r"checkpoints: expected one checkpoint, found no ckpt-\*\.index"):
        find_checkpoint(tmp_path)
    (folder / "ckpt-1.index").touch()
    with pytest.raises(InputError, match=r"ckpt-1\.data-00000-of-00001: missing"):
        find_checkpoint(tmp_path)
    (folder / "ckpt-1.data-00000-of-00001").touch()
    assert find_checkpoint(tmp_path) == folder / "ckpt-1"
    (folder / "ckpt-2.index").touch()
    with pytest.raises(InputError, match=r"2 TensorFlow checkpoints \(ckpt-1\.index, ckpt-2\.index\)"):
        find_checkpoint(tmp_path)


def test_damaged_checkpoint_is_refused(released, tmp_path):
    shutil.copytree(released / "small_inception" / "checkpoints", tmp_path / "checkpoints")
    data = tmp_path / "checkpoints" / "ckpt-160.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError, match="ckpt-160: TensorFlow cannot read the checkpoint"):
        read_variables(tmp_path / "checkpoints" / "ckpt-160")


@pytest.mark.parametrize(
    "name",
    [
        "model/stage2/_body/3/conv3x3/bn/moving_variance/average",
        "model/conv1/conv/w",
        "model/stage1/_downsample/bn/scale",
    ],
)
def test_missing_variable_is_named(inception, name):
    arrays, spec = inception
    del arrays[name]
    with pytest.raises(InputError, match=f"run: variable '{name}' is missing"):
        convert(arrays, spec, Path("run"))


def test_missing_variables_that_identify_are_named():
    weights = {"model/stage1/_body/0/conv1x1/conv/w": np.zeros((1, 1, 96, 32))}
    with pytest.raises(InputError, match="'model/conv1/conv/w' is missing"):
        identify(weights, Path("run"))
    with pytest.raises(InputError, match="neither SmallInception nor ResNet50; it holds other"):
        identify({"other": np.zeros(1)}, Path("run"))


@pytest.mark.parametrize(
    "name", ["model/_pred/w", "model/stage3/_body/1/conv1x1/conv/w", "model/conv1/bn/moving_mean/_hidden"]
)
def test_other_shape_is_named(inception, name):
    arrays, spec = inception
    arrays[name] = arrays[name][..., :-1]
    with pytest.raises(InputError, match=f"variable '{name}' has shape"):
        convert(arrays, spec, Path("run"))


def test_other_number_of_classes_is_refused(inception):
    arrays, _ = inception
    arrays["model/_pred/b"] = np.zeros(7)
    with pytest.raises(InputError, match="small_inception with 7 classes"):
        identify(arrays, Path("run"))


def test_leftovers_of_the_model_are_named_and_refused(inception):
    arrays, spec = inception
    arrays["model/stage4/conv/w"] = np.zeros(1)
    with pytest.raises(InputError, match="no place for 1 variables: model/stage4/conv/w"):
        convert(arrays, spec, Path("run"))


def test_leftovers_outside_the_model_are_named(released, variables, tmp_path, capsys, monkeypatch):
    more = variables["small_inception"] | {"optimizer/momentum": np.zeros(3)}
    monkeypatch.setattr(tf_checkpoint, "read_variables", lambda prefix: more)
    converted(released / "small_inception", tmp_path / "run.pt", keep=True)
    assert "left out: optimizer/momentum" in capsys.readouterr().err
    assert read_sidecar(tmp_path / "run.pt")["provenance"]["left_out"] == ["optimizer/momentum"]
