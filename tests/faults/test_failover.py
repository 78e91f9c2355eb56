"""A primary and its standbys behind one pool: who is read from, and what is lost when one of them dies."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from fix_clusters import Cluster, cluster, standby, start
from fix_servers import Server
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from test_postgres import READS, fill, without_plan

from kimera_sql import (
    BackupError,
    ConnectionFailed,
    InvalidValue,
    Settings,
    SettingsError,
    aio,
    metrics,
    migrate,
    open_pool,
)

SLACK = 5.0
"""Seconds that a loaded machine may add to a bound."""

SETTINGS = Settings(replica_max_lag=3, replica_wait=0.3)
PATIENT = Settings(replica_max_lag=60, replica_wait=30)
"""However busy the machine is, readers get a standby."""


def metric(value: float) -> metrics.NewMetric:
    return metrics.NewMetric(metric_name="written", metric_value=value, component="test")


class User(Protocol):
    """What threads or tasks do with a pool."""

    def write(self, value: float) -> None: ...
    def lsn(self) -> str: ...
    def read(self, after: str | None = None) -> tuple[str, int]:
        """Return the host that was read from, and how many rows it has."""
        ...

    def count(self) -> int:
        """Return how many rows the primary has."""
        ...


class Threads:
    def __init__(self, conninfo: str, replicas: list[str], settings: Settings, stack: ExitStack) -> None:
        self.pool = stack.enter_context(open_pool(conninfo, replicas=replicas, settings=settings))

    def write(self, value: float) -> None:
        with self.pool.connection() as conn:
            metrics.insert(conn, metric(value))

    def lsn(self) -> str:
        return self.pool.lsn()

    def read(self, after: str | None = None) -> tuple[str, int]:
        with self.pool.connection(read_only=True, after=after) as conn:
            return conn.info.host, metrics.count(conn)

    def count(self) -> int:
        with self.pool.connection() as conn:
            return metrics.count(conn)


class Tasks:
    """The same with asynchronous functions, on a loop that runs in a thread of its own."""

    def __init__(self, conninfo: str, replicas: list[str], settings: Settings, stack: ExitStack) -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        self.run: Callable[[Any], Any] = lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
        stack.callback(loop.close)
        stack.callback(thread.join)
        stack.callback(loop.call_soon_threadsafe, loop.stop)
        opening = aio.open_pool(conninfo, replicas=replicas, settings=settings)
        self.pool = self.run(opening.__aenter__())
        stack.callback(lambda: self.run(opening.__aexit__()))

    def write(self, value: float) -> None:
        async def work() -> None:
            async with self.pool.connection() as conn:
                await aio.metrics.insert(conn, metric(value))

        self.run(work())

    def lsn(self) -> str:
        return str(self.run(self.pool.lsn()))

    def read(self, after: str | None = None) -> tuple[str, int]:
        async def work() -> tuple[str, int]:
            async with self.pool.connection(read_only=True, after=after) as conn:
                return conn.info.host, await aio.metrics.count(conn)

        return self.run(work())  # type: ignore[no-any-return]

    def count(self) -> int:
        async def work() -> int:
            async with self.pool.connection() as conn:
                return await aio.metrics.count(conn)

        return int(self.run(work()))


KINDS: dict[str, type[Threads | Tasks]] = {"threads": Threads, "tasks": Tasks}


def host(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo)["host"])


def where(pool: Any) -> str:
    """Return the host that a reader is sent to."""
    with pool.connection(read_only=True) as conn:
        return str(conn.info.host)


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait until *condition* holds, *seconds* at most, and return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.02)
    return time.monotonic() - began


def ask(conninfo: str, query: str) -> Any:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        cursor = conn.execute(query.encode())
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def kill(conninfo: str) -> None:
    """Kill the whole server, as if its machine lost power."""
    file = Path(host(conninfo)) / "postmaster.pid"
    os.kill(int(file.read_text().split()[0]), signal.SIGKILL)
    file.unlink()


def started(primary: Cluster) -> bool:
    """Start a server that was killed, unless one of its processes is still there."""
    with suppress(BackupError):
        start(primary.binaries, Path(host(primary.conninfo)), primary.folder / "log")
        return True
    return False


@contextmanager
def replicated() -> Iterator[tuple[Cluster, list[str]]]:
    """A primary with the schema, and the conninfo of two standbys."""
    with ExitStack() as stack:
        primary = stack.enter_context(cluster("postgres18"))
        with primary.connect() as conn:
            migrate(conn)
        standbys = [stack.enter_context(standby(primary, name)) for name in ("first", "second")]
        yield primary, standbys


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, list[str]]]:
    with replicated() as made:
        yield made


@contextmanager
def using(kind: str, servers: tuple[Cluster, list[str]], settings: Settings) -> Iterator[User]:
    primary, standbys = servers
    with ExitStack() as stack:
        yield KINDS[kind](primary.conninfo, [host(one) for one in standbys], settings, stack)


@pytest.mark.parametrize("kind", KINDS)
def test_readers_go_to_the_standbys_and_see_what_they_ask_for(kind: str, servers: tuple[Cluster, list[str]]) -> None:
    _, standbys = servers
    with using(kind, servers, PATIENT) as user:
        begin = user.count()
        for number in range(30):
            user.write(number)
            read_from, seen = user.read(user.lsn())
            assert (read_from in map(host, standbys), seen) == (True, begin + number + 1)
        assert {user.read()[0] for _ in range(50)} == {*map(host, standbys)}


def test_the_standbys_of_an_idle_primary_are_fresh(servers: tuple[Cluster, list[str]]) -> None:
    primary, standbys = servers
    # Its place in the log is now behind a page's header, where no standby ever is.
    ask(primary.conninfo, "SELECT pg_switch_wal()")
    with open_pool(primary.conninfo, replicas=[host(one) for one in standbys], settings=SETTINGS) as pool:
        time.sleep(SETTINGS.replica_max_lag + 1)
        until(lambda: where(pool) in map(host, standbys), SLACK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_standby_that_is_behind_is_waited_for_and_then_left_out(
    kind: str, servers: tuple[Cluster, list[str]]
) -> None:
    primary, standbys = servers
    with using(kind, servers, SETTINGS) as user:
        user.write(0)
        until(lambda: user.read(user.lsn())[0] in map(host, standbys), SLACK)
        for one in standbys:
            ask(one, "SELECT pg_wal_replay_pause()")
        until(lambda: all(ask(one, "SELECT pg_get_wal_replay_pause_state()") == "paused" for one in standbys), SLACK)
        try:
            user.write(1)
            assert user.read(user.lsn()) == (host(primary.conninfo), user.count())
            until(lambda: user.read()[0] == host(primary.conninfo), SETTINGS.replica_max_lag + SLACK)
            ask(standbys[0], "SELECT pg_wal_replay_resume()")
            until(lambda: user.read()[0] == host(standbys[0]), 2 + SLACK)
            assert host(standbys[1]) not in {user.read()[0] for _ in range(20)}
        finally:
            for one in standbys:
                ask(one, "SELECT pg_wal_replay_resume()")


def test_readers_write_nowhere(servers: tuple[Cluster, list[str]]) -> None:
    primary, standbys = servers
    for replicas in ([], [host(one) for one in standbys]):
        with open_pool(primary.conninfo, replicas=replicas, settings=SETTINGS) as pool:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection(read_only=True) as conn:
                metrics.insert(conn, metric(0))
            with pool.connection() as conn:
                metrics.insert(conn, metric(0))
            with pytest.raises(InvalidValue, match="after must be"):
                pool.connection(read_only=True, after="yesterday")


def test_every_function_that_reads_finds_on_a_standby_what_there_is_on_the_primary(
    servers: tuple[Cluster, list[str]],
) -> None:
    primary, standbys = servers
    with open_pool(primary.conninfo, replicas=[host(one) for one in standbys], settings=PATIENT) as pool:
        with pool.connection() as conn:
            fill(conn)
        with pool.connection() as here, pool.connection(read_only=True, after=pool.lsn()) as there:
            assert there.info.host in map(host, standbys)
            for name, read in READS.items():
                assert without_plan(read(there)) == without_plan(read(here)), name


def test_a_conninfo_of_several_hosts_is_a_cluster(servers: tuple[Cluster, list[str]]) -> None:
    primary, standbys = servers
    several = make_conninfo(primary.conninfo, host=",".join(map(host, [standbys[0], primary.conninfo, standbys[1]])))
    with open_pool(several) as pool:
        with pool.connection() as conn:
            assert conn.info.host == host(primary.conninfo)
        until(lambda: where(pool) in map(host, standbys), SLACK)
    only_standbys = make_conninfo(primary.conninfo, host=",".join(map(host, standbys)))
    with pytest.raises(ConnectionFailed, match="read-only"):
        open_pool(only_standbys, settings=Settings(connect_timeout=2))
    with (
        open_pool(make_conninfo(only_standbys, target_session_attrs="any")) as pool,
        pool.connection() as conn,
    ):
        assert conn.info.host in map(host, standbys)


def test_the_environment_names_replicas_of_the_way_that_is_configured_first(
    servers: tuple[Cluster, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standbys = servers
    monkeypatch.setenv("DATABASE_URL", primary.conninfo)
    monkeypatch.setenv("KIMERA_DB_REPLICAS", ", ".join(f"{host(one)}:5432" for one in standbys))
    with open_pool() as pool:
        until(lambda: where(pool) in map(host, standbys), SLACK)
    with open_pool(primary.conninfo) as pool, pool.connection(read_only=True) as conn:
        assert conn.info.host == host(primary.conninfo)


@pytest.mark.parametrize(
    "replicas",
    [
        *(["a b"], [""], ["h:99999"], ["h:x"], ["::1"], ["kimera:sekrit@h"], ["password=sekrit"], ["one,two"], [None]),
        *(["postgresql://kimera:sekrit@h/x"], "host", b"host", 5, [b"h"], ["h\0"]),
    ],
)
def test_what_is_no_replica_is_refused_and_not_repeated(replicas: Any, servers: tuple[Cluster, list[str]]) -> None:
    with pytest.raises(SettingsError, match="HOST") as refused:
        open_pool(servers[0].conninfo, replicas=replicas)
    assert "sekrit" not in str(refused.value)
    with pytest.raises(SettingsError, match="HOST"):
        Settings(replicas=replicas)


def test_replicas_need_a_server_that_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMERA_DB_REPLICAS", "db2")
    with pytest.raises(SettingsError, match=r"^KIMERA_DB_REPLICAS: of which server"):
        open_pool()
    monkeypatch.setenv("KIMERA_DB_HOST", "x" * 64 + ".example.org")
    with pytest.raises(SettingsError, match="not a name that DNS can have"):
        open_pool()


def test_servers_of_two_clusters_are_refused(newest: Server, servers: tuple[Cluster, list[str]]) -> None:
    primary, standbys = servers
    for first, replicas in ((primary.conninfo, [newest.conninfo]), (standbys[0], [newest.conninfo, standbys[1]])):
        with pytest.raises(ConnectionFailed, match="different clusters") as refused:
            open_pool(first, replicas=[host(one) for one in replicas], settings=SETTINGS)
        assert host(newest.conninfo) in str(refused.value)


def test_what_the_environment_demands_of_a_server_holds(
    servers: tuple[Cluster, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standbys = servers
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    several = make_conninfo(primary.conninfo, host=",".join(map(host, [primary.conninfo, *standbys])))
    with open_pool(several) as pool, pool.connection() as conn:
        assert conn.info.host in map(host, standbys)


def test_a_fork_that_closes_the_pool_leaves_it_to_its_parent(servers: tuple[Cluster, list[str]]) -> None:
    primary, standbys = servers
    with open_pool(primary.conninfo, replicas=[host(one) for one in standbys], settings=PATIENT) as pool:
        where(pool)
        if (child := os.fork()) == 0:
            try:
                pool.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        looks = {server._conn.info.backend_pid for server in pool._servers}  # type: ignore[attr-defined]
        time.sleep(1.2)
        assert {server._conn.info.backend_pid for server in pool._servers} == looks  # type: ignore[attr-defined]
        assert where(pool) in map(host, standbys)


def test_a_primary_and_a_standby_die_and_nothing_acknowledged_is_lost() -> None:
    with ExitStack() as stack:
        primary, (first, second) = stack.enter_context(replicated())
        for setting in ('synchronous_standby_names = \'ANY 1 ("first", "second")\'', "synchronous_commit = on"):
            ask(primary.conninfo, f"ALTER SYSTEM SET {setting}")
        ask(primary.conninfo, "SELECT pg_reload_conf()")
        users: list[User] = [
            kind(primary.conninfo, [host(first), host(second)], SETTINGS, stack) for kind in KINDS.values()
        ]
        ended = threading.Event()
        numbers = itertools.count()
        acknowledged: list[tuple[float, int]] = []
        reads: list[tuple[float, str]] = []

        def write(user: User) -> None:
            while not ended.is_set():
                number = next(numbers)
                with suppress(psycopg.OperationalError):
                    user.write(number)
                    acknowledged.append((time.monotonic(), number))

        def read(user: User) -> None:
            while not ended.is_set():
                with suppress(psycopg.OperationalError):
                    reads.append((time.monotonic(), user.read()[0]))

        threads = [threading.Thread(target=work, args=[user]) for user in users for work in (write, write, read)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(acknowledged) > 100 and len(reads) > 100, 30)
            kill(first)
            killed = time.monotonic()
            until(lambda: reads[-1][0] > killed + 2, 2 + 2 * SLACK)
            # The other standby serves on, and so does the primary.
            assert {where for at, where in reads if at > killed + 1 + SLACK} <= {host(second)}
            assert acknowledged[-1][0] > killed
            kill(primary.conninfo)
            until(lambda: ask(second, "SELECT pg_is_in_recovery()"), 5)
            ask(second, "SELECT pg_promote()")
            promoted = time.monotonic()
            until(lambda: acknowledged[-1][0] > promoted, 2 + SLACK)
            until(lambda: reads[-1][0] > promoted, 2 + SLACK)
            # The old primary comes back, and knows of nothing.
            until(lambda: started(primary), 10)
            back = time.monotonic()
            until(lambda: acknowledged[-1][0] > back + 2, 10 + SLACK)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        with psycopg.connect(second) as conn:
            kept = {int(value) for (value,) in conn.execute("SELECT metric_value FROM system_metrics")}
        assert {number for _, number in acknowledged} <= kept
        # Whoever asks now finds the right one, though the old one is named first and takes writes too.
        assert ask(primary.conninfo, "SELECT pg_is_in_recovery()") is False
        with open_pool(primary.conninfo, replicas=[host(second)], settings=SETTINGS) as pool:
            for _ in range(10):
                with pool.connection() as conn:
                    assert conn.info.host == host(second)
