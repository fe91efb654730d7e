"""Tables from JSONL, JSON, CSV, TSV and Parquet files: their columns and numbered rows, nothing interpreted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hneurons.errors import QuestionsError
from hneurons.extras import need

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Kinds of files by suffix; a file with any other suffix is read as JSONL."""

Select = Callable[[tuple[str, ...]], Collection[str]]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file."""

    columns: tuple[str, ...]
    """Every column of the file, in its order; of JSON objects, in the order they first appear."""
    rows: tuple[tuple[int, Any], ...]
    """Line number in JSONL; row number, the header line counted, in CSV and TSV; position from 1 elsewhere. Then the
    row, a dict wherever the file is sound."""


def read_table(path: Path, wanted: Select = lambda columns: columns) -> Table:
    """The table of the file; of Parquet, whose columns can be huge, the rows have only those `wanted` of them all.

    Raises:
        QuestionsError: the file can't be read as what its suffix says; names the line where there is one.
        MissingExtraError: a Parquet file, and pyarrow isn't installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, wanted)
    if suffix in _DELIMITERS:
        return _separated(path, _text(path, newline=""), _DELIMITERS[suffix])
    text = _text(path)
    rows = tuple(_json(path, text) if suffix == ".json" else _lines(path, text))
    columns = {column: None for _, row in rows if isinstance(row, dict) for column in cast("dict[str, Any]", row)}
    return Table(tuple(columns), rows)


def _text(path: Path, newline: str | None = None) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionsError(f"Can't read {path} ({error}).", "Give a readable UTF-8 file.") from error


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise QuestionsError(
                    f"{path}, line {number} is not JSON ({error}).", "Mend or delete that line."
                ) from error


def _json(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QuestionsError(f"{path} is not JSON ({error}).", "Give a JSON list or use .jsonl.") from error
    if isinstance(content, dict):
        lists = [value for value in cast("dict[str, Any]", content).values() if _is_rows(value)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list):
        raise QuestionsError(
            f"{path} is not a JSON list, nor an object with one list of objects in it.",
            "Give a list of objects, one a question, or use .jsonl.",
        )
    yield from enumerate(cast("list[Any]", content), 1)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in cast("list[Any]", value))


def _separated(path: Path, text: str, delimiter: str) -> Table:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Any]] = []
    try:
        columns = tuple(reader.fieldnames or ())
        _refuse_twins(path, columns)
        for number, row in enumerate(reader, 2):
            # Without this, an unquoted comma in a question would make the rest of it the answer.
            if None in row:
                raise QuestionsError(
                    f"{path}, row {number} has more cells than the header has columns.",
                    "Put texts that hold the delimiter in double quotes.",
                )
            rows.append((number, row))
    except csv.Error as error:
        kind = path.suffix[1:].upper()
        raise QuestionsError(
            f"{path}, line {reader.reader.line_num} is not usable as {kind} ({error}).", "Mend it, or use .jsonl."
        ) from error
    return Table(columns, tuple(rows))


def _parquet(path: Path, wanted: Select) -> Table:
    arrow = need("pyarrow", "data")
    parquet = need("pyarrow.parquet", "data")
    try:
        with parquet.ParquetFile(path) as file:
            columns = tuple(str(name) for name in file.schema_arrow.names)
            _refuse_twins(path, columns)
            kept = wanted(columns)
            rows = file.read(columns=[name for name in columns if name in kept]).to_pylist()
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise QuestionsError(f"Can't read {path} as Parquet ({error}).", "Give a readable file.") from error
    return Table(columns, tuple(enumerate(rows, 1)))


def _refuse_twins(path: Path, columns: tuple[str, ...]) -> None:
    twins = sorted({name for name in columns if columns.count(name) > 1})
    if twins:
        raise QuestionsError(f"{path} has more than one column {twins[0]!r}.", "Give every column its own name.")
