"""Rows of a CSV, TSV, JSON lines or Parquet file, checked: the columns asked for, and where each row stands."""

import csv
import io
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minibeft.checkpoints.door import checked
from minibeft.errors import BadInput, needs

log = logging.getLogger("minibeft")
Row = dict[str, Any]
MOST_BYTES = 1 << 30
KINDS = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt")


@dataclass(frozen=True)
class Layout:
    """How an archive departs from a plain table.

    other   column → the name that it has in some of the files
    header  the columns of a file whose first line is a row already (CoLA)
    broken  rows with too few fields are left out and counted, as the archive's own readers do (QQP)
    """

    other: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    broken: bool = False


PLAIN = Layout()


def read_rows(file: Path, columns: tuple[str, ...], layout: Layout = PLAIN) -> Iterator[tuple[str, Row]]:
    """(where, row) for each row, row with these columns; BadInput names the file, the line and the column."""
    checked(file, MOST_BYTES, links=True)
    kind = file.suffix.lower()
    if kind == ".parquet":
        return read_parquet(file, columns, layout)
    if kind in (".jsonl", ".json"):
        return read_json_lines(file, columns, layout)
    if kind in KINDS:
        return read_table(file, columns, layout)
    raise BadInput(f"{file}: is none of {', '.join(KINDS)}; convert it, or give it the ending of what it is")


def read_table(file: Path, columns: tuple[str, ...], layout: Layout) -> Iterator[tuple[str, Row]]:
    """CSV, or tab-separated UTF-8 as GLUE has it; the first line is the header unless the layout knows better."""
    lines = csv_fields(file) if file.suffix.lower() == ".csv" else tsv_fields(file)
    number, header = next(lines, (1, [""]))
    first = [(number, header)]
    if layout.header and len(header) == len(layout.header) and not set(columns) <= set(header):
        header = list(layout.header)
    else:
        first = []
    if len(set(header)) < len(header):
        raise BadInput(f"{file}: names a column twice ({', '.join(header)}); rename one")
    places = {column: header.index(name) for column, name in named(file, header, columns, layout).items()}
    left_out = 0
    for number, fields in (*first, *lines):
        if len(fields) < len(header) and layout.broken:
            left_out += 1
        elif len(fields) != len(header):
            raise BadInput(f"{file}:{number}: has {len(fields)} fields, the header {len(header)} ({', '.join(header)})")
        else:
            yield f"{file}:{number}", {column: fields[place] for column, place in places.items()}
    if left_out:
        log.warning("%s: %d rows lack fields and were left out, as its own readers do", file, left_out)


def tsv_fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Tab-separated fields: quotes mean nothing, and no field holds a tab or a newline. splitlines would also split a
    sentence at U+2028 and the like."""
    for number, line in enumerate(decoded(file).split("\n"), 1):
        if number == 1 or line.strip("\r"):
            yield number, line.rstrip("\r").split("\t")


def csv_fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Comma-separated, quoted as RFC 4180 says: a quoted field may hold commas, newlines and doubled quotes."""
    csv.field_size_limit(MOST_BYTES)
    reader = csv.reader(io.StringIO(decoded(file), newline=""), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise BadInput(
            f"{file}:{reader.line_num}: is no CSV ({error}); quote the field, or double its quotes"
        ) from error


def decoded(file: Path) -> str:
    """The text of a file, which must be UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}: is not UTF-8 ({error.reason}); convert it") from error


def read_json_lines(file: Path, columns: tuple[str, ...], layout: Layout) -> Iterator[tuple[str, Row]]:
    """An object on each line."""
    for number, line in enumerate(decoded(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}:{number}: is not JSON ({error}); each line must be one object") from error
        if not isinstance(row, dict):
            raise BadInput(f"{file}:{number}: holds a {type(row).__name__}; each line must be one object")
        where = f"{file}:{number}"
        yield where, {column: row[name] for column, name in named(where, row, columns, layout).items()}


def read_parquet(file: Path, columns: tuple[str, ...], layout: Layout) -> Iterator[tuple[str, Row]]:
    """Through pyarrow, which the extra `train` installs."""
    with needs("pyarrow", "train", f"{file}: Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        names = named(file, opened.schema_arrow.names, columns, layout)
        require_bounded(file, opened, list(names.values()))
        rows = opened.read(list(names.values())).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for number, row in enumerate(rows):
        yield f"{file}, row {number}", {column: row[name] for column, name in names.items()}


def require_bounded(file: Path, opened: Any, names: list[str]) -> None:
    """BadInput for a file whose table would take more than MOST_BYTES. Even a small file may: it holds a text once for
    many rows, in a dictionary, and repeated numbers take no room. The check keeps them packed and makes no row."""
    from pyarrow import compute, parquet, types

    metadata = opened.metadata
    parts = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [part.column(i) for part in parts for i in range(part.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
    size = max(size, metadata.num_rows * len(names) * 8)
    for name in names if size <= MOST_BYTES else ():
        kind = opened.schema_arrow.field(name).type
        if types.is_nested(kind):
            raise BadInput(f"{file}: the column {name} holds a {kind}; it must hold texts or numbers")
        if types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind):
            column = parquet.ParquetFile(file, read_dictionary=[name]).read([name])[name]
            for chunk in column.chunks:
                if types.is_dictionary(chunk.type):
                    lengths = compute.call_function("binary_length", [chunk.dictionary])
                    size += compute.call_function("sum", [lengths.take(chunk.indices)]).as_py() or 0
                else:
                    size += chunk.nbytes
    if size > MOST_BYTES:
        raise BadInput(f"{file}: unpacks to {size:,} bytes, more than the {MOST_BYTES:,} that a table may have")


def named(where: Path | str, found: Collection[str], columns: tuple[str, ...], layout: Layout) -> dict[str, str]:
    """Column → its name in this file; BadInput that lists what is missing and what is there."""
    names = {column: column if column in found else layout.other.get(column, column) for column in columns}
    if missing := [column for column, name in names.items() if name not in found]:
        raise BadInput(f"{where}: lacks the column {', '.join(missing)}; it has {', '.join(found)}")
    return names
