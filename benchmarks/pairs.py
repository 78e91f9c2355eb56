"""Every pair of similar rows: geoids.pairs for all rows, and joins by an hnsw index for some of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import psycopg
from blocks import ServerClock
from data import loaded, made, similarities
from report import Measurement, bars, database, parser, show, write

from kimera_sql import add_adapters, geoids, indexes
from kimera_sql.sql import Connection
from kimera_sql.vectors import Vector

Found: TypeAlias = dict[tuple[int, int], float]
"""Pairs by their numbers, the smaller one first, and their similarities."""

_JOIN = """
    SELECT one.id, other.id, other.similarity
    FROM geoid_states AS one
    CROSS JOIN LATERAL (
        SELECT id, 1 - (state_vector <=> one.state_vector) AS similarity
        FROM geoid_states
        ORDER BY l2_normalize(state_vector)::halfvec(1024) <=> l2_normalize(one.state_vector)::halfvec(1024)
        LIMIT 20
    ) AS other
    WHERE one.id < %s AND other.id <> one.id AND other.similarity >= %s
"""


def fill(conn: Connection, rows: Vector) -> None:
    geoids.insert_many(
        conn,
        (
            geoids.NewGeoid(id=UUID(int=number), state_vector=row, entropy=0, coherence_factor=0, energy_level=0)
            for number, row in enumerate(rows)
        ),
    )


def truth(rows: Vector, share: int, similarity: float) -> Found:
    """Return the pairs of the first *share* rows, found exactly."""
    found: Found = {}
    for one, cosines in zip(range(share), similarities(rows, rows[:share]), strict=True):
        for other in np.flatnonzero(cosines >= similarity).tolist():
            if other != one:
                found[min(one, other), max(one, other)] = float(cosines[other])
    return found


def alone(conninfo: str, similarity: float) -> tuple[Found, float, float, float, float]:
    """Find all pairs in a process of its own, and return them, and what spent returns."""
    with psycopg.connect(conninfo, autocommit=True) as conn, psycopg.connect(conninfo, autocommit=True) as watching:
        add_adapters(conn)

        def work() -> Found:
            return {(pair.first.int, pair.second.int): pair.similarity for pair in geoids.pairs(conn, similarity)}

        return spent(work, ServerClock(watching))


def peak() -> float:
    """Return the most memory that this process has had, in MB. Unlike getrusage, /proc leaves its parent's out."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def spent(work: Callable[[], Found], clock: ServerClock) -> tuple[Found, float, float, float, float]:
    """Return what *work* finds, its seconds, the CPU seconds of both sides, and by how many MB this process grew."""
    before, served, began, busy = peak(), sum(clock.read().values()), perf_counter(), process_time()
    found = work()
    wall, client = perf_counter() - began, process_time() - busy
    return found, wall, client, (sum(clock.read().values()) - served) / 1e9, peak() - before


def row(
    name: str, similarity: float, found: Found, wanted: Found, wall: float, client: float, server: float, grown: float
) -> Measurement:
    return {
        "way": name,
        "similarity": similarity,
        "pairs": f"{len(found):,}",
        "recall": len(found.keys() & wanted) / max(len(wanted), 1),
        "seconds": wall,
        "CPU s here": client,
        "CPU s of the server": server,
        "MB grown": grown,
    }


def joined(conninfo: str, share: int, similarity: float, wanted: Found) -> list[Measurement]:
    """Measure joins of the first *share* rows with all by an index, 20 neighbours of each, on one connection."""
    measured = []
    with psycopg.connect(conninfo, autocommit=True) as conn, psycopg.connect(conninfo, autocommit=True) as watching:
        add_adapters(conn)
        indexes.build(conn, "geoid_states")
        conn.execute("SET enable_seqscan = off")
        conn.execute("SET jit = off")
        for ef_search in (40, 100, 200):
            conn.execute(f"SET hnsw.ef_search = {ef_search}")

            def search() -> Found:
                pairs: list[Any] = conn.execute(_JOIN, [UUID(int=share), similarity], binary=True).fetchall()
                return {(min(one.int, other.int), max(one.int, other.int)): cosine for one, other, cosine in pairs}

            found, *costs = spent(search, ServerClock(watching))
            measured.append(row(f"join, ef_search {ef_search}, {share:,} rows", similarity, found, wanted, *costs))
            show(measured[-1:])
    return measured


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--vectors", metavar="FILE", type=Path, help="compare these (.npy, .npz, .hdf5), not made ones"
    )
    options.add_argument("--rows", type=int, default=20_000, help="at most so many rows (%(default)s)")
    options.add_argument("--similarity", type=float, nargs="+", default=[0.9, 0.95, 0.8], help="(%(default)s)")
    options.add_argument("--sample", type=int, default=1000, help="rows whose pairs tell the recall (%(default)s)")
    arguments = options.parse_args()
    rows = (
        made(arguments.rows, 1, 0, arguments.seed)
        if arguments.vectors is None
        else loaded(arguments.vectors, arguments.rows, 1, 0, arguments.seed)
    ).rows
    share = min(arguments.sample, len(rows))
    measured: list[Measurement] = []
    with database(arguments) as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as conn:
            add_adapters(conn)
            fill(conn, rows)
            conn.execute("VACUUM ANALYZE geoid_states")
        for similarity in arguments.similarity:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
                found, *costs = processes.submit(alone, conninfo, similarity).result()
            measured.append(row("geoids.pairs", similarity, found, truth(rows, share, similarity), *costs))
            show(measured[-1:])
        first = arguments.similarity[0]
        measured += joined(conninfo, share, first, truth(rows, share, first))
    show(measured)
    write(arguments, measured, rows=len(rows))
    bars(arguments, measured, label="way", value="seconds")


if __name__ == "__main__":
    main()
