"""Writing again: upsert, upsert_many and replace_vector of geoids, embeddings and portals."""

from __future__ import annotations

import asyncio
import functools
import re
import sqlite3
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from fix_servers import ENDS, Server
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql as composed
from reference import ABSENT, BAD_IDS, BAD_VECTORS, assert_stored, seconds
from strategies import unit
from test_entity import EMBEDDINGS, GEOIDS, PORTALS, Kind

from kimera_sql import SqlitePool, add_adapters, aio, embeddings, geoids, migrate, portals, transitions, upserts
from kimera_sql.embeddings import NewEmbedding
from kimera_sql.errors import InvalidValue, NotFound, SchemaError, VectorError
from kimera_sql.geoids import Upserted
from kimera_sql.sql import Connection, statements

pytestmark = pytest.mark.ends

KINDS = {"geoids": GEOIDS, "embeddings": EMBEDDINGS, "portals": PORTALS}
BAD_FIELDS = [
    pytest.param(kind, field, value, id=f"{name}-{field}-{number}")
    for name, kind in KINDS.items()
    for field, values in kind.bad.items()
    for number, value in enumerate(values)
]
FEW = [UUID(int=number * 7919 % 101) for number in range(1, 6)]
VECTOR_MODULES: list[Any] = [geoids, embeddings]


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each entity that can be written again."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def by_threes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have upsert_many write three items at a time."""
    for module in (upserts, aio.upserts):
        monkeypatch.setattr(module, "_AT_ONCE", 3)


def state(number: int, **changes: Any) -> geoids.NewGeoid:
    new: geoids.NewGeoid = GEOIDS.make(number)
    return replace(new, id=UUID(int=number), **changes)


def text(text_content: str, seed: int = 0, **changes: Any) -> NewEmbedding:
    return replace(NewEmbedding(text_content=text_content, embedding=unit(seed)), **changes)


def stored(kind: Kind, conn: Connection) -> list[Any]:
    return list(kind.module.stream(conn))


def drawn(data: st.DataObject, kind: Kind) -> list[Any]:
    """Draw items, of which many have the id of another, or the text and source."""
    items = data.draw(st.lists(kind.items, max_size=12))
    changes: dict[str, Any] = {}
    if kind is EMBEDDINGS:
        changes = {"text_content": st.sampled_from("ab"), "source": st.none() | st.sampled_from(["", "s"])}
    changes |= {"id": st.none() | st.sampled_from(FEW), kind.clock: st.integers(0, 3).map(seconds)}
    return [replace(item, **{name: data.draw(values) for name, values in changes.items()}) for item in items]


def written_in_turn(kind: Kind, items: Sequence[Any]) -> tuple[dict[UUID, Any], Upserted]:
    """What should be stored of *items*, by id, and the counts. New ids are made up."""
    rows: dict[UUID, Any] = {}
    inserted = 0
    for number, item in enumerate(items):
        id = item.id
        if id is None and kind is EMBEDDINGS:
            same = [
                (-row.timestamp.timestamp(), id)
                for id, row in rows.items()
                if (row.text_content, row.source) == (item.text_content, item.source)
            ]
            id = min(same)[1] if same else None
        if id is None:
            id = UUID(int=10**9 + number)
        inserted += id not in rows
        rows[id] = item
    return rows, Upserted(inserted, len(items) - inserted)


@given(data=st.data())
def test_upsert_returns_what_was_given_and_stores_it_in_place_of_the_row(
    conn: Connection, kind: Kind, data: st.DataObject
) -> None:
    kind.begin(conn)
    one, other = data.draw(kind.items), data.draw(kind.items)
    first = kind.module.upsert(conn, one)
    assert_stored(one, first)
    assert kind.module.get(conn, first.id) == first
    second = kind.module.upsert(conn, replace(other, id=first.id))
    assert_stored(replace(other, id=first.id), second)
    assert stored(kind, conn) == [second]


