"""The settings for a machine's memory, and a server's beside them; through the command line too."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import psycopg
import pytest
from commands import run
from fix_servers import Server
from psycopg.conninfo import make_conninfo

from kimera_sql import sqlite
from kimera_sql.errors import InvalidValue, UnsupportedByServer
from kimera_sql.ops import tuning

GB = 2**30
SPECIFIED = {
    "shared_buffers": "2GB",
    "effective_cache_size": "6GB",
    "work_mem": "128MB",
    "maintenance_work_mem": "512MB",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
}


def values(memory: int, connections: int = tuning.CONNECTIONS) -> dict[str, str]:
    return {one.name: one.value for one in tuning.recommend(memory, connections=connections)}


def reset(conn: psycopg.Connection) -> None:
    # Not RESET ALL: the server may have settings of its own.
    for name in SPECIFIED:
        conn.execute(f"ALTER SYSTEM RESET {name}".encode())


def bytes_of(memory: int, name: str, connections: int) -> int:
    return tuning.parse_size(values(memory, connections)[name])


def test_at_8_gb_they_are_the_specifications() -> None:
    assert values(8 * GB) == SPECIFIED


def test_only_shared_buffers_needs_a_restart() -> None:
    assert [one.name for one in tuning.recommend(8 * GB) if one.restart] == ["shared_buffers"]


@pytest.mark.parametrize(
    ("memory", "connections", "work_mem"),
    [(8 * GB, 16, "128MB"), (8 * GB, 17, "120MB"), (8 * GB, 200, "10MB"), (64 * GB, 15, "1GB"), (GB, 100, "2MB")],
)
def test_work_mem_of_all_connections_is_a_quarter_of_the_memory_at_most(
    memory: int, connections: int, work_mem: str
) -> None:
    assert values(memory, connections)["work_mem"] == work_mem
    assert bytes_of(memory, "work_mem", connections) * connections <= memory / 4


def test_a_smaller_work_mem_tells_the_specifications() -> None:
    (reason,) = (one.reason for one in tuning.recommend(8 * GB, connections=100) if one.name == "work_mem")
    assert "divided among 100 connections; the specification's 128MB could take " in reason


@pytest.mark.parametrize(
    ("memory", "connections", "message"),
    [
        (127 * 2**20, 15, "memory: 127MB is not within 128MB to 16TB"),
        (17 * 2**40, 15, "memory: 17TB is not within 128MB to 16TB"),
        (-1, 15, "memory: "),
        (8.0 * GB, 15, "memory: expected an integer"),
        ("8GB", 15, "memory: expected an integer"),
        (8 * GB, 0, "connections: 0 is not within"),
        (8 * GB, True, "connections: expected an integer"),
        (128 * 2**20, 1000, "connections: 1,000 leave each less than 64 kB of work_mem on 128MB"),
    ],
)
def test_what_cannot_be_a_machine_is_refused(memory: Any, connections: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{message}"):
        tuning.recommend(memory, connections=connections)


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * GB), ("8gb", 8 * GB), (" 1.5 TB", 1536 * GB), ("512MB", 512 * 2**20), ("4kB", 4096)]
)
def test_sizes_are_read_in_postgresqls_units(text: str, size: int) -> None:
    assert tuning.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8", "GB", "-8GB", "8 GiB", "8GB 1", "1e3GB", "9" * 400 + "GB", "nanGB"])
def test_another_text_is_no_size(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^expected a size such as 8GB"):
        tuning.parse_size(text)


def checked(conn: psycopg.Connection, **options: Any) -> dict[str, tuning.Check]:
    return {one.name: one for one in tuning.check(conn, memory=8 * GB, **options)}


@pytest.mark.parametrize("memory", [128 * 2**20, 3 * GB + 12345, 16 * 2**40])
def test_the_server_takes_every_recommended_value(database: str, memory: int) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        try:
            for one in tuning.recommend(memory):
                conn.execute(f"ALTER SYSTEM SET {one.name} = '{one.value}'".encode())
            found = conn.execute(
                "SELECT name, setting, error FROM pg_file_settings WHERE sourcefile ~ 'auto.conf$' AND name = ANY(%s)",
                [list(SPECIFIED)],
            ).fetchall()
            assert {name: setting for name, setting, _ in found} == values(memory)
            # Of shared_buffers it is said that it cannot be changed without a restart.
            assert {name for name, _, error in found if error is not None} <= {"shared_buffers"}
        finally:
            reset(conn)


def test_a_setting_beyond_twice_or_half_is_serious(pg_conn: psycopg.Connection) -> None:
    for value, serious in (("128MB", False), ("256MB", False), ("257MB", True), ("64MB", False), ("63MB", True)):
        pg_conn.execute(f"SET LOCAL work_mem = '{value}'".encode())
        one = checked(pg_conn)["work_mem"]
        assert (one.current, one.recommended, one.serious) == (value, "128MB", serious)


def test_check_tells_where_a_setting_is_from(pg_conn: psycopg.Connection) -> None:
    pg_conn.execute("SET LOCAL random_page_cost = 1.1")
    found = checked(pg_conn)
    assert list(found) == list(SPECIFIED)
    assert (found["random_page_cost"].current, found["random_page_cost"].source) == ("1.1", "session")
    assert not found["random_page_cost"].serious
    assert not found["shared_buffers"].pending_restart


def test_check_weighs_work_mem_by_the_connections(pg_conn: psycopg.Connection) -> None:
    pg_conn.execute("SET LOCAL work_mem = '128MB'")
    assert not checked(pg_conn)["work_mem"].serious
    assert checked(pg_conn, connections=200)["work_mem"].serious


def test_a_value_that_waits_for_a_restart_is_told(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        try:
            conn.execute("ALTER SYSTEM SET shared_buffers = '77MB'")
            conn.execute("SELECT pg_reload_conf()")
            with psycopg.connect(database, autocommit=True) as other:
                while not checked(other)["shared_buffers"].pending_restart:
                    pass
                assert checked(other)["shared_buffers"].current != "77MB"
        finally:
            conn.execute("ALTER SYSTEM RESET shared_buffers")
            conn.execute("SELECT pg_reload_conf()")


def test_a_socket_is_this_machine(pg_conn: psycopg.Connection) -> None:
    assert tuning.machine(pg_conn) == tuning.memory()
    expected = tuning.recommend(tuning.memory())
    assert [one.recommended for one in tuning.check(pg_conn)] == [one.value for one in expected]


def test_a_server_elsewhere_needs_to_be_told_its_memory(
    pg_conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "machine", lambda conn: None)
    with pytest.raises(
        InvalidValue, match=r"^memory: the server is not known to be on this machine \(.+\); say how much it has"
    ):
        tuning.check(pg_conn)


def test_sqlite_has_no_settings() -> None:
    with (
        closing(sqlite.connect(":memory:")) as conn,
        pytest.raises(UnsupportedByServer, match=r"^SQLite has no server settings"),
    ):
        tuning.check(conn)


def test_recommend_prints_statements_that_the_server_runs(newest: Server) -> None:
    ran = run("config", "recommend", "--ram", "8GB")
    assert (ran.returncode, ran.stderr) == (0, "")
    statements = [line for line in ran.stdout.splitlines() if not line.startswith("--")]
    assert statements == [
        *(f"ALTER SYSTEM SET {name} = '{value}';" for name, value in SPECIFIED.items()),
        "SELECT pg_reload_conf();",
    ]
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        try:
            for statement in statements[:-1]:
                conn.execute(statement.encode())
        finally:
            reset(conn)


def test_recommend_prints_a_conf_file_and_json() -> None:
    conf = run("config", "recommend", "--ram", "8GB", "--conf").stdout
    lines = [line for line in conf.splitlines() if not line.startswith("#")]
    assert lines == [f"{name} = {value}" for name, value in SPECIFIED.items()]
    told = json.loads(run("config", "recommend", "--ram", "8GB", "--connections", "200", "--json").stdout)
    assert [one["value"] for one in told if one["name"] == "work_mem"] == ["10MB"]
    assert set(told[0]) == {"name", "value", "restart", "reason"}


def test_check_exits_with_1_only_for_a_difference_of_weight(newest: Server) -> None:
    conninfo = make_conninfo(newest.conninfo, dbname=newest.template)
    bad = run("config", "check", "--ram", "8GB", DATABASE_URL=conninfo)
    assert (bad.returncode, bad.stderr) == (1, "")
    assert "DIFFERS" in bad.stdout
    with psycopg.connect(conninfo) as conn:
        found = {one.name: one for one in tuning.check(conn, memory=8 * GB)}
    assert found["shared_buffers"].serious
    # As much memory as its shared_buffers, which cannot be set here, are right for
    small = str(tuning.parse_size(found["shared_buffers"].current) * 4 // 2**20) + "MB"
    sizes = {one.name: one.value for one in tuning.recommend(tuning.parse_size(small))}
    options = " ".join(f"-c {name}={value}" for name, value in sizes.items() if name != "shared_buffers")
    good = run("config", "check", "--ram", small, "--json", DATABASE_URL=make_conninfo(conninfo, options=options))
    assert (good.returncode, good.stderr) == (0, "")
    assert [one["serious"] for one in json.loads(good.stdout)] == [False] * 6


@pytest.mark.parametrize("command", ["recommend", "check"])
@pytest.mark.parametrize("ram", ["", "much", "8", "-8GB"])
def test_a_memory_that_is_no_size_is_wrong_usage(command: str, ram: str) -> None:
    ran = run("config", command, f"--ram={ram}")
    assert ran.returncode == 2
    assert "expected a size such as 8GB" in ran.stderr


def test_a_memory_that_no_machine_has_is_an_error() -> None:
    ran = run("config", "recommend", "--ram", "1MB")
    assert (ran.returncode, ran.stderr) == (1, "kimera-sql: --ram: 1MB is not within 128MB to 16TB\n")
