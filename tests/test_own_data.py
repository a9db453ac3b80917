"""Data of the user's own: files, folders and functions, what is measured on them, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from libdata.choice import DataChoice
from libdata.datasets import Dataset, check_same_content, dataset_name, dataset_size, load_dataset, load_splits
from libdata.import_paths import load_object
from libstore.errors import InputError
from libstore.index import read_index

NOWHERE = Path("/nowhere")


def arrays(n: int = 30, shape: tuple[int, ...] = (1, 6, 6), dtype: Any = np.uint8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for split, count in (("train", n), ("test", n // 3)):
        x = (
            rng.integers(0, 256, (count, *shape))
            if np.issubdtype(dtype, np.integer)
            else rng.normal(2, 3, (count, *shape))
        )
        made |= {f"{split}_x": x.astype(dtype), f"{split}_y": np.arange(count) % 3}
    return made


def npz(folder: Path, **changes: Any) -> str:
    path = folder / "own.npz"
    np.savez(path, **{key: value for key, value in (arrays() | changes).items() if value is not None})
    return str(path)


def load(name: str, split: str = "train", **options: Any):
    return load_dataset(name, split, NOWHERE, **options)


@pytest.mark.parametrize("n", [30, 70_000])
def test_sizes_and_scales_come_from_the_data(tmp_path: Path, n: int) -> None:
    own = arrays(n, (1, 2, 3))
    name = npz(tmp_path, **own)
    assert (dataset_size(name, "train", NOWHERE), dataset_size(name, "test", NOWHERE)) == (n, n // 3)
    unit, standard = load(name), load(name, "test", normalization="standard")
    assert len(unit) == unit.split_size == n and unit.num_classes == 3 and unit.in_channels == 1
    assert unit.name == "own" and unit.images.dtype == torch.float32
    np.testing.assert_allclose(unit.images, own["train_x"] / 255, rtol=1e-6)
    pixels = own["train_x"].astype(float) / 255
    np.testing.assert_allclose(
        standard.images, (own["test_x"] / 255 - pixels.mean()) / pixels.std(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 4, 5), (0, 2, 3)), ((7,), (0,)), ((4, 5), None), ((2, 2, 2, 2), None)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floating_point_is_taken_as_it_is(tmp_path: Path, shape, axes, dtype) -> None:
    own = arrays(30, shape, dtype)
    name = npz(tmp_path, **own)
    np.testing.assert_array_equal(load(name).images, own["train_x"].astype(np.float32))
    got = load(name, "test", normalization="standard", index=np.array([4, 1])).images
    x = own["train_x"].astype(np.float64)
    want = (own["test_x"][[4, 1]] - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_a_column_that_does_not_vary_becomes_zeros(tmp_path: Path) -> None:
    own = arrays(30, (4,), np.float32)
    own["train_x"][:, 2] = own["test_x"][:, 2] = 0.3
    images = load(npz(tmp_path, **own), normalization="standard").images
    assert torch.isfinite(images).all() and images[:, 2].abs().max() < 1e-5 and images[:, 1].abs().max() > 1


@pytest.mark.parametrize(
    ("given", "laid_out"),
    [
        ((8, 9), (1, 8, 9)), ((8, 9, 3), (3, 8, 9)), ((8, 9, 1), (1, 8, 9)), ((8, 9, 4), (4, 8, 9)),
        ((3, 8, 9), (3, 8, 9)), ((1, 8, 3), (1, 8, 3)), ((13, 8, 9), (13, 8, 9)), ((5,), (5,)),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str], given, laid_out) -> None:
    own = arrays(30, given)
    data = load(npz(tmp_path, **own))
    assert tuple(data.images.shape[1:]) == laid_out
    want = own["train_x"].reshape(30, *given)
    if given[-1] in (1, 3, 4) and given[0] == 8:
        want = np.moveaxis(want, -1, 1)
    np.testing.assert_allclose(data.images, want.reshape(30, *laid_out) / 255, rtol=1e-6)
    assert ("13 channels" in capsys.readouterr().err) == (given[0] == 13)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16])
def test_token_ids_are_kept_when_asked_for(tmp_path: Path, dtype) -> None:
    own = arrays(30, (12,), dtype)
    name = npz(tmp_path, **own)
    data = load(name, tokens=True, normalization="standard")
    assert data.images.dtype == torch.int64
    np.testing.assert_array_equal(data.images, own["train_x"])
    if dtype != np.uint8:
        with pytest.raises(InputError, match=rf"own.npz: train_x holds {np.dtype(dtype)}, expected uint8"):
            load(name)
    own["train_x"] = own["train_x"].astype(np.float32)
    for wrong, mention in (
        (own["train_x"], "train_x holds float32"),
        (np.full((30, 12), -1), r"train_x is -1 at \[0, 0\]"),
    ):
        with pytest.raises(InputError, match=mention):
            load(npz(tmp_path, **own | {"train_x": wrong}), tokens=True)


def changed(key: str, place: Any, value: Any, dtype: Any = None) -> dict[str, np.ndarray]:
    array = arrays()[key].astype(dtype or arrays()[key].dtype)
    array[place] = value
    return {key: array}


FLOATS = {f"{split}_x": arrays()[f"{split}_x"].astype(np.float64) for split in ("train", "test")}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train_y": arrays()["train_y"] + 1, "test_y": arrays()["test_y"] + 1}, "train_y is 1 for example 0.*from 0"),
    (changed("train_y", 17, -1), "train_y is -1 for example 17"),
    ({"test_y": arrays()["test_y"].astype(float)}, "test_y is 0.0 for example 0, of type float64"),
    ({"train_y": np.array(["cat", "dog", "owl"] * 10)}, "train_y is 'cat' for example 0"),
    ({"train_y": np.array(["cat", "dog", "owl"] * 10, dtype=object)}, "train_y is 'cat' for example 0"),
    ({"train_y": arrays()["train_y"] > 0}, "train_y is False for example 0, of type bool"),
    ({"train_y": np.eye(3)[arrays()["train_y"]]}, r"train_y has shape \(30, 3\)"),
    ({"train_y": arrays()["train_y"][:-1]}, "train_x has 30 examples, train_y 29"),
    ({"train_y": arrays()["train_y"] * 0, "test_y": arrays()["test_y"] * 0}, "label 0 only"),
    (changed("train_y", 3, 10**9), "train_y is 1000000000 for example 3"),
    (changed("test_y", 5, 10**6), "test_y is 1000000 for example 5"),
    ({"train_x": arrays()["train_x"][:0], "train_y": arrays()["train_y"][:0]}, "train_x is empty"),
    ({"test_x": arrays()["test_x"][:0], "test_y": arrays()["test_y"][:0]}, "test_x is empty"),
    ({"train_x": np.zeros(30)}, r"train_x has shape \(30,\)"),
    ({"test_x": np.zeros((10, 1, 7, 6), np.uint8)}, r"train_x has shape \(1, 6, 6\), of test_x \(1, 7, 6\)"),
    ({"test_x": np.zeros((10, 1, 6, 6))}, "train_x has type uint8, of test_x float32"),
    (FLOATS | changed("train_x", (4, 0, 2, 1), np.nan, float), r"train_x is nan at \[4, 0, 2, 1\]"),
    (FLOATS | changed("test_x", (9, 0, 0, 0), -np.inf, float), r"test_x is -inf at \[9, 0, 0, 0\]"),
    (FLOATS | changed("train_x", (0, 0, 0, 5), 1e300, float), r"train_x is 1e\+300 at \[0, 0, 0, 5\]"),
    ({"train_x": arrays()["train_x"].astype(np.int64)}, "train_x holds int64"),
    ({"train_x": arrays()["train_x"] > 9}, "train_x holds bool"),
    ({"train_x": arrays()["train_x"].astype(complex)}, "train_x holds complex128"),
    ({"train_x": np.full((30, 4), "a")}, "train_x holds <U1"),
    ({"train_x": np.array([print] * 30, dtype=object)}, "key 'train_x': refused to unpickle|'train_x'"),
    ({"test_y": None}, "key 'test_y' is missing; it holds"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "mention"), REFUSED, ids=[mention for _, mention in REFUSED])
def test_what_is_refused_names_file_key_and_value(tmp_path: Path, changes: dict, mention: str) -> None:
    name = npz(tmp_path, **changes)
    for split in ("train", "test"):
        with pytest.raises(InputError, match=mention) as error:
            load(name, split)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_classes_without_training_examples_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = npz(tmp_path, train_y=np.where(arrays()["train_y"] == 1, 4, 0))
    assert load(name).num_classes == load(name, "test").num_classes == 5
    assert capsys.readouterr().err.count("no training example of 3 of the 5 classes (1, 2, 3)") == 1


def test_files_that_are_no_data_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    for name, mention in (
        (str(tmp_path / "text.npz"), "cannot read the arrays"),
        (str(tmp_path / "absent.npz"), "cannot read: No such file"),
        (str(tmp_path / "absent"), "unknown data set"),
        ("svhn", "unknown data set 'svhn'; known: mnist"),
    ):
        with pytest.raises(InputError, match=mention):
            load(name)


def test_image_size(tmp_path: Path) -> None:
    own = arrays()
    images = load(npz(tmp_path, **own), image_size=12).images
    want = torch.nn.functional.interpolate(torch.from_numpy(own["train_x"] / 255).float(), (12, 12), mode="bilinear")
    assert torch.allclose(images, want, atol=1e-6)
    for shape in ((9,), (4, 5)):
        with pytest.raises(InputError, match="no image that could be resized to 12 x 12"):
            load(npz(tmp_path, **arrays(30, shape, np.float32)), image_size=12)


def photos(folder: Path, size: Callable[[int], tuple[int, int]] = lambda i: (6, 5), mode: str = "RGB") -> Path:
    """Twelve training and four test images of two classes; odd ones are JPEG files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for kind in ("cat", "owl"):
            (folder / split / kind).mkdir(parents=True)
            for i in range(count):
                width, height = size(i)
                image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
                image.save(folder / split / kind / f"{i}.{'jpg' if i % 2 and mode != 'P' else 'png'}")
    return folder


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("P", 3)])
@pytest.mark.parametrize("test", ["test", "val"])
def test_class_folders(tmp_path: Path, mode: str, channels: int, test: str) -> None:
    folder = photos(tmp_path / "my photos", mode=mode)
    (folder / "test").rename(folder / test)
    assert dataset_size(str(folder), "train", NOWHERE) == 12 and dataset_size(str(folder), "test", NOWHERE) == 4
    data = load(str(folder), "test")
    assert data.name == "my_photos" and data.labels.tolist() == [0, 0, 1, 1] and data.num_classes == 2
    assert data.class_names == ("cat", "owl") and data.class_name(1) == "owl"
    assert tuple(data.images.shape) == (4, channels, 5, 6)
    files = sorted((folder / test).glob("*/*"))
    decoded = [np.asarray(Image.open(file).convert("L" if mode == "L" else "RGB")).reshape(5, 6, -1) for file in files]
    np.testing.assert_allclose(data.images, np.stack(decoded).transpose(0, 3, 1, 2) / 255, rtol=1e-6)


