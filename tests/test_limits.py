"""Long texts and long lists: every database takes the same ones, and what is too long is refused before any SQL."""

from __future__ import annotations

import random
import sqlite3
import string
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from strategies import unit

from kimera_sql import InvalidValue, embeddings, geoids, metrics, portals, transitions
from kimera_sql.sql import Connection

# What PostgreSQL could compress, it would store all the same.
LABEL: Final = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=2000))


def state(**named: Any) -> geoids.NewGeoid:
    return geoids.NewGeoid(**{"state_vector": unit(1), "entropy": 0, "coherence_factor": 0, "energy_level": 0, **named})


def add_tags(conn: Connection, label: str) -> Any:
    return geoids.add_tags(conn, geoids.insert(conn, state()).id, label)[0]


def step(conn: Connection, label: str) -> Any:
    id = geoids.insert(conn, state()).id
    return transitions.record(conn, id, id, label, energy=1).transition_type


def portal(conn: Connection, label: str) -> portals.Portal:
    new = portals.NewPortal(
        source_dimension=1, target_dimension=2, radius=1, energy_requirement=1, stability_factor=1, status=label
    )
    return portals.insert(conn, new)


def set_status(conn: Connection, label: str) -> Any:
    id = portal(conn, "active").id
    portals.set_status(conn, id, label)
    return portals.get(conn, id).status


LABELS: Final[dict[str, tuple[str, Callable[[Any, str], Any]]]] = {
    "geoids.insert": ("tags", lambda conn, label: geoids.insert(conn, state(tags=[label])).tags[0]),
    "geoids.add_tags": ("tags", add_tags),
    "transitions.insert": ("transition_type", step),
    "embeddings.insert": (
        "source",
        lambda conn, label: (
            embeddings.insert(conn, embeddings.NewEmbedding(text_content="a", embedding=unit(1), source=label)).source
        ),
    ),
    "embeddings.get_or_create": (
        "source",
        lambda conn, label: embeddings.get_or_create(conn, "a", lambda _: unit(1), source=label).source,
    ),
    "portals.insert": ("status", lambda conn, label: portal(conn, label).status),
    "portals.set_status": ("status", set_status),
    "metrics.insert": ("metric_name", lambda conn, label: metrics.record(conn, label, 1, component="a").metric_name),
    "metrics.record": ("component", lambda conn, label: metrics.record(conn, "a", 1, component=label).component),
}


@pytest.mark.parametrize("name", LABELS)
def test_what_is_indexed_has_at_most_2000_bytes(conn: Connection, name: str) -> None:
    field, store = LABELS[name]
    assert store(conn, LABEL) == LABEL
    for longer in (LABEL + "a", "ä" * 1001):
        with pytest.raises(InvalidValue, match=rf"^{field}: 200[12] bytes are too many for an index"):
            store(conn, longer)
    assert store(conn, "ä" * 1000) == "ä" * 1000  # and the transaction goes on


# By another program, which checks nothing. The columns are those of the indexes.
LABELLED: Final = {
    "tags": "UPDATE geoid_states SET tags = {}",
    "transition_type": "UPDATE cognitive_transitions SET transition_type = {}",
    "source": "UPDATE semantic_embeddings SET source = {}",
    "status": "UPDATE portal_configurations SET status = {}",
    "metric_name": "UPDATE system_metrics SET metric_name = {}",
    "component": "UPDATE system_metrics SET component = {}",
}


def written(conn: Any, field: str, label: str) -> None:
    tags, text = ("ARRAY['a', %s]", "%s") if hasattr(conn, "pgconn") else ("json_array('a', ?)", "?")
    conn.execute(LABELLED[field].format(tags if field == "tags" else text), [label])


