"""Servers that take what they are sent and never answer: every wait for them ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from fix_proxy import Proxy
from fix_servers import Server
from psycopg_pool import PoolTimeout
from strategies import unit

from kimera_sql import Settings, geoids, open_pool, sql
from kimera_sql.sql import waits

PoolOf = Callable[..., Any]

TIMEOUT = 0.2
"""The statement_timeout. A server's silence is borne a second longer."""

SILENT = r"^the server was silent for 1\.2 s, and the connection has been closed; .* KIMERA_STATEMENT_TIMEOUT$"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds + 3


def state(seed: int) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)


def one(pool: Any, timeout: float = 10) -> Any:
    with pool.connection(timeout) as conn:
        return conn.execute("SELECT 1").fetchone()


@pytest.mark.parametrize("length", [1, 20_000_000])
def test_a_statement_is_given_up_when_the_network_is_silent(proxy: Proxy, pool_of: PoolOf, length: int) -> None:
    """It is a short one, or longer than the sockets take, so that it can't even be sent."""
    pool = pool_of(proxy.conninfo, statement_timeout=TIMEOUT)
    with pool.connection() as conn:
        proxy.stall()
        with pytest.raises(psycopg.OperationalError, match=SILENT), within(1.2):
            conn.execute("SELECT %s", ["x" * length])
    proxy.resume()
    assert one(pool) == (1,)


def test_a_statement_is_given_up_when_its_server_process_stands_still(newest: Server) -> None:
    settings = Settings(statement_timeout=TIMEOUT)
    with open_pool(newest.conninfo, settings=settings) as pool, pool.connection() as conn:
        stopped = conn.info.backend_pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            with pytest.raises(psycopg.OperationalError, match=SILENT), within(1.2):
                conn.execute("SELECT 1")
        finally:
            os.kill(stopped, signal.SIGCONT)


def test_a_connection_that_fell_silent_while_it_was_idle_costs_no_more_than_the_pools_timeout(
    proxy: Proxy, pool_of: PoolOf
) -> None:
    pool = pool_of(proxy.conninfo)
    one(pool)
    time.sleep(1.1)  # what was used a moment ago is not asked whether it is alive
    proxy.stall()
    with pytest.raises(PoolTimeout), within(0.5):
        one(pool, timeout=0.5)
    proxy.resume()
    assert one(pool) == (1,)


def test_many_rows_are_given_up_and_none_is_there(proxy: Proxy, pool_of: PoolOf) -> None:
    def rows() -> Iterator[geoids.NewGeoid]:
        yield from map(state, range(100))
        proxy.stall()
        yield state(100)

    pool = pool_of(proxy.conninfo, statement_timeout=TIMEOUT)
    with (
        pytest.raises(psycopg.OperationalError, match=r"^the server was silent for "),
        within(2),
        pool.connection() as conn,
    ):
        geoids.insert_many(conn, rows())
    proxy.resume()
    with pool.connection() as conn:
        assert geoids.count(conn) == 0


def test_more_rows_may_take_the_server_longer(proxy: Proxy) -> None:
    with psycopg.connect(proxy.server) as conn:
        body = "BEGIN PERFORM pg_sleep(1.6); RETURN NULL; END"
        conn.execute(f"CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS '{body}'")
        conn.execute("CREATE TRIGGER wait AFTER INSERT ON geoid_states FOR EACH STATEMENT EXECUTE FUNCTION wait()")
    with open_pool(proxy.conninfo, settings=Settings(statement_timeout=TIMEOUT)) as pool, pool.connection() as conn:
        assert geoids.insert_many(conn, map(state, range(400)))


def test_what_waits_for_nothing_waits_on(proxy: Proxy, pool_of: PoolOf) -> None:
    pool = pool_of(proxy.conninfo, statement_timeout=TIMEOUT)
    with pool.connection() as conn:
        conn.silence_timeout = 0.2
        assert list(conn.notifies(timeout=0.5)) == []
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_long_operation_is_neither_cancelled_nor_given_up(proxy: Proxy) -> None:
    with open_pool(proxy.conninfo, settings=Settings(statement_timeout=TIMEOUT)) as pool, pool.connection() as conn:
        with sql.without_timeouts(conn):
            conn.execute("SELECT pg_sleep(1.4)")
        with pytest.raises(psycopg.errors.QueryCanceled, match="due to statement timeout"):
            conn.execute("SELECT pg_sleep(1.4)")


def test_a_long_operation_is_given_up_when_the_server_answers_nobody(
    proxy: Proxy, pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_UNHURRIED", 0.2)
    monkeypatch.setattr(waits, "_ANSWER", 0.5)
    with pool_of(proxy.conninfo, statement_timeout=0).connection() as conn:
        assert conn.execute("SELECT pg_sleep(1.2), 1").fetchone() == ("", 1)  # it is asked, and answers
        proxy.stall()
        said = r"^the server was silent for 0\.2 s and does not answer another connection either, so this one has been "
        with pytest.raises(psycopg.OperationalError, match=said), within(1):
            conn.execute("SELECT 1")


def test_a_long_operation_goes_on_where_nobody_else_can_connect(
    newest: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_UNHURRIED", 0.2)
    proxy = Proxy(newest.conninfo)
    with open_pool(proxy.conninfo, settings=Settings(statement_timeout=0)) as pool, pool.connection() as conn:
        proxy.refuse()
        assert conn.execute("SELECT pg_sleep(1.2), 1").fetchone() == ("", 1)
    proxy.close()


def test_a_silent_servers_pool_can_be_interrupted_and_closed(proxy: Proxy) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    pool = open_pool(proxy.conninfo, settings=Settings(statement_timeout=TIMEOUT))
    try:
        with pool.connection() as conn:
            proxy.stall()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt), within(5):
                conn.execute("SELECT 1")
    finally:
        signal.signal(signal.SIGALRM, before)
        with within(1):
            pool.close(timeout=1)


def test_an_idle_transaction_is_ended_and_lets_its_rows_go(proxy: Proxy, pool_of: PoolOf) -> None:
    pool = pool_of(proxy.server, idle_in_transaction_timeout=0.3)
    with psycopg.connect(proxy.server, autocommit=True) as other:
        other.execute("CREATE TABLE t AS SELECT 1 AS id")
        with pool.connection() as conn:
            conn.execute("UPDATE t SET id = 2")
            with within(0.3):
                other.execute("UPDATE t SET id = 3")
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                conn.commit()
        assert other.execute("SELECT id FROM t").fetchone() == (3,)


def test_a_reader_that_is_too_slow_for_its_stream_is_told_so(proxy: Proxy, pool_of: PoolOf) -> None:
    pool = pool_of(proxy.server, idle_in_transaction_timeout=0.3)
    with pool.connection() as conn:
        geoids.insert_many(conn, map(state, range(4)))
    with pool.connection() as conn, pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout) as caught:  # noqa: PT012
        for _ in geoids.stream(conn, chunk=2):
            time.sleep(0.3)
    assert "KIMERA_IDLE_IN_TRANSACTION_TIMEOUT" in caught.value.__notes__[0]


def test_a_lock_is_waited_for_no_longer_than_the_setting_says(proxy: Proxy, pool_of: PoolOf) -> None:
    pool = pool_of(proxy.server, lock_timeout=0.2)
    with psycopg.connect(proxy.server) as other, pool.connection() as conn:
        other.execute("LOCK geoid_states")
        with pytest.raises(psycopg.errors.LockNotAvailable), within(0.2):
            geoids.count(conn)
