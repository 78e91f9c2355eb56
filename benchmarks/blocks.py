"""What operations cost, in blocks that peers take in turn: time, the CPU of this process, and the server's."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeAlias

import numpy as np
import psycopg
from peers import Peer, loop

Spread: TypeAlias = tuple[float, float, float]
"""A median, and the bounds of its 95 % interval by the bootstrap."""

_WARM_UP = 30
"""Operations to warm up with, and as many to see how long one takes.

psycopg prepares a statement at its fifth run on a connection, and the server keeps a plan after five more.
"""


@dataclass(frozen=True)
class Cost:
    """What one operation took, in microseconds. server: None where the server's processes can't be seen."""

    wall: float
    client: float
    server: float | None


class ServerClock:
    """The CPU time of a server's processes on this machine, from /proc."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        host = conn.info.host
        self._local = (host.startswith("/") or conn.info.hostaddr in ("127.0.0.1", "::1")) and Path("/proc").exists()

    def read(self) -> dict[int, int]:
        """Return the nanoseconds that each process which serves this database has been running."""
        if not self._local:
            return {}
        processes = self._conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        times = {}
        for (pid,) in processes:
            try:
                # In nanoseconds, where /proc/PID/stat counts hundredths of a second.
                times[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
            except OSError:  # it has ended, or this kernel doesn't say
                continue
        return times


def spend(
    peer: Peer, work: str, count: int, clock: ServerClock, *, bulk: bool = False, start: int = 0
) -> tuple[Cost, Any]:
    """Let *peer* do *count* operations of *work*; return what one took, and what the last one returned.

    bulk: the method does all of them at once. start: the number of the first operation.
    """
    operation = getattr(peer, work)
    numbers = (count,) if bulk else range(start, start + count)
    gc.collect()
    served, began, busy = clock.read(), perf_counter(), process_time()
    result = _run(operation, numbers)
    wall, client = perf_counter() - began, process_time() - busy
    server = sum(time - served.get(pid, 0) for pid, time in clock.read().items()) if served else None
    return Cost(wall / count * 1e6, client / count * 1e6, None if server is None else server / count / 1e3), result


def _run(operation: Callable[[int], Any], numbers: Sequence[int]) -> Any:
    if not inspect.iscoroutinefunction(operation):
        for number in numbers:
            result = operation(number)
        return result

    async def every() -> Any:
        for number in numbers:
            result = await operation(number)
        return result

    return loop.run_until_complete(every())


def in_turn(
    peers: Sequence[Peer],
    work: str,
    clock: ServerClock,
    *,
    rounds: int,
    seconds: float,
    counts: Mapping[str, int],
    clean: Callable[[], None] | None,
    expected: int | None,
) -> dict[str, list[Cost]]:
    """Measure *work* in *rounds* blocks of each of *peers*, which take turns, and return the costs of each by its name.

    A block lasts about *seconds*, or has as many rows as *counts* says of a peer, at once. *clean* is given for work
    that writes, and is called after each block. Raises RuntimeError where a result has another length than *expected*.
    """
    sizes: dict[str, int] = {}
    costs: dict[str, list[Cost]] = {peer.name: [] for peer in peers}

    def block(peer: Peer, count: int, start: int) -> tuple[Cost, Any]:
        bulk = peer.name in counts
        if clean is None:
            return spend(peer, work, count, clock, bulk=bulk, start=start)
        with peer.unsaved():
            spent = spend(peer, work, count, clock, bulk=bulk, start=start)
        clean()
        return spent

    for peer in peers:
        _, result = block(peer, counts.get(peer.name, _WARM_UP), 0)
        if expected is not None and len(result) != expected:
            raise RuntimeError(f"{peer.name}, {work}: {len(result)} results, not {expected}")
        if peer.name in counts:
            sizes[peer.name] = counts[peer.name]
        else:
            cost, _ = block(peer, _WARM_UP, _WARM_UP)
            sizes[peer.name] = max(round(seconds * 1e6 / cost.wall), 1)
    for number in range(rounds):
        turn = number % len(peers)
        for peer in (*peers[turn:], *peers[:turn]):
            cost, _ = block(peer, sizes[peer.name], 2 * _WARM_UP + number * sizes[peer.name])
            costs[peer.name].append(cost)
    return costs


def ratios(costs: Sequence[Cost], floor: Sequence[Cost], part: str) -> Spread:
    """Return how many times the *part* (wall or client) of *floor* it is, block by block."""
    found = np.array([getattr(cost, part) / getattr(base, part) for cost, base in zip(costs, floor, strict=True)])
    drawn = np.random.default_rng(0).choice(found, (2000, len(found)))
    least, most = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(np.median(found)), float(least), float(most)