@pytest.mark.ends
@pytest.mark.parametrize("field", LABELLED)
def test_the_tables_have_the_same_bound(conn: Connection, field: str) -> None:
    # What PostgreSQL can compress would fit into an index.
    for _, store in LABELS.values():
        store(conn, "a")
    conn.execute("SAVEPOINT before")
    for long in (LABEL + "a", "a" * 2001, "ä" * 2001, "a" * 1_000_000):
        with pytest.raises((psycopg.errors.CheckViolation, sqlite3.IntegrityError)):
            written(conn, field, long)
        conn.execute("ROLLBACK TO before")
    for fits in (LABEL, "a" * 2000, "ä" * 1000):
        written(conn, field, fits)


def test_a_longer_label_can_be_asked_for(conn: Connection) -> None:
    geoids.insert(conn, state(tags=[LABEL]))
    assert geoids.find(conn, tags_any=[LABEL * 10]) == []
    assert embeddings.similar(conn, unit(1), source=LABEL * 10) == []
    assert portals.by_status(conn, LABEL * 10) == []
    assert transitions.by_type(conn, LABEL * 10) == []
    assert metrics.latest(conn, LABEL * 10) == []


def test_lists_are_as_long_as_you_like(conn: Connection) -> None:
    stored = geoids.insert(conn, state(tags=["tag 7"]))
    ids = [UUID(int=number) for number in range(40_000)]
    tags = [f"tag {number}" for number in range(40_000)]
    assert geoids.get_many(conn, [*ids, stored.id]) == [stored]
    assert [found.id for found in geoids.find(conn, tags_any=tags)] == [stored.id]
    assert [hit.geoid.id for hit in geoids.similar(conn, unit(1), tags_any=tags)] == [stored.id]
    assert geoids.find(conn, tags_all=tags) == []
    assert geoids.add_tags(conn, stored.id, *tags) == ("tag 7", *tags[:7], *tags[8:])


def test_texts_are_as_long_as_you_like(conn: Connection) -> None:
    text = " ".join(f"word{number}" for number in range(50_000))
    made = embeddings.get_or_create(conn, text, lambda _: unit(1))
    assert embeddings.get_or_create(conn, text, lambda _: unit(2)) == made
    assert geoids.insert(conn, state(creation_context=text)).creation_context == text


SEARCHES: Final = {
    "words": " ".join(f"word{number}" for number in range(10_000)),
    "one word": "word " * 10_000,
    "stop words": "the " * 10_000,
    "alternatives": " OR ".join(f"word{number}" for number in range(5_000)),
    "negations": "-w " * 10_000,
    "a phrase": f'"{" ".join(f"w{number}" for number in range(10_000))}"',
    "a compound": "-".join(f"w{number}" for number in range(10_000)),
    "a list without spaces": ",".join(f"w{number}" for number in range(10_000)),
    "one long word": "é" * 100_000,
    "a line of dashes": f"word\n{'-' * 79}\nword",
    "dashes": "- " * 50_000,
    "dashes and signs": "-!(&|)" * 10_000,
    "nothing": " " * 100_000,
}


@pytest.mark.parametrize("name", SEARCHES)
def test_hybrid_searches_for_up_to_10000_words_of_any_kind(pg_conn: psycopg.Connection, name: str) -> None:
    stored = embeddings.insert(pg_conn, embeddings.NewEmbedding(text_content="word", embedding=unit(1)))
    (found,) = embeddings.hybrid(pg_conn, SEARCHES[name], unit(1))
    assert found.embedding.id == stored.id
    assert found.by_words == (1 if name in ("one word", "negations", "a line of dashes") else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("word " * 10_001, "text: 10001 words to search for; give at most 10000"),
        ("a_" * 10_001, "text: 10001 words to search for; give at most 10000"),
        ("a" * 100_001, "text: 100001 characters to search for; give at most 100000"),
    ],
)
def test_hybrid_refuses_more(pg_conn: psycopg.Connection, text: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{message}$"):
        embeddings.hybrid(pg_conn, text, unit(1))
    assert embeddings.count(pg_conn) == 0
