"""Rows of a TSV or Parquet file, checked: the columns that are asked for, and where each row stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minibeft.checkpoints.door import checked
from minibeft.errors import BadInput, needs

Row = dict[str, Any]
MOST_BYTES = 1 << 30


def read_rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """(where, row) for each row, row with these columns at least; BadInput names the file, the line and the column."""
    checked(file, MOST_BYTES, links=True)
    return read_parquet(file, columns) if file.suffix == ".parquet" else read_tsv(file, columns)


def read_tsv(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Tab-separated UTF-8 with a header, as GLUE has it: quotes mean nothing, and no field holds a tab or a newline."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}: is not UTF-8 ({error.reason}); convert it") from error
    lines = text.split("\n")  # splitlines would also break at U+2028 and the like, inside a sentence
    header = lines[0].rstrip("\r").split("\t")
    require_columns(file, header, columns)
    for number, line in enumerate(lines[1:], 2):
        if not line.strip("\r"):
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            raise BadInput(f"{file}:{number}: has {len(fields)} fields, the header {len(header)} ({', '.join(header)})")
        yield f"{file}:{number}", dict(zip(header, fields, strict=True))


def read_parquet(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Through pyarrow, which the extra `train` installs."""
    with needs("pyarrow", "train", f"{file}: Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        require_columns(file, opened.schema_arrow.names, columns)
        rows = opened.read(list(columns)).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadInput(f"{file}: is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for number, row in enumerate(rows):
        yield f"{file}, row {number}", row


def require_columns(file: Path, found: list[str], columns: tuple[str, ...]) -> None:
    """BadInput that lists what is missing and what is there."""
    if missing := [column for column in columns if column not in found]:
        raise BadInput(f"{file}: lacks the column {', '.join(missing)}; it has {', '.join(found)}")
