"""Deleting by age and by filters: what goes, what happens to transitions, and what a failed batch leaves."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_connections import NEWEST_TWINS, to_own_database
from fix_servers import ENDS, Server
from hypothesis import given
from hypothesis import strategies as st
from reference import BAD_LIMITS, BAD_MOMENTS, BAD_OBJECTS, BAD_TEXTS, seconds
from strategies import unit
from test_embeddings import filters as embedding_filters
from test_embeddings import passes as embedding_passes
from test_embeddings import rows
from test_geoids import filters, passes, states

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, metrics, migrate, transitions
from kimera_sql.embeddings import NewEmbedding
from kimera_sql.errors import InUse, InvalidValue, SchemaError
from kimera_sql.geoids import Geoid, Gone, NewGeoid
from kimera_sql.sql import Connection

pytestmark = pytest.mark.ends

STATE = NewGeoid(state_vector=unit(0), entropy=0, coherence_factor=0, energy_level=0)
TEXT = NewEmbedding(text_content="a", embedding=unit(0))
batches = st.integers(1, 5) | st.just(1000)


def chain(conn: Connection, count: int, steps: list[tuple[int, int]]) -> list[Geoid]:
    """States a second apart, and transitions between some of them."""
    found = [geoids.insert(conn, replace(STATE, timestamp=seconds(at))) for at in range(count)]
    for source, target in steps:
        transitions.record(conn, found[source].id, found[target].id, "drift", energy=1)
    return found


def left(conn: Connection) -> list[float]:
    """Which states there are, by the seconds since the first."""
    return [(state.timestamp - seconds(0)).total_seconds() for state in geoids.stream(conn)]


def narrows(filters: dict[str, Any]) -> bool:
    """Whether some filter is given that can leave a row out."""
    return any(value not in (None, [], {}, (None, None)) for value in filters.values())


@given(news=states, filters=filters, batch=batches, dry_run=st.booleans())
def test_delete_where_deletes_the_states_that_find_finds(
    conn: Connection, news: list[NewGeoid], filters: dict[str, Any], batch: int, dry_run: bool
) -> None:
    conn.rollback()
    geoids.insert_many(conn, news)
    kept = {new.id for new in news if not passes(new, **filters)}
    if not narrows(filters):
        with pytest.raises(
            InvalidValue, match=r"^filters: none is given, so every row would go; give at least one of t"
        ):
            geoids.delete_where(conn, batch=batch, dry_run=dry_run, **filters)
        kept, dry_run = set(), True
    else:
        gone = geoids.delete_where(conn, batch=batch, dry_run=dry_run, **filters)
        assert gone == Gone(len(news) - len(kept), 0)
    assert {state.id for state in geoids.stream(conn)} == ({new.id for new in news} if dry_run else kept)


@given(news=rows, filters=embedding_filters, batch=batches, dry_run=st.booleans())
def test_delete_where_deletes_the_embeddings_that_pass_all_filters(
    conn: Connection, news: list[NewEmbedding], filters: dict[str, Any], batch: int, dry_run: bool
) -> None:
    conn.rollback()
    embeddings.insert_many(conn, news)
    kept = {new.id for new in news if not embedding_passes(new, **filters)}
    if not narrows(filters):
        with pytest.raises(
            InvalidValue, match=r"^filters: none is given, so every row would go; give at least one of s"
        ):
            embeddings.delete_where(conn, batch=batch, dry_run=dry_run, **filters)
        kept, dry_run = set(), True
    else:
        assert embeddings.delete_where(conn, batch=batch, dry_run=dry_run, **filters) == len(news) - len(kept)
    assert {row.id for row in embeddings.stream(conn)} == ({new.id for new in news} if dry_run else kept)


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_prune_deletes_what_is_older(conn: Connection, batch: int) -> None:
    chain(conn, 5, [(3, 4)])
    embeddings.insert_many(conn, [replace(TEXT, timestamp=seconds(at)) for at in range(5)])
    assert geoids.prune(conn, seconds(3), batch=batch, dry_run=True) == Gone(3, 0)
    assert embeddings.prune(conn, seconds(3), batch=batch, dry_run=True) == 3
    assert (geoids.count(conn), embeddings.count(conn)) == (5, 5)
    assert geoids.prune(conn, seconds(3), batch=batch) == Gone(3, 0)
    assert embeddings.prune(conn, seconds(3), batch=batch) == 3
    assert left(conn) == [3, 4]
    assert [row.timestamp for row in embeddings.stream(conn)] == [seconds(3), seconds(4)]


def test_an_empty_table_is_pruned_of_nothing(conn: Connection) -> None:
    for dry_run in (True, False):
        assert geoids.prune(conn, seconds(0), dry_run=dry_run) == Gone(0, 0)
        assert geoids.prune(conn, seconds(0), transitions="delete", dry_run=dry_run) == Gone(0, 0)
        assert embeddings.prune(conn, seconds(0), dry_run=dry_run) == 0


@pytest.mark.parametrize("steps", [[(0, 4)], [(4, 0)], [(0, 0)], [(0, 1), (1, 2), (2, 0), (4, 4), (1, 4)]])
@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_transitions_refuse_or_go_along(conn: Connection, steps: list[tuple[int, int]], batch: int) -> None:
    chain(conn, 5, steps)
    touched = len([step for step in steps if min(step) < 3])
    message = rf"^{touched} transitions lead from or to the 3 states; transitions='delete' deletes them too$"
    with pytest.raises(InUse, match=message):
        geoids.prune(conn, seconds(3), batch=batch)
    assert geoids.count(conn) == 5
    with pytest.raises(InUse, match=message):
        geoids.prune(conn, seconds(3), dry_run=True)
    assert geoids.prune(conn, seconds(3), transitions="delete", dry_run=True) == Gone(3, touched)
    assert (geoids.count(conn), transitions.count(conn)) == (5, len(steps))
    assert geoids.prune(conn, seconds(3), transitions="delete", batch=batch) == Gone(3, touched)
    assert left(conn) == [3, 4]
    assert transitions.count(conn) == len(steps) - touched


BAD: list[tuple[Callable[..., Any], dict[str, Any], str, tuple[Any, ...]]] = [
    (geoids.prune, {}, "older_than", (*BAD_MOMENTS, None)),
    (geoids.prune, {"older_than": seconds(9)}, "batch", BAD_LIMITS),
    (geoids.prune, {"older_than": seconds(9)}, "transitions", ("keep", "", None, True)),
    (geoids.delete_where, {"until": seconds(9)}, "batch", BAD_LIMITS),
    (geoids.delete_where, {"until": seconds(9)}, "transitions", ("keep", "", None, True)),
    (geoids.delete_where, {}, "entropy", ((0, float("nan")), (1, 0), 0.5)),
    (embeddings.prune, {}, "older_than", (*BAD_MOMENTS, None)),
    (embeddings.prune, {"older_than": seconds(9)}, "batch", BAD_LIMITS),
    (embeddings.delete_where, {"until": seconds(9)}, "batch", BAD_LIMITS),
    (embeddings.delete_where, {}, "source", BAD_TEXTS),
    (embeddings.delete_where, {}, "since", BAD_MOMENTS),
    (embeddings.delete_where, {}, "until", BAD_MOMENTS),
    (embeddings.delete_where, {}, "metadata", BAD_OBJECTS),
]


@pytest.mark.parametrize(
    ("function", "arguments", "field", "bad"),
    [(function, arguments, field, bad) for function, arguments, field, values in BAD for bad in values],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_bad_argument_is_refused(
    conn: Connection, function: Callable[..., Any], arguments: dict[str, Any], field: str, bad: Any, dry_run: bool
) -> None:
    chain(conn, 1, [])
    embeddings.insert(conn, replace(TEXT, timestamp=seconds(0)))
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        function(conn, **{**arguments, field: bad}, dry_run=dry_run)
    assert (geoids.count(conn), embeddings.count(conn)) == (1, 1)


@pytest.mark.parametrize("function", [geoids.delete_where, embeddings.delete_where])
def test_an_unknown_filter_is_refused(conn: Connection, function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'tag'"):
        function(conn, tag="a")


# On connections in autocommit


@pytest.fixture(params=[*ENDS, *NEWEST_TWINS[1:], "sqlite"])
def autocommit(request: pytest.FixtureRequest, start: Callable[[str], Server], tmp_path: Path) -> Iterator[Connection]:
    if request.param != "sqlite":
        with to_own_database(request.param, start, autocommit=True) as conn:
            yield conn
        return
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as empty:
        migrate(empty)
    with closing(sqlite3.connect(tmp_path / "file.db", isolation_level=None)) as file:
        file.execute("PRAGMA foreign_keys = ON")
        add_adapters(file)
        yield file


def keep(conn: Connection, table: str, *, silently: bool = False) -> None:
    """Let a trigger keep the rows of a table that are from the third second or later."""
    if isinstance(conn, sqlite3.Connection):
        conn.execute(f"""
            CREATE TRIGGER keep BEFORE DELETE ON {table} WHEN OLD.timestamp >= '2024-05-17T12:30:03'
            BEGIN SELECT RAISE({"IGNORE" if silently else "ABORT, 'kept'"}); END
        """)
        return
    body = "RETURN NULL;" if silently else "RAISE 'kept';"
    conn.execute(
        f"""
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$;
        CREATE TRIGGER keep BEFORE DELETE ON {table}
            FOR EACH ROW WHEN (OLD.timestamp >= '2024-05-17 12:30:03+00') EXECUTE FUNCTION keep();
        """.encode()
    )


PRUNES: dict[str, tuple[Any, Callable[[Connection], object]]] = {
    "geoid_states": (geoids, lambda conn: geoids.prune(conn, seconds(9), transitions="delete", batch=2)),
    "semantic_embeddings": (embeddings, lambda conn: embeddings.prune(conn, seconds(9), batch=2)),
    "system_metrics": (metrics, lambda conn: metrics.prune(conn, seconds(9), batch=2)),
}
NOTE = "earlier batches had deleted 2 rows, which stay deleted unless their transaction is rolled back"


def fill(conn: Connection) -> None:
    chain(conn, 5, [(0, 1), (2, 4)])
    embeddings.insert_many(conn, [replace(TEXT, timestamp=seconds(at)) for at in range(5)])
    metric = metrics.NewMetric(metric_name="load", metric_value=1, component="c")
    metrics.insert_many(conn, [replace(metric, timestamp=seconds(at)) for at in range(5)])


@pytest.mark.parametrize("table", PRUNES)
@pytest.mark.parametrize("inside", [False, True])
def test_a_batch_that_fails_leaves_the_earlier_ones_deleted(autocommit: Connection, table: str, inside: bool) -> None:
    fill(autocommit)
    keep(autocommit, table)
    module, prune = PRUNES[table]
    if inside:
        autocommit.execute("BEGIN")
    with pytest.raises((psycopg.errors.RaiseException, sqlite3.IntegrityError), match="kept") as raised:
        prune(autocommit)
    assert raised.value.__notes__ == [NOTE]
    if inside:
        autocommit.execute("ROLLBACK")
    assert module.count(autocommit) == (5 if inside else 3)
    assert transitions.count(autocommit) == (1 if table == "geoid_states" and not inside else 2)


def test_the_first_batch_that_fails_has_no_note(autocommit: Connection) -> None:
    fill(autocommit)
    keep(autocommit, "semantic_embeddings")
    with pytest.raises((psycopg.errors.RaiseException, sqlite3.IntegrityError)) as raised:
        embeddings.prune(autocommit, seconds(9))
    assert not getattr(raised.value, "__notes__", [])
    assert embeddings.count(autocommit) == 5


@pytest.mark.parametrize("table", ["geoid_states", "semantic_embeddings"])
def test_rows_that_a_trigger_keeps_end_it(autocommit: Connection, table: str) -> None:
    fill(autocommit)
    keep(autocommit, table, silently=True)
    module, prune = PRUNES[table]
    with pytest.raises(
        SchemaError, match=r"a trigger, a rule or row-level security of the table kept 1 rows"
    ) as raised:
        prune(autocommit)
    assert raised.value.__notes__ == [NOTE]
    assert module.count(autocommit) == 3


def test_a_transition_that_is_made_meanwhile_keeps_its_state(database: str) -> None:
    """The states of a batch are locked: a transition to one waits, and then finds it gone."""
    with psycopg.connect(database) as conn, psycopg.connect(database, autocommit=True) as other:
        add_adapters(conn)
        add_adapters(other)
        one, _ = chain(conn, 2, [])
        conn.commit()
        assert geoids.prune(conn, seconds(1), transitions="delete") == Gone(1, 0)
        failures: list[Exception] = []

        def step() -> None:
            try:
                transitions.record(other, one.id, one.id, "drift", energy=1)
            except psycopg.errors.ForeignKeyViolation as error:
                failures.append(error)

        thread = threading.Thread(target=step)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        conn.commit()
        thread.join(timeout=30)
        assert len(failures) == 1
        assert geoids.count(other) == 1