@pytest.mark.usefixtures("by_threes")
@given(data=st.data())
def test_upsert_many_does_what_upsert_does_for_each_in_turn(conn: Connection, kind: Kind, data: st.DataObject) -> None:
    kind.begin(conn)
    before, items = drawn(data, kind), drawn(data, kind)
    rows, _ = written_in_turn(kind, before)
    for item in before:
        kind.module.upsert(conn, item)
    assert kind.module.count(conn) == len(rows)
    _, counts = written_in_turn(kind, [*before, *items])
    assert kind.module.upsert_many(conn, iter(items)) == Upserted(
        counts.inserted - len(rows), len(items) - counts.inserted + len(rows)
    )
    expected, _ = written_in_turn(kind, [*before, *items])
    found = {row.id: row for row in stored(kind, conn)}
    assert len(found) == len(expected)
    for id, item in expected.items():
        if id in found:
            assert_stored(replace(item, id=None), replace(found.pop(id)))
    # The others have ids that were made up.
    rest = [item for id, item in expected.items() if id.int >= 10**9]
    assert len(rest) == len(found)
    for row in found.values():
        assert any(matches(item, row) for item in rest)


def matches(item: Any, row: Any) -> bool:
    try:
        assert_stored(replace(item, id=None), row)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
@pytest.mark.parametrize("entity", KINDS)
def test_a_row_is_written_over_whole(dialect: Any, entity: str) -> None:
    """Nothing else would notice a column that is forgotten behind ON CONFLICT."""
    upserting = [one.text for one in statements(dialect, entity).values() if ".upsert" in one.name]
    assert len(upserting) == (2 if dialect == "postgres" else 1)
    for statement in upserting:
        columns = re.search(r"INSERT INTO \w+ \(([^)]*)\)", re.sub(r"/\*.*?\*/ ", "", statement))
        assert columns
        id, *others = (name.strip() for name in columns[1].split(","))
        assert id == "id"
        assert re.findall(r"(\w+) = excluded\.(\w+)", statement) == [(name, name) for name in others]


def test_items_may_come_asynchronously(database: str) -> None:
    async def items() -> AsyncIterator[geoids.NewGeoid]:
        for number in range(300):
            await asyncio.sleep(0)
            yield state(number)

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(database) as conn:
            await aio.add_adapters(conn)
            assert await aio.geoids.upsert_many(conn, items()) == Upserted(300, 0)
            assert await aio.geoids.upsert_many(conn, items()) == Upserted(0, 300)

    asyncio.run(main())


def test_upsert_many_of_nothing_is_nothing(conn: Connection, kind: Kind) -> None:
    kind.begin(conn)
    assert kind.module.upsert_many(conn, []) == Upserted(0, 0)


def test_many_batches_are_counted_together(conn: Connection, kind: Kind) -> None:
    kind.begin(conn)
    items = [replace(kind.make(number), id=UUID(int=number * 7919 % 1009)) for number in range(600)]
    assert kind.module.upsert_many(conn, items[:300]) == Upserted(300, 0)
    assert kind.module.upsert_many(conn, items) == Upserted(300, 300)
    assert kind.module.upsert_many(conn, [*items, *items]) == Upserted(0, 1200)
    rows = kind.module.get_many(conn, [item.id for item in items])
    assert [getattr(row, kind.clock) for row in rows] == [seconds(number) for number in range(600)]


def test_what_an_item_leaves_out_is_not_kept(conn: Connection) -> None:
    kept = geoids.insert(conn, state(1, metadata={"n": 1}, tags=["a"], creation_context="there", timestamp=seconds(-9)))
    bare = geoids.NewGeoid(id=kept.id, state_vector=unit(2), entropy=1, coherence_factor=1, energy_level=1)
    for found in (geoids.upsert(conn, bare), upsert_one(geoids, conn, bare)):
        assert (found.metadata, found.tags, found.creation_context) == ({}, (), None)
        assert found.timestamp > kept.timestamp


def upsert_one(module: Any, conn: Connection, new: Any) -> Any:
    """Upsert *new* by upsert_many, and return the row."""
    module.upsert_many(conn, [new])
    return module.get(conn, new.id)


