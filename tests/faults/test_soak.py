"""Threads and tasks that write and search while their server is harmed at random; what it told them is written stays.

The length in seconds is KIMERA_SOAK_SECONDS, 15 where it is unset; `-s` shows the figures as they come:

    KIMERA_SOAK_SECONDS=600 .venv/bin/pytest -n0 -s tests/faults/test_soak.py
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from fix_clusters import NAMES, Cluster, cluster, start, stop
from psycopg.conninfo import make_conninfo
from psycopg_pool import PoolTimeout
from strategies import unit

from kimera_sql import KimeraError, Settings, aio, geoids, indexes, migrate, open_pool, transitions

LENGTH: Final = float(os.environ.get("KIMERA_SOAK_SECONDS", "15"))
THREADS: Final = 16
TASKS: Final = 64
BATCH: Final = 20
VECTORS: Final = [unit(seed) for seed in range(256)]
BOUNDS: Final = Settings(statement_timeout=3, lock_timeout=2, idle_in_transaction_timeout=5, pool_timeout=10)
LONG: Final = 120
"""Seconds from which on a run is long enough to tell whether memory grows."""


def state(id: UUID, chosen: random.Random) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        id=id, state_vector=chosen.choice(VECTORS), entropy=1, coherence_factor=0, energy_level=0, tags=["soak"]
    )


@dataclass
class Ledger:
    """What callers were told. groups: the ids that one transaction wrote; of one whose end is unknown, all or none."""

    acknowledged: list[list[UUID]] = field(default_factory=list)
    unknown: list[list[UUID]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self, ids: list[UUID], what: str) -> None:
        with self.lock:
            self.acknowledged.append(ids)
            self.done[what] += 1

    def failed(self, ids: list[UUID], error: Exception) -> None:
        with self.lock:
            if ids:
                self.unknown.append(ids)
            self.errors[type(error).__name__] += 1

    def one(self, chosen: random.Random) -> UUID | None:
        with self.lock:
            return chosen.choice(chosen.choice(self.acknowledged)) if self.acknowledged else None


WORK: Final = ("insert", "insert_many", "pair", "similar", "get", "stream", "untidy")


def in_thread(pool: Any, ledger: Ledger, until: float, seed: int) -> None:
    chosen = random.Random(seed)
    while time.monotonic() < until:
        what, ids = chosen.choice(WORK), [uuid4() for _ in range(BATCH)]
        written: list[UUID] = []
        try:
            with pool.connection() as conn:
                match what:
                    case "insert":
                        written = ids[:1]
                        geoids.insert(conn, state(ids[0], chosen))
                    case "insert_many":
                        written = ids
                        geoids.insert_many(conn, [state(id, chosen) for id in ids])
                    case "pair":
                        written = ids[:2]
                        for id in written:
                            geoids.insert(conn, state(id, chosen))
                        transitions.record(conn, written[0], written[1], "soak", energy=1)
                    case "similar":
                        geoids.similar(conn, chosen.choice(VECTORS), k=10)
                    case "get":
                        known = ledger.one(chosen)
                        if known is not None and geoids.get(conn, known) is None:
                            ledger.wrong.append(f"{known} was acknowledged and is not there")
                    case "stream":
                        states: Any = geoids.stream(conn)
                        with closing(states):
                            for _ in range(50):
                                next(states, None)
                    case "untidy":
                        conn.execute("SET search_path = nowhere; SET statement_timeout = 1")
                        conn.execute("CREATE TEMP TABLE IF NOT EXISTS geoid_states (id int)")
                        conn.execute("SELECT pg_advisory_lock(%s)", [seed])
            ledger.wrote(written, what) if written else ledger.done.update([what])
        except (psycopg.Error, KimeraError, PoolTimeout) as error:
            ledger.failed(written, error)


async def as_task(pool: Any, ledger: Ledger, until: float, seed: int) -> None:
    chosen = random.Random(seed)
    while time.monotonic() < until:
        what, ids = chosen.choice(WORK), [uuid4() for _ in range(BATCH)]
        written: list[UUID] = []
        try:
            async with asyncio.timeout(chosen.choice([0.05, 10, 10, 10, 10])), pool.connection() as conn:
                match what:
                    case "insert":
                        written = ids[:1]
                        await aio.geoids.insert(conn, state(ids[0], chosen))
                    case "insert_many":
                        written = ids
                        await aio.geoids.insert_many(conn, [state(id, chosen) for id in ids])
                    case "pair":
                        written = ids[:2]
                        for id in written:
                            await aio.geoids.insert(conn, state(id, chosen))
                        await aio.transitions.record(conn, written[0], written[1], "soak", energy=1)
                    case "similar":
                        await aio.geoids.similar(conn, chosen.choice(VECTORS), k=10)
                    case "get":
                        known = ledger.one(chosen)
                        if known is not None and await aio.geoids.get(conn, known) is None:
                            ledger.wrong.append(f"{known} was acknowledged and is not there")
                    case "stream":
                        states: Any = aio.geoids.stream(conn)
                        async with aclosing(states):
                            for _ in range(50):
                                await anext(states, None)
                    case "untidy":
                        await conn.set_autocommit(True)
                        await conn.execute("SET search_path = nowhere; SET statement_timeout = 1")
                        await conn.execute("LISTEN soak")
            ledger.wrote(written, what) if written else ledger.done.update([what])
        except (psycopg.Error, KimeraError, PoolTimeout, TimeoutError) as error:
            ledger.failed(written, error)
        await asyncio.sleep(chosen.uniform(0, 0.02))


def harm(server: Cluster, until: float, harms: Counter[str], chosen: random.Random) -> None:
    """Terminate, stall and restart until the time is up, and leave everything running."""
    again = time.monotonic() + LENGTH / 3
    while time.monotonic() < until - 1:
        time.sleep(chosen.uniform(0.2, 1))
        if time.monotonic() > again:
            stop(server.binaries, server.folder / "data")
            time.sleep(chosen.uniform(0, 1))
            start(server.binaries, server.folder / "data", server.folder / "log")
            harms["restarts, immediate"] += 1
            again = time.monotonic() + min(20, LENGTH / 3)
        elif chosen.random() < 0.6:
            for pid in backends(server, chosen.randint(1, 5)):
                with server.connect() as conn:
                    conn.execute("SELECT pg_terminate_backend(%s)", [pid])
                harms["terminated"] += 1
        else:
            stalled = backends(server, 3)
            each(stalled, signal.SIGSTOP)
            # Longer than a statement may take, one time in two
            time.sleep(chosen.choice([0.5, 5]) if LENGTH >= LONG else 0.5)
            each(stalled, signal.SIGCONT)
            harms["stalled"] += len(stalled)


def backends(server: Cluster, most: int) -> list[int]:
    with server.connect() as conn:
        query = """
            SELECT pid FROM pg_stat_activity WHERE datname = 'soak' AND backend_type = 'client backend'
            ORDER BY random() LIMIT %s
        """
        return [pid for (pid,) in conn.execute(query, [most])]


def each(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def resident() -> float:
    """The memory of this process, in MB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def settled(true: Callable[[], bool]) -> bool:
    for _ in range(300):
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def quiet() -> Iterator[None]:
    """Let nothing be logged: pytest keeps what is, and with it each connection that psycopg's pool speaks of."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
def test_what_is_acknowledged_stays_and_nothing_is_left_behind() -> None:
    with cluster(NAMES[0]) as server:
        with server.connect() as conn:
            conn.execute("CREATE DATABASE soak")
        conninfo = make_conninfo(server.conninfo, dbname="soak")
        with psycopg.connect(conninfo) as conn:
            migrate(conn)
        with open_pool(conninfo, settings=BOUNDS) as pool:
            with pool.connection() as conn:
                geoids.insert_many(conn, [state(uuid4(), random.Random(seed)) for seed in range(500)])
                indexes.build(conn, "geoid_states")
            asyncio.run(soak(server, conninfo, pool))


async def soak(server: Cluster, conninfo: str, threads_pool: Any) -> None:
    ledger, harms = Ledger(), Counter[str]()
    began = time.monotonic()
    until = began + LENGTH
    memory: list[float] = []
    async with aio.open_pool(conninfo, settings=BOUNDS) as tasks_pool:
        with ThreadPoolExecutor(THREADS + 1) as executor:
            threads = [executor.submit(in_thread, threads_pool, ledger, until, seed) for seed in range(THREADS)]
            threads.append(executor.submit(harm, server, until, harms, random.Random(0)))
            tasks = [asyncio.create_task(as_task(tasks_pool, ledger, until, 1000 + seed)) for seed in range(TASKS)]
            while time.monotonic() < until:
                await asyncio.sleep(LENGTH / 20)
                memory.append(resident())
                print(f"{time.monotonic() - began:6.0f} s {memory[-1]:7.1f} MB {dict(ledger.done)} {dict(harms)}")
            await asyncio.gather(*tasks)
            for thread in threads:
                await asyncio.wrap_future(thread)
        print(dict(ledger.errors))
        pools = (threads_pool, tasks_pool)

        def at_rest() -> bool:
            stats = [pool.get_stats() for pool in pools]
            return all(one["pool_available"] == one["pool_size"] and not one["requests_waiting"] for one in stats)

        assert await asyncio.to_thread(settled, at_rest), [pool.get_stats() for pool in pools]
        with threads_pool.connection() as conn:
            there = {id for (id,) in conn.execute("SELECT id FROM geoid_states")}
        assert await asyncio.to_thread(settled, lambda: len(backends(server, 1000)) == open_connections(pools))
    assert not ledger.wrong
    acknowledged = {id for ids in ledger.acknowledged for id in ids}
    print(f"{len(acknowledged)} rows acknowledged, {len(acknowledged - there)} lost")
    assert acknowledged <= there
    assert all({*ids} <= there or not {*ids} & there for ids in ledger.unknown)
    assert min(ledger.done[what] for what in WORK) > 0
    assert len(harms) == 3
    if LENGTH >= LONG:
        half = len(memory) // 2
        print(f"memory {memory[half]:.1f} MB at half, {memory[-1]:.1f} MB at the end")
        assert memory[-1] < memory[half] + 10


def open_connections(pools: tuple[Any, ...]) -> int:
    return sum(pool.get_stats()["pool_size"] for pool in pools)
