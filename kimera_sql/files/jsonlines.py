"""JSON Lines: a JSON object a row, with the columns' names as keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InvalidValue
from ..sql.plain import plain
from ..vectors import DIMENSIONS, Vector
from .sources import Source

_VECTOR = f"[{', '.join(['%.9g'] * DIMENSIONS)}]"
"""Nine digits tell every float32 from its neighbours, and still do once they are read as a double."""


def write(file: BinaryIO, records: Iterable[Any], vector: str) -> None:
    """Write *records*, the column *vector* last, which is "" if there is none."""
    for record in records:
        values = plain(record)
        if vector:
            numbers = _numbers(values.pop(vector))
            file.write(f'{json.dumps(values)[:-1]}, "{vector}": {numbers}}}\n'.encode())
        else:
            file.write(line(values))


def _numbers(vector: Vector) -> str:
    if vector.all():
        return _VECTOR % tuple(vector.tolist())
    return json.dumps(vector.tolist())  # else -0.0 would be written as the integer -0


def line(values: Mapping[str, Any]) -> bytes:
    """Return *values* as a line."""
    return json.dumps(values, allow_nan=False, default=_plain).encode() + b"\n"


def parsed(text: bytes) -> dict[str, Any]:
    """Return what a line holds. Raises InvalidValue."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidValue(f"expected a JSON object, got {type(values).__name__}")
    return values


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """Open the file *path* to be loaded."""
    with path.open("rb") as file:
        total = sum(1 for _ in file)
        file.seek(0)
        yield Source(total, file, parsed)


class Aside:
    """A file of the rows that were not loaded: for each its number, its error, and the row itself."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.rows = 0

    def add(self, number: int, error: InvalidValue, row: Any) -> None:
        """Write a row: its values by name, or the line that has none."""
        self.rows += 1
        told = {"item": number, "error": str(error)}
        try:
            self._file.write(line({**told, "row": row}))
        except ValueError:  # NaN, which JSON has not
            self._file.write(line({**told, "row": str(row)}))


def _plain(value: Any) -> Any:
    match value:
        case np.ndarray():
            return value.tolist()
        case bytes():
            return value.decode(errors="replace").rstrip("\n")
        case _:
            return str(value)
