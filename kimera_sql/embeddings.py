"""Semantic embeddings: texts with their 1024-dimensional vectors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict, Unpack
from uuid import UUID

from . import checks, search, sql
from .entity import Entity
from .errors import UnsupportedByServer
from .sql import Connection
from .vectors import Vector, VectorLike, as_vector, same


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEmbedding:
    """An embedding to insert.

    embedding: shape (1024,). source: where the text, or the model that embedded it, is from. metadata: a JSON object.
    timestamp: aware; the server's clock if None. id: a random one if None.
    """

    text_content: str
    embedding: VectorLike
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    timestamp: datetime | None = None
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingSummary:
    """A stored embedding without its vector, as searches return it."""

    id: UUID
    text_content: str
    timestamp: datetime
    source: str | None
    metadata: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding(EmbeddingSummary):
    """A stored embedding. embedding: read-only float32 of shape (1024,)."""

    embedding: Vector

    __eq__ = same
    __hash__ = EmbeddingSummary.__hash__


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """An embedding found by similarity: 1 - cosine distance, from -1 to 1. vector: only where asked for."""

    embedding: EmbeddingSummary
    similarity: float
    vector: Vector | None

    __eq__ = same
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Fused:
    """An embedding found by hybrid. score: of reciprocal rank fusion. by_words, by_vector: ranks from 1, or None."""

    embedding: EmbeddingSummary
    score: float
    by_words: int | None
    by_vector: int | None


class Filters(TypedDict, total=False):
    """What similar can be narrowed by; all that are given must hold.

    source: is this one. since, until: aware datetimes; from the first up to, not including, the second.
    metadata: contains this JSON object (PostgreSQL's @>).
    """

    source: str | None
    since: datetime | None
    until: datetime | None
    metadata: Mapping[str, Any] | None


_queries = sql.Queries("embeddings")

_DEPTH = 5
"""How many times k rows of each ranking hybrid fuses."""

_RRF = 60
"""The constant of reciprocal rank fusion, from its paper."""


def _values(new: NewEmbedding | Embedding) -> dict[str, Any]:
    return {
        "id": checks.optional_identifier("id", new.id),
        "text_content": checks.text("text_content", new.text_content),
        "timestamp": checks.optional_moment("timestamp", new.timestamp),
        "source": checks.optional_text("source", new.source),
        "metadata": checks.json_object("metadata", new.metadata),
        "embedding": as_vector(new.embedding, field="embedding"),
    }


def _where(
    *,
    source: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "source": checks.optional_text("source", source),
        "since": checks.optional_moment("since", since),
        "until": checks.optional_moment("until", until),
        "metadata": None if metadata is None else checks.json_object("metadata", metadata),
    }


entity = Entity(_queries, Embedding, _values, checks.identifier, vector="embedding")
insert = entity.insert
insert_many = entity.insert_many
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream


def similar(
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
    options = search.Options(exact, probes, ef_search, recall)
    found = search.varied(
        conn,
        search.SEMANTIC_EMBEDDINGS,
        as_vector(vector),
        checks.limit(k, "k"),
        _where(**filters),
        options,
        with_vectors=with_vectors,
        diversity=diversity,
    )
    return _made(conn, found)


def similar_many(
    conn: Connection,
    vectors: Iterable[VectorLike],
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    **filters: Unpack[Filters],
) -> list[list[Hit]]:
    """Return what similar gives for each of *vectors*, asked all at once in one pipeline."""
    options = search.Options(exact, probes, ef_search, recall)
    asked = [as_vector(vector, field=f"vectors[{number}]") for number, vector in enumerate(vectors)]
    found = search.nearest_many(
        conn, search.SEMANTIC_EMBEDDINGS, asked, checks.limit(k, "k"), _where(**filters), options
    )
    return [_made(conn, hits) for hits in found]


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
) -> search.Explanation:
    """Say by which index, with which settings and by which plan similar would search, and why; print it.

    Raises UnsupportedByServer on SQLite.
    """
    options = search.Options(exact, probes, ef_search, recall)
    return search.explain(
        conn, search.SEMANTIC_EMBEDDINGS, as_vector(vector), checks.limit(k, "k"), _where(**filters), options
    )


def _made(conn: Connection, found: list[search.Found]) -> list[Hit]:
    summary = sql.mapper(conn, EmbeddingSummary)
    return [Hit(summary(row), similarity, vector) for row, similarity, vector in found]


def hybrid(conn: Connection, text: str, vector: VectorLike, k: int = 10, **filters: Unpack[Filters]) -> list[Fused]:
    """Return the *k* embeddings that best match the words of *text* and are nearest to *vector*, the best first.

    The two rankings, each of 5 *k*, are fused: an embedding scores the sum of 1 / (60 + rank) over them (reciprocal
    rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009). *text* is in websearch_to_tsquery's syntax, for English.
    Raises UnsupportedByServer on SQLite.
    """
    if isinstance(conn, sqlite3.Connection):
        raise UnsupportedByServer("full-text search needs PostgreSQL; similar works on SQLite")
    where = _where(**filters)
    depth = _DEPTH * checks.limit(k, "k")
    rows = _queries.matching_words.fetchall(conn, words=checks.text("text", text), limit=depth, **where)
    by_words = sql.records(conn, EmbeddingSummary, rows)
    near = search.nearest(conn, search.SEMANTIC_EMBEDDINGS, as_vector(vector), depth, where, search.Options())
    by_vector = sql.records(conn, EmbeddingSummary, [row for row, _, _ in near])
    words = {embedding.id: rank for rank, embedding in enumerate(by_words, start=1)}
    vectors = {embedding.id: rank for rank, embedding in enumerate(by_vector, start=1)}
    fused = [
        Fused(
            embedding,
            sum(1 / (_RRF + ranks[id]) for ranks in (words, vectors) if id in ranks),
            words.get(id),
            vectors.get(id),
        )
        for id, embedding in {found.id: found for found in (*by_words, *by_vector)}.items()
    ]
    return sorted(fused, key=lambda found: (-found.score, found.embedding.id))[:k]


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
    and then find its row; in a transaction of REPEATABLE READ or above they do not see it and add their own.
    *metadata* goes into a row that is made. Raises VectorError for a vector that cannot be stored.
    """
    key = {"text_content": checks.text("text", text), "source": checks.optional_text("source", source)}
    described = {} if metadata is None else checks.json_object("metadata", metadata)
    row = _queries.find_by_text.fetchone(conn, **key)
    if row is None:
        with sql.atomic(conn):
            _queries.lock_text.execute(conn, text_content=text)
            row = _queries.find_by_text.fetchone(conn, **key)
            if row is None:
                new = NewEmbedding(text_content=text, embedding=embed(text), source=source, metadata=described)
                return insert(conn, new)
    return sql.mapper(conn, Embedding)(row)
