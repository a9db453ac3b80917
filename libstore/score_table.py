"""The score table: one row per example, one column per score, for one data set and network.

<score_dir>/table_<dataset>_<arch>.parquet and .csv hold the columns `example` (position in the data set's own order),
`label`, `class` where classes have names, `part`, and the scores, each with its standard error in `<score>_se` where
there is one; .json is the sidecar and says of every column what it is (docs/score_table.md). Columns are joined by the
examples' positions and by the digest of the data's content, never by row; an example without a score has an empty cell.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from libstore.errors import InputError
from libstore.recipes import in_one_line
from libstore.score_columns import Meaning
from libstore.store import Output, exclusive, file_sha256, provenance, read_sidecar, sha256, write_atomic

FORMAT = 1
"""To be raised when what a column of the table means changes."""
KEYS = ("example", "label", "class", "part")
"""Columns that are no scores."""
MAKER = "score_table.py"


@dataclass(frozen=True)
class Column:
    """A score of some examples.

    Attributes:
        name: Name of the column.
        meaning: What it says.
        examples: Positions in the data set, increasing, (N,).
        values: The score, (N,), NaN where it is undefined.
        standard_error: Of every value, (N,); None where there is none, as from one run.
        content_sha256: Digest of the data that it is about; None where that is not recorded.
        arch: Network that it is about.
        runs: What it was made of: runs, seeds or files.
        reliability: Correlation of two halves of the runs, stepped up to all of them; None where unknown.
        source: Where it was read, for messages.
        more: What else the description says of it, by key.
    """

    name: str
    meaning: Meaning
    examples: np.ndarray
    values: np.ndarray
    standard_error: np.ndarray | None
    content_sha256: str | None
    arch: str
    runs: Sequence[int | str]
    reliability: float | None
    source: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.standard_error is not None and not np.isfinite(self.standard_error).any():
            object.__setattr__(self, "standard_error", None)

    def about(self) -> dict[str, Any]:
        """Return what the table's description says of it."""
        return asdict(self.meaning) | {
            "arch": self.arch,
            "runs": list(self.runs),
            "standard_error": None if self.standard_error is None else f"{self.name}_se",
            "reliability": self.reliability,
            "examples": int(np.isfinite(self.values).sum()),
            **self.more,
        }


@dataclass(frozen=True)
class Gathered:
    """What is there for a table.

    Attributes:
        files: Digest of what the scores are made of, by name.
        missing: For every score that is not there, the recipe that makes it (`libstore.recipes`).
        work: What reads the scores; each adds to `columns`, `beside` and `missing`.
        columns: The scores, once `read` was called.
        beside: Further files to keep with the table, by how their names begin; None until `read` was called.
    """

    files: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    work: list[Callable[[], None]] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    beside: dict[str, bytes | None] = field(default_factory=dict)

    @staticmethod
    def of(parts: Iterable[Gathered]) -> Gathered:
        """Return all that several have."""
        whole = Gathered()
        for part in parts:
            whole.files.update(part.files)
            whole.missing.update(part.missing)
            whole.work.extend(part.work)
            whole.columns.extend(part.columns)
            whole.beside.update(part.beside)
        return whole

    def read(self) -> None:
        """Read the scores."""
        for one in self.work:
            one()


def check_content(columns: Iterable[Column], content_sha256: str | None, data: str) -> str | None:
    """Return the digest of the one data set that all columns are about, None if none of them says.

    Args:
        columns: The columns.
        content_sha256: Digest of the data at hand; None to go by the columns alone.
        data: What the data at hand are called, for the message.

    Raises:
        InputError: Two are of different data.
    """
    known = (content_sha256, data)
    for column in columns:
        if known[0] is None:
            known = column.content_sha256, column.source
        if column.content_sha256 not in (None, known[0]):
            raise InputError(
                f"{column.source}: {column.name} is of other data (content_sha256 {column.content_sha256}) than "
                f"{known[1]} ({known[0]}); make it again or move it away"
            )
    return known[0]


