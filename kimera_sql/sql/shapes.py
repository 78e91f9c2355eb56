"""Parse what rows become in Python: the notes `returns` and `takes` of the .sql files, and type hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import ModuleType, NoneType, UnionType
from typing import Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

import numpy as np

from ..errors import QueryError

TYPES: Final[Mapping[str, type]] = {
    "Any": object,
    "Decimal": Decimal,
    "UUID": UUID,
    "Vector": np.ndarray,
    "bool": bool,
    "bytes": bytes,
    "date": date,
    "datetime": datetime,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
    "time": time,
    "timedelta": timedelta,
    "tuple": tuple,
}
"""The types that a note can name. list and tuple take an item type: list[int], tuple[str, ...]."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A Python type. kind: its class. item: the class of a list's or tuple's items, or object. optional: or None."""

    kind: type
    item: type = object
    optional: bool = False

    def __str__(self) -> str:
        name = next((name for name, kind in TYPES.items() if kind is self.kind), self.kind.__name__)
        if self.kind in (list, tuple) and self.item is not object:
            name += f"[{self.item.__name__}{', ...' if self.kind is tuple else ''}]"
        return f"{name} | None" if self.optional else name


@dataclass(frozen=True, slots=True)
class Shape:
    """What a row becomes: a dataclass's name or None, and further columns as (name, type).

    A single column without a name means that the row becomes its one value.
    """

    record: str | None
    columns: tuple[tuple[str, Kind], ...]


def parse(text: str) -> Shape:
    """Parse a note: `Dream`, `Dream, similarity float`, `name str, size int | None` or `int`. Raises QueryError."""
    record = None
    columns = []
    parts = _split(text)
    for place, part in enumerate(parts):
        name, _, rest = part.partition(" ")
        if name not in TYPES and "[" not in name and rest and not rest.startswith("|"):
            columns.append((name, _kind(rest)))
        elif name in TYPES or "[" in name:
            if len(parts) > 1:
                raise QueryError(f"{part!r} among several columns needs a name before it, as in `size int`")
            columns.append(("", _kind(part)))
        elif place == 0 and name.isidentifier() and not rest:
            record = name
        else:
            raise QueryError(f"{part!r} is neither a dataclass at the first place nor a column with its type")
    return Shape(record, tuple(columns))


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _kind(text: str) -> Kind:
    name, bar, none = (part.strip() for part in text.partition("|"))
    if bar and none != "None":
        raise QueryError(f"{text!r}: after | only None can stand")
    outer, bracket, inner = name.partition("[")
    item = inner.removesuffix("]").removesuffix(", ...").strip() if bracket else "Any"
    for one in (outer, item):
        if one not in TYPES:
            raise QueryError(f"{one!r} is no type that a column can have; there are {', '.join(TYPES)}")
    return Kind(TYPES[outer], TYPES[item], bool(bar))


def kind_of(hint: Any) -> Kind:
    """Return the kind of a type hint. For a union it is the kind of the member that a column is read as.

    Raises QueryError for a type that a column cannot have.
    """
    hint = getattr(hint, "__supertype__", getattr(hint, "__value__", hint))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        members = [kind_of(one) for one in arguments if one is not NoneType]
        # VectorLike is an array or a sequence of numbers.
        chosen = next((member for member in members if member.kind is np.ndarray), members[0])
        return Kind(chosen.kind, chosen.item, NoneType in arguments or chosen.optional)
    if origin is Literal:
        return Kind(type(arguments[0]))
    kind = origin or hint
    if kind is Any:
        return Kind(object)
    if not isinstance(kind, type):
        raise QueryError(f"{hint!r} is no type that a column can have")
    if issubclass(kind, np.ndarray):
        return Kind(np.ndarray)
    if issubclass(kind, Mapping):
        return Kind(dict)
    if kind not in (str, bytes, tuple, list) and issubclass(kind, Sequence) and not issubclass(kind, str):
        kind = list
    items = [one for one in arguments if one is not Ellipsis]
    return Kind(kind, kind_of(items[0]).kind if kind in (list, tuple) and items else object)


def record_kinds(record: type) -> list[tuple[str, Kind]]:
    """Return the fields of a dataclass in order, as (name, kind)."""
    hints = get_type_hints(record)
    return [(field.name, kind_of(hints[field.name])) for field in fields(record)]


def find_record(records: ModuleType | None, name: str) -> type:
    """Return the dataclass *name* of the module *records*. Raises QueryError if there is none."""
    if records is None:
        raise QueryError(f"{name} is looked for in no module: name the one that has the dataclasses (--records)")
    found = getattr(records, name, None)
    if found is None:
        raise QueryError(f"{records.__name__} has no dataclass {name}")
    if not (isinstance(found, type) and is_dataclass(found)):
        raise QueryError(f"{records.__name__}.{name} is not a dataclass")
    return cast(type, found)
