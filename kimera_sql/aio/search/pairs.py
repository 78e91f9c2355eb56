"""Find every pair of similar rows of a table: read them by blocks, and compare each block with all later rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import numpy as np

from ... import checks
from ...errors import InvalidValue
from ...progress import Bar
from ...search.blocks import Block, Pair, Places, Vectors
from ...sql.rows import decode
from ...tables import Table
from ...twins import acall
from ...vectors import DIMENSIONS
from .. import sql
from ..sql import Connection, Queries

_BLOCK: Final = 16_384
"""Rows of a block, whose vectors are 64 MB. For each block all later rows are read once."""

_CHUNK: Final = 2048
"""Rows that are read at once."""


def find(
    conn: Connection, table: Table, similarity: float, after: tuple[UUID, UUID] | None, where: Mapping[str, Any]
) -> AsyncIterator[Pair]:
    """Return an iterator over the pairs of *table*'s rows that pass *where*; see geoids.pairs."""
    least = checks.similarity("similarity", similarity)
    if after is not None:
        if not isinstance(after, tuple) or len(after) != 2:
            raise InvalidValue(f"after: expected a pair of ids (first, second), got {after!r}")
        after = (checks.identifier("after", after[0]), checks.identifier("after", after[1]))
    return _found(conn, table, least, after, where)


async def _found(
    conn: Connection, table: Table, similarity: float, after: tuple[UUID, UUID] | None, where: Mapping[str, Any]
) -> AsyncIterator[Pair]:
    queries, dialect = Queries(table.entity), sql.dialect(conn)
    ids = [id for (id,) in await queries.matching_ids.fetchall(conn, first=after and after[0], **where)]
    begin = 0
    while begin < len(ids):
        block = await _compared(conn, queries.vectors_of, ids, begin, similarity)
        for first, second, cosine in zip(*block.pairs(), strict=True):
            pair = Pair(decode(dialect, UUID, ids[first]), decode(dialect, UUID, ids[second]), float(cosine))
            if after is None or (pair.first, pair.second) > after:
                yield pair
        begin = block.end


async def _compared(
    conn: Connection, vectors_of: sql.Query, ids: Sequence[Any], begin: int, similarity: float
) -> Block:
    """Return a block of the rows of *ids* from the place *begin* on, compared with all that come later."""
    end = min(begin + _BLOCK, len(ids))
    with Bar() as bar:
        chunks = [await _read(conn, vectors_of, ids, start) for start in range(begin, end, _CHUNK)]
        block = await acall(Block, chunks, end, similarity)
        for start in range(begin, len(ids), _CHUNK):
            chunk = chunks.pop(0) if chunks else await _read(conn, vectors_of, ids, start)
            await acall(block.compare, *chunk)
            bar.draw("comparing rows", begin + (block.end - begin) * (start - begin) // (len(ids) - begin), len(ids))
    return block


async def _read(conn: Connection, vectors_of: sql.Query, ids: Sequence[Any], start: int) -> tuple[Places, Vectors]:
    """Return the places and the vectors of the next rows from *start* on; rows that were deleted are left out."""
    asked = ids[start : start + _CHUNK]
    vectors = {
        id: decode(sql.dialect(conn), np.ndarray, vector) for id, vector in await vectors_of.fetchall(conn, ids=asked)
    }
    places = [place for place, id in enumerate(asked, start) if id in vectors]
    found = [vectors[ids[place]] for place in places]
    return np.array(places, np.int32), np.array(found, np.float32).reshape(-1, DIMENSIONS)
