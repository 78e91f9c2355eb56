"""Parquet, with pyarrow: the columns that Arrow's batches have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from ..errors import FileError
from ..progress import Bar
from ..sql import arrow, plain
from .sources import Source

_READ_AT_ONCE: Final = 1000
_GROUP: Final = 5000
"""Rows of a row group, the piece that other programs read at once. It is held in memory."""


def write(file: BinaryIO, record: type, records: Iterator[Any]) -> None:
    """Write *records*, each a *record*."""
    parquet = arrow.pyarrow("pyarrow.parquet")
    # A dictionary of vectors would never find one again.
    repeating = [name for name, kind in plain.kinds(record).items() if kind.kind is not np.ndarray]
    with parquet.ParquetWriter(file, arrow.schema(record), compression="zstd", use_dictionary=repeating) as writer:
        while group := list(itertools.islice(records, _GROUP)):
            writer.write_batch(arrow.batch(record, group))


@contextmanager
def reader(path: Path, label: str) -> Iterator[Any]:
    """Open the file *path* as a reader of record batches, which draws under *label* how far it is."""
    with _opened(path) as file, Bar() as bar:

        def batches() -> Iterator[arrow.RecordBatch]:
            done = 0
            for batch in _batches(file):
                yield batch
                done += batch.num_rows
                bar.draw(label, done, file.metadata.num_rows)

        yield arrow.pyarrow().RecordBatchReader.from_batches(file.schema_arrow, batches())


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """Open the file *path* to be loaded row by row."""
    with _opened(path) as file:
        rows = ((batch, place) for batch in _batches(file) for place in range(batch.num_rows))
        yield Source(file.metadata.num_rows, rows, lambda row: arrow.values(*row))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    parquet = arrow.pyarrow("pyarrow.parquet")
    path.stat()  # its error says less than Arrow's, and all there is to say
    try:
        # Else a whole row group would be read into memory, and other programs make them large.
        with parquet.ParquetFile(path, memory_map=True) as opened:
            yield opened
    except arrow.pyarrow().ArrowException as error:
        raise FileError(f"{path}: {error}; nothing was loaded") from error


def _batches(file: Any) -> Iterator[arrow.RecordBatch]:
    # All groups at once would stay in memory, one after the other.
    for group in range(file.num_row_groups):
        yield from file.iter_batches(_READ_AT_ONCE, row_groups=[group])