def join(columns: Sequence[Column], labels: np.ndarray, class_names: Sequence[str] = ()) -> pd.DataFrame:
    """Lay columns side by side, a row for every example that one of them has.

    Args:
        columns: The scores.
        labels: Class of every example of the data set, by position.
        class_names: What the classes are called, by label; empty where they have no names.

    Raises:
        InputError: A column has an example that the data set lacks, an example twice, or two bear one name.
    """
    for column in columns:
        if np.any(np.diff(column.examples) <= 0):
            raise InputError(f"{column.source}: {column.name}: its examples do not increase, one may be there twice")
        outside = column.examples[(column.examples < 0) | (column.examples >= len(labels))]
        if outside.size:
            raise InputError(f"{column.source}: {column.name} has example {outside[0]}, the data have {len(labels)}")
    there = np.zeros(len(labels), dtype=bool)
    for column in columns:
        there[column.examples] = True
    examples = np.flatnonzero(there)
    part = pd.Categorical.from_codes(np.zeros(len(examples), dtype=np.int8), ["train"])
    table: dict[str, Any] = {"example": examples, "label": labels[examples]}
    if class_names:
        table["class"] = pd.Categorical.from_codes(labels[examples], list(class_names))
    table["part"] = part
    for column in columns:
        rows = np.searchsorted(examples, column.examples)
        for name, values in ((column.name, column.values), (f"{column.name}_se", column.standard_error)):
            if values is None:
                continue
            if name in table:
                raise InputError(f"{column.source}: {name} is in the table already; two scores bear one name")
            whole = np.full(len(examples), np.nan)
            whole[rows] = values
            table[name] = whole
    return pd.DataFrame(table)


@dataclass(frozen=True)
class TableFiles:
    """Where a table is kept and what decides it.

    Attributes:
        score_dir: Root of the scores.
        dataset: Name of the data set on disk.
        arch: Name of the network on disk.
        settings: What decides the content; `files` are the digests of what it was made of, by name.
    """

    score_dir: Path
    dataset: str
    arch: str
    settings: Mapping[str, Any]

    @property
    def output(self) -> Output:
        """The Parquet file, whose sidecar is the table's description."""
        path = table_path(self.score_dir, self.dataset, self.arch)
        return Output(path, self.settings, FORMAT, ("files", "influence", "suffix"))

    def _beside(self, kind: str, suffix: str) -> Path:
        return self.score_dir / f"{kind}_{self.dataset}_{self.arch}{suffix}"

    def finished(self, beside: Iterable[str], *, overwrite: bool) -> bool:
        """Tell whether the table and the files beside it are there with these settings.

        Raises:
            InputError: As `Output.finished`.
        """
        output = self.output

        def wanted_before(name: str) -> bool:  # whatever another suffix names is not missed
            return read_sidecar(output.path)["settings"].get("suffix") == self.settings.get("suffix")

        if not output.finished(overwrite=overwrite, is_there=wanted_before):
            return False
        kept = read_sidecar(self.output.path)["beside"]
        wanted = {self._beside(Path(name).stem, Path(name).suffix).name for name in beside}
        paths = {self.score_dir / name: digest for name, digest in kept.items()}
        return wanted <= kept.keys() and all(p.exists() and file_sha256(p) == digest for p, digest in paths.items())

    def save(self, table: pd.DataFrame, gathered: Gathered, content_sha256: str | None) -> None:
        """Write what goes beside the table, then its description, then the table itself."""
        buffers = io.BytesIO(), io.BytesIO()
        table.to_parquet(buffers[0], index=False)
        table.to_csv(buffers[1], index=False, mode="wb")
        parquet, text = (buffer.getvalue() for buffer in buffers)
        told = {
            "dataset": self.dataset,
            "arch": self.arch,
            "data_sha256": content_sha256,
            "rows": len(table),
            "columns": {column.name: column.about() for column in gathered.columns},
            "missing": gathered.missing,
        }
        csv = self._beside("table", ".csv")
        card = _croissant(told, table, {self.output.path.name: sha256(parquet), csv.name: sha256(text)})
        files = {csv: text, csv.with_name(f"{csv.stem}_croissant.json"): (json.dumps(card, indent=2) + "\n").encode()}
        for name, content in gathered.beside.items():
            if content is not None:
                files[self._beside(Path(name).stem, Path(name).suffix)] = content
        with exclusive(self.score_dir):
            for path, content in files.items():
                write_atomic(path, content)
            beside = {path.name: sha256(content) for path, content in files.items()}
            self.output.save(parquet, provenance(), **told, beside=beside)


def table_path(score_dir: Path, dataset: str, arch: str) -> Path:
    """Return where the table of a data set and network is."""
    return score_dir / f"table_{dataset}_{arch}.parquet"


