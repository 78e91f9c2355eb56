"""Geoid states: 1024-dimensional vectors with entropy, coherence, energy, metadata and tags."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, Unpack
from uuid import UUID

import numpy as np

from .. import checks
from ..errors import InUse, InvalidValue, NotFound
from ..model.geoids import Bucket, Filters, Geoid, GeoidSummary, Gone, Hit, NewGeoid, values, where
from ..model.upserts import Upserted
from ..search.blocks import Pair
from ..search.plan import Explanation, Options
from ..tables import VECTOR_TABLES
from ..vectors import Vector, VectorLike, as_vector
from . import batches, sql
from .search import catalogue, run
from .search import pairs as all_pairs
from .search.run import Source
from .search.unbounded import Search
from .sql import Connection
from .upserts import UpsertEntity

__all__ = [
    "Bucket",
    "Filters",
    "Geoid",
    "GeoidSummary",
    "Gone",
    "Hit",
    "NewGeoid",
    "Pair",
    "Upserted",
    "add_tags",
    "centroid",
    "count",
    "delete",
    "delete_where",
    "entity",
    "explain",
    "find",
    "get",
    "get_many",
    "insert",
    "insert_arrow",
    "insert_many",
    "latest",
    "pairs",
    "prune",
    "remove_tags",
    "replace_vector",
    "series",
    "similar",
    "similar_many",
    "similar_pages",
    "similar_to",
    "stream",
    "stream_arrow",
    "update_metadata",
    "upsert",
    "upsert_many",
    "within",
]

_queries = sql.Queries("geoids")
_transitions = sql.Queries("transitions")
_table = VECTOR_TABLES["geoid_states"]

_ALL: Mapping[str, Any] = {"other_than": None}
"""That no state is left out."""

entity = UpsertEntity(_queries, NewGeoid, Geoid, values, checks.identifier, vector="state_vector")
insert = entity.insert
insert_many = entity.insert_many
upsert = entity.upsert
upsert_many = entity.upsert_many
insert_arrow = entity.insert_arrow
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream
stream_arrow = entity.stream_arrow


async def replace_vector(conn: Connection, id: UUID, vector: VectorLike) -> None:
    """Give a state another vector, and change nothing else of it. Raises NotFound, and VectorError."""
    await entity.update(conn, _queries.replace_vector, UUID, id, vector=as_vector(vector))


async def find(conn: Connection, *, limit: int = 100, **filters: Unpack[Filters]) -> list[GeoidSummary]:
    """Return at most *limit* states that pass all *filters* (see Filters), the newest first."""
    return await _queries.find.fetchall(conn, GeoidSummary, limit=checks.limit(limit), **where(**filters))


async def latest(conn: Connection, limit: int = 10) -> list[GeoidSummary]:
    """Return the *limit* newest states, the newest first."""
    return await find(conn, limit=limit)


async def similar(
    conn: Connection,
    vector: VectorLike,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    at_least: float | None = None,
    with_vectors: bool = False,
    diversity: float = 0.0,
    **filters: Unpack[Filters],
) -> list[Hit]:
    """Return the *k* states nearest to *vector* by cosine, the most similar first, that pass all *filters*.

    *vector*: shape (1024,). The search is approximate where a vector index is built, unless *exact*; similarities are
    exact either way, and *k* hits come back where as many states pass. *recall* is the share of the true nearest that
    it is to find (0.95 unless told otherwise), with the settings that recall.tune measured; *ef_search* (hnsw) or
    *probes* (ivfflat) set them by hand. Hits less similar than *at_least*, from -1 to 1, are left out.
    *with_vectors* fetches each hit's vector too. *diversity*, from 0 to 1, prefers hits that are unlike each other
    (maximal marginal relevance).
    Raises VectorError for a vector that cannot be searched for.
    """
    options = Options(exact, probes, ef_search, recall)
    (found,) = await _nearest(conn, [as_vector(vector)], k, filters, options, _ALL, at_least, with_vectors, diversity)
    return found


async def similar_to(
    conn: Connection,
    id: UUID,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    at_least: float | None = None,
    with_vectors: bool = False,
    diversity: float = 0.0,
    **filters: Unpack[Filters],
) -> list[Hit]:
    """Return the *k* states nearest to the state *id*, without itself; otherwise as similar. Raises NotFound."""
    options = Options(exact, probes, ef_search, recall)
    vector = await _queries.vector_of.fetchval(conn, np.ndarray, id=checks.identifier("id", id))
    if vector is None:
        raise NotFound(f"no row has the id {id}")
    besides = {"other_than": id}
    (found,) = await _nearest(conn, [vector], k, filters, options, besides, at_least, with_vectors, diversity)
    return found


async def similar_many(
    conn: Source,
    vectors: Iterable[VectorLike],
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    at_least: float | None = None,
    **filters: Unpack[Filters],
) -> list[list[Hit]]:
    """Return what similar gives for each of *vectors*, asked all at once in one pipeline.

    *conn* may also be a pool: the searches are then shared among those of its connections that are idle, at least one.
    """
    options = Options(exact, probes, ef_search, recall)
    asked = [as_vector(vector, field=f"vectors[{number}]") for number, vector in enumerate(vectors)]
    found = await run.nearest_to_many(
        conn, _table, GeoidSummary, asked, k, where(**filters), options, besides=_ALL, at_least=at_least
    )
    return [[Hit(*hit) for hit in hits] for hits in found]


def within(
    conn: Connection,
    vector: VectorLike,
    similarity: float,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    with_vectors: bool = False,
    **filters: Unpack[Filters],
) -> AsyncIterator[Hit]:
    """Yield every state that is at least as similar to *vector* as *similarity*, the most similar first.

    The options and *filters* are those of similar. Up to 500 states are found by an hnsw index, and up to 100 by
    ivfflat, with the recall of similar. If there are more, or no index serves, every row is compared, and what is found
    is fetched 1,000 at a time: the rows that there were when it began. On PostgreSQL that is one transaction, which
    lasts until the iterator ends or is closed. What the caller writes meanwhile stays, even when the iterator is closed
    early.
    Raises InvalidValue if the transaction is committed or rolled back sooner.
    """
    options = Options(exact, probes, ef_search, recall)
    return _search(conn, vector, filters, options, with_vectors).within(checks.similarity("similarity", similarity))


def similar_pages(
    conn: Connection,
    vector: VectorLike,
    size: int = 20,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    with_vectors: bool = False,
    **filters: Unpack[Filters],
) -> AsyncIterator[list[Hit]]:
    """Yield all states in pages of *size*, the most similar to *vector* first. Only the last page can be shorter.

    The options and *filters* are those of similar. However many pages are read, no state comes twice and none is left
    out. An index gives the first 100 states, and hnsw then those up to 500. If more is read, every row is compared,
    once. What the index has missed comes at the start of the next of these parts; with *exact*, the order is strict.

    What is written meanwhile can appear on later pages until the rows are compared. From then on they are the rows that
    there were at that time, and on PostgreSQL they come in one transaction, which lasts until the iterator ends or is
    closed. What the caller writes meanwhile stays, even when the iterator is closed early.
    Raises InvalidValue if that transaction is committed or rolled back sooner.
    """
    options = Options(exact, probes, ef_search, recall)
    return _search(conn, vector, filters, options, with_vectors).pages(checks.limit(size, "size"))


def _search(
    conn: Connection, vector: VectorLike, filters: Filters, options: Options, with_vectors: bool
) -> Search[Hit]:
    read = run.reader(conn, GeoidSummary, Hit)
    return Search(conn, _table, read, as_vector(vector), where(**filters), options, _ALL, with_vectors)


async def explain(
    conn: Connection,
    vector: VectorLike,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    **filters: Unpack[Filters],
) -> Explanation:
    """Say by which index, with which settings and by which plan similar would search, and why; print it.

    Raises UnsupportedByServer on SQLite.
    """
    options = Options(exact, probes, ef_search, recall)
    return await run.explain(conn, _table, as_vector(vector), k, where(**filters), options, besides=_ALL)


async def _nearest(
    conn: Connection,
    vectors: list[Vector],
    k: int,
    filters: Filters,
    options: Options,
    besides: Mapping[str, Any],
    at_least: float | None,
    with_vectors: bool,
    diversity: float,
) -> list[list[Hit]]:
    found = await run.nearest(
        conn,
        _table,
        GeoidSummary,
        vectors,
        k,
        where(**filters),
        options,
        besides=besides,
        at_least=at_least,
        with_vectors=with_vectors,
        diversity=diversity,
    )
    return [[Hit(*hit) for hit in hits] for hits in found]


def pairs(
    conn: Connection, similarity: float = 0.9, *, after: tuple[UUID, UUID] | None = None, **filters: Unpack[Filters]
) -> AsyncIterator[Pair]:
    """Yield every pair of states that pass all *filters* with a similarity of at least *similarity*, each once.

    The search is exact and needs no index: all states are compared with each other in this process, block by block.
    Pairs come in the order of their first ids, then of their second. *after*, the ids (first, second) of a pair, goes
    on behind that pair.
    Between two pairs no statement is open, and on an autocommit connection no transaction: the caller can write, commit
    and roll back there. The states are those that there are when the first pair is asked for. Those inserted later are
    not compared, those deleted before they are read drop out, and a pair can name one that has been deleted since.
    Raises InvalidValue for a similarity outside -1 to 1.
    """
    return all_pairs.find(conn, _table, similarity, after, where(**filters))


async def series(conn: Connection, bucket: timedelta, **filters: Unpack[Filters]) -> list[Bucket]:
    """Return the states that pass all *filters*, summed up in buckets of time, the oldest first.

    Buckets are counted from 1970-01-01 UTC, and those without a state are left out.
    """
    return await _queries.series.fetchall(conn, Bucket, bucket=checks.span("bucket", bucket), **where(**filters))


async def centroid(conn: Connection, **filters: Unpack[Filters]) -> Vector | None:
    """Return the mean of the vectors of the states that pass all *filters*; None if there is no such state.

    It has shape (1024,) and is not scaled to any length. It can be zero, which no search takes.
    """
    return await _queries.centroid.fetchval(conn, np.ndarray, **where(**filters))


async def prune(
    conn: Connection,
    older_than: datetime,
    *,
    transitions: Literal["refuse", "delete"] = "refuse",
    batch: int = 1000,
    dry_run: bool = False,
) -> Gone:
    """Delete the states from before *older_than* (aware), the oldest first, and return how many there were.

    The options are those of delete_where.
    """
    moment = checks.moment("older_than", older_than)
    return await delete_where(conn, until=moment, transitions=transitions, batch=batch, dry_run=dry_run)


async def delete_where(
    conn: Connection,
    *,
    transitions: Literal["refuse", "delete"] = "refuse",
    batch: int = 1000,
    dry_run: bool = False,
    **filters: Unpack[Filters],
) -> Gone:
    """Delete the states that pass all *filters*, the oldest first, and return how many there were.

    *transitions* that lead from or to them: with "refuse", InUse is raised if there are any, and nothing is deleted;
    with "delete", they go along. *dry_run* only counts what would go, and raises what a real run would at its start.
    States go *batch* at a time, with their transitions: on an autocommit connection each batch is a transaction of its
    own, otherwise all are the caller's transaction. If a batch fails, a note of the error says what had gone before.
    Raises InvalidValue if no filter is given.
    """
    if transitions not in ("refuse", "delete"):
        raise InvalidValue(f"transitions: expected 'refuse' or 'delete', got {transitions!r}")
    parameters, size = where(**filters), checks.limit(batch, "batch")
    checks.narrow(parameters, Filters)
    if dry_run or transitions == "refuse":
        found = await _queries.count_matching.fetchone(conn, Gone, **parameters) or Gone(0, 0)
        if transitions == "refuse" and found.transitions:
            raise InUse(
                f"{found.transitions:,} transitions lead from or to the {found.states:,} states; "
                "transitions='delete' deletes them too"
            )
        if dry_run:
            return found
    along = _transitions.delete_of_states if transitions == "delete" else None
    distributed = await catalogue.is_distributed(conn, _table.name)
    find = _queries.scattered_oldest if distributed else _queries.oldest_matching
    return Gone(
        *await batches.delete_found(
            conn, find, _queries.delete_by_ids, size, parameters, along=along, locked=not distributed
        )
    )


async def update_metadata(conn: Connection, id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge *changes* into a state's metadata, key by key at the top level, and return the whole. Raises NotFound."""
    changed = checks.json_object("changes", changes)
    return await entity.update(conn, _queries.update_metadata, dict, id, changes=changed)


async def add_tags(conn: Connection, id: UUID, *tags: str) -> tuple[str, ...]:
    """Add those of *tags* that a state does not have, and return all it has. Raises NotFound."""
    return await entity.update(conn, _queries.add_tags, tuple, id, tags=checks.labels("tags", tags))


async def remove_tags(conn: Connection, id: UUID, *tags: str) -> tuple[str, ...]:
    """Take *tags* away from a state, and return those that are left. Raises NotFound."""
    return await entity.update(conn, _queries.remove_tags, tuple, id, tags=checks.texts("tags", tags))
