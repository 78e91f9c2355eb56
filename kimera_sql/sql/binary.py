"""Rows as COPY ... (FORMAT BINARY) takes them, made at once, and the forms of values that they consist of.

psycopg makes rows value by value, at twice the cost.

The forms are those of PostgreSQL's send functions, after "File Formats" of its page on COPY.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any, Final, TypeAlias
from uuid import UUID

from psycopg.postgres import types
from psycopg.types.json import Json, Jsonb

from ..checks import JsonObject
from ..errors import InvalidValue
from ..vectors import sent, sent_alike

Encoder: TypeAlias = Callable[[Any], bytes]

BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END: Final = b"\xff\xff"

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""The moment from which the server counts the microseconds of a timestamp."""

_dumps: Final = json.JSONEncoder(allow_nan=False).encode

_NULL: Final = b"\xff\xff\xff\xff"
_TEXT: Final = types["text"].oid

_length: Final = struct.Struct(">i").pack
_columns: Final = struct.Struct(">h").pack
_int4: Final = struct.Struct(">ii").pack
_int8: Final = struct.Struct(">iq").pack
_float8: Final = struct.Struct(">id").pack
_array: Final = struct.Struct(">iiIii").pack
_empty_array: Final = struct.Struct(">iiI").pack


def json_text(value: Any) -> str:
    """Return *value* as JSON, in ASCII."""
    return value.text if isinstance(value, JsonObject) else _dumps(value)


def codec(encoding: str) -> str:
    """Return the codec of the texts of a session in *encoding*, by Python's name: SQL_ASCII takes UTF-8 as it is."""
    return "utf-8" if encoding == "ascii" else encoding


def array(oid: int, items: Sequence[bytes | memoryview]) -> bytes:
    """Return an array of *items*, each as it is sent behind its length, of the server's type *oid*."""
    return _array(1, 0, oid, len(items), 1) + b"".join(items) if items else _empty_array(0, 0, oid)


def uuid(value: UUID) -> bytes:
    """Return *value* behind its length."""
    return b"\0\0\0\x10" + value.bytes


def row_head(columns: int) -> bytes:
    """Return what each row of *columns* columns begins with."""
    return _columns(columns)


def column(kind: str, values: Sequence[Any]) -> Sequence[bytes | memoryview]:
    """Return each of *values*, of the server's type *kind*, in UTF-8 behind its length."""
    return _column(_UTF8[kind], values)


def json_documents(texts: Sequence[str]) -> list[bytes]:
    """Return each of *texts*, which are JSON, as a JSONB is sent behind its length."""
    return [_document(text.encode()) for text in texts]


def text_arrays(arrays: Sequence[Sequence[bytes | memoryview]]) -> list[bytes]:
    """Return each of *arrays*, of texts behind their lengths, as a TEXT[] is sent behind its length."""
    return [_behind_length(array(_TEXT, items)) for items in arrays]


def rows_encoder(columns: Sequence[str], encoding: str) -> Callable[[Sequence[Sequence[Any]]], bytes] | None:
    """Return the function that encodes rows of *columns*, types of the server, None where one of them is not known.

    encoding: the session's, by Python's name. The function raises InvalidValue for a value of another type.
    """
    encoders = _encoders(codec(encoding))
    if not all(column in encoders for column in columns):
        return None
    chosen = [encoders[column] for column in columns]
    head = row_head(len(columns))

    def encode(rows: Sequence[Sequence[Any]]) -> bytes:
        if not rows:
            return b""
        # By columns, which takes half the time of row by row.
        try:
            encoded = [_column(encode, values) for encode, values in zip(chosen, zip(*rows, strict=True), strict=True)]
        except (AttributeError, TypeError, ValueError, struct.error) as error:
            raise InvalidValue(f"{_fault(columns, chosen, rows)}: {error}") from error
        return b"".join(chain.from_iterable(zip(repeat(head), *encoded)))

    return encode


def _column(encode: Encoder, values: Sequence[Any]) -> Sequence[bytes | memoryview]:
    if encode is _vector and len(values) > 1 and (alike := sent_alike(values)):
        return alike
    return [_NULL if value is None else encode(value) for value in values]


def _fault(columns: Sequence[str], chosen: Sequence[Encoder], rows: Sequence[Sequence[Any]]) -> str:
    """Return which value of *rows* cannot be encoded, or which row has too few or too many."""
    for row in rows:
        for number, (column, encode, value) in enumerate(zip(columns, chosen, row, strict=False), start=1):
            try:
                if value is not None:
                    encode(value)
            except (AttributeError, TypeError, ValueError, struct.error):
                return f"value {number}, a {type(value).__name__}, cannot be sent as {column}"
    wrong = next(row for row in rows if len(row) != len(columns))
    return f"{len(wrong)} values for {len(columns)} columns"


def _encoders(encoding: str) -> Mapping[str, Encoder]:
    def text(value: str) -> bytes:
        return _behind_length(value.encode(encoding))

    def texts(value: Sequence[str]) -> bytes:
        return _behind_length(array(_TEXT, [text(item) for item in value]))

    return {
        "uuid": uuid,
        "timestamptz": _timestamptz,
        "jsonb": _jsonb,
        "int4": lambda value: _int4(4, value),
        "int8": lambda value: _int8(8, value),
        "float8": lambda value: _float8(8, value),
        "text": text,
        "text[]": texts,
        "vector": _vector,
    }


def _behind_length(encoded: bytes) -> bytes:
    return _length(len(encoded)) + encoded


def _timestamptz(value: datetime) -> bytes:
    since = value - EPOCH
    return _int8(8, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _jsonb(value: Any) -> bytes:
    return _document(json_text(value.obj if isinstance(value, (Json, Jsonb)) else value).encode())


def _document(encoded: bytes) -> bytes:
    return _length(1 + len(encoded)) + b"\x01" + encoded  # 1 is the version of the format


def array_of(type: str, oid: int, values: Sequence[Any], encoding: str) -> bytes:
    """Return *values*, of the server's *type* with that *oid*, as an array of it; *encoding* is the session's.

    PostgreSQL has no arrays of arrays that differ in length: a text[] is sent as the text that it is cast from.
    """
    encoders = _encoders(codec(encoding))
    if type == "text[]":
        return array(_TEXT, _column(encoders["text"], list(map(_array_text, values))))
    return array(oid, _column(encoders[type], values))


def _array_text(items: Sequence[str]) -> str:
    quoted = (item.replace("\\", r"\\").replace('"', r"\"") for item in items)
    return "{" + ",".join(f'"{item}"' for item in quoted) + "}"


def _vector(value: Any) -> bytes:
    return _behind_length(sent(value))


_UTF8: Final = _encoders("utf-8")
