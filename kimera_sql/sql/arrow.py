"""Rows as Arrow has them: record batches made of records, and made into rows and into what COPY takes.

pyarrow, the extra `arrow`, is imported when it is first needed.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice, pairwise, repeat
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..checks import DEEPEST_JSON, LONGEST_LABEL, item_fault
from ..errors import InvalidValue, NotInstalled
from ..vectors import DIMENSIONS, are_storable, sent_block
from . import binary, plain

RecordBatch: TypeAlias = Any
"""A pyarrow.RecordBatch. pyarrow has no types of its own."""

_AT_ONCE: Final = 128
"""Rows that are encoded together: so few that the server still has rows to work on meanwhile."""

_JOINED_AT_ONCE: Final = 32
"""Rows that are sent together. For larger pieces the allocator asks the system for memory each time."""

_MICROSECOND: Final = timedelta(microseconds=1)
_1970: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _1970) // _MICROSECOND
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _1970) // _MICROSECOND
_EPOCH: Final = (binary.EPOCH - _1970) // _MICROSECOND


class ArrowData(Protocol):
    """What is taken for data: a Table, a RecordBatch or a RecordBatchReader, or a frame of another library."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


def pyarrow(module: str = "pyarrow") -> Any:
    """Return pyarrow, or a *module* of it. Raises NotInstalled."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalled(
            f"Arrow and Parquet need pyarrow, which cannot be imported ({error}): pip install 'kimera-sql[arrow]'"
        ) from None


_AS_TEXT: Final[Mapping[type, Callable[[Any], str]]] = {UUID: str, dict: binary.json_text}


@functools.cache
def schema(record: type) -> Any:
    """Return the schema of the batches of *record*.

    Ids are strings, which every library of data frames joins and prints; JSON is a string too.
    """
    arrow = pyarrow()
    types = {
        UUID: arrow.string(),
        str: arrow.string(),
        dict: arrow.string(),
        datetime: arrow.timestamp("us", "UTC"),
        float: arrow.float64(),
        int: arrow.int64(),
        tuple: arrow.list_(arrow.field("item", arrow.string(), nullable=False)),
        np.ndarray: arrow.list_(arrow.field("item", arrow.float32(), nullable=False), DIMENSIONS),
    }
    kinds = plain.kinds(record)
    return arrow.schema([arrow.field(name, types[kind.kind], nullable=kind.optional) for name, kind in kinds.items()])


def batch(record: type, records: Sequence[Any]) -> RecordBatch:
    """Return *records*, each a *record*, as a batch."""
    arrow, fields, kinds = pyarrow(), schema(record), plain.kinds(record)
    columns = []
    for field in fields:
        values: Any = [getattr(one, field.name) for one in records]
        kind = kinds[field.name].kind
        if kind is np.ndarray:
            numbers = arrow.array(np.array(values, np.float32).reshape(-1))
            columns.append(arrow.FixedSizeListArray.from_arrays(numbers, type=field.type))
        else:
            as_text = _AS_TEXT.get(kind)
            columns.append(arrow.array(list(map(as_text, values)) if as_text else values, field.type))
    return arrow.RecordBatch.from_arrays(columns, schema=fields)


@dataclass(frozen=True, slots=True)
class Writing:
    """How rows of Arrow are written.

    make: turns the values of a row, by name, into the columns to write, or raises InvalidValue.
    missing: for each column that can be left out, what gives a row's value then, and in place of a null.
    columns: those that are written, in their order, if *make* checks no more of a value than its type tells; else ().
    """

    make: Callable[[Mapping[str, Any]], dict[str, Any]]
    missing: Mapping[str, Callable[[], Any]]
    columns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of Arrow that are to be written.

    number: of the first row, counted from 0. into: how they are written.
    """

    number: int
    data: RecordBatch
    into: Writing

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the columns to write of each row. Raises InvalidValue with the row's number."""
        for place in range(self.data.num_rows):
            try:
                yield self.into.make(values(self.data, place))
            except InvalidValue as error:
                raise item_fault(self.number + place, error) from error

    def encoded(self, types: Sequence[str]) -> Iterator[bytes] | None:
        """Return the rows as COPY takes them, in UTF-8; None unless all values are plainly such as can be stored.

        types: the server's, of the columns to write.
        """
        if not self.into.columns:
            return None
        pieces: list[Sequence[bytes | memoryview]] = []
        for name, kind in zip(self.into.columns, types, strict=True):
            column = self._column(name, kind)
            if column is None:
                return None
            pieces.append(column)
        rows = zip(repeat(binary.row_head(len(types))), *pieces)
        return iter(lambda: b"".join(chain.from_iterable(islice(rows, _JOINED_AT_ONCE))), b"")

    def _column(self, name: str, kind: str) -> Sequence[bytes | memoryview] | None:
        """Return the values of a column behind their lengths, or None as encoded does."""
        missing = self.into.missing.get(name)
        if name not in self.data.schema.names:
            return [_one(kind, missing()) for _ in range(self.data.num_rows)] if missing else None
        column = _as_sent(self.data.column(name), kind)
        if column is None:
            return None
        if not column.null_count:
            return _ENCODERS[kind](column)
        pieces = _ENCODERS[kind](column.drop_null())
        if pieces is None or missing is None:
            return None
        given = iter(pieces)
        return [next(given) if there else _one(kind, missing()) for there in column.is_valid().to_pylist()]


