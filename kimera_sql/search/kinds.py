"""The kinds of vector indexes: their options, their CREATE INDEX statements, their size, and what a build needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from psycopg import sql as composed

from .. import checks
from ..errors import InvalidValue, UnsupportedByServer
from ..tables import Table
from .plan import EXPRESSIONS, Method, Precision

_VECTOR_BYTES: Final[Mapping[Precision, int]] = {"full": 4096, "half": 2048, "binary": 128}

_LISTS: Final = 100
"""The specification's number of lists. pgvector's rule (rows / 1000) gives the same at 100,000 rows."""

_MOST_LISTS: Final = 32768
"""pgvector's upper limit."""

_PAGE: Final = 8192
_USABLE: Final = _PAGE - 24 - 8
"""Bytes of a page, and those of them for tuples: without its header and pgvector's part at its end."""


@dataclass(frozen=True, slots=True)
class Building:
    """An index being built. phase: as in pg_stat_progress_create_index. done, total: that phase's progress.

    waits_for: the process for whose transaction it waits now.
    """

    table: str
    phase: str
    done: int
    total: int
    waits_for: int | None


def name(table: Table, method: Method, precision: Precision) -> str:
    """Return the name of an index of this kind on *table*. Only the specification's kind has no suffix."""
    first = table.vector_index or ""
    return first if (method, precision) == ("ivfflat", "full") else f"{first}_{method}_{precision}"


def statement(
    table: Table, method: Method, precision: Precision, options: Mapping[str, int], *, concurrently: bool
) -> composed.Composed:
    """Return the CREATE INDEX statement for an index of this kind on *table*."""
    expression, opclass = EXPRESSIONS[precision]
    return composed.SQL(
        "CREATE INDEX {concurrently} {name} ON {table} USING {method} ({column} {opclass}) WITH ({options})"
    ).format(
        concurrently=composed.SQL("CONCURRENTLY" if concurrently else ""),
        name=composed.Identifier(name(table, method, precision)),
        table=composed.Identifier(table.name),
        method=composed.Identifier(method),
        column=composed.SQL(expression).format(column=composed.Identifier(table.vector or "")),
        opclass=composed.Identifier(opclass),
        options=composed.SQL(", ").join(
            composed.SQL("{} = {}").format(composed.Identifier(option), composed.Literal(value))
            for option, value in options.items()
        ),
    )


def check_kind(method: Method, precision: Precision, pgvector: tuple[int, ...]) -> None:
    """Raise InvalidValue for an unknown kind of index, UnsupportedByServer for one that version *pgvector* lacks."""
    if method not in get_args(Method):
        raise InvalidValue(f"method: expected hnsw or ivfflat, got {method!r}")
    if precision not in EXPRESSIONS:
        raise InvalidValue(f"precision: expected one of {', '.join(EXPRESSIONS)}, got {precision!r}")
    if precision != "full" and pgvector < (0, 7):
        version = ".".join(map(str, pgvector))
        raise UnsupportedByServer(f"indexes in {precision} precision need pgvector 0.7, the server has {version}")


def options(
    method: Method, rows: int, *, lists: int | None, m: int | None, ef_construction: int | None
) -> dict[str, int]:
    """Return the options of an index on a table with *rows* rows; see indexes.build. Raises InvalidValue."""
    if method == "ivfflat":
        if m is not None or ef_construction is not None:
            raise InvalidValue("m and ef_construction are options of hnsw")
        rule = _LISTS if rows <= 1000 * _LISTS else rows // 1000 if rows <= 10**6 else math.isqrt(rows)
        wanted = min(rule, _MOST_LISTS) if lists is None else lists
        return {"lists": checks.integer("lists", wanted, least=1, most=_MOST_LISTS)}
    if lists is not None:
        raise InvalidValue("lists is an option of ivfflat")
    nodes = checks.integer("m", 16 if m is None else m, least=2, most=100)
    wanted = max(64, 2 * nodes) if ef_construction is None else ef_construction
    return {"m": nodes, "ef_construction": checks.integer("ef_construction", wanted, least=2 * nodes, most=1000)}


def size(method: Method, precision: Precision, rows: int, options: Mapping[str, int]) -> int:
    """Return the bytes of an index that was just built, within 1 % (pgvector's hnsw.h and ivfflat.h)."""
    vector = 8 + _VECTOR_BYTES[precision]
    if method == "hnsw":
        # For each row: an entry in the page and a tuple, each for the vector with a header of 72 bytes and for its
        # 2 m neighbours of 6 bytes. Both are on one page, if they fit.
        per_page = _USABLE // (4 + _aligned(72 + vector) + 4 + _aligned(4 + 2 * options["m"] * 6))
        return _PAGE * (1 + math.ceil(rows / per_page))
    # The last page of a list is half empty on average, and its centre takes half a page or a whole one.
    return _PAGE * (1 + math.ceil(rows / (_USABLE // (4 + _aligned(8 + vector)))) + options["lists"])


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def memory(method: Method, precision: Precision, rows: int, options: Mapping[str, int]) -> int:
    """Return the memory in bytes that a build needs to run at full speed."""
    size = _VECTOR_BYTES[precision]
    if method == "hnsw":
        # The whole graph. For each row: the vector, 2 m neighbours of 16 bytes at the lowest level, m at the levels
        # above (few rows have any), and the node itself (pgvector's hnsw.h).
        return rows * (size + 3 * options["m"] * 16 + 200)
    # The sampled rows that k-means runs on, 50 per list, and Elkan's bounds (pgvector's ivfkmeans.c).
    samples = min(rows, 50 * options["lists"])
    return options["lists"] * (2 * size + 4 * (samples + options["lists"])) + samples * (size + 8)
