"""How our own cursors read what the server sends: the same way whatever the session's settings are."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg import AsyncCursor, Cursor, DataError
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.postgres import types
from psycopg.pq import Format
from psycopg.types.numeric import Float8BinaryLoader
from psycopg.types.string import TextBinaryLoader
from psycopg.types.uuid import UUIDBinaryLoader

from ..vectors import keep_loaders
from .binary import EPOCH, codec

_FIRST_OID: Final = 16_384
"""From here on are the oids of what is not built into the server: FirstNormalObjectId of its transam.h."""

_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)

_raw_decode: Final = json.JSONDecoder().raw_decode

_MICROSECONDS: Final = struct.Struct(">q")


class _MomentLoader(Loader):
    """TIMESTAMP WITH TIME ZONE, in UTC.

    psycopg gives it in the session's time zone, where the hour that the end of summer time repeats makes different
    moments equal. It also refuses what no datetime can hold, and with one such row every query that meets it.
    """

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        if len(data) != _MICROSECONDS.size:
            raise DataError(f"the server sent {len(data):,} bytes that are no timestamp")
        (microseconds,) = _MICROSECONDS.unpack(data)
        try:
            return EPOCH + timedelta(0, 0, microseconds)
        except OverflowError:
            return _LAST if microseconds > 0 else _FIRST


class _JsonLoader(Loader):
    """JSON in the session's encoding; psycopg takes it for UTF-8."""

    format = Format.BINARY

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        encoding = self.connection.info.encoding if self.connection else "utf-8"
        self._encoding = codec(encoding)

    def load(self, data: Buffer) -> Any:
        try:
            return self._parsed(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the server sent JSON that Python cannot read: {error}") from error

    def _parsed(self, data: Buffer) -> Any:
        return json.loads(str(data, self._encoding))


class _JsonbLoader(_JsonLoader):
    """The same for JSONB, which begins with the number of its format, and has no blanks before or after its value."""

    def _parsed(self, data: Buffer) -> Any:
        text = str(data, self._encoding)
        value, end = _raw_decode(text, 1)
        if end != len(text) or text[0] != "\x01":
            raise ValueError("no JSONB of version 1")
        return value


class _TextLoader(Loader):
    """Text of a session in SQL_ASCII, which is what the database has; psycopg leaves it as bytes."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"the server sent text that is not UTF-8: {error}") from error


def _registered(loaders: Mapping[str, type[Loader]]) -> Sequence[tuple[int, type[Any]]]:
    """Return *loaders* by oid, as psycopg keeps them: it puts those that it has in C in their place."""
    known = AdaptersMap()
    ours = [(types[name].oid, loader) for name, loader in loaders.items()]
    for oid, loader in ours:
        known.register_loader(oid, loader)
    return [(oid, known.get_loader(oid, Format.BINARY) or loader) for oid, loader in ours]


_LOADERS: Final = {
    "timestamptz": _MomentLoader,
    "json": _JsonLoader,
    "jsonb": _JsonbLoader,
    "uuid": UUIDBinaryLoader,
    "float8": Float8BinaryLoader,
    "text": TextBinaryLoader,
}
_USUAL: Final = _registered(_LOADERS)
_ASCII: Final = _registered({**_LOADERS, **dict.fromkeys(("text", "varchar", "bpchar", "name", '"char"'), _TextLoader)})


def use_own(cursor: Cursor[Any] | AsyncCursor[Any]) -> None:
    """Let *cursor* read vectors, moments, JSON and so on as this module says, whatever its connection does."""
    keep_loaders(cursor)
    adapters = cursor.adapters
    for oid, loader in _ASCII if cursor.connection.info.encoding == "ascii" else _USUAL:
        # Asking is cheap; registering copies the connection's map.
        if adapters.get_loader(oid, Format.BINARY) is not loader:
            adapters.register_loader(oid, loader)


def prepare(context: AdaptContext) -> None:
    """Let *context*, a connection of a pool's, do so of itself, which spares each of its cursors the registering."""
    for oid, loader in _USUAL:
        context.adapters.register_loader(oid, loader)


def strangers(cursor: Cursor[Any] | AsyncCursor[Any]) -> list[int]:
    """Return the oids of the types that *cursor*'s result has and its connection does not know."""
    result = cursor.pgresult
    if result is None:
        return []
    known = cursor.adapters.types
    return [
        oid
        for column in range(result.nfields)
        if (oid := result.ftype(column)) >= _FIRST_OID and known.get(oid) is None
    ]
