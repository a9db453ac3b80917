"""The restricted reader of released .npz files."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest

from libstore.errors import InputError
from libstore.safe_pickle import load_npz


def write_member(path, array_header, payload):
    """An .npz file with one member: the header of an array and any bytes after it."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("key.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, array_header)
        member.write(payload)


def header(shape, dtype="|O"):
    return {"descr": dtype, "fortran_order": False, "shape": shape}


@pytest.mark.parametrize(
    "array",
    [
        np.array([b"n01440764_10.JPEG", b"other"], dtype=object),
        np.array(["text", "é"], dtype=object),
        np.array([[b"a", "b"]], dtype=object),
        np.arange(5, dtype=np.int64),
        np.linspace(0, 1, 4, dtype=np.float32),
        np.array([b"fixed", b"width"]),
        np.array([], dtype=object),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numbers_bytes_and_strings_are_read(tmp_path, array, save):
    save(tmp_path / "a.npz", key=array, other=np.array([{}], dtype=object))
    read = load_npz(tmp_path / "a.npz", ["key"])["key"]
    assert read.dtype == array.dtype and read.tolist() == array.tolist()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_that_numpy_has_written_under_python_3(tmp_path, protocol):
    array = np.array(["a", "b"], dtype=object)
    write_member(tmp_path / "a.npz", header((2,)), pickle.dumps(array, protocol))
    assert load_npz(tmp_path / "a.npz", ["key"])["key"].tolist() == ["a", "b"]


class Touch:
    """Runs code when unpickled freely."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda x: np.array([x], dtype=object), lambda x: x, lambda x: [x]])
def test_code_is_refused_and_not_run(tmp_path, wrap):
    write_member(tmp_path / "a.npz", header((1,)), pickle.dumps(wrap(Touch(tmp_path / "made"))))
    with pytest.raises(InputError, match=r"a\.npz: key 'key': refused to unpickle: it asks for posix\.mkdir"):
        load_npz(tmp_path / "a.npz", ["key"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [1, None, 1.5, [b"a"], {"a": 1}, np.arange(2), np.str_("a")])
def test_other_objects_are_refused(tmp_path, value):
    array = np.empty(2, dtype=object)
    array[0], array[1] = b"fine", value
    np.savez(tmp_path / "a.npz", key=array)
    with pytest.raises(InputError, match=rf"key 'key' holds a {type(value).__name__}; only numbers, bytes and strings"):
        load_npz(tmp_path / "a.npz", ["key"])


@pytest.mark.parametrize("content", [[b"a", b"b"], np.array([b"a"], dtype=object), np.array([b"a", b"b"])])
def test_a_header_that_announces_another_array(tmp_path, content):
    write_member(tmp_path / "a.npz", header((2,)), pickle.dumps(content))
    with pytest.raises(InputError, match="does not hold the array that its header announces"):
        load_npz(tmp_path / "a.npz", ["key"])


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="cannot read the arrays"):
        load_npz(path, ["key"])
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="cannot read the arrays: File is not a zip file"):
        load_npz(path, ["key"])
    np.savez(path, other=np.arange(3))
    with pytest.raises(InputError, match="key 'key' is missing; it holds other"):
        load_npz(path, ["key"])
    write_member(path, header((2,)), b"")
    with pytest.raises(InputError, match="key 'key': refused to unpickle"):
        load_npz(path, ["key"])
    write_member(path, header((10**6,), "<f8"), b"12345678")
    with pytest.raises(InputError, match="key 'key' is not an array"):
        load_npz(path, ["key"])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("key.npy", b"nothing of NumPy")
    with pytest.raises(InputError, match="key 'key' is not an array"):
        load_npz(path, ["key"])
