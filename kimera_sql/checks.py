"""Checks of the values that are not vectors, before any SQL is sent. Each raises InvalidValue and names the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from numbers import Integral, Real
from typing import Any, Final, TypeVar
from uuid import UUID

from .errors import InvalidValue, VectorError

V = TypeVar("V")
T = TypeVar("T")

LONGEST_LABEL: Final = 2000
"""Bytes of a text in an index. PostgreSQL's B-trees and GIN refuse more than 2,704 that cannot be compressed."""

DEEPEST_JSON: Final = 100
"""Levels of objects and lists. Python reads 1,000, less its own calls, and compares some 300; SQLite takes 1,000."""

_LONGEST_SPAN: Final = timedelta(days=36525)
"""A century, because far longer ago there are no datetimes."""

_encode_as_it_is: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode

# JSON writes NUL as \u0000, a run of escaped backslashes before it left aside
_JSON_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def item_fault(number: int, error: Exception) -> InvalidValue:
    """Return what is to be raised from *error*, which item *number* of many has caused."""
    kind = VectorError if isinstance(error, VectorError) else InvalidValue
    what = "" if isinstance(error, InvalidValue) else f"{type(error).__name__}: "
    return kind(f"item {number}: {what}{error}")


def optional(check: Callable[[str, V], T], field: str, value: V | None) -> T | None:
    """What *check* returns for *value*, or None, which stands for NULL."""
    return None if value is None else check(field, value)


def keywords(given: Mapping[str, Any], known: type) -> None:
    """Raise TypeError for a keyword that the TypedDict *known* does not have, as a function does."""
    if unknown := [name for name in given if name not in known.__annotations__]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; there are {', '.join(known.__annotations__)}")


def narrow(parameters: Mapping[str, Any], known: type) -> None:
    """Refuse *parameters*, those of the filters of the TypedDict *known*, if every row passes them."""
    # An empty list or object narrows nothing either, and comes from a mistake more often than from a decision.
    if all(value is None or value == [] or value == {} for value in parameters.values()):
        raise InvalidValue(
            f"filters: none is given, so every row would go; give at least one of {', '.join(known.__annotations__)}"
        )