def values(data: RecordBatch, place: int) -> dict[str, Any]:
    """Return the values of a row by name. Raises InvalidValue for one that Python cannot hold."""
    found = {}
    for name, column in zip(data.schema.names, data.columns, strict=True):
        try:
            found[name] = _value(column[place])
        except (ValueError, OverflowError) as error:  # no UTF-8, a part of a microsecond, a year that Python lacks
            raise InvalidValue(f"{name}: {error}") from None
    return found


def _value(scalar: Any) -> Any:
    kind = scalar.type
    # As numbers of Python a vector would take a hundred times as long.
    if _is_list(kind) and pyarrow().types.is_floating(kind.value_type) and scalar.is_valid:
        return scalar.values.to_numpy(zero_copy_only=False) if not scalar.values.null_count else scalar.as_py()
    return scalar.as_py()


def reader(data: ArrowData, new: type, record: type) -> Any:
    """Return a reader of *data*, of which each row is to become a *new*, or a *record* with its id.

    Raises NotInstalled without pyarrow, and InvalidValue for columns that are unknown, missing or there twice.
    """
    arrow = pyarrow()
    try:
        # Through the stream, the errors of a reader would lose their types.
        is_reader = isinstance(data, arrow.RecordBatchReader)
        opened: Any = data if is_reader else arrow.RecordBatchReader.from_stream(data)
    except TypeError:
        raise InvalidValue(
            f"data: expected a Table, RecordBatch or RecordBatchReader, or a data frame, got {type(data).__name__}"
        ) from None
    names, known = opened.schema.names, plain.kinds(record)
    for name in names:
        if name not in known:
            raise InvalidValue(f"data: {name!r} is none of the columns {', '.join(known)}")
        if names.count(name) > 1:
            raise InvalidValue(f"data: it has the column {name!r} twice")
    for name in plain.kinds(new):
        if name not in names and name not in plain.optional(new):
            raise InvalidValue(f"data: it lacks the column {name!r}")
    return opened


def batches(opened: Any, into: Writing) -> Iterator[Batch]:
    """Yield the rows of a reader, few enough at a time for the server to work on some while others are encoded."""
    number = 0
    try:
        for read in opened:
            for start in range(0, read.num_rows, _AT_ONCE):
                yield Batch(number + start, read.slice(start, _AT_ONCE), into)
            number += read.num_rows
    except Exception as error:
        error.add_note(f"it came in place of item {number} (counted from 0); nothing was written")
        raise


def _one(kind: str, value: Any) -> bytes:
    """Return *value*, of the server's type *kind*, behind its length."""
    (piece,) = binary.column(kind, [value])
    return bytes(piece)


