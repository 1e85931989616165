"""An index of the records in one Parquet file, ``<results>/.records.parquet``, so that many are read at once.

The JSON files are the only truth. The index keeps what each said when it was last read and found valid, field
by field as JSON text, and the file's stamp of that moment: inode, size, and the times of its last changes to
the nanosecond. A file with another stamp is read again. An index of other code, or one that is damaged, is
not believed; where none can be written, the JSON files are read each time.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydantic
from pyarrow import parquet

from lpslim import config, recipe, records, schema, store, strict
from lpslim.records import Record

NAME = ".records.parquet"
DERIVED = ("settings", "epochs")
FIELDS = (*(each.name for each in fields(Record)), *DERIVED)
# Tables need these of every record; the others are long, and looked at in one record of many
AT_ONCE = ("experiment", "key", "seed", "differs", "stages", "data", "cost", "accuracy", "versions",
           "diverged", "schema", *DERIVED)  # fmt: skip
KINDS = {"experiment": str, "key": str, "seed": int, "schema": int}  # of the others: dict
STAMP = ("inode", "size", "modified", "changed")
TEXT = pa.dictionary(pa.int32(), pa.string())  # most texts are those of other records too
SHAPE = pa.schema([pa.field("path", pa.string(), nullable=False),
                   *(pa.field(name, pa.int64(), nullable=False) for name in STAMP),
                   *(pa.field(name, TEXT, nullable=False) for name in FIELDS)])  # fmt: skip
UNSETTLED = 2_000_000_000  # nanoseconds: a file so young may change again within one tick of its clock
WORTH = 50  # until one in so many is new, reading those again costs less than writing the whole index
BROKEN = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, RecursionError)
LARGEST = 2**30  # bytes of the texts of one field: beyond, pyarrow would write each of them out
CHUNK = 10_000  # records whose texts are in memory at once
CODE = b"lpslim"
Stamp = tuple[int, int, int, int]
NEVER: Stamp = (0, 0, 0, 0)  # of a file that cannot be told from what it may become


def read_all(results: Path) -> list[Record]:
    """Read every record below ``results``, in the order of their paths, as :func:`lpslim.records.read_all`.

    Files that the index does not know as they are now are read and checked, and the index is renewed once
    these are a fiftieth of all.

    Raises:
        UserError: a file is no record.
    """
    now = _stamps(results / "records")
    known = _Known(results)
    fresh: dict[str, Record] = {}
    try:
        for path in (path for path, stamp in now.items() if not known.has(path, stamp)):
            fresh[path] = records.read(results / "records" / path)
    finally:  # where one is no record, those before it need not be read again
        known.renew(now, fresh)
    return [fresh[path] if path in fresh else known.records[path] for path in now]


def _stamps(folder: Path) -> dict[str, Stamp]:
    """Return path below ``folder`` -> stamp, in the order of the paths' parts."""
    settled = time.time_ns() - UNSETTLED
    found = {}
    for path, entry in _files(folder, ""):
        found[path] = NEVER
        with suppress(OSError):  # reading it will say why
            s = entry.stat()
            if s.st_ctime_ns < settled:
                found[path] = s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns
    return found


def _files(folder: Path | str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # as Path.rglob
    for entry in entries:
        if entry.name.endswith(".json"):
            yield prefix + entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, f"{prefix}{entry.name}/")


