"""Tables as people have them: separated by commas, semicolons, tabs or bars, packed, and in any Unicode encoding."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from libstore.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_SEPARATORS = ",;\t|"
_DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)")
_SAMPLED_ROWS = 100


@dataclass(frozen=True)
class TextTable:
    """How a file is read.

    Attributes:
        path: The file.
        names: Names of its columns without blanks around them; "" for columns without a name, which are not read.
        encoding: Of its text.
        separator: Between fields.
        decimal: "." or ",".
        lines: Lines before the first row of values.
    """

    path: Path
    names: list[str]
    encoding: str
    separator: str
    decimal: str
    lines: int

    def frame(self, columns: Collection[str], text: Collection[str] = ()) -> pd.DataFrame:
        """Return some columns, those of `text` as categories; the index counts the file's lines from 1.

        Raises:
            InputError: The file cannot be read to its end, or holds no rows.
        """
        import pandas as pd

        named = [name or f"without a name {position}" for position, name in enumerate(self.names)]
        with _readable(self.path), _open(self.path, self.encoding) as file:
            table = pd.read_csv(
                file, sep=self.separator, decimal=self.decimal, header=None, names=named, skiprows=self.lines,
                usecols=list(columns), dtype=dict.fromkeys(text, "category"), index_col=False, skipinitialspace=True,
            )  # fmt: skip
        table.index += self.lines + 1
        table = table.dropna(how="all")
        if table.empty:
            raise InputError(f"{self.path}: holds no rows")
        return table

    def rows(self) -> Iterator[list[str]]:
        """Return the fields of all columns that have a name, row by row, as written but for decimal commas.

        Raises:
            InputError: The file cannot be read to its end, or a row has more or fewer fields than the header.
        """
        wanted = [position for position, name in enumerate(self.names) if name]
        with _readable(self.path), _open(self.path, self.encoding) as file:
            reader = csv.reader(islice(file, self.lines, None), delimiter=self.separator, skipinitialspace=True)
            for row in reader:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(self.names):
                    line = self.lines + reader.line_num
                    raise InputError(f"{self.path}: row {line} has {len(row)} fields, the header {len(self.names)}")
                fields = [row[position].strip() for position in wanted]
                if self.decimal == ",":
                    fields = [_DECIMAL_COMMA.sub(r"\1.\2", field) if _is_decimal(field) else field for field in fields]
                yield fields


def open_table(path: str | Path) -> TextTable:
    """Find out how a file is to be read, from its first lines.

    Raises:
        InputError: It is no text, has no header, or names a column twice.
    """
    path = Path(path)
    with _readable(path):
        encoding = _encoding(path)
        with _open(path, encoding) as file:
            lines = 0
            for line in file:
                lines += 1
                if line.strip():
                    break
            else:
                raise InputError(f"{path}: cannot read as CSV: it is empty")
            announced = re.fullmatch(r"sep=(.)", line.strip(), re.IGNORECASE)  # as Excel has it
            if announced:
                line, lines = file.readline(), lines + 1
            separators = announced[1] if announced else _SEPARATORS
            separator = max(separators, key=lambda mark: len(_fields(line, mark)))
            names = [" ".join(name.split()) for name in _fields(line, separator)]
            sample = list(islice(csv.reader(file, delimiter=separator, skipinitialspace=True), _SAMPLED_ROWS))
    names = ["" if re.fullmatch(r"Unnamed: \d+", name) else name for name in names]
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: the column {repeated[0]!r} is there twice")
    rows = [row for row in sample if any(map(str.strip, row))]
    if rows and len(rows[0]) == len(names) + 1 and all(row[-1] == "" for row in rows):
        names.append("")
    if rows and len(rows[0]) != len(names):
        raise InputError(f"{path}: its rows have {len(rows[0])} fields, its header {len(names)}")
    comma = separator != "," and any(_is_decimal(field.strip()) for row in rows for field in row)
    return TextTable(path, names, encoding, separator, "," if comma else ".", lines)


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True))


def _is_decimal(field: str) -> bool:
    return _DECIMAL_COMMA.fullmatch(field) is not None


def _encoding(path: Path) -> str:
    with _unpacked(path) as file:
        head = file.read(64)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if head.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: a zip archive or an Excel workbook, not text; save the table as CSV")
    if head[1:2] == b"\0" or head[:1] == b"\0":
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    return "utf-8"


def _unpacked(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(6)
    for magic, unpack in _PACKED.items():
        if head.startswith(magic):
            return unpack(path, "rb")
    return open(path, "rb")


def _open(path: Path, encoding: str) -> TextIO:
    return io.TextIOWrapper(_unpacked(path), encoding=encoding, newline="")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, csv.Error) as error:  # pandas raises the third
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot read as CSV: {reason}") from error