def read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table and its description.

    Raises:
        InputError: It is missing, damaged or of another format.
    """
    if not path.exists():
        raise InputError(f"{path}: no such table; {MAKER} makes it")
    about = read_sidecar(path)
    if about.get("format", 1) != FORMAT or "columns" not in about:
        raise InputError(f"{path}: not a score table of format {FORMAT}; run {MAKER} with --overwrite")
    content = path.read_bytes()
    if sha256(content) != about["sha256"]:
        raise InputError(f"{path}: the content does not match the sha256 in its sidecar; run {MAKER} again")
    return pd.read_parquet(io.BytesIO(content)), about


def tables_there(score_dir: Path) -> list[str]:
    """List the tables of a folder."""
    return sorted(path.stem for path in score_dir.glob("table_*.parquet"))


def beside_table(path: Path, name: str) -> Path | None:
    """Return a file that is kept beside a table, by how its name begins and its suffix; None if there is none."""
    found = path.with_name(f"{Path(name).stem}_{path.stem.removeprefix('table_')}{Path(name).suffix}")
    return found if found.name in read_sidecar(path)["beside"] else None


def check_ratio(about: Mapping[str, Any], ratio: str, path: Path) -> None:
    """Refuse a table of another ratio.

    Raises:
        InputError: It is.
    """
    there = about["settings"]["ratio"]
    if there != ratio:
        raise InputError(f"{path}: of ratio {there}, not {ratio}")


def check_columns(about: Mapping[str, Any], names: Iterable[str], path: Path, config: str = "") -> None:
    """Refuse scores that a table lacks, with the command that makes them, and list those it has.

    Raises:
        InputError: A name is not among the table's scores.
    """
    for name in names:
        if name not in about["columns"]:
            made_by = f"; to make it: {in_one_line(about['missing'][name], config)}" if name in about["missing"] else ""
            raise InputError(f"{path}: no column {name!r}; there are: {', '.join(about['columns'])}{made_by}")


_SCHEMA_TYPES = {"int64": "sc:Integer", "float64": "sc:Float"}
_KEY_TEXTS = {
    "example": "Position of the example in the training split, in the data set's own order, from 0.",
    "label": "Class of the example, from 0.",
    "class": "What the class is called.",
    "part": "Part of the data set that the example is in.",
}


def _croissant(about: Mapping[str, Any], table: pd.DataFrame, digests: Mapping[str, str]) -> dict[str, Any]:
    """Describe the table as JSON-LD in MLCommons' Croissant format, version 1.0."""
    texts = dict(_KEY_TEXTS)
    for name, told in about["columns"].items():
        texts[name] = f"{told['definition']} ({told['unit']}; {told['direction']}). {told['paper']}".strip()
        if told["standard_error"]:
            texts[told["standard_error"]] = f"Standard error of {name}."
    formats = {".parquet": "application/x-parquet", ".csv": "text/csv"}
    name = f"scores_{about['dataset']}_{about['arch']}"
    return {
        "@context": {
            "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/", "dct": "http://purl.org/dc/terms/",
            "conformsTo": "dct:conformsTo", "column": "cr:column", "data": {"@id": "cr:data", "@type": "@json"},
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "extract": "cr:extract", "field": "cr:field",
            "fileObject": "cr:fileObject", "recordSet": "cr:recordSet", "source": "cr:source", "key": "cr:key",
        },
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"Memorization, curvature, privacy cost and other scores of {about['rows']} training examples "
        f"of {about['dataset']} (content SHA-256 {about['data_sha256']}) under the network {about['arch']}.",
        "distribution": [
            {"@type": "cr:FileObject", "@id": file, "name": file, "contentUrl": file,
             "encodingFormat": formats[Path(file).suffix], "sha256": digest}
            for file, digest in digests.items()
        ],
        "recordSet": [{
            "@type": "cr:RecordSet", "@id": "scores", "name": "scores", "key": {"@id": "scores/example"},
            "field": [
                {"@type": "cr:Field", "@id": f"scores/{column}", "name": column, "description": texts[column],
                 "dataType": _SCHEMA_TYPES.get(str(table[column].dtype), "sc:Text"),
                 "source": {"fileObject": {"@id": next(iter(digests))}, "extract": {"column": column}}}
                for column in table.columns
            ],
        }],
    }  # fmt: skip
