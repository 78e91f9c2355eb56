"""What the peers share: the rows, the statements, and the settings of their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql.vectors import Vector

Client: TypeAlias = psycopg.Connection[Any]


K = 10
DEPTH = 5 * K
"""Rows of each of the two rankings of a hybrid search."""
MANY = 100
"""Rows of get_many."""
AT_ONCE = 64
"""Searches of the work `many`."""
CONNECTIONS = 5
"""Connections of each pool."""
CHUNK = 1000
"""Rows that a cursor fetches at a time."""
BYTES = 2**18
"""Bytes handed to COPY at a time."""

METADATA: Final[dict[str, Any]] = {"source": "benchmark", "turn": 7}
TAGS: Final = ["dream", "night"]
METRIC: Final = ("entropy", 0.5, "benchmark", METADATA)

COLUMNS = "id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags"
TYPES = ["uuid", "timestamptz", "jsonb", "float8", "float8", "float8", "text", "text[]", "vector"]

SIMILAR = f"""
    SELECT {COLUMNS}, 1 - distance AS similarity
    FROM (
        SELECT {COLUMNS}, state_vector <=> $1 AS distance
        FROM geoid_states
        ORDER BY l2_normalize(state_vector)::halfvec(1024) <=> l2_normalize($1)::halfvec(1024)
        LIMIT $2
    ) AS nearest
    ORDER BY distance, id
    LIMIT {K}
"""  # noqa: S608 - constants
EXACT = f"""
    SELECT {COLUMNS}, 1 - distance AS similarity
    FROM (
        SELECT {COLUMNS}, state_vector <=> $1 AS distance
        FROM geoid_states
        ORDER BY (state_vector <=> $1) + 0, id
        LIMIT {K}
    ) AS nearest
    ORDER BY distance, id
"""  # noqa: S608
GET = f"SELECT {COLUMNS}, state_vector FROM geoid_states WHERE id = $1"  # noqa: S608
GET_MANY = f"SELECT {COLUMNS}, state_vector FROM geoid_states WHERE id = ANY($1)"  # noqa: S608
INSERT = """
    INSERT INTO geoid_states (state_vector, metadata, entropy, coherence_factor, energy_level, tags)
    VALUES ($1, $2, $3, $4, $5, $6)
    RETURNING id, timestamp
"""
RECORD = """
    INSERT INTO system_metrics (metric_name, metric_value, component, context)
    VALUES ($1, $2, $3, $4)
    RETURNING id, timestamp
"""
COPY_IN = f"COPY geoid_states ({COLUMNS}, state_vector) FROM STDIN (FORMAT BINARY)"
COPY_OUT = f"COPY geoid_states ({COLUMNS}, state_vector) TO STDOUT (FORMAT BINARY)"
STREAM = f"SELECT {COLUMNS}, state_vector FROM geoid_states"  # noqa: S608
HYBRID = f"""
    WITH words AS (
        SELECT id, row_number() OVER (ORDER BY rank DESC, id) AS place
        FROM (
            SELECT id, ts_rank_cd(to_tsvector('english', left(text_content, 100000)), query, 1) AS rank
            FROM semantic_embeddings
            CROSS JOIN websearch_to_tsquery('english', $2) AS query
            WHERE to_tsvector('english', left(text_content, 100000)) @@ query
            ORDER BY rank DESC, id
            LIMIT {DEPTH}
        ) AS matching
    ),
    near AS (
        SELECT id, row_number() OVER (ORDER BY distance, id) AS place
        FROM (
            SELECT id, embedding <=> $1 AS distance
            FROM semantic_embeddings
            ORDER BY l2_normalize(embedding)::halfvec(1024) <=> l2_normalize($1)::halfvec(1024)
            LIMIT $3
        ) AS candidates
        ORDER BY distance, id
        LIMIT {DEPTH}
    ),
    best AS (
        SELECT id, words.place AS by_words, near.place AS by_vector,
            COALESCE(1.0::float8 / (60 + words.place), 0) + COALESCE(1.0::float8 / (60 + near.place), 0) AS score
        FROM words
        FULL JOIN near USING (id)
        ORDER BY score DESC, id
        LIMIT {K}
    )
    SELECT id, text_content, timestamp, source, metadata, score, by_words, by_vector
    FROM best
    JOIN semantic_embeddings USING (id)
    ORDER BY score DESC, id
"""  # noqa: S608


@dataclass(frozen=True)
class Setting:
    """What the peers share.

    rows, queries: vectors. ids: of the rows, in their order; none while the tables are empty. texts: to search for with
    the queries. candidates: how many rows of the index a search by hand re-ranks. settings: of the sessions of all but
    kimera_sql. deep, deep_candidates: the same for hybrid searches. every: settings of all sessions.
    """

    conninfo: str
    rows: Vector
    queries: Vector
    ids: Sequence[UUID] = ()
    texts: Sequence[str] = ()
    candidates: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    deep: Mapping[str, str] = field(default_factory=dict)
    deep_candidates: int = 0
    every: Mapping[str, str] = field(default_factory=dict)

    def row(self, number: int) -> Vector:
        row: Vector = self.rows[number % len(self.rows)]
        return row

    def query(self, number: int) -> Vector:
        query: Vector = self.queries[number % len(self.queries)]
        return query

    def some_queries(self, number: int) -> list[Vector]:
        return [self.query(number * AT_ONCE + place) for place in range(AT_ONCE)]

    def id(self, number: int) -> UUID:
        return self.ids[number * 7919 % len(self.ids)]

    def some_ids(self, number: int) -> list[UUID]:
        return [self.id(number * MANY + place) for place in range(MANY)]

    def text(self, number: int) -> str:
        return self.texts[number % len(self.texts)]

    def given(self, **settings: str) -> str:
        """Return the conninfo of sessions that begin with *settings*."""
        options = " ".join(f"-c {name}={value}" for name, value in {**self.every, **settings}.items())
        return make_conninfo(self.conninfo, options=options)

    @property
    def tuned(self) -> str:
        return self.given(**self.settings)

    def url(self, driver: str) -> Any:
        """Return the same as a URL for SQLAlchemy."""
        from sqlalchemy import URL

        given = conninfo_to_dict(self.tuned)
        plain = {ours: given.pop(theirs, None) for ours, theirs in (("username", "user"), ("database", "dbname"))}
        return URL.create(f"postgresql+{driver}", password=given.pop("password", None), **plain, query=given)


class Peer:
    """One way to do the work: a connection, a pool or an index in memory, and a method for each work that it can do.

    A method takes the number of the operation and does it, or how many rows where the work is of many rows at once. It
    may be a coroutine function, for *loop*. What a peer opens is closed with *stack*.
    """

    name: ClassVar[str]
    slow: ClassVar[bool] = False
    """Whether it would take minutes for what takes the others a second."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        self.setting = setting
        self.stack = stack

    @contextmanager
    def unsaved(self) -> Iterator[None]:
        """Undo what the block writes; a peer that can't, because it commits, leaves that to the caller."""
        yield


loop: Final = asyncio.new_event_loop()
"""The loop of all peers that are asynchronous."""
