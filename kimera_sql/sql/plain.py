"""Rows as plain values by name, as JSON and Arrow have them: made of records, and made into items."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, Field, fields
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from ..errors import InvalidValue
from .shapes import Kind, record_kinds

New = TypeVar("New")
Record = TypeVar("Record")


def kinds(record: type) -> Mapping[str, Kind]:
    """Return the kinds of the fields of *record*, a dataclass, by name."""
    return _kinds(cast(Hashable, record))


@functools.cache
def _kinds(record: Any) -> Mapping[str, Kind]:
    return MappingProxyType(dict(record_kinds(record)))


def optional(new: type) -> Mapping[str, Callable[[], Any]]:
    """Return what gives the default of each field of *new*, a dataclass, that can be left out."""
    return _optional(cast(Hashable, new))


@functools.cache
def _optional(new: Any) -> Mapping[str, Callable[[], Any]]:
    made = {field.name: _maker(field) for field in fields(new)}
    return MappingProxyType({name: make for name, make in made.items() if make is not None})


def _maker(field: Field[Any]) -> Callable[[], Any] | None:
    if field.default_factory is not MISSING:
        return field.default_factory
    return None if field.default is MISSING else lambda: field.default


_UUID: Final = re.compile("[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
"""UUID() takes blanks, braces and hyphens anywhere as well."""


def plain(record: Any) -> dict[str, Any]:
    """Return the fields of *record* by name, ids as text and times in ISO 8601; vectors stay arrays."""
    return {name: _plain(getattr(record, name)) for name in kinds(type(record))}


def _plain(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.isoformat()
        case _:
            return value


def item(new: type[New], record: type[Record], given: Mapping[str, Any]) -> New | Record:
    """Return *given*, the values of a row by name, as a *new*; as a *record* if its id is no field of *new*.

    Ids and times can be text, and a JSON object too. None counts as left out. The values themselves are not checked.
    Raises InvalidValue for a field that is unknown or missing, and for text that is not what its field holds.
    """
    known = kinds(record)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidValue(f"{name}: there is no such field; the fields are {', '.join(known)}")
        if value is not None:
            values[name] = _read(name, known[name].kind, value)
    defaults = optional(new)
    for name in kinds(new):
        if name not in values and name not in defaults:
            raise InvalidValue(f"{name}: missing")
    if values.keys() <= kinds(new).keys():
        return new(**values)
    return record(**{name: make() for name, make in defaults.items()} | values)


def _read(name: str, kind: type, value: Any) -> Any:
    if kind is UUID and isinstance(value, bytes) and len(value) == 16:
        return UUID(bytes=value)
    if not isinstance(value, str):
        return value
    if kind is UUID:
        if not _UUID.fullmatch(value):
            raise InvalidValue(f"{name}: {value!r} is not a UUID")
        return UUID(value)
    try:
        if kind is datetime:
            return datetime.fromisoformat(value)
        if kind is dict:
            return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"{name}: {error}") from None
    return value
