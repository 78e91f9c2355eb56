"""The snapshot: a file beside the queries that keeps the interface of each, so that a change shows without a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import QueryError
from .interfaces import Interface, Result
from .queries import Query
from .text import Fault

NAME: Final = "snapshot.txt"
"""The file, in the folder of the queries, that keeps what verify found."""

_HEADER: Final = """\
# The interface of each query as PostgreSQL and SQLite see it, with a checksum of its text.
# Written by `kimera-sql verify --update`; `kimera-sql verify --offline` compares it with the queries and the code.
"""

_GIVES: Final = {
    "postgres": re.compile(r"    gives (.+?) (\S+)(?: (null|unknown))?"),
    "sqlite": re.compile(r"    gives (.+)"),
}


def remembered(query: Query, kept: Mapping[tuple[str, str], Interface]) -> Interface:
    """Return what the snapshot knows of a query, under what the file says itself."""
    now, before = query.interface, kept.get(query.key)
    if before is None or before.checksum != now.checksum:
        return now
    types = dict(before.parameters)
    named = before.parameters if now.suffix == "#" else tuple((name, types.get(name, "")) for name, _ in now.parameters)
    return replace(before, suffix=now.suffix, parameters=named)


def text(interfaces: Iterable[Interface]) -> str:
    """Return the snapshot of *interfaces*."""
    return _HEADER + "".join("\n" + "\n".join(_lines(one)) + "\n" for one in interfaces)


def _lines(interface: Interface) -> list[str]:
    """Return an interface as the snapshot has it."""
    head = f"{interface.dialect} {interface.name}{interface.suffix} {interface.checksum}"
    words = {True: " null", False: "", None: " unknown"}
    return [
        head if interface.prepared else f"{head} not prepared",
        *(f"    takes {name} {type_}".rstrip() for name, type_ in interface.parameters),
        *(
            f"    gives {column.name} {column.type}{words[column.nullable]}"
            if column.type
            else f"    gives {column.name}"
            for column in interface.columns
        ),
    ]


def read(path: Path) -> dict[tuple[str, str], Interface]:
    """Read a snapshot by dialect and name, {} where there is none. Raises QueryError for one that is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{path} cannot be read: {error}") from error
    found: dict[tuple[str, str], Interface] = {}
    key = ("", "")
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        if head := re.fullmatch(r"(postgres|sqlite) ([\w.]+?)([\^$!#]?) ([0-9a-f]{12})( not prepared)?", line):
            key = head[1], head[2]
            found[key] = Interface(head[1], head[2], head[3], head[4], not head[5], (), ())
        elif key in found and (takes := re.fullmatch(r"    takes (\w+) ?(\S*)", line)):
            found[key] = replace(found[key], parameters=(*found[key].parameters, (takes[1], takes[2])))
        elif key in found and (gives := _result(key[0], line)):
            found[key] = replace(found[key], columns=(*found[key].columns, gives))
        else:
            raise QueryError(f"{path}:{number}: {line!r} is not as `kimera-sql verify --update` writes it")
    return found


def _result(dialect: str, line: str) -> Result | None:
    found = _GIVES[dialect].fullmatch(line)
    if found is None:
        return None
    if dialect == "sqlite":
        return Result(found[1], "", None)
    return Result(found[1], found[2], {None: False, "null": True, "unknown": None}[found[3]])


def compare(queries: Sequence[Query], kept: Mapping[tuple[str, str], Interface], snapshot: Path) -> Iterator[Fault]:
    """Compare what was found with the snapshot."""
    remedy = "run `kimera-sql verify --update` and look at the difference"
    for query in queries:
        before, now = kept.get(query.key), query.interface
        if not query.source.readable:
            continue
        if before is None:
            yield query.source.fault(None, f"the snapshot does not have it; {remedy}")
        elif before.checksum != now.checksum:
            message = f"its text was changed after the snapshot was written; {remedy}"
            yield query.source.fault(None, message, expected=before.checksum, found=now.checksum)
        elif before.prepared and now.prepared and before != now:
            old, new = _lines(before), _lines(now)
            gone = next((line for line in old if line not in new), "nothing").strip()
            come = next((line for line in new if line not in old), "nothing").strip()
            yield query.source.fault(
                None, f"its interface is not that of the snapshot; {remedy}", expected=gone, found=come
            )
    keys = {query.key for query in queries}
    for dialect, name in kept:
        if (dialect, name) not in keys:
            yield Fault(str(snapshot), 1, 1, name, f"the snapshot has it for {dialect}, and it is gone; {remedy}")
