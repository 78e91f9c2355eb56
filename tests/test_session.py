"""What a session's time zone and encoding, and the rows of other programs, do not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from fix_servers import Server
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from strategies import unit
from test_postgres import EMBEDDING, GEOID, METRIC, PORTAL, STATE, STEP, VECTOR

from kimera_sql import add_adapters, embeddings, geoids, indexes, metrics, migrate, open_pool, portals, sql, transitions
from kimera_sql.errors import InvalidValue, SchemaError

pytestmark = pytest.mark.ends

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """A function that connects to a database with the schema, with the libpq parameters it is given."""
    with ExitStack() as stack:

        def connected(**parameters: str) -> Connection:
            conn = stack.enter_context(psycopg.connect(make_conninfo(database, **parameters)))
            stack.callback(conn.rollback)
            add_adapters(conn)
            return conn

        yield connected


@pytest.fixture
def encoded(server: Server) -> Iterator[Callable[[str], str]]:
    """A function that creates a database in an encoding, without the schema, and returns its conninfo."""
    with ExitStack() as stack:

        def created(encoding: str) -> str:
            conninfo = server.create(template=f"template0 ENCODING '{encoding}' LOCALE 'C'")
            stack.callback(server.drop, conninfo)
            return conninfo

        yield created


def moments(conn: Connection) -> list[datetime | None]:
    """Return the moments that every function gives which returns some."""
    (step,) = transitions.outgoing(conn, STATE)
    (portal,) = portals.by_status(conn, "active")
    (bucket,) = metrics.series(conn, "load", bucket=timedelta(hours=1), since=FIRST, until=LAST)
    return [
        geoids.get(conn, STATE).timestamp,
        next(geoids.stream(conn)).timestamp,
        geoids.latest(conn)[0].timestamp,
        geoids.similar(conn, VECTOR)[0].geoid.timestamp,
        embeddings.similar(conn, VECTOR)[0].embedding.timestamp,
        step.timestamp,
        portal.creation_timestamp,
        portal.last_used_timestamp,
        portals.mark_used(conn, portal.id, at=LAST),
        metrics.latest(conn, "load")[0].timestamp,
        bucket.bucket,
    ]


def test_moments_come_back_in_utc(connect: Connect) -> None:
    conn = connect(options="-c TimeZone=Europe/Berlin -c DateStyle=German")
    at = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    geoids.insert(conn, replace(GEOID, timestamp=at))
    embeddings.insert(conn, replace(EMBEDDING, timestamp=at))
    transitions.insert(conn, replace(STEP, timestamp=at))
    portals.insert(conn, replace(PORTAL, creation_timestamp=at, last_used_timestamp=at))
    metrics.insert(conn, replace(METRIC, timestamp=at))
    given = moments(conn)
    assert given[:8] == [at] * 8
    assert given[8:] == [LAST, at, at - timedelta(minutes=30)]
    assert all(moment is not None and moment.tzinfo is UTC for moment in given)


def test_the_hour_that_summer_time_repeats_has_two_moments(connect: Connect) -> None:
    conn = connect(options="-c TimeZone=Europe/Berlin")
    at = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    first = geoids.insert(conn, replace(GEOID, timestamp=at))
    second = geoids.insert(conn, replace(GEOID, timestamp=at + timedelta(hours=1), id=None))
    assert second.timestamp - first.timestamp == timedelta(hours=1)
    assert first.timestamp != second.timestamp


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Los_Angeles", "Pacific/Kiritimati"])
@pytest.mark.parametrize("at", [FIRST, LAST])
def test_the_first_and_the_last_moment_that_are_taken_come_back(connect: Connect, at: datetime, zone: str) -> None:
    conn = connect(options=f"-c TimeZone={zone}")
    assert geoids.insert(conn, replace(GEOID, timestamp=at)).timestamp == at
    assert geoids.get(conn, STATE).timestamp == at


def test_the_callers_own_statements_give_the_sessions_time_zone(connect: Connect) -> None:
    conn = connect(options="-c TimeZone=Europe/Berlin")
    geoids.insert(conn, GEOID)
    for binary in (True, False):
        row = conn.cursor(binary=binary).execute("SELECT now()").fetchone()
        assert row is not None
        assert row[0].tzinfo == ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("infinity", LAST),
        ("-infinity", FIRST),
        ("0001-12-31 23:59:59.999999+00 BC", FIRST),
        ("4713-01-01 00:00:00+00 BC", FIRST),
        ("10000-01-01 00:00:00+00", LAST),
        ("294276-12-31 00:00:00+00", LAST),
    ],
)
def test_a_moment_of_another_program_that_no_datetime_holds_is_the_first_or_the_last(
    connect: Connect, written: str, read: datetime
) -> None:
    conn = connect()
    usual = geoids.insert(conn, replace(GEOID, id=None, state_vector=unit(1)))
    geoids.insert(conn, GEOID)
    conn.execute("UPDATE geoid_states SET timestamp = %s WHERE id = %s", [written, STATE])
    found = {usual.id: usual.timestamp, STATE: read}
    newest = [STATE, usual.id] if read == LAST else [usual.id, STATE]
    assert [(state.id, state.timestamp) for state in geoids.latest(conn)] == [(id, found[id]) for id in newest]
    assert [(state.id, state.timestamp) for state in geoids.stream(conn)] == [(id, found[id]) for id in newest[::-1]]
    assert {hit.geoid.id: hit.geoid.timestamp for hit in geoids.similar(conn, VECTOR)} == found
    assert geoids.get(conn, STATE).timestamp == read


def test_arrays_of_moments_are_read_alike(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "own.sql").write_text(
        "-- name: all()$\nSELECT ARRAY['infinity', '2024-10-27 02:30+02'::timestamptz];\n"
    )
    given = sql.load(tmp_path).own.all(connect(options="-c TimeZone=Europe/Berlin"))
    assert given == [LAST, datetime(2024, 10, 27, 0, 30, tzinfo=UTC)]


@pytest.mark.parametrize("text", ["é", "Ã©", 'a "b" \\ c', ""])
@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "SQL_ASCII", "UTF8"])
def test_text_and_json_come_back_in_any_client_encoding(connect: Connect, encoding: str, text: str) -> None:
    conn, plain = connect(client_encoding=encoding), connect()
    new = replace(GEOID, metadata={text: [text]}, tags=[text], creation_context=text)
    stored = geoids.insert(conn, new)
    conn.commit()
    for reader in (conn, plain):
        assert geoids.get(reader, STATE) == stored
        assert list(geoids.stream(reader)) == [stored]
    assert (stored.metadata, stored.tags, stored.creation_context) == ({text: [text]}, (text,), text)
    assert [state.id for state in geoids.find(conn, tags_all=[text], metadata={text: [text]})] == [STATE]
    geoids.insert_many(conn, [replace(new, id=None)])
    assert {state.tags for state in geoids.latest(conn)} == {(text,)}
    conn.commit()


def test_json_that_is_not_binary_comes_back_too(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "own.sql").write_text("-- name: both(text)$\nSELECT json_build_object('text', :text::text);\n")
    assert sql.load(tmp_path).own.both(connect(client_encoding="LATIN1"), text="é") == {"text": "é"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda conn: geoids.insert(conn, replace(GEOID, tags=["a", "日"])), r"^tags: '日' cannot be sent"),
        (lambda conn: geoids.insert(conn, replace(GEOID, creation_context="日")), "^creation_context: '日'"),
        (lambda conn: geoids.insert_many(conn, [GEOID, replace(GEOID, tags=["日"])]), "^item 1: tags: '日'"),
        (lambda conn: geoids.find(conn, tags_any=["日"]), "^tags_any: '日'"),
        (lambda conn: geoids.similar(conn, VECTOR, tags_any=["日"]), "^tags_any: '日'"),
        (lambda conn: metrics.latest(conn, "日"), "^metric_name: '日'"),
    ],
)
def test_text_that_a_client_encoding_lacks_is_refused_by_name(
    connect: Connect, call: Callable[[Connection], object], message: str
) -> None:
    conn = connect(client_encoding="LATIN1")
    with pytest.raises(InvalidValue, match=message + ".*UTF8"):
        call(conn)
    assert geoids.count(conn) == 0


def test_a_search_that_is_refused_leaves_no_setting_behind(connect: Connect) -> None:
    conn = connect(client_encoding="LATIN1")
    geoids.insert_many(conn, [replace(GEOID, state_vector=unit(n), id=None) for n in range(300)])
    indexes.build(conn, "geoid_states", precision="full")
    assert geoids.explain(conn, VECTOR, 1).settings

    def settings() -> list[tuple[str, str]]:
        return conn.execute("SELECT name, setting FROM pg_settings ORDER BY name").fetchall()

    before = settings()
    with pytest.raises(InvalidValue):
        geoids.similar(conn, VECTOR, tags_any=["日"])
    assert settings() == before


def test_json_that_a_client_encoding_lacks_is_the_servers_error(connect: Connect) -> None:
    plain, conn = connect(), connect(client_encoding="LATIN1")
    geoids.insert(plain, replace(GEOID, metadata={"text": "日"}))
    plain.commit()
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        geoids.get(conn, STATE)


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
@pytest.mark.parametrize("client", ["", "UTF8"], ids=["the database's", "UTF8"])
def test_a_database_in_another_encoding_stores_what_it_has(
    encoded: Callable[[str], str], encoding: str, client: str
) -> None:
    text, lacking = ("é", "日") if encoding == "LATIN1" else ("日", "€")
    conninfo = encoded(encoding)
    with psycopg.connect(make_conninfo(conninfo, **({"client_encoding": client} if client else {}))) as conn:
        migrate(conn)
        stored = geoids.insert(conn, replace(GEOID, metadata={text: text}, tags=[text]))
        conn.commit()
        assert geoids.get(conn, STATE) == stored
        assert (stored.metadata, stored.tags) == ({text: text}, (text,))
        for changes in ({"metadata": {"text": lacking}}, {"tags": [lacking]}):
            with pytest.raises((psycopg.errors.UntranslatableCharacter, InvalidValue)):
                geoids.insert(conn, replace(GEOID, id=None, **changes))
            conn.rollback()
        assert geoids.count(conn) == 1


@pytest.mark.parametrize("client", ["", "UTF8"], ids=["the database's", "UTF8"])
def test_a_database_in_sql_ascii_is_refused(encoded: Callable[[str], str], client: str) -> None:
    conninfo = encoded("SQL_ASCII")
    with psycopg.connect(make_conninfo(conninfo, **({"client_encoding": client} if client else {}))) as conn:
        with pytest.raises(SchemaError, match=r"SQL_ASCII.*ENCODING 'UTF8'"):
            migrate(conn)
        assert conn.execute("SELECT to_regclass('geoid_states')").fetchone() == (None,)


def test_the_schema_can_be_made_and_asked_for_in_a_session_in_sql_ascii(empty_database: str) -> None:
    with psycopg.connect(make_conninfo(empty_database, client_encoding="SQL_ASCII")) as conn:
        applied = migrate(conn)
        assert applied[0] == "0001_extensions.sql"
        assert migrate(conn) == []


def test_a_pool_speaks_utf8_whatever_the_database_says(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {conninfo_to_dict(database)['dbname']} SET client_encoding TO 'LATIN1'".encode())
    with psycopg.connect(database) as conn:
        assert conn.info.encoding == "iso8859-1"
    with open_pool(database) as pool, pool.connection() as conn:
        assert geoids.insert(conn, replace(GEOID, metadata={"text": "日"}, tags=["日"])).tags == ("日",)
    with open_pool(make_conninfo(database, client_encoding="LATIN1")) as pool, pool.connection() as conn:
        assert conn.info.encoding == "iso8859-1"