def number(field: str, value: float) -> float:
    """A finite DOUBLE PRECISION."""
    if type(value) is float and math.isfinite(value):  # asking an abstract class takes ten times as long
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidValue(f"{field}: expected a number, got {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:
        raise InvalidValue(f"{field}: a number beyond double precision") from None
    if not math.isfinite(result):
        raise InvalidValue(f"{field}: {result} is not a finite number")
    return result


def similarity(field: str, value: float) -> float:
    """A cosine similarity: from -1 to 1."""
    result = number(field, value)
    if not -1 <= result <= 1:
        raise InvalidValue(f"{field}: {result} is not within -1 to 1")
    return result


def integer(field: str, value: int, *, least: int = -(2**31), most: int = 2**31 - 1) -> int:
    """An INTEGER, within other bounds where they are given."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidValue(f"{field}: expected an integer, got {type(value).__name__}")
    if not least <= value <= most:
        raise InvalidValue(f"{field}: {value} is not within {least} to {most}")
    return int(value)


def limit(value: int, field: str = "limit") -> int:
    """How many rows or steps at most: from 1 up."""
    return integer(field, value, least=1)


def text(field: str, value: str) -> str:
    """A TEXT: a str that UTF-8 can hold, without NUL characters."""
    if not isinstance(value, str):
        raise InvalidValue(f"{field}: expected a str, got {type(value).__name__}")
    if "\0" in value:
        raise InvalidValue(f"{field}: PostgreSQL text cannot hold the NUL character (at {value.index(chr(0))})")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{field}: a lone surrogate at {error.start} is not text") from None
    return value


def label(field: str, value: str) -> str:
    """A TEXT that an index can hold whole."""
    result = text(field, value)
    size = len(result) if result.isascii() else len(result.encode())
    if size > LONGEST_LABEL:
        raise InvalidValue(f"{field}: {size} bytes are too many for an index; give at most {LONGEST_LABEL}")
    return result


def texts(field: str, values: Iterable[str]) -> list[str]:
    """A TEXT[]."""
    return [text(field, value) for value in _sequence(field, values)]


def labels(field: str, values: Iterable[str]) -> list[str]:
    """A TEXT[] that an index can hold whole."""
    return [label(field, value) for value in _sequence(field, values)]


def _sequence(field: str, values: Iterable[str]) -> Iterator[str]:
    if not isinstance(values, str):
        with suppress(TypeError):
            return iter(values)
    raise InvalidValue(f"{field}: expected a sequence of str, got {type(values).__name__}")


def _encoder() -> Callable[[Any], str]:
    """Return JSONEncoder.encode without what it does anew for each object, which takes longer than a small object does.

    It makes its C encoder each time, and gives no other way to one.
    """
    encoder = json.JSONEncoder(allow_nan=False)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return encoder.encode
    escape = json.encoder.encode_basestring_ascii
    encode = make(
        None, encoder.default, escape, None, encoder.key_separator, encoder.item_separator, False, False, False
    )
    return lambda value: "".join(encode(value, 0))


_encode: Final = _encoder()


class JsonObject(dict[str, Any]):
    """A JSON object that has been checked. text: it in ASCII, made once for the check and for the database."""

    __slots__ = ("text",)
    text: str


def json_object(field: str, value: Mapping[str, Any]) -> JsonObject:
    """A JSONB object."""
    if not isinstance(value, Mapping):
        raise InvalidValue(f"{field}: expected a dict, got {type(value).__name__}")
    result = JsonObject(value)
    try:
        _check_inside(field, result, DEEPEST_JSON)
    except RecursionError:
        raise InvalidValue(f"{field}: not JSON: nested too deeply, or within itself") from None
    try:
        result.text = _encode(result)
        if "\\u" in result.text:
            _encode_as_it_is(result).encode()  # a lone surrogate is no text
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{field}: not JSON: {error}") from None
    if "\\u0000" in result.text and _JSON_NUL.search(result.text):
        raise InvalidValue(f"{field}: JSONB cannot hold the NUL character")
    return result


def _check_inside(field: str, value: Mapping[Any, Any] | Iterable[Any], levels: int) -> None:
    """Refuse more than *levels* levels, and keys that are not str: json would make one of 1 and "1"."""
    if not levels:
        raise RecursionError
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise InvalidValue(f"{field}: a key of a JSON object is a str, got {key!r}")
        value = value.values()
    for item in value:
        if isinstance(item, (dict, list, tuple)):
            _check_inside(field, item, levels - 1)


def moment(field: str, value: datetime) -> datetime:
    """A TIMESTAMP WITH TIME ZONE."""
    if not isinstance(value, datetime):
        raise InvalidValue(f"{field}: expected a datetime, got {type(value).__name__}")
    if value != value:  # pandas' NaT, which is a datetime
        raise InvalidValue(f"{field}: {value} is no moment; give None for none")
    if value.utcoffset() is None:
        raise InvalidValue(f"{field}: {value.isoformat()} has no time zone; give it one, such as datetime.UTC")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidValue(f"{field}: {value.isoformat()} is outside the years 1 to 9999 in UTC") from None


def span(field: str, value: timedelta) -> timedelta:
    """A length of time: above zero, up to a century."""
    if not isinstance(value, timedelta):
        raise InvalidValue(f"{field}: expected a timedelta, got {type(value).__name__}")
    if not timedelta(0) < value <= _LONGEST_SPAN:
        raise InvalidValue(f"{field}: {value} is not above zero and up to a century")
    return value


def identifier(field: str, value: UUID) -> UUID:
    """A UUID."""
    if not isinstance(value, UUID):
        raise InvalidValue(f"{field}: expected a uuid.UUID, got {type(value).__name__}")
    return value


def limits(field: str, value: Sequence[float | None] | None) -> tuple[float | None, float | None]:
    """A range (least, most) of which either end can be None for no limit; None for no limits at all."""
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidValue(f"{field}: expected a pair (least, most), got {value!r}")
    least, most = (None if end is None else number(field, end) for end in value)
    if least is not None and most is not None and least > most:
        raise InvalidValue(f"{field}: {least} to {most} is an empty range")
    return least, most
