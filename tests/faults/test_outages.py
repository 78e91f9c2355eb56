"""A pool while its server is away, starting, full or read-only, and once it is back."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from fix_servers import Server
from fix_twins import Blocking
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from kimera_sql import ConnectionFailed, Pool, Settings, SqlitePool, aio, embedded, open_pool

SLACK = 3.0
"""Seconds that a loaded machine may add to a bound."""

TWO = Settings(pool_size=2, pool_overflow=0, pool_timeout=30)


@contextmanager
def opened(kind: str, conninfo: str, settings: Settings = TWO) -> Iterator[Any]:
    with ExitStack() as stack:
        if kind == "threads":
            yield stack.enter_context(open_pool(conninfo, settings=settings))
        else:
            runner = stack.enter_context(asyncio.Runner())
            pool = Blocking(runner.run(aio.open_pool(conninfo, settings=settings).__aenter__()), runner)
            stack.callback(pool.close)
            yield pool


def postmaster(folder: Path) -> int:
    return int((folder / "data/postmaster.pid").read_text().split()[0])


def value(pool: Any, query: str = "SELECT 1") -> Any:
    with pool.connection() as conn:
        return conn.execute(query).fetchone()[0]


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait until *condition* holds, *seconds* at most, and return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.05)
    return time.monotonic() - began


def answers(pool: Any, query: str = "SELECT 1") -> bool:
    try:
        value(pool, query)
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_an_outage_is_told_at_once_and_is_over_when_it_is_over(kind: str, open_folder: Path) -> None:
    with ExitStack() as stack:
        with embedded.server(open_folder / "data") as conninfo:
            pool = stack.enter_context(opened(kind, conninfo))
            assert value(pool) == 1
        told: list[float] = []
        while len(told) < 2:
            began = time.monotonic()
            with pytest.raises(PoolTimeout, match="the last attempt to connect failed: ") as failed:
                value(pool)
            assert isinstance(failed.value.__cause__, psycopg.OperationalError)
            told.append(time.monotonic() - began)
        assert max(told) < 2 + 1 + SLACK
        stack.enter_context(embedded.server(open_folder / "data"))
        assert until(lambda: answers(pool), 2 + SLACK) < 2 + SLACK


def test_a_restart_is_waited_out(open_folder: Path) -> None:
    with ExitStack() as stack:
        with embedded.server(open_folder / "data") as conninfo:
            pool = stack.enter_context(open_pool(conninfo, settings=TWO))
            pool.wait()
        waiting = threading.Thread(target=lambda: got.append(value(pool)))
        got: list[int] = []
        waiting.start()
        stack.enter_context(embedded.server(open_folder / "data"))
        waiting.join(30)
    assert got == [1]


def test_a_server_that_is_shutting_down_is_not_passed_over_for_another_database(
    open_folder: Path, newest: Server
) -> None:
    with embedded.server(open_folder / "data") as conninfo:
        configured = Settings(
            credentials={key: str(text) for key, text in conninfo_to_dict(conninfo).items()},
            database_url=newest.conninfo,
            connect_timeout=2,
        )
        with psycopg.connect(conninfo) as last:
            os.kill(postmaster(open_folder), signal.SIGTERM)  # waits for the last session
            until(lambda: refused(conninfo), 10)
            with pytest.raises(ConnectionFailed, match="shutting down"):
                open_pool(settings=configured)
            # Of several hosts too, one of which is not there at all.
            several = {**configured.credentials, "host": f"{configured.credentials['host']},/nonexistent"}  # type: ignore[dict-item, index]
            with pytest.raises(ConnectionFailed, match="shutting down"):
                asyncio.run(aio_opened(Settings(credentials=several, database_url=newest.conninfo, connect_timeout=2)))
            assert last.execute("SELECT 1").fetchone() == (1,)


async def aio_opened(settings: Settings) -> None:
    async with aio.open_pool(settings=settings):
        pass


def refused(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError as error:
        return "shutting down" in str(error)
    return False


def test_a_server_that_is_full_is_waited_for(newest: Server) -> None:
    database = newest.create()
    name = str(conninfo_to_dict(database)["dbname"])
    with ExitStack() as stack:
        stack.callback(newest.drop, database)
        admin = stack.enter_context(psycopg.connect(newest.conninfo, autocommit=True))
        admin.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 1".encode())
        stack.callback(admin.execute, f"DROP ROLE {name}".encode())
        limited = make_conninfo(database, user=name)
        only = psycopg.connect(limited)
        leaves = threading.Timer(1, only.close)
        leaves.start()
        configured = Settings(pool_size=1, pool_overflow=0)
        with open_pool(limited, settings=configured) as pool:
            assert value(pool) == 1
        leaves.join()
        until(lambda: not psycopg_count(admin, name), 10)
        with psycopg.connect(limited), pytest.raises(ConnectionFailed, match="too many connections for role"):
            open_pool(limited, settings=Settings(connect_timeout=2))


def psycopg_count(admin: psycopg.Connection[Any], role: str) -> int:
    row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [role]).fetchone()
    assert row is not None
    return int(row[0])


def test_a_pool_that_writes_leaves_a_server_that_takes_no_more_writes(open_folder: Path) -> None:
    with embedded.server(open_folder / "data") as conninfo:
        with psycopg.connect(conninfo) as conn:
            conn.execute("CREATE TABLE notes (number int)")

        def read_only(how: str) -> None:
            with (open_folder / "data/postgresql.conf").open("a") as file:
                file.write(f"\ndefault_transaction_read_only = {how}\n")
            os.kill(postmaster(open_folder), signal.SIGHUP)

        with open_pool(conninfo, settings=TWO) as pool, open_pool(f"{conninfo} target_session_attrs=any") as reader:
            assert answers(pool, "INSERT INTO notes VALUES (1) RETURNING number")
            assert answers(reader)
            read_only("on")
            until(lambda: not answers(pool), 10)
            began = time.monotonic()
            with pytest.raises(PoolTimeout, match="session is read-only"):
                value(pool)
            assert time.monotonic() - began < 2 + 1 + SLACK
            assert answers(reader)  # it was told to take any server
            with open_pool(conninfo, settings=TWO) as late:
                assert answers(late)  # it has never written
            read_only("off")
            until(lambda: answers(pool, "INSERT INTO notes VALUES (2) RETURNING number"), 2 + SLACK)


def test_a_connection_that_cannot_be_set_up_is_told_at_once(newest: Server) -> None:
    database = newest.create(template=newest.template)
    with ExitStack() as stack:
        stack.callback(newest.drop, database)
        with psycopg.connect(database, autocommit=True) as conn:
            name = conn.info.dbname
            conn.execute(f"CREATE ROLE {name} LOGIN".encode())
            stack.callback(drop_role, newest, name)
            conn.execute("REVOKE EXECUTE ON FUNCTION set_config(text, text, bool) FROM public")
        began = time.monotonic()
        pool = stack.enter_context(open_pool(make_conninfo(database, user=name)))
        with pytest.raises(PoolTimeout, match="permission denied for function set_config") as failed:
            pool.getconn()
        assert time.monotonic() - began < 2 + SLACK
        assert "in use" not in str(failed.value)


def drop_role(newest: Server, name: str) -> None:
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        conn.execute(f"DROP ROLE {name}".encode())


def test_only_so_many_wait(newest: Server, tmp_path: Path) -> None:
    configured = Settings(pool_size=1, pool_overflow=0, pool_timeout=0.5, pool_max_waiting=1)
    with open_pool(newest.conninfo, settings=configured) as pool:
        assert pool_takes_one_waiter(pool)
        assert pool.get_stats()["requests_waiting"] == 0
    with SqlitePool(tmp_path / "file.db", size=1, timeout=0.5, max_waiting=1) as files:
        assert pool_takes_one_waiter(files)


def pool_takes_one_waiter(pool: Any) -> bool:
    outcomes: list[type[BaseException]] = []

    def wait() -> None:
        try:
            value(pool)
        except Exception as error:
            outcomes.append(type(error))

    with pool.connection():
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes == [TooManyRequests, TooManyRequests, PoolTimeout]


def test_ended_sessions_and_forks_cost_no_row_that_was_acknowledged(newest: Server) -> None:
    database = newest.create()
    with ExitStack() as stack:
        stack.callback(newest.drop, database)
        admin = stack.enter_context(psycopg.connect(database, autocommit=True))
        admin.execute("CREATE TABLE notes (number int PRIMARY KEY)")
        pool = stack.enter_context(open_pool(database, settings=Settings(pool_size=3, pool_overflow=1)))
        acknowledged: list[int] = []
        numbers = itertools.count()
        done = threading.Event()

        def write() -> None:
            while not done.is_set():
                number = next(numbers)
                with suppress(psycopg.OperationalError):
                    with pool.connection() as conn:
                        conn.execute("INSERT INTO notes VALUES (%s)", [number])
                    acknowledged.append(number)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        ended = 0
        gives_up = time.monotonic() + 20
        while ended < 10 and time.monotonic() < gives_up:
            ended += len(admin.execute(TERMINATE).fetchall())
            assert child_is_refused(pool)
            time.sleep(0.05)
        done.set()
        for thread in threads:
            thread.join()
        kept = {number for (number,) in admin.execute("SELECT number FROM notes")}
        assert ended >= 10
        assert len(acknowledged) > 20
        assert kept.issuperset(acknowledged)
        with ExitStack() as held:
            for _ in range(4):
                held.enter_context(pool.connection(timeout=10))


TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""


def child_is_refused(pool: Pool) -> bool:
    child = os.fork()
    if child == 0:
        try:
            pool.getconn()
        except PoolClosed:
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_connection_that_was_left_in_pipeline_mode_is_replaced(newest: Server) -> None:
    with open_pool(newest.conninfo, settings=Settings(pool_size=1, pool_overflow=0)) as pool:
        conn = pool.getconn()
        conn.pipeline().__enter__()
        conn.execute("SELECT 1")
        pool.putconn(conn)
        assert value(pool) == 1
        assert pool.get_stats()["pool_size"] == 1


def test_checking_a_pool_makes_no_connection_too_many(newest: Server) -> None:
    database = newest.create()
    with ExitStack() as stack:
        stack.callback(newest.drop, database)
        admin = stack.enter_context(psycopg.connect(database, autocommit=True))
        with open_pool(database, settings=Settings(pool_size=4, pool_overflow=0)) as pool:
            pool.wait()
            admin.execute(TERMINATE.replace("state = 'active'", "true"))
            pool.check()
            until(lambda: pool.get_stats()["pool_available"] == 4, 10)
            assert value(pool) == 1
            until(lambda: len(pool._counted) == 4, 10)
            sessions = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            assert sessions.fetchone() == (5,)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether *error* is an interrupt, or what a library made of one that came between two of its steps."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interrupt(error.__context__))


@pytest.mark.parametrize("kind", ["server", "file"])
def test_interrupts_at_any_moment_cost_no_connection(kind: str, newest: Server, tmp_path: Path) -> None:
    three = Settings(pool_size=3, pool_overflow=0, pool_timeout=1)
    random = Random(1)
    with ExitStack() as stack:
        pool: Any
        if kind == "server":
            pool = stack.enter_context(open_pool(newest.conninfo, settings=three))
        else:
            pool = stack.enter_context(SqlitePool(tmp_path / "file.db", size=3))
        done = threading.Event()
        others = [threading.Thread(target=use, args=(pool, done)) for _ in range(3)]
        for thread in others:
            thread.start()
        stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, interrupt))
        for _ in range(400):
            with pytest.raises(BaseException, check=is_interrupt):  # noqa: B017 - as is_interrupt says
                use_until_interrupted(pool, random.uniform(0.0002, 0.004))
        done.set()
        for thread in others:
            thread.join()
        gc.collect()  # what an interrupt dropped can be part of a cycle, of its traceback
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(pool.connection(timeout=10))
        if kind == "server":
            assert pool.get_stats()["requests_waiting"] == 0
            assert pool.get_stats()["pool_size"] == 3


def use_until_interrupted(pool: Any, after: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, after)
    while True:
        value(pool)


def use(pool: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(PoolTimeout):  # whoever was to be served by the one that was interrupted
            value(pool)


def test_cancellations_at_any_moment_cost_no_connection(newest: Server, tmp_path: Path) -> None:
    async def cancelled() -> None:
        async with (
            aio.open_pool(newest.conninfo, settings=Settings(pool_size=3, pool_overflow=0)) as server,
            aio.SqlitePool(tmp_path / "file.db", size=3) as file,
        ):
            for pool in (server, file):

                async def use(pool: Any = pool) -> None:
                    async with pool.connection() as conn:
                        await conn.execute("SELECT 1")

                for number in range(100):
                    tasks = [asyncio.create_task(use()) for _ in range(6)]
                    await asyncio.sleep(number % 30 / 5000)
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                async with asyncio.timeout(20), pool.connection(), pool.connection(), pool.connection():
                    pass
            assert server.get_stats()["requests_waiting"] == 0

    asyncio.run(cancelled())
