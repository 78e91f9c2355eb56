"""Semantic embeddings: texts with their 1024-dimensional vectors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Unpack

from .. import checks
from ..model.embeddings import (
    Embedding,
    EmbeddingSummary,
    Filters,
    Fused,
    Hit,
    NewEmbedding,
    depth,
    fuse,
    search_words,
    values,
    where,
)
from ..search.plan import Explanation, Options
from ..sql.rows import mapper
from ..tables import VECTOR_TABLES
from ..twins import avalue
from ..vectors import VectorLike, as_vector
from . import batches, sql
from .entity import Entity
from .search import run
from .search.run import Source
from .sql import Connection, postgres

__all__ = [
    "Embedding",
    "EmbeddingSummary",
    "Filters",
    "Fused",
    "Hit",
    "NewEmbedding",
    "count",
    "delete",
    "delete_where",
    "entity",
    "explain",
    "get",
    "get_many",
    "get_or_create",
    "hybrid",
    "insert",
    "insert_arrow",
    "insert_many",
    "prune",
    "similar",
    "similar_many",
    "stream",
    "stream_arrow",
]

_queries = sql.Queries("embeddings")

_table = VECTOR_TABLES["semantic_embeddings"]

entity = Entity(_queries, NewEmbedding, Embedding, values, checks.identifier, vector="embedding")
insert = entity.insert
insert_many = entity.insert_many
insert_arrow = entity.insert_arrow
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream
stream_arrow = entity.stream_arrow


async def similar(
    conn: Connection,
    vector: VectorLike,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    with_vectors: bool = False,
    diversity: float = 0.0,
    **filters: Unpack[Filters],
) -> list[Hit]:
    """Return the *k* embeddings nearest to *vector* by cosine, the most similar first, that pass all *filters*.

    *vector*: shape (1024,). The search is approximate where a vector index is built, unless *exact*; similarities are
    exact either way, and *k* hits come back where as many embeddings pass. *recall* is the share of the true nearest
    that it is to find (0.95 unless told otherwise), with the settings that recall.tune measured; *ef_search* (hnsw) or
    *probes* (ivfflat) set them by hand. *with_vectors* fetches each hit's vector too. *diversity*, from 0 to 1, prefers
    hits that are unlike each other (maximal marginal relevance).
    Raises VectorError for a vector that cannot be searched for.
    """
    options = Options(exact, probes, ef_search, recall)
    (found,) = await run.nearest(
        conn,
        _table,
        EmbeddingSummary,
        [as_vector(vector)],
        k,
        where(**filters),
        options,
        with_vectors=with_vectors,
        diversity=diversity,
    )
    return [Hit(*hit) for hit in found]


async def similar_many(
    conn: Source,
    vectors: Iterable[VectorLike],
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    **filters: Unpack[Filters],
) -> list[list[Hit]]:
    """Return what similar gives for each of *vectors*, asked all at once in one pipeline.

    *conn* may also be a pool: the searches are then shared among those of its connections that are idle, at least one.
    """
    options = Options(exact, probes, ef_search, recall)
    asked = [as_vector(vector, field=f"vectors[{number}]") for number, vector in enumerate(vectors)]
    found = await run.nearest_to_many(conn, _table, EmbeddingSummary, asked, k, where(**filters), options)
    return [[Hit(*hit) for hit in hits] for hits in found]


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
    return await run.explain(conn, _table, as_vector(vector), k, where(**filters), options)


async def hybrid(
    conn: Connection, text: str, vector: VectorLike, k: int = 10, **filters: Unpack[Filters]
) -> list[Fused]:
    """Return the *k* embeddings that best match the words of *text* and are nearest to *vector*, the best first.

    The two rankings, each of 5 *k*, are fused: an embedding scores the sum of 1 / (60 + rank) over them (reciprocal
    rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009). *text* is in websearch_to_tsquery's syntax, for English, and
    has at most 10,000 words and 100,000 characters.
    Raises UnsupportedByServer on SQLite.
    """
    server = sql.require_postgres(conn, "full-text search needs PostgreSQL; similar works on SQLite")
    wanted, parameters = depth(k), where(**filters)
    words = postgres.Call(
        _queries.matching_words.statement(server),
        {"words": search_words(text), "limit": wanted, **parameters},
        generic_plan=not any(value is not None for value in parameters.values()),
    )
    by_vector, by_words = await run.rows(
        server, _table, [as_vector(vector)], wanted, parameters, Options(), along=[words]
    )
    make = mapper("postgres", EmbeddingSummary)
    return fuse([make(row) for row in by_words], [make(row[:-2]) for row in by_vector], k)


async def get_or_create(
    conn: Connection,
    text: str,
    embed: Callable[[str], Awaitable[VectorLike] | VectorLike],
    *,
    source: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Embedding:
    """Return the stored embedding of *text* from *source*; without one, call *embed* and store what it gives.

    Of callers who want the same text at once one embeds it, and the others wait for that one's transaction to end
    and then find its row; in a transaction of REPEATABLE READ or above they do not see it and add their own.
    *metadata* goes into a row that is made. Raises VectorError for a vector that cannot be stored.
    """
    key = {"text_content": checks.text("text", text), "source": checks.optional(checks.label, "source", source)}
    described = {} if metadata is None else checks.json_object("metadata", metadata)
    found = await _queries.find_by_text.fetchone(conn, Embedding, **key)
    if found is None:
        async with sql.atomic(conn):
            await _queries.lock_text.execute(conn, text_content=text)
            found = await _queries.find_by_text.fetchone(conn, Embedding, **key)
            if found is None:
                new = NewEmbedding(
                    text_content=text, embedding=await avalue(embed(text)), source=source, metadata=described
                )
                return await insert(conn, new)
    return found


async def prune(conn: Connection, older_than: datetime, *, batch: int = 1000, dry_run: bool = False) -> int:
    """Delete the embeddings from before *older_than* (aware), the oldest first, and return how many there were.

    Batches and *dry_run* are as in delete_where.
    """
    return await delete_where(conn, until=checks.moment("older_than", older_than), batch=batch, dry_run=dry_run)


async def delete_where(
    conn: Connection, *, batch: int = 1000, dry_run: bool = False, **filters: Unpack[Filters]
) -> int:
    """Delete the embeddings that pass all *filters*, the oldest first, and return how many there were.

    They go *batch* at a time: on an autocommit connection each batch is a transaction of its own, otherwise all are the
    caller's transaction. If a batch fails, a note of the error says how many had gone before. *dry_run* only counts.
    Raises InvalidValue if no filter is given.
    """
    parameters, size = where(**filters), checks.limit(batch, "batch")
    checks.narrow(parameters, Filters)
    if dry_run:
        return await _queries.count_matching.fetchval(conn, int, **parameters) or 0
    rows, _ = await batches.delete_found(conn, _queries.oldest_matching, _queries.delete_by_ids, size, parameters)
    return rows
