# Generated from kimera_sql/aio/embeddings.py by .ci/twins.py: change that one.
"""Semantic embeddings: texts with their 1024-dimensional vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Unpack
from uuid import UUID

from . import batches, checks, sql
from .model.embeddings import (
    Embedding,
    EmbeddingSummary,
    Filters,
    Fused,
    Hit,
    NewEmbedding,
    depth,
    fuse,
    runs,
    search_words,
    values,
    where,
)
from .model.upserts import Upserted
from .renewal import Embed, Renewal, Renewed, end_renewal, going_by, model, name_model, renew, renewal, require_model
from .search import catalogue, pairs, run
from .search.blocks import Pair
from .search.plan import Explanation, Options
from .search.run import Source
from .search.unbounded import Search
from .sql import Connection, postgres
from .sql.rows import decode, mapper
from .tables import VECTOR_TABLES
from .twins import value
from .upserts import UpsertEntity
from .vectors import VectorLike, as_vector

__all__ = [
    "Embed",
    "Embedding",
    "EmbeddingSummary",
    "Filters",
    "Fused",
    "Hit",
    "NewEmbedding",
    "Pair",
    "Renewal",
    "Renewed",
    "Upserted",
    "count",
    "delete",
    "delete_where",
    "duplicates",
    "end_renewal",
    "entity",
    "explain",
    "get",
    "get_many",
    "get_or_create",
    "hybrid",
    "insert",
    "insert_arrow",
    "insert_many",
    "model",
    "name_model",
    "prune",
    "renew",
    "renewal",
    "replace_vector",
    "require_model",
    "similar",
    "similar_many",
    "similar_pages",
    "stream",
    "stream_arrow",
    "upsert",
    "upsert_many",
    "within",
]

_queries = sql.Queries("embeddings")

_table = VECTOR_TABLES["semantic_embeddings"]


class _Embeddings(UpsertEntity[NewEmbedding, Embedding]):
    """An entity whose items without an id are known by their text and source."""

    def upsert(self, conn: Connection, new: NewEmbedding) -> Embedding:
        """Store *new* over the row of its id or, without one, over the row of its text and source; else as a new row.

        It is stored as insert would store it: what *new* leaves out is not kept from the row. That stays the same row.
        Of several of a text and source it is the newest, as for get_or_create, and of callers who want the same text at
        once the others wait, or fail to serialize, in the same way. Raises as insert does.
        """
        if new.id is not None:
            return super().upsert(conn, new)
        key = self._values(new)
        self._learn_types(conn)
        with sql.atomic(conn):
            _queries.lock_text.execute(conn, text_content=key["text_content"])
            (id,) = self._ids(conn, [key])
            return super().upsert(conn, replace(new, id=id))

    def _upsert_batch(
        self, conn: Connection, rows: list[dict[str, Any]], first: int, seen: dict[UUID, int] | None
    ) -> int:
        new = 0
        for part in runs(rows):
            if part[0]["id"] is None:
                _queries.lock_texts.execute(conn, texts=[row["text_content"] for row in part])
                for row, id in zip(part, self._ids(conn, part), strict=True):
                    row["id"] = id
            new += super()._upsert_batch(conn, part, first, seen)
            first += len(part)
        return new

    def _ids(self, conn: Connection, rows: list[dict[str, Any]]) -> list[UUID | None]:
        """Return the ids of the stored rows that have the texts and sources of *rows*, None for what none has."""
        texts, sources = [row["text_content"] for row in rows], [row["source"] for row in rows]
        if catalogue.is_distributed(conn, _table.name):
            there: dict[int, UUID] = dict(_queries.scattered_ids_of_texts.fetchall(conn, texts=texts, sources=sources))
            return [there.get(position) for position in range(1, len(rows) + 1)]
        found = _queries.ids_of_texts.fetchall(conn, texts=texts, sources=sources)
        return [None if id is None else decode(sql.dialect(conn), UUID, id) for (id,) in found]


entity = _Embeddings(_queries, NewEmbedding, Embedding, values, checks.identifier, vector="embedding")
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


def replace_vector(conn: Connection, id: UUID, vector: VectorLike) -> None:
    """Give an embedding another vector, and change nothing else of it. Raises NotFound, and VectorError."""
    entity.update(conn, _queries.replace_vector, UUID, id, vector=as_vector(vector))


def similar(
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
    model: str | None = None,
    **filters: Unpack[Filters],
) -> list[Hit]:
    """Return the *k* embeddings nearest to *vector* by cosine, the most similar first, that pass all *filters*.

    *vector*: shape (1024,). The search is approximate where a vector index is built, unless *exact*; similarities are
    exact either way, and *k* hits come back where as many embeddings pass. *recall* is the share of the true nearest
    that it is to find (0.95 unless told otherwise), with the settings that recall.tune measured; *ef_search* (hnsw) or
    *probes* (ivfflat) set them by hand. Hits less similar than *at_least*, from -1 to 1, are left out.
    *with_vectors* fetches each hit's vector too. *diversity*, from 0 to 1, prefers hits that are unlike each other
    (maximal marginal relevance). *model* is the one that *vector* is of: WrongModel is raised unless the embeddings are
    known to be of the same.
    Raises VectorError for a vector that cannot be searched for.
    """
    options = Options(exact, probes, ef_search, recall)
    with going_by(conn, model) if model is not None else nullcontext():
        (found,) = run.nearest(
            conn,
            _table,
            EmbeddingSummary,
            [as_vector(vector)],
            k,
            where(**filters),
            options,
            at_least=at_least,
            with_vectors=with_vectors,
            diversity=diversity,
        )
    return [Hit(*hit) for hit in found]


def similar_many(
    conn: Source,
    vectors: Iterable[VectorLike],
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    at_least: float | None = None,
    model: str | None = None,
    **filters: Unpack[Filters],
) -> list[list[Hit]]:
    """Return what similar gives for each of *vectors*, asked all at once in one pipeline.

    *conn* may also be a pool: the searches are then shared among those of its connections that are idle, at least one.
    """
    options = Options(exact, probes, ef_search, recall)
    asked = [as_vector(vector, field=f"vectors[{number}]") for number, vector in enumerate(vectors)]
    around = partial(going_by, model=model) if model is not None else None
    found = run.nearest_to_many(
        conn, _table, EmbeddingSummary, asked, k, where(**filters), options, at_least=at_least, around=around
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
) -> Iterator[Hit]:
    """Yield every embedding that is at least as similar to *vector* as *similarity*, the most similar first.

    The options and *filters* are those of similar. Up to 500 embeddings are found by an hnsw index, and up to 100 by
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
) -> Iterator[list[Hit]]:
    """Yield all embeddings in pages of *size*, the most similar to *vector* first. Only the last page can be shorter.

    The options and *filters* are those of similar. However many pages are read, no embedding comes twice and none is
    left out. An index gives the first 100 embeddings, and hnsw then those up to 500. If more is read, every row is
    compared, once. What the index has missed comes at the start of the next of these parts; with *exact*, the order is
    strict.

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
    read = run.reader(conn, EmbeddingSummary, Hit)
    return Search(conn, _table, read, as_vector(vector), where(**filters), options, {}, with_vectors)


def explain(
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
    return run.explain(conn, _table, as_vector(vector), k, where(**filters), options)


def duplicates(
    conn: Connection, similarity: float = 0.95, *, after: tuple[UUID, UUID] | None = None, **filters: Unpack[Filters]
) -> Iterator[Pair]:
    """Yield every pair of embeddings that pass all *filters* with a similarity of at least *similarity*, each once.

    All else is as in geoids.pairs. get_many gives their texts.
    """
    return pairs.find(conn, _table, similarity, after, where(**filters))


def hybrid(
    conn: Connection,
    text: str,
    vector: VectorLike,
    k: int = 10,
    *,
    model: str | None = None,
    **filters: Unpack[Filters],
) -> list[Fused]:
    """Return the *k* embeddings that best match the words of *text* and are nearest to *vector*, the best first.

    The two rankings, each of 5 *k*, are fused: an embedding scores the sum of 1 / (60 + rank) over them (reciprocal
    rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009). *text* is in websearch_to_tsquery's syntax, for English, and
    has at most 10,000 words and 100,000 characters. *model* is as in similar.
    Raises UnsupportedByServer on SQLite.
    """
    server = sql.require_postgres(conn, "full-text search needs PostgreSQL; similar works on SQLite")
    wanted, parameters = depth(k), where(**filters)
    words = postgres.Call(
        _queries.matching_words.statement(server),
        {"words": search_words(text), "limit": wanted, **parameters},
        generic_plan=not any(value is not None for value in parameters.values()),
    )
    with going_by(conn, model) if model is not None else nullcontext():
        by_vector, by_words = run.rows(
            server, _table, [as_vector(vector)], wanted, parameters, Options(), along=[words]
        )
    make = mapper("postgres", EmbeddingSummary)
    return fuse([make(row) for row in by_words], [make(row[:-2]) for row in by_vector], k)


def get_or_create(
    conn: Connection,
    text: str,
    embed: Callable[[str], VectorLike],
    *,
    source: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Embedding:
    """Return the stored embedding of *text* from *source*; without one, call *embed* and store what it gives.

    Of callers who want the same text at once one embeds it, and the others wait for that one's transaction to end
    and then find its row. In a transaction of REPEATABLE READ or above, which does not see it, they get psycopg's
    SerializationFailure: run it again. *metadata* goes into a row that is made. Raises VectorError for a vector that
    cannot be stored.
    """
    key = {"text_content": checks.text("text", text), "source": checks.optional(checks.label, "source", source)}
    described = {} if metadata is None else checks.json_object("metadata", metadata)
    found = _queries.find_by_text.fetchone(conn, Embedding, **key)
    if found is None:
        with sql.atomic(conn):
            _queries.lock_text.execute(conn, text_content=text)
            found = _queries.find_by_text.fetchone(conn, Embedding, **key)
            if found is None:
                new = NewEmbedding(text_content=text, embedding=value(embed(text)), source=source, metadata=described)
                return insert(conn, new)
    return found


def prune(conn: Connection, older_than: datetime, *, batch: int = 1000, dry_run: bool = False) -> int:
    """Delete the embeddings from before *older_than* (aware), the oldest first, and return how many there were.

    Batches and *dry_run* are as in delete_where.
    """
    return delete_where(conn, until=checks.moment("older_than", older_than), batch=batch, dry_run=dry_run)


def delete_where(conn: Connection, *, batch: int = 1000, dry_run: bool = False, **filters: Unpack[Filters]) -> int:
    """Delete the embeddings that pass all *filters*, the oldest first, and return how many there were.

    They go *batch* at a time: on an autocommit connection each batch is a transaction of its own, otherwise all are the
    caller's transaction. If a batch fails, a note of the error says how many had gone before. *dry_run* only counts.
    Raises InvalidValue if no filter is given.
    """
    parameters, size = where(**filters), checks.limit(batch, "batch")
    checks.narrow(parameters, Filters)
    if dry_run:
        return _queries.count_matching.fetchval(conn, int, **parameters) or 0
    distributed = catalogue.is_distributed(conn, _table.name)
    find = _queries.scattered_oldest if distributed else _queries.oldest_matching
    rows, _ = batches.delete_found(conn, find, _queries.delete_by_ids, size, parameters, locked=not distributed)
    return rows
