"""How our own cursors read what the server sends: the same way whatever the session's settings are."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg import AsyncCursor, Cursor
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.postgres import types
from psycopg.pq import Format
from psycopg.types.json import JsonBinaryLoader

from ..vectors import keep_loaders

_FIRST_OID: Final = 16_384
"""From here on are the oids of what is not built into the server: FirstNormalObjectId of its transam.h."""

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)

_unpack_microseconds: Final = struct.Struct(">q").unpack


class _MomentLoader(Loader):
    """TIMESTAMP WITH TIME ZONE, in UTC.

    psycopg gives it in the session's time zone, where the hour that the end of summer time repeats makes different
    moments equal. It also refuses what no datetime can hold, and with one such row every query that meets it.
    """

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        (microseconds,) = _unpack_microseconds(data)
        try:
            return _EPOCH + timedelta(0, 0, microseconds)
        except OverflowError:
            return _LAST if microseconds > 0 else _FIRST


class _JsonLoader(JsonBinaryLoader):
    """JSON in the session's encoding; psycopg takes it for UTF-8."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._encoding = self.connection.info.encoding if self.connection else "utf-8"

    def load(self, data: Buffer) -> Any:
        return super().load(bytes(data).decode(self._encoding).encode())


class _JsonbLoader(_JsonLoader):
    """The same for JSONB, which begins with the number of its format."""

    def load(self, data: Buffer) -> Any:
        return super().load(data[1:])


class _TextLoader(Loader):
    """Text of a session in SQL_ASCII, which is what the database has; psycopg leaves it as bytes."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return str(data, "utf-8")


_TIMESTAMPTZ: Final = types["timestamptz"].oid
_JSON: Final = ((types["json"].oid, _JsonLoader), (types["jsonb"].oid, _JsonbLoader))
_TEXT: Final = tuple((types[name].oid, _TextLoader) for name in ("text", "varchar", "bpchar", "name", '"char"'))


def use_own(cursor: Cursor[Any] | AsyncCursor[Any]) -> None:
    """Let *cursor* read vectors, moments, JSON and text as this module says; its connection goes on as before."""
    keep_loaders(cursor)
    adapters = cursor.adapters
    adapters.register_loader(_TIMESTAMPTZ, _MomentLoader)
    encoding = cursor.connection.info.encoding
    if encoding != "utf-8":
        for oid, loader in _TEXT if encoding == "ascii" else _JSON:
            adapters.register_loader(oid, loader)


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
