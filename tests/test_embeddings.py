"""Semantic embeddings: similarity, and embedding a text once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    BAD_LIMITS,
    BAD_MOMENTS,
    BAD_OBJECTS,
    BAD_TEXTS,
    BAD_VECTORS,
    assert_nearest,
    contains,
    cosine,
    seconds,
)
from strategies import texts, unit

from kimera_sql import embeddings
from kimera_sql.embeddings import Embedding, NewEmbedding
from kimera_sql.errors import InvalidValue, VectorError
from kimera_sql.sql import Connection
from kimera_sql.vectors import Vector

VECTORS = [unit(seed) for seed in range(40)]
sources = st.none() | st.sampled_from(["", "a", "b"])
objects = st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), max_size=2)
moments = st.integers(0, 3).map(seconds)
rows = st.lists(
    st.builds(
        NewEmbedding,
        text_content=texts,
        embedding=st.sampled_from(VECTORS),
        source=sources,
        metadata=objects,
        timestamp=moments,
        id=st.uuids(),
    ),
    max_size=12,
    unique_by=lambda new: new.id,
)
FILTERS: dict[str, st.SearchStrategy[Any]] = {
    "source": sources,
    "since": st.none() | moments,
    "until": st.none() | moments,
    "metadata": st.none() | objects,
}
filters: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=FILTERS)


def passes(
    new: NewEmbedding, *, source: Any = None, since: Any = None, until: Any = None, metadata: Any = None
) -> bool:
    """Whether an embedding passes the filters of similar."""
    assert new.timestamp is not None
    return (
        (source is None or new.source == source)
        and (since is None or new.timestamp >= since)
        and (until is None or new.timestamp < until)
        and (metadata is None or contains(new.metadata, metadata))
    )


def embedding(number: int, **changes: Any) -> NewEmbedding:
    """An embedding at so many seconds after START, in a direction of its own."""
    new = NewEmbedding(text_content=f"text {number}", embedding=VECTORS[number], timestamp=seconds(number))
    return replace(new, **changes)


class Embedder:
    """Embeds a text, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> Vector:
        self.asked.append(text)
        return VECTORS[len(self.asked)]


@given(
    news=rows,
    filters=filters,
    k=st.integers(1, 15),
    query=st.integers(0, 2**32).map(unit),
    exact=st.booleans(),
)
def test_similar_returns_the_nearest_that_pass_all_filters(
    conn: Connection, news: list[NewEmbedding], filters: dict[str, Any], k: int, query: Any, exact: bool
) -> None:
    conn.rollback()
    embeddings.insert_many(conn, news)
    hits = embeddings.similar(conn, query, k, exact=exact, **filters)
    expected = [
        (new.id, cosine(np.asarray(new.embedding), query))
        for new in news
        if new.id is not None and passes(new, **filters)
    ]
    assert_nearest([(hit.embedding.id, hit.similarity) for hit in hits], expected, k)


def test_since_is_included_and_until_is_not(conn: Connection) -> None:
    embeddings.insert_many(conn, [embedding(number) for number in range(5)])
    hits = embeddings.similar(conn, VECTORS[0], since=seconds(1), until=seconds(3))
    assert {hit.embedding.timestamp for hit in hits} == {seconds(1), seconds(2)}


def test_similar_returns_10_unless_told_and_all_where_there_are_fewer(conn: Connection) -> None:
    embeddings.insert_many(conn, [embedding(number) for number in range(11)])
    assert len(embeddings.similar(conn, VECTORS[0])) == 10
    assert len(embeddings.similar(conn, VECTORS[0], k=2**31 - 1)) == 11


@pytest.mark.parametrize("exact", [True, False])
def test_similar_returns_summaries_and_brings_vectors_only_when_asked(conn: Connection, exact: bool) -> None:
    stored = embeddings.insert(conn, embedding(0, source="a", metadata={"x": [1]}))
    (without,) = embeddings.similar(conn, VECTORS[0], exact=exact)
    (hit,) = embeddings.similar(conn, VECTORS[0], exact=exact, with_vectors=True)
    assert not isinstance(without.embedding, Embedding)
    assert all(
        getattr(without.embedding, name) == getattr(stored, name) for name in embeddings.EmbeddingSummary.__slots__
    )
    assert without.vector is None
    assert hit == replace(without, vector=stored.embedding)


def test_similar_breaks_ties_by_id_where_it_is_exact(conn: Connection) -> None:
    ids = sorted(uuid4() for _ in range(8))
    embeddings.insert_many(conn, [embedding(0, id=id) for id in reversed(ids)])
    assert [hit.embedding.id for hit in embeddings.similar(conn, VECTORS[1], 5, exact=True)] == ids[:5]