def test_a_state_that_is_written_again_keeps_its_transitions(conn: Connection) -> None:
    one, other = geoids.insert(conn, state(1)), geoids.insert(conn, state(2))
    step = transitions.record(conn, one.id, other.id, "drift", energy=1)
    geoids.upsert(conn, state(1, entropy=2))
    geoids.upsert_many(conn, [state(2, entropy=3)])
    assert transitions.outgoing(conn, one.id) == transitions.incoming(conn, other.id) == [step]
    assert [row.entropy for row in geoids.get_many(conn, [one.id, other.id])] == [2, 3]


@pytest.mark.parametrize("apart", [1, 300])
def test_the_same_row_twice_is_refused_where_asked(conn: Connection, kind: Kind, apart: int) -> None:
    kind.begin(conn)
    items = [replace(kind.make(number), id=UUID(int=number)) for number in range(apart + 1)]
    items[-1] = replace(items[-1], id=items[0].id)
    with pytest.raises(InvalidValue, match=rf"^item {apart}: it is of the same row as item 0 \(id 0000"):
        kind.module.upsert_many(conn, items, duplicates="refuse")
    assert kind.module.count(conn) == 0
    assert kind.module.upsert_many(conn, items[:-1], duplicates="refuse") == Upserted(apart, 0)
    assert kind.module.upsert_many(conn, [items[0], items[-1]]) == Upserted(0, 2)
    assert getattr(kind.module.get(conn, items[0].id), kind.clock) == seconds(apart)