class _Known:
    """What the index of a folder holds; nothing, if there is none that can be believed.

    records: path -> record, whose longer fields are parsed when they are first looked at.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.stamps: dict[str, Stamp] = {}
        self.records: dict[str, Record] = {}
        self.columns: dict[str, tuple[list[int], list[str]]] = {}
        self.parsed: dict[str, Any] = {}
        collects = gc.isenabled()
        gc.disable()  # millions of values are made, and none is garbage: to look for it doubles the time
        try:
            self._open()
        except BROKEN:
            self.stamps, self.records = {}, {}
        finally:
            if collects:
                gc.enable()

    def _open(self) -> None:
        path = self.results / NAME
        if not path.is_file():  # a pipe would never end
            return
        self.file = parquet.ParquetFile(path, page_checksum_verification=True)
        found = self.file.schema_arrow
        if not found.equals(SHAPE) or (found.metadata or {}).get(CODE) != _code():
            return
        plain = self.file.read(["path", *STAMP])
        paths, *stamps = (column.to_pylist() for column in plain.columns)
        codes, texts = self._column("settings")
        values = [self._values(name) for name in AT_ONCE]
        for row, (path, *each) in enumerate(zip(paths, *values, strict=True)):
            record = object.__new__(Record)
            vars(record).update(zip(AT_ONCE, each, strict=True))
            vars(record).update(asked=texts[codes[row]], later=partial(self._later, path, row))
            self.records[path] = record
        if len(self.records) < len(paths):
            raise ValueError("a path is there twice")
        self.stamps = dict(zip(paths, zip(*stamps, strict=True), strict=True))

    def _column(self, name: str) -> tuple[list[int], list[str]]:
        """Return the number of the text of each row, and the texts."""
        column = self.file.read([name]).column(0).unify_dictionaries().combine_chunks()
        if column.null_count:
            raise ValueError(f"{name}: lacks values")
        return column.indices.to_pylist(), column.dictionary.to_pylist()

    def _values(self, name: str) -> list[Any]:
        codes, texts = self._column(name)
        values = json.loads(f"[{','.join(texts)}]")
        if len(values) != len(texts) or set(map(type, values)) - {KINDS.get(name, dict)}:
            raise ValueError(f"{name}: not one value of its kind each")
        return [values[code] for code in codes]

    def _later(self, path: str, row: int, name: str) -> Any:
        """Return a field that was left as text; from the record itself where the index turns out damaged."""
        try:
            codes, texts = self.columns.get(name) or self.columns.setdefault(name, self._column(name))
            text = texts[codes[row]]
            if text not in self.parsed:
                self.parsed[text] = json.loads(text)
        except BROKEN:
            _drop(self.results)
            return getattr(records.read(self.results / "records" / path), name)
        value = self.parsed[text]
        if name == "config" and value["seed"] is None:
            value = {**value, "seed": self.records[path].seed}
        return value

    def has(self, path: str, stamp: Stamp) -> bool:
        """Return whether the index knows a file as it is now."""
        return self.stamps.get(path) == stamp != NEVER

    def renew(self, now: Mapping[str, Stamp], fresh: Mapping[str, Record]) -> None:
        """Write the index of what is there ``now``, if it holds too little of it; where it can be written."""
        added = {path: record for path, record in fresh.items() if now[path] != NEVER}
        kept = [row for row, (path, stamp) in enumerate(self.stamps.items()) if now.get(path) == stamp]
        changes = len(added) + len(self.stamps) - len(kept)
        if changes * WORTH <= len(now):
            return
        try:
            tables = [self.file.read().take(kept)] if kept else []
            rows = ({"path": path, **dict(zip(STAMP, now[path], strict=True)), **_texts(record)}
                    for path, record in added.items())  # fmt: skip
            while chunk := list(islice(rows, CHUNK)):
                tables.append(_table(chunk))
            table = pa.concat_tables(tables).unify_dictionaries().replace_schema_metadata({CODE: _code()})
            with store.beside(self.results / NAME) as scratch:
                parquet.write_table(table, scratch, compression="zstd", write_statistics=False,
                                    write_page_checksum=True, dictionary_pagesize_limit=LARGEST)  # fmt: skip
        except BROKEN:
            _drop(self.results)  # of no use as it is


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = [pa.array([row[each.name] for row in rows], each.type) for each in SHAPE]
    return pa.table(columns, schema=SHAPE)


def _texts(record: Record) -> dict[str, str]:
    """Return every field as JSON; the seed is left out of the configuration, to be that of other runs too."""
    content = {name: getattr(record, name) for name in FIELDS}
    if content["config"]["seed"] == record.seed:
        content["config"] = {**content["config"], "seed": None}
    return {name: json.dumps(value) for name, value in content.items()}


def _drop(results: Path) -> None:
    with suppress(OSError):
        (results / NAME).unlink()


@cache
def _code() -> bytes:
    """Return a hash of what decides whether a file is a record, and of how the index is written."""
    sources = (Path(str(each.__file__)) for each in (config, recipe, records, schema, strict))
    content = b"".join(path.read_bytes() for path in (*sources, Path(__file__)))
    return hashlib.sha256(content + pydantic.VERSION.encode()).hexdigest().encode()