def test_the_first_examples_of_class_folders_are_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = photos(tmp_path / "x")
    (folder / "train/cat").rename(folder / "train/bat")
    for part in ("train", "test"):
        shutil.copytree(folder / "train/owl", folder / part / "cat", dirs_exist_ok=True)
        shutil.copytree(folder / "train/owl", folder / part / "bat", dirs_exist_ok=True)
    choice = DataChoice(str(folder))

    def splits(subset: str) -> Dataset:
        size = dataset_size(choice.dataset, "train", NOWHERE)
        return load_splits(choice, NOWHERE, read_index(subset, size))[0]

    with pytest.raises(InputError, match=r"the 6 examples of the study hold 1 of 3 classes of x; .* spread:N"):
        splits("6")
    assert splits("spread:6").labels.tolist() == [0, 0, 1, 1, 2, 2] and not capsys.readouterr().err
    assert splits("9").labels.unique().tolist() == [0, 1] and "hold 2 of 3 classes" in capsys.readouterr().err


def test_class_folders_with_grey_among_colour_are_colour(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x")
    Image.open(folder / "train/owl/2.png").convert("L").save(folder / "train/owl/2.png")
    images = load(str(folder)).images
    assert (
        images.shape[1] == 3 and torch.equal(images[8, 0], images[8, 1]) and not torch.equal(images[9, 0], images[9, 1])
    )


def test_mixed_sizes_need_an_image_size(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x", size=lambda i: (40 + i, 30))
    with pytest.raises(InputError, match=r"1\.jpg: 41 x 30 pixels, but .*0\.png has 40 x 30; .*image size"):
        load(str(folder))
    assert tuple(load(str(folder), image_size=16).images.shape) == (12, 3, 16, 16)
    assert load(str(folder), image_size=16).content_sha256 == load(str(folder), image_size=8).content_sha256


def test_class_folders_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(damage: Callable[[Path], Any], mention: str) -> None:
        folder = tmp_path / "x"
        shutil.rmtree(folder, ignore_errors=True)
        damage(photos(folder))
        with pytest.raises(InputError, match=mention) as error:
            load(str(folder))
        assert "\n" not in str(error.value)

    refuse(lambda f: shutil.rmtree(f / "test"), "x/test: no such folder; .*val")
    refuse(lambda f: (f / "test/dog").mkdir(), "test/dog: a class that .*train does not have")
    refuse(lambda f: (f / "train/dog").mkdir(), "train/dog: holds no images")
    refuse(lambda f: (f / "train/owl/2.png").write_bytes(b"text"), "owl/2.png: not an image, or a damaged one$")
    refuse(lambda f: (f / "train/owl/1.jpg").write_bytes(b"\xff\xd8\xff"), "owl/1.jpg: not an image")
    refuse(
        lambda f: (f / "train/owl/1.jpg").write_bytes((f / "train/owl/1.jpg").read_bytes()[:-20]),
        "owl/1.jpg: the image",
    )
    deep = Image.fromarray(np.zeros((5, 6), np.uint16))
    refuse(lambda f: deep.save(f / "train/owl/2.png"), "owl/2.png: its pixels are I;16")
    folder = photos(tmp_path / "y")
    (folder / "train/cat/labels.txt").write_text("")
    (folder / "train/cat/.hidden").write_text("")
    (folder / ".git").mkdir()
    assert len(load(str(folder))) == 12
    assert "1 files are not images and left out" in capsys.readouterr().err


SOURCE = """
import numpy as np, torch
from torch.utils.data import Dataset, TensorDataset, IterableDataset
import helper_of_mine
calls = 0
rng = np.random.default_rng(0)
train = rng.integers(0, 256, (30, 1, 6, 6), dtype=np.uint8), np.arange(30) % 3
test = rng.integers(0, 256, (10, 1, 6, 6), dtype=np.uint8), np.arange(10) % 3
def four():
    global calls
    calls += 1
    return (*train, *test)
def lists(): return [a.tolist() if a.ndim == 1 else torch.from_numpy(a) for a in (*train, *test)]
def named(): return dict(zip(("train_x", "train_y", "test_x", "test_y"), four()))
def pairs(): return train, test
def sets(): return [TensorDataset(*map(torch.from_numpy, part)) for part in (train, test)]
class Images(Dataset):
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        from PIL import Image
        return Image.fromarray(self.x[i, 0]), int(self.y[i])
def pil(): return Images(*train), Images(*test)
class Folder(Images):
    samples = [("cat/7.jpg", 0)]
    def __getitem__(self, i): raise OSError("image file is truncated")
def broken(): return Folder(*train), Images(*test)
class Holder:
    @staticmethod
    def inside(): return four()
def three(): return train + (1,)
def none(): return None
def fails(): raise KeyError("what\\na mess")
def leaves(): raise SystemExit("no data here")
def needs(path): return four()
def ragged(): return [[1], [2, 3]], train[1], *test
def mixed():
    x = list(train[0]); x[7] = x[7][:, :5]
    return list(zip(x, train[1])), list(zip(*test))
class Endless(IterableDataset):
    def __iter__(self): return iter(())
def stream(): return Endless(), Endless()
def loose(): return [(train[0][0],)] * 3, sets()[1]
data = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current directory, which imports another from there."""
    (tmp_path / "data_of_mine.py").write_text(SOURCE)
    (tmp_path / "helper_of_mine.py").write_text("")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "imports.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if "of_mine" in name or name in ("broken", "imports")]:
        del sys.modules[name]


@pytest.mark.parametrize("function", ["four", "lists", "named", "pairs", "sets", "pil", "Holder.inside"])
@pytest.mark.parametrize("where", ["data_of_mine", "data_of_mine.py", "{at}/data_of_mine.py"])
def test_functions(module: Path, tmp_path: Path, where: str, function: str) -> None:
    text = f"{where.format(at=module)}:{function}"
    data, test = load(text), load(text, "test", index=np.array([3, 1]))
    reference = npz(tmp_path, **load_object(f"{module}/data_of_mine.py:named")[0]())
    assert torch.equal(data.images, load(reference).images) and torch.equal(data.labels, load(reference).labels)
    assert torch.equal(test.images, load(reference, "test").images[[3, 1]])
    assert dataset_size(text, "train", NOWHERE) == 30 and dataset_size(text, "test", NOWHERE) == 10
    assert data.name == function.split(".")[-1]
    assert data.content_sha256 == test.content_sha256 == load(reference).content_sha256


def test_a_function_is_called_once_and_an_edited_file_is_read_again(module: Path) -> None:
    text = "data_of_mine.py:four"
    first = load(text)
    load(text, "test"), dataset_size(text, "train", NOWHERE)
    assert load_object("data_of_mine.py:calls")[0] == 1
    (module / "data_of_mine.py").write_text(SOURCE.replace("default_rng(0)", "default_rng(1)"))
    assert load(text).content_sha256 != first.content_sha256


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("data_of_mine:absent", "has no 'absent'; it has .*four"),
        ("data_of_mine.py:Holder.absent", "has no 'absent'; it has inside"),
        ("nowhere_at_all:f", "cannot import nowhere_at_all: ModuleNotFoundError"),
        ("nowhere.py:f", "cannot read nowhere.py: No such file"),
        ("broken:f", "cannot import broken: SyntaxError"),
        ("broken.py:f", "cannot import broken.py: SyntaxError"),
        ("imports.py:f", "cannot import imports.py: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("data_of_mine:data", "a int, which cannot be called"),
        ("data_of_mine:three", "returned a tuple of 3; expected the arrays train_x"),
        ("data_of_mine:none", "returned None"),
        ("data_of_mine:fails", r"it raised KeyError: 'what\\na mess'"),
        ("data_of_mine:leaves", "it raised SystemExit: no data here"),
        ("data_of_mine:needs", "it raised TypeError: needs.. missing 1 required"),
        ("data_of_mine:broken", "train example 0, cat/7.jpg: it raised OSError: image file is truncated"),
        ("data_of_mine:ragged", "train_x is no array"),
        ("data_of_mine:mixed", r"train example 7 has shape \(1, 5, 6\)|train example 7 has shape"),
        ("data_of_mine:stream", "Endless, which has no length"),
        ("data_of_mine:loose", "train example 0 is a tuple of 1, expected an input and a label"),
    ],
)
def test_functions_that_do_not_serve_are_refused_in_one_line(module: Path, text: str, mention: str) -> None:
    with pytest.raises(InputError, match=mention) as error:
        load(text)
    assert text.split(":")[1] in str(error.value) and "\n" not in str(error.value)


def test_names_on_disk(tmp_path: Path, module: Path) -> None:
    own = npz(tmp_path)
    assert dataset_name("mnist") == "mnist" and dataset_name(own) == "own" and dataset_name(own, "mine") == "mine"
    shutil.copy(own, tmp_path / "äö my data (2).npz")
    assert dataset_name(str(tmp_path / "äö my data (2).npz")) == "_my_data_2_"
    assert load(own, name_on_disk="mine").identity()["dataset"] == "mine"
    shutil.copy(own, tmp_path / "mnist.npz")
    for name, override, mention in (
        (str(tmp_path / "mnist.npz"), None, "'mnist' is the name of a built-in data set"),
        (own, "cifar100", "'cifar100' is the name of a built-in"),
        (own, "a/b", "data set name 'a/b'"),
        (own, "..", "data set name '..'"),
        ("mnist", "fashionmnist", "'fashionmnist' is the name"),
    ):
        with pytest.raises(InputError, match=re.escape(mention)):
            dataset_name(name, override)


def test_any_change_of_the_content_changes_the_identity(tmp_path: Path) -> None:
    """Of pixels, labels or order, in either split, under the same file name and positions."""
    own = arrays()
    index = np.array([0, 1])
    before = load(npz(tmp_path, **own), index=index)
    assert before.identity() == load(npz(tmp_path, **own), index=index).identity()
    order = np.random.default_rng(1).permutation(30)
    for key, change in {
        "train_x": own["train_x"][order],
        "train_y": own["train_y"][::-1],
        "test_x": own["test_x"] ^ 1,
        "test_y": own["test_y"][::-1],
    }.items():
        after = load(npz(tmp_path, **own | {key: change}), index=index)
        differing = {name for name, value in before.identity().items() if after.identity()[name] != value}
        assert differing == {"content_sha256"}, key
        with pytest.raises(InputError, match="results: made on other data .*put the data back, or train again"):
            check_same_content(after, json.loads(json.dumps(before.identity())), "results")
    old = {key: value for key, value in before.identity().items() if key != "content_sha256"}
    with pytest.raises(InputError, match="results: made without a record of its data's content.*train again"):
        check_same_content(before, old, "results")


def test_any_change_of_a_folder_changes_the_identity(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x")
    before = load(str(folder)).content_sha256
    Image.new("RGB", (6, 5)).save(folder / "test/owl/0.png")
    after = load(str(folder)).content_sha256
    shutil.move(folder / "train/owl/0.png", folder / "train/cat/00.png")
    assert len({before, after, load(str(folder)).content_sha256}) == 3
