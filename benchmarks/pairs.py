"""Every pair of similar rows: geoids.pairs, a product of whole matrices in memory, and a join by an hnsw index."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import psycopg
from blocks import ServerClock
from data import loaded, made
from report import Measurement, bars, database, parser, show, write

from kimera_sql import SqlitePool, add_adapters, geoids, indexes, migrate
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


def truth(rows: Vector, similarity: float) -> Found:
    found: Found = {}
    for start in range(0, len(rows), 1000):
        cosines = rows[start : start + 1000] @ rows[start:].T
        ones, others = np.nonzero(cosines >= similarity)
        for one, other, cosine in zip(ones.tolist(), others.tolist(), cosines[ones, others].tolist(), strict=True):
            if one < other:
                found[start + one, start + other] = cosine
    return found


def by_pairs(conn: Connection, similarity: float) -> Found:
    return {(pair.first.int, pair.second.int): pair.similarity for pair in geoids.pairs(conn, similarity)}


def alone(place: str, similarity: float) -> tuple[Found, float, float, float, float]:
    """Run in a process of its own, and return the pairs, seconds, CPU seconds of both sides, and MB of memory grown."""
    if place.endswith(".db"):
        with SqlitePool(place) as pool, pool.connection() as file:
            return spent(lambda: by_pairs(file, similarity), None)
    with psycopg.connect(place, autocommit=True) as conn, psycopg.connect(place, autocommit=True) as watching:
        add_adapters(conn)
        return spent(lambda: by_pairs(conn, similarity), ServerClock(watching))


def peak() -> float:
    """Return the most memory that this process has had, in MB. Unlike getrusage, /proc leaves its parent's out."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def spent(work: Callable[[], Found], clock: ServerClock | None) -> tuple[Found, float, float, float, float]:
    before = peak()
    served, began, busy = sum(clock.read().values()) if clock else 0, perf_counter(), process_time()
    found = work()
    wall, client = perf_counter() - began, process_time() - busy
    server = (sum(clock.read().values()) - served) / 1e9 if clock else 0.0
    return found, wall, client, server, peak() - before


def in_a_process(place: str, similarity: float) -> tuple[Found, float, float, float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(alone, place, similarity).result()


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


def joined(conninfo: str, rows: Vector, share: int, similarity: float, wanted: Found) -> list[Measurement]:
    """Measure joins by an index for the first *share* rows, with their pairs alone."""
    mine = {pair: cosine for pair, cosine in wanted.items() if min(pair) < share}
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

            name = f"join by hnsw, ef_search {ef_search}, of {share:,} rows"
            found, *costs = spent(search, ServerClock(watching))
            measured.append(row(name, similarity, found, mine, *costs))
    return measured


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--vectors", metavar="FILE", type=Path, help="compare these (.npy, .npz, .hdf5), not made ones"
    )
    options.add_argument("--rows", type=int, default=20_000, help="at most so many rows (%(default)s)")
    options.add_argument("--similarity", type=float, nargs="+", default=[0.95, 0.9, 0.8], help="(%(default)s)")
    options.add_argument("--joined", type=int, default=1000, help="rows to join by an index, 0 for none (%(default)s)")
    arguments = options.parse_args()
    data = (
        made(arguments.rows, 1, 0, arguments.seed)
        if arguments.vectors is None
        else loaded(arguments.vectors, arguments.rows, 1, 0, arguments.seed)
    )
    rows = data.rows
    measured: list[Measurement] = []
    with database(arguments) as conninfo, tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "benchmark.db")
        with SqlitePool(path) as pool, pool.connection() as file:
            migrate(file)
            fill(file, rows)
        with psycopg.connect(conninfo, autocommit=True) as conn:
            add_adapters(conn)
            fill(conn, rows)
            conn.execute("VACUUM ANALYZE geoid_states")
        least = min(arguments.similarity)
        truths, *costs = spent(partial(truth, rows, least), None)
        measured.append(row("whole vectors in memory, numpy", least, truths, truths, *costs))
        for similarity in arguments.similarity:
            wanted = {pair: cosine for pair, cosine in truths.items() if cosine >= similarity}
            for name, place in (("geoids.pairs", conninfo), ("geoids.pairs on SQLite", path)):
                found, *costs = in_a_process(place, similarity)
                measured.append(row(name, similarity, found, wanted, *costs))
                show(measured[-1:])
        if arguments.joined:
            measured += joined(conninfo, rows, arguments.joined, least, truths)
    show(measured)
    write(arguments, measured, rows=len(rows))
    bars(arguments, measured, label="way", value="seconds")


if __name__ == "__main__":
    main()