@given(text=texts, source=st.none() | texts)
def test_get_or_create_embeds_a_text_once(conn: Connection, text: str, source: str | None) -> None:
    conn.rollback()
    embed = Embedder()
    created = embeddings.get_or_create(conn, text, embed, source=source)
    assert (created.text_content, created.source, created.metadata) == (text, source, {})
    assert embeddings.get_or_create(conn, text, embed, source=source) == created
    assert embed.asked == [text]
    assert embeddings.get_many(conn, [created.id]) == [created]


def test_get_or_create_takes_each_source_for_itself_and_none_for_one(conn: Connection) -> None:
    embed = Embedder()
    sources: list[str | None] = [None, "", "a", None, "", "a"]
    stored = [embeddings.get_or_create(conn, "text", embed, source=source) for source in sources]
    assert [row.source for row in stored] == sources
    assert stored[:3] == stored[3:]
    assert len(embed.asked) == embeddings.count(conn) == 3


def test_get_or_create_tells_texts_apart_by_every_character(conn: Connection) -> None:
    embed = Embedder()
    texts = ["text", "Text", "text ", "te\u0301xt", "t\u00e9xt", ""]
    for text in texts:
        embeddings.get_or_create(conn, text, embed)
    assert embed.asked == texts


def test_get_or_create_finds_the_newest(conn: Connection) -> None:
    for id, number in enumerate((2, 3, 3, 1)):
        embeddings.insert(conn, embedding(number, text_content="text", id=UUID(int=id)))
    assert embeddings.get_or_create(conn, "text", Embedder()).id == UUID(int=1)


def test_get_or_create_gives_metadata_to_a_new_row_alone(conn: Connection) -> None:
    created = embeddings.get_or_create(conn, "text", Embedder(), metadata={"n": 1})
    found = embeddings.get_or_create(conn, "text", Embedder(), metadata={"n": 2})
    assert created.metadata == found.metadata == {"n": 1}


def test_get_or_create_takes_a_long_text(conn: Connection) -> None:
    text = "".join(map(chr, range(1, 0xD800)))
    created = embeddings.get_or_create(conn, text, Embedder())
    assert embeddings.get_or_create(conn, text, Embedder()) == created
    assert created.text_content == text


def test_an_embed_that_fails_leaves_nothing(conn: Connection) -> None:
    embeddings.insert(conn, embedding(0))

    def embed(text: str) -> Vector:
        raise LookupError(f"no model for {text}")

    with pytest.raises(LookupError, match=r"^no model for text$"):
        embeddings.get_or_create(conn, "text", embed)
    assert embeddings.count(conn) == 1
    assert embeddings.get_or_create(conn, "text", Embedder()).text_content == "text"


@pytest.mark.parametrize("bad", BAD_VECTORS)
def test_a_bad_vector_is_refused(conn: Connection, bad: Any) -> None:
    with pytest.raises(VectorError, match=r"^vector: "):
        embeddings.similar(conn, bad)
    with pytest.raises(VectorError, match=r"^embedding: "):
        embeddings.get_or_create(conn, "text", lambda _: bad)
    assert embeddings.count(conn) == 0


@pytest.mark.parametrize("bad", BAD_LIMITS)
def test_a_bad_limit_is_refused(conn: Connection, bad: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^k: "):
        embeddings.similar(conn, VECTORS[0], bad)
    assert embeddings.count(conn) == 0


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("source", bad) for bad in BAD_TEXTS),
        *(("since", bad) for bad in BAD_MOMENTS),
        *(("until", bad) for bad in BAD_MOMENTS),
        *(("metadata", bad) for bad in BAD_OBJECTS),
    ],
)
def test_a_bad_filter_is_refused(conn: Connection, field: str, bad: Any) -> None:
    filters: Any = {field: bad}
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        embeddings.similar(conn, VECTORS[0], **filters)
    assert embeddings.count(conn) == 0


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("text", bad) for bad in (*BAD_TEXTS, None)),
        *(("source", bad) for bad in BAD_TEXTS),
        *(("metadata", bad) for bad in BAD_OBJECTS),
    ],
)
def test_get_or_create_refuses_what_is_bad_before_it_embeds(conn: Connection, field: str, bad: Any) -> None:
    embed = Embedder()
    arguments: Any = {"text": "text", field: bad}
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        embeddings.get_or_create(conn, embed=embed, **arguments)
    assert embed.asked == []
    assert embeddings.count(conn) == 0