@pytest.mark.parametrize("bad", ["first", "", None, True])
def test_another_choice_of_duplicates_is_refused(conn: Connection, kind: Kind, bad: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^duplicates: expected 'last' or 'refuse', got "):
        kind.module.upsert_many(conn, iter([]), duplicates=bad)


@pytest.mark.parametrize(("kind", "field", "value"), BAD_FIELDS)
def test_a_bad_value_is_refused_by_name_and_nothing_is_written(
    conn: Connection, kind: Kind, field: str, value: Any
) -> None:
    kind.begin(conn)
    item = replace(kind.make(1), **{field: value})
    error = VectorError if value is not None and kind.bad[field] is BAD_VECTORS else InvalidValue
    with pytest.raises(error, match=f"^{field}: "):
        kind.module.upsert(conn, item)
    with pytest.raises(error, match=f"^item 1: {field}: "):
        kind.module.upsert_many(conn, [kind.make(0), item])
    assert kind.module.count(conn) == 0


def test_a_failed_upsert_many_names_the_item_and_leaves_all_as_it_was(conn: Connection, kind: Kind) -> None:
    kind.begin(conn)
    before = kind.module.insert(conn, replace(kind.make(0), id=FEW[0]))
    taken = 0

    def items() -> Iterator[Any]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            item = replace(kind.make(number), id=FEW[0] if number == 0 else uuid4())
            yield replace(item, **{kind.clock: seconds(0).replace(tzinfo=None)}) if number == 700 else item

    with pytest.raises(InvalidValue, match=f"^item 700: {kind.clock}: "):
        kind.module.upsert_many(conn, items())
    assert taken == 701
    assert stored(kind, conn) == [before]


def test_an_error_of_the_generator_passes_through_and_leaves_all_as_it_was(conn: Connection, kind: Kind) -> None:
    kind.begin(conn)
    before = kind.module.insert(conn, replace(kind.make(0), id=FEW[0]))

    def items() -> Iterator[Any]:
        for number in range(300):
            yield replace(kind.make(number + 1), id=FEW[0])
        raise LookupError("the source ran dry")

    with pytest.raises(LookupError, match=r"^the source ran dry\n") as raised:
        kind.module.upsert_many(conn, items())
    assert raised.value.__notes__ == ["it came in place of item 300 (counted from 0); nothing was written"]
    assert stored(kind, conn) == [before]
    assert kind.module.upsert_many(conn, [replace(kind.make(1), id=FEW[0])]) == Upserted(0, 1)


def test_few_items_are_in_memory_at_once(conn: Connection) -> None:
    def items() -> Iterator[geoids.NewGeoid]:
        for number in range(4000):
            vector = np.zeros(1024, np.float32)
            vector[number % 1024] = 1
            yield state(number, state_vector=vector)

    tracemalloc.start()
    try:
        assert geoids.upsert_many(conn, items()) == Upserted(4000, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # the vectors of all are 16 MB


# By text


def test_an_embedding_without_an_id_is_stored_over_that_of_its_text_and_source(conn: Connection) -> None:
    first = embeddings.upsert(conn, text("a", 1, source="s"))
    others = [embeddings.upsert(conn, text("a", 2)), embeddings.upsert(conn, text("A", 3, source="s"))]
    again = embeddings.upsert(conn, text("a", 4, source="s", metadata={"n": 1}))
    assert again.id == first.id
    assert_stored(text("a", 4, source="s", metadata={"n": 1}), again)
    assert embeddings.count(conn) == 3
    assert embeddings.upsert_many(conn, [text("a", 5, source="s"), text("a", 6), text("b", 7)]) == Upserted(1, 2)
    assert_stored(text("a", 5, source="s"), embeddings.get(conn, first.id))
    assert_stored(text("a", 6), embeddings.get(conn, others[0].id))
    assert embeddings.get(conn, others[1].id) == others[1]


@pytest.mark.parametrize("many", [False, True])
def test_of_several_of_a_text_the_newest_is_written_and_stays_what_get_or_create_finds(
    conn: Connection, many: bool
) -> None:
    for id, at in enumerate((2, 3, 3, 1)):
        embeddings.insert(conn, text("a", id, id=UUID(int=id), timestamp=seconds(at)))
    for seed in (7, 8):
        if many:
            assert embeddings.upsert_many(conn, [text("a", seed)]) == Upserted(0, 1)
        else:
            assert embeddings.upsert(conn, text("a", seed)).id == UUID(int=1)
        found = embeddings.get_or_create(conn, "a", lambda _: unit(99))
        assert found.id == UUID(int=1)
        assert np.array_equal(found.embedding, unit(seed))
    assert embeddings.count(conn) == 4


def test_new_texts_that_come_twice_are_one_row(conn: Connection) -> None:
    items = [text(f"text {number % 400}", number) for number in range(600)]
    assert embeddings.upsert_many(conn, items) == Upserted(400, 200)
    assert embeddings.count(conn) == 400
    assert np.array_equal(embeddings.get_or_create(conn, "text 1", lambda _: unit(0)).embedding, unit(401))
    with pytest.raises(InvalidValue, match=r"^item 2: it is of the same row as item 0 \(id "):
        embeddings.upsert_many(conn, [text("b"), text("b", source="s"), text("b", 1)], duplicates="refuse")
    assert embeddings.count(conn) == 400


def test_items_with_ids_and_without_are_written_in_turn(conn: Connection) -> None:
    one = embeddings.insert(conn, text("a", 1))
    items = [text("b", 2, id=one.id), text("a", 3), text("b", 4), text("c", 5, id=FEW[0]), text("c", 6)]
    assert embeddings.upsert_many(conn, items) == Upserted(2, 3)
    found = {row.text_content: row for row in embeddings.stream(conn)}
    assert sorted(found) == ["a", "b", "c"]
    assert (found["b"].id, found["c"].id) == (one.id, FEW[0])
    assert np.array_equal(found["b"].embedding, unit(4))
    assert np.array_equal(found["c"].embedding, unit(6))


# replace_vector


@pytest.mark.parametrize("module", VECTOR_MODULES)
def test_replace_vector_changes_the_vector_alone(conn: Connection, module: Any) -> None:
    kind, column = (GEOIDS, "state_vector") if module is geoids else (EMBEDDINGS, "embedding")
    one, other = (module.insert(conn, kind.make(number)) for number in range(2))
    assert module.replace_vector(conn, one.id, list(map(float, unit(5)))) is None
    assert module.get(conn, one.id) == replace(one, **{column: unit(5)})
    assert module.get(conn, other.id) == other


@pytest.mark.parametrize("module", VECTOR_MODULES)
def test_replace_vector_refuses_what_is_bad_or_absent(conn: Connection, module: Any) -> None:
    with pytest.raises(NotFound, match=f"^no row has the id {ABSENT}$"):
        module.replace_vector(conn, ABSENT, unit(1))
    for vector in BAD_VECTORS:
        with pytest.raises(VectorError, match=r"^vector: "):
            module.replace_vector(conn, ABSENT, vector)
    for id in BAD_IDS:
        with pytest.raises(InvalidValue, match=r"^id: "):
            module.replace_vector(conn, id, unit(1))


# Triggers, privileges, encodings and transactions


def pass_over(conn: Any, event: str) -> None:
    """Let a trigger pass over states of negative entropy at INSERT or UPDATE."""
    if sqlite_file(conn):
        conn.execute(f"""
            CREATE TRIGGER pass_over BEFORE {event} ON geoid_states WHEN NEW.entropy < 0
            BEGIN SELECT RAISE(IGNORE); END
        """)
        return
    conn.execute("CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    conn.execute(
        f"""
        CREATE TRIGGER pass_over BEFORE {event} ON geoid_states
            FOR EACH ROW WHEN (NEW.entropy < 0) EXECUTE FUNCTION pass_over()
        """.encode()
    )


def sqlite_file(conn: Any) -> bool:
    return "sqlite" in type(getattr(conn, "_target", conn)).__module__


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_row_that_a_trigger_passes_over_is_an_error(conn: Connection, event: str) -> None:
    kept = geoids.insert(conn, state(0))
    pass_over(conn, event)
    with pytest.raises(SchemaError, match=r"^geoids: a trigger or a rule of the table passed the row over$"):
        geoids.upsert(conn, state(0, entropy=-1))
    with pytest.raises(SchemaError, match=r"^geoids: a trigger or a rule of the table passed 1 rows over") as raised:
        geoids.upsert_many(conn, [*map(state, range(1, 260)), state(0, entropy=-1), state(300)])
    assert raised.value.__notes__ == ["items 250 to 260 (counted from 0) were being written; nothing was written"]
    assert list(geoids.stream(conn)) == [kept]


def test_a_trigger_that_changes_a_row_does_not_change_the_counts(conn: Connection) -> None:
    geoids.insert(conn, state(9))  # begins the transaction that SQLite's trigger goes with
    if sqlite_file(conn):
        conn.execute("""
            CREATE TRIGGER touch AFTER INSERT ON geoid_states
            BEGIN UPDATE geoid_states SET energy_level = 5 WHERE id = NEW.id; END
        """)
    else:
        conn.execute("""
            CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql
                AS 'BEGIN UPDATE geoid_states SET energy_level = 5 WHERE id = NEW.id; RETURN NULL; END'
        """)
        conn.execute("CREATE TRIGGER touch AFTER INSERT ON geoid_states FOR EACH ROW EXECUTE FUNCTION touch()")
    assert geoids.upsert_many(conn, map(state, range(3))) == Upserted(3, 0)
    assert geoids.upsert_many(conn, map(state, range(5))) == Upserted(2, 3)


def test_a_role_that_may_not_update_writes_nothing(database: str) -> None:
    role = composed.Identifier(f"kimera_test_{uuid4().hex}")
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        conn.execute(composed.SQL("CREATE ROLE {}").format(role))
        conn.execute(composed.SQL("GRANT INSERT, SELECT ON geoid_states TO {}").format(role))
        conn.execute(composed.SQL("SET ROLE {}").format(role))
        try:
            for write in (lambda: geoids.upsert(conn, state(1)), lambda: geoids.upsert_many(conn, [state(1)])):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="geoid_states"):
                    write()
            assert geoids.insert_many(conn, [state(1)]) == 1
        finally:
            conn.execute("RESET ROLE")
            conn.execute(composed.SQL("DROP OWNED BY {}").format(role))
            conn.execute(composed.SQL("DROP ROLE {}").format(role))


def test_a_role_without_temporary_tables_can_write_again(database: str) -> None:
    """The application's role has none: see schema/roles.sql."""
    role = composed.Identifier(f"kimera_test_{uuid4().hex}")
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        name = composed.Identifier(conn.info.dbname)
        conn.execute(composed.SQL("CREATE ROLE {}").format(role))
        conn.execute(composed.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(name))
        conn.execute(composed.SQL("GRANT INSERT, UPDATE, SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
        conn.execute(composed.SQL("SET ROLE {}").format(role))
        try:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("CREATE TEMPORARY TABLE other (id INTEGER)")
            assert geoids.upsert_many(conn, map(state, range(300))) == Upserted(300, 0)
            assert embeddings.upsert_many(conn, [text("a"), text("a")]) == Upserted(1, 1)
        finally:
            conn.execute("RESET ROLE")
            conn.execute(composed.SQL("DROP OWNED BY {}").format(role))
            conn.execute(composed.SQL("DROP ROLE {}").format(role))


def test_a_text_that_the_session_cannot_send_is_named(pg_conn: psycopg.Connection) -> None:
    pg_conn.execute("SET client_encoding TO LATIN1")
    fine = text("grün", source="größe", metadata={"ключ": "значение"})
    assert embeddings.upsert_many(pg_conn, [fine]) == Upserted(1, 0)
    pg_conn.execute("SET client_encoding TO UTF8")
    assert_stored(fine, next(iter(embeddings.stream(pg_conn))))
    pg_conn.execute("SET client_encoding TO LATIN1")
    geoids.upsert_many(pg_conn, [state(1, tags=["ü", '"', "\\", "a,b", "{}", "NULL", "", " "])])
    assert geoids.get(pg_conn, UUID(int=1)).tags == ("ü", '"', "\\", "a,b", "{}", "NULL", "", " ")
    for item, field in ((text("текст"), "text_content"), (text("t", source="источник"), "source")):
        with pytest.raises(InvalidValue, match=rf"^item 1: {field}: .* cannot be sent in the client_encoding"):
            embeddings.upsert_many(pg_conn, [fine, item])
    with pytest.raises(InvalidValue, match=r"^item 0: tags: .* cannot be sent in the client_encoding"):
        geoids.upsert_many(pg_conn, [state(2, tags=["тег"])])
    assert (embeddings.count(pg_conn), geoids.count(pg_conn)) == (1, 1)


def autocommitting(database: str) -> psycopg.Connection:
    conn = psycopg.connect(database, autocommit=True)
    add_adapters(conn)
    return conn


def test_on_an_autocommit_connection_all_are_one_transaction(database: str) -> None:
    with autocommitting(database) as conn, psycopg.connect(database) as other:
        add_adapters(other)

        def items() -> Iterator[geoids.NewGeoid]:
            for number in range(600):
                if number == 500:
                    assert geoids.count(conn) == 500
                    assert geoids.count(other) == 0
                    other.rollback()
                yield state(number)

        assert geoids.upsert_many(conn, items()) == Upserted(600, 0)
        assert geoids.count(other) == 600
        other.rollback()
        with conn.transaction(force_rollback=True):
            geoids.upsert(conn, state(700))
            assert geoids.upsert_many(conn, map(state, range(599, 701))) == Upserted(100, 2)
        assert geoids.count(other) == 600


def test_a_caller_keeps_its_transaction_where_it_fails(pg_conn: psycopg.Connection) -> None:
    geoids.insert(pg_conn, state(1))
    with pytest.raises(VectorError, match=r"^item 300: state_vector: "):
        geoids.upsert_many(pg_conn, [*map(state, range(300)), state(301, state_vector=unit(1)[:3])])
    assert geoids.count(pg_conn) == 1


def test_items_can_come_from_the_same_connection(connect: Callable[[], Any]) -> None:
    conn = connect()
    geoids.insert_many(conn, [state(number) for number in range(300)])
    again = (
        geoids.NewGeoid(
            id=row.id, state_vector=row.state_vector, entropy=7, coherence_factor=0, energy_level=geoids.count(conn)
        )
        for row in geoids.stream(conn, chunk=10)
    )
    assert geoids.upsert_many(conn, again) == Upserted(0, 300)
    assert {(row.entropy, row.energy_level) for row in geoids.stream(conn)} == {(7, 300)}
    conn.close()


def test_a_lost_connection_leaves_nothing(database: str) -> None:
    with closing(autocommitting(database)) as conn, autocommitting(database) as other:

        def items() -> Iterator[geoids.NewGeoid]:
            yield from map(state, range(300))
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
            yield from map(state, range(300, 600))

        with pytest.raises(psycopg.OperationalError) as raised:
            geoids.upsert_many(conn, items())
        assert raised.value.__notes__ == ["items 250 to 499 (counted from 0) were being written; nothing was written"]
        assert geoids.count(other) == 0
        with pytest.raises(psycopg.OperationalError):
            geoids.upsert_many(conn, [state(1)])


def test_in_a_read_only_transaction_nothing_is_written(pg_conn: psycopg.Connection) -> None:
    pg_conn.execute("SET TRANSACTION READ ONLY")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as raised:
        portals.upsert_many(pg_conn, [PORTALS.make(1)])
    assert raised.value.__notes__ == ["items 0 to 0 (counted from 0) were being written; nothing was written"]


# Several at once


def at_once(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(functions)) as threads:
        return [running.result(60) for running in [threads.submit(function) for function in functions]]


@pytest.fixture(params=[*ENDS, "sqlite"])
def connect(
    request: pytest.FixtureRequest, start: Callable[[str], Server], tmp_path: Path
) -> Iterator[Callable[[], Any]]:
    """A function that connects to a database of the test's own."""
    if request.param != "sqlite":
        server = start(request.param)
        conninfo = server.create(template=server.template)
        yield functools.partial(autocommitting, conninfo)
        server.drop(conninfo)
        return
    file = tmp_path / "file.db"
    with SqlitePool(file) as pool, pool.connection() as conn:
        migrate(conn)

    def connected() -> sqlite3.Connection:
        conn = sqlite3.connect(file, isolation_level=None, timeout=60)
        add_adapters(conn)
        return conn

    yield connected


def test_callers_who_write_a_text_at_once_make_one_row(connect: Callable[[], Any]) -> None:
    start = threading.Barrier(6)

    def work(number: int) -> list[Any]:
        with closing(connect()) as conn:
            start.wait()
            made: list[Any] = []
            for turn in range(10):
                if number % 3 == 0:
                    made.append(embeddings.upsert(conn, text(f"text {turn}", number)).id)
                elif number % 3 == 1:
                    embeddings.upsert_many(conn, [text("first"), *(text(f"text {other}") for other in range(turn + 1))])
                else:
                    made.append(embeddings.get_or_create(conn, f"text {turn}", lambda _: unit(number)).id)
            return made

    found = at_once([functools.partial(work, number) for number in range(6)])
    with closing(connect()) as conn:
        assert sorted(row.text_content for row in embeddings.stream(conn)) == sorted(
            ["first", *(f"text {turn}" for turn in range(10))]
        )
    assert all(len(set(ids)) == 1 for ids in zip(*(ids for ids in found if ids), strict=True))


def test_two_who_write_the_same_rows_in_opposite_orders_wait_for_each_other(database: str) -> None:
    items = [state(number) for number in range(250)]
    with autocommitting(database) as one, autocommitting(database) as other:
        for _ in range(20):
            counts = at_once(
                [lambda: geoids.upsert_many(one, items), lambda: geoids.upsert_many(other, reversed(items))]
            )
            assert {count.inserted + count.updated for count in counts} == {250}
        assert geoids.count(one) == 250


def test_of_two_in_each_others_way_the_server_refuses_one_and_nothing_of_it_is_written(database: str) -> None:
    halves = [[state(number, entropy=0.5) for number in range(first, first + 250)] for first in (0, 250)]
    met = threading.Barrier(2)

    def items(mine: int) -> Iterator[geoids.NewGeoid]:
        yield from halves[mine]
        met.wait(60)
        yield from (replace(item, entropy=mine) for item in halves[1 - mine])

    with autocommitting(database) as one, autocommitting(database) as other:

        def write(conn: psycopg.Connection, mine: int) -> Any:
            try:
                return geoids.upsert_many(conn, items(mine))
            except psycopg.errors.DeadlockDetected as error:
                return error.__notes__

        results = at_once([lambda: write(one, 0), lambda: write(other, 1)])
        refused, done = sorted(results, key=lambda result: isinstance(result, Upserted))
        assert refused == ["items 250 to 499 (counted from 0) were being written; nothing was written"]
        assert done == Upserted(500, 0)
        winner = results.index(done)
        rows = list(geoids.stream(one))
        assert len(rows) == 500
        assert {row.entropy for row in rows} == {0.5, float(winner)}
