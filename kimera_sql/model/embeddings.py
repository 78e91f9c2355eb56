"""The values of embeddings: see kimera_sql.embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from .. import checks
from ..errors import InvalidValue
from ..vectors import Vector, VectorLike, as_vector, same

_DEPTH: Final = 5
"""How many times k rows of each ranking hybrid fuses."""

_SEARCH_CHARACTERS: Final = 100_000
"""How much of a text hybrid takes: as much as is indexed of each stored one."""

_SEARCH_WORDS: Final = 10_000
"""How many words hybrid takes. With some 17,000 PostgreSQL runs out of stack, or asks for over a gigabyte of memory."""

_WORD: Final = re.compile(r"[^\W_]+")
_DASHES: Final = re.compile(r"(?:-[\s!&|()]*){8,}")

_RRF: Final = 60
"""The constant of reciprocal rank fusion, from its paper."""


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
    """What searches and deletes can be narrowed by; all that are given must hold.

    source: is this one. since, until: aware datetimes; from the first up to, not including, the second.
    metadata: contains this JSON object (PostgreSQL's @>).
    """

    source: str | None
    since: datetime | None
    until: datetime | None
    metadata: Mapping[str, Any] | None


def values(new: NewEmbedding | Embedding) -> dict[str, Any]:
    """Return the columns to write, in the order of the query copy_in. Raises InvalidValue."""
    return {
        "id": checks.optional(checks.identifier, "id", new.id),
        "text_content": checks.text("text_content", new.text_content),
        "timestamp": checks.optional(checks.moment, "timestamp", new.timestamp),
        "source": checks.optional(checks.label, "source", new.source),
        "metadata": checks.json_object("metadata", new.metadata),
        "embedding": as_vector(new.embedding, field="embedding"),
    }


def runs(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Split the columns to write into runs that can be looked up, and then written, at once.

    A row without an id is to find what those before it have written: so all of a run have ids, or none has one and each
    has another text or source.
    """
    run: list[dict[str, Any]] = []
    keys: set[tuple[str, str | None]] = set()
    for row in rows:
        key = row["text_content"], row["source"]
        if run and ((row["id"] is None) != (run[0]["id"] is None) or (row["id"] is None and key in keys)):
            yield run
            run, keys = [], set()
        run.append(row)
        keys.add(key)
    if run:
        yield run


def where(**filters: Unpack[Filters]) -> dict[str, Any]:
    """Return the parameters that *filters* are in every query that has them. Raises InvalidValue."""
    checks.keywords(filters, Filters)
    return {
        "source": checks.optional(checks.text, "source", filters.get("source")),
        "since": checks.optional(checks.moment, "since", filters.get("since")),
        "until": checks.optional(checks.moment, "until", filters.get("until")),
        "metadata": checks.optional(checks.json_object, "metadata", filters.get("metadata")),
    }


def search_words(text: str) -> str:
    """Return *text* as websearch_to_tsquery can read it. Raises InvalidValue for more than it can."""
    # Thirty-two dashes in a row, such as a line across the page, are more negations than its stack holds.
    words = _DASHES.sub(" ", checks.text("text", text))
    if len(words) > _SEARCH_CHARACTERS:
        raise InvalidValue(f"text: {len(words)} characters to search for; give at most {_SEARCH_CHARACTERS}")
    if (count := len(_WORD.findall(words))) > _SEARCH_WORDS:
        raise InvalidValue(f"text: {count} words to search for; give at most {_SEARCH_WORDS}")
    return words


def depth(k: int) -> int:
    """Return how many rows of each ranking are fused for *k*."""
    return _DEPTH * checks.integer("k", k, least=1, most=(2**31 - 1) // _DEPTH)


def fuse(by_words: Sequence[EmbeddingSummary], by_vector: Sequence[EmbeddingSummary], k: int) -> list[Fused]:
    """Return the *k* best of both rankings, the best first; see embeddings.hybrid."""
    found: dict[UUID, tuple[EmbeddingSummary, int | None, int | None]] = {
        embedding.id: (embedding, rank, None) for rank, embedding in enumerate(by_words, start=1)
    }
    for rank, embedding in enumerate(by_vector, start=1):
        _, words, _ = found.get(embedding.id, (embedding, None, None))
        found[embedding.id] = (embedding, words, rank)
    scored = sorted((-sum(1 / (_RRF + rank) for rank in ranks if rank), id) for id, (_, *ranks) in found.items())
    return [Fused(found[id][0], -score, *found[id][1:]) for score, id in scored[:k]]
