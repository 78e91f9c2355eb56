"""A .pyi file that gives editors and type checkers the functions of loaded queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Final

from ..sql import Statement, shapes
from ..sql.shapes import Kind
from .text import Fault

_HEADER: Final = """\
# Written by `kimera-sql verify --update`, which keeps it as the queries are; do not edit.
"""

_IMPORTS: Final = {
    "Any": "from typing import Any",
    "Decimal": "from decimal import Decimal",
    "UUID": "from uuid import UUID",
    "Vector": "from kimera_sql.vectors import Vector",
    "VectorLike": "from kimera_sql.vectors import VectorLike",
    **{name: f"from datetime import {name}" for name in ("date", "datetime", "time", "timedelta")},
}

_PARAMETERS: Final = {
    "bool": "bool",
    "bytea": "bytes",
    "date": "date",
    "float4": "float",
    "float8": "float",
    "halfvec": "VectorLike",
    "int2": "int",
    "int4": "int",
    "int8": "int",
    "interval": "timedelta",
    "json": "dict[str, Any]",
    "jsonb": "dict[str, Any]",
    "name": "str",
    "numeric": "Decimal",
    "oid": "int",
    "text": "str",
    "time": "time",
    "timestamp": "datetime",
    "timestamptz": "datetime",
    "uuid": "UUID",
    "varchar": "str",
    "vector": "VectorLike",
}
"""What is passed for a parameter of each type."""


def text(
    queries: Sequence[tuple[str, Statement, str | None, Sequence[tuple[str, str]]]],
    records: ModuleType | None,
    *,
    asynchronous: bool,
) -> str:
    """Return the stub of a module that has `queries = sql.load(...)`, of kimera_sql or, *asynchronous*, kimera_sql.aio.

    *queries* are entity, statement, note `returns` and typed parameters; of a name that both dialects have the first
    one counts.
    """
    package = "kimera_sql.aio.sql" if asynchronous else "kimera_sql.sql"
    classes: dict[str, dict[str, str]] = {}
    for entity, statement, note, parameters in queries:
        name = statement.name.rpartition(".")[2]
        function = _function(name, statement, note, parameters, records, asynchronous=asynchronous)
        classes.setdefault(entity, {}).setdefault(name, function)
    body = "".join(
        f"\n\nclass _{entity.title().replace('_', '')}:\n" + "\n".join(functions.values())
        for entity, functions in classes.items()
    )
    body += "\n\nclass _Queries:\n" + "".join(
        f"    {entity}: _{entity.title().replace('_', '')}\n" for entity in classes
    )
    words = set(_words(body))
    imports = {line for name, line in _IMPORTS.items() if name in words}
    imports |= {f"from {package} import {name}" for name in ("Connection", "Query") if name in words}
    if records is not None:
        imports |= {f"from {records.__name__} import {name}" for name in words & vars(records).keys() - _IMPORTS.keys()}
    return _HEADER + "\n" + "\n".join(sorted(imports)) + body + "\n\nqueries: _Queries\n"


def _words(text: str) -> list[str]:
    return "".join(character if character.isalnum() or character == "_" else " " for character in text).split()


def _function(
    name: str,
    statement: Statement,
    note: str | None,
    parameters: Sequence[tuple[str, str]],
    records: ModuleType | None,
    *,
    asynchronous: bool,
) -> str:
    doc = " ".join(statement.doc.split()).replace("\\", "\\\\").replace('"""', "'''")
    if statement.suffix == "#":
        return f"    {name}: Query\n    # {doc}\n"
    told = _told(statement.notes.get("takes"), records)
    given = "".join(f", {one}: {told.get(one) or _sent(type_)}" for one, type_ in parameters)
    define = "async def" if asynchronous else "def"
    head = (
        f"    {define} {name}(self, conn: Connection, /{', *' if given else ''}{given}) -> {_result(statement, note)}:"
    )
    return f'{head}\n        """{doc}"""\n'


def _told(note: str | None, records: ModuleType | None) -> dict[str, str]:
    """Return the types of parameters that the note `takes` names."""
    if note is None:
        return {}
    shape = shapes.parse(note)
    own = shapes.record_kinds(shapes.find_record(records, shape.record)) if shape.record else []
    return {name: _passed(kind) for name, kind in (*own, *shape.columns)}


def _passed(kind: Kind) -> str:
    return str(kind).replace("Vector", "VectorLike").replace("dict", "dict[str, Any]")


def _sent(type_: str) -> str:
    if type_.endswith("[]"):
        return f"list[{_PARAMETERS.get(type_.removesuffix('[]'), 'Any')}]"
    return _PARAMETERS.get(type_, "Any")


def _result(statement: Statement, note: str | None) -> str:
    if statement.suffix == "!":
        return "int"
    if note is None:
        return "Any" if statement.suffix == "$" else "list[tuple[Any, ...]]"
    shape = shapes.parse(note)
    columns = [_read(kind) for _, kind in shape.columns]
    if shape.record:
        row = f"tuple[{', '.join([shape.record, *columns])}]" if columns else shape.record
    else:
        row = f"tuple[{', '.join(columns)}]" if shape.columns[0][0] else columns[0]
    if not statement.suffix:
        return f"list[{row}]"
    return row if row.endswith("| None") else f"{row} | None"


def _read(kind: Kind) -> str:
    text = str(kind)
    for plain, whole in (("dict", "dict[str, Any]"), ("list", "list[Any]"), ("tuple", "tuple[Any, ...]")):
        if text.partition(" ")[0] == plain:
            text = text.replace(plain, whole, 1)
    return text


def compare(path: Path, wanted: str) -> Iterator[Fault]:
    """Compare what --update wrote at *path* with what is *wanted*."""
    try:
        there = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        yield Fault(str(path), 1, 1, None, f"it cannot be read ({error.strerror}); --update writes it")
        return
    for number, (one, other) in enumerate(zip_longest(wanted.splitlines(), there, fillvalue="nothing"), start=1):
        if one != other:
            message = "it is not what was found now; --update writes it anew"
            yield Fault(str(path), number, 1, None, message, one.strip(), other.strip())
            return