def _as_sent(column: Any, kind: str) -> Any:
    """Return *column* as the type that is sent as the server's type *kind*; None if it is not plainly one."""
    arrow = pyarrow()
    types, given = arrow.types, column.type
    if types.is_dictionary(given):
        given = given.value_type
    match kind:
        case "uuid" | "text" | "jsonb":
            fits, wanted = _is_text(given), arrow.string()
        case "timestamptz":
            fits, wanted = types.is_timestamp(given) and given.tz is not None, arrow.timestamp("us", "UTC")
        case "float8":
            fits, wanted = types.is_floating(given) or types.is_integer(given), arrow.float64()
        case "text[]":
            fits, wanted = _is_list(given) and _is_text(given.value_type), arrow.list_(arrow.string())
        case "vector":
            fits = _is_list(given) and types.is_floating(given.value_type)
            wanted = arrow.list_(arrow.float32(), DIMENSIONS)
        case _:
            return None
    if not fits:
        return None
    try:
        return column if column.type == wanted else column.cast(wanted)
    except arrow.ArrowException:
        return None


def _is_text(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _uuids(column: Any) -> list[bytes] | None:
    texts = column.to_pylist()
    if not all(len(text) == 36 and text[8:24:5] == "----" for text in texts):
        return None
    try:
        numbers = bytes.fromhex("".join(texts).replace("-", ""))
    except ValueError:
        return None
    return _fixed(np.frombuffer(numbers, "V16")) if len(numbers) == 16 * len(texts) else None


def _moments(column: Any) -> list[bytes] | None:
    since_1970 = column.cast(pyarrow().int64()).to_numpy(zero_copy_only=False)
    if not ((since_1970 >= _FIRST) & (since_1970 <= _LAST)).all():
        return None
    return _fixed((since_1970 - _EPOCH).astype(">i8"))


def _doubles(column: Any) -> list[bytes] | None:
    numbers = column.to_numpy(zero_copy_only=False)
    return _fixed(numbers.astype(">f8")) if np.isfinite(numbers).all() else None


def _fixed(values: NDArray[Any]) -> list[bytes]:
    """Return each of *values*, in their bytes as they are sent, behind its length."""
    width = values.dtype.itemsize
    sent = np.empty((len(values), 4 + width), np.uint8)
    sent[:, :4].view(">u4")[:] = width
    sent[:, 4:] = values.view(np.uint8).reshape(-1, width)
    pieces: list[bytes] = sent.view(f"V{4 + width}").ravel().tolist()
    return pieces


def _texts(column: Any) -> Sequence[bytes | memoryview] | None:
    try:
        texts = column.to_pylist()
    except UnicodeDecodeError:
        return None
    pieces = binary.column("text", texts)
    if any(len(piece) > LONGEST_LABEL for piece in pieces) or any("\0" in text for text in texts):
        return None
    return pieces


def _documents(column: Any) -> Sequence[bytes | memoryview] | None:
    texts = column.to_pylist()
    try:
        # What is escaped can be NUL or a lone surrogate.
        if not all("\\u" not in text and _is_shallow(text) and type(_JSON(text)) is dict for text in texts):
            return None
    except (ValueError, RecursionError):
        return None
    return binary.json_documents(texts)


def _is_shallow(text: str) -> bool:
    return text.count("[") + text.count("{") <= DEEPEST_JSON


def _lists(column: Any) -> Sequence[bytes | memoryview] | None:
    items = column.flatten()
    pieces = None if items.null_count else _texts(items)
    if pieces is None:
        return None
    ends = column.value_lengths().to_numpy().cumsum().tolist()
    return binary.text_arrays([pieces[start:end] for start, end in pairwise([0, *ends])])


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_JSON: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_finite).decode


def _vectors(column: Any) -> Sequence[bytes | memoryview] | None:
    numbers = column.flatten()
    if numbers.null_count:
        return None
    block = numbers.to_numpy().reshape(-1, DIMENSIONS)
    return sent_block(block) if are_storable(block) else None


_ENCODERS: Final[Mapping[str, Callable[[Any], Sequence[bytes | memoryview] | None]]] = {
    "uuid": _uuids,
    "timestamptz": _moments,
    "float8": _doubles,
    "text": _texts,
    "jsonb": _documents,
    "text[]": _lists,
    "vector": _vectors,
}
"""For each of the server's types what encodes a column without nulls, or returns None."""
