"""Exact search in SQLite: geoids.similar against numpy on the same vectors held in memory."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from report import Measurement, bars, parser, show, write

from kimera_sql import SqlitePool, geoids, migrate
from kimera_sql.geoids import NewGeoid
from kimera_sql.vectors import DIMENSIONS, Vector


def made(rows: int, seed: int) -> Iterator[Vector]:
    random = np.random.default_rng(seed)
    return (random.standard_normal(DIMENSIONS, dtype=np.float32) for _ in range(rows))


def measure(rows: int, rounds: int, seed: int) -> Measurement:
    with tempfile.TemporaryDirectory() as folder, SqlitePool(Path(folder) / "benchmark.db") as pool:
        with pool.connection() as conn:
            migrate(conn)
            began = perf_counter()
            geoids.insert_many(
                conn,
                (NewGeoid(state_vector=v, entropy=0, coherence_factor=0, energy_level=0) for v in made(rows, seed)),
            )
            conn.commit()
            inserting = perf_counter() - began
            queries = list(made(rounds, seed + 1))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            here = []
            for query in queries:
                began = perf_counter()
                geoids.similar(conn, query, 10)
                here.append(perf_counter() - began)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        matrix = np.stack(list(made(rows, seed)))
        there = []
        for query in queries:
            began = perf_counter()
            distances = 1 - matrix @ query / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(query))
            np.argpartition(distances, 10)[:10]
            there.append(perf_counter() - began)
    return {
        "rows": f"{rows:,}",
        "similar ms": median(here) * 1000,
        "numpy in memory ms": median(there) * 1000,
        "memory grown MB": grown,
        "vectors MB": rows * DIMENSIONS * 4 / 2**20,
        "rows inserted/s": rows / inserting,
    }


def main() -> None:
    options = parser(__doc__, server=False)
    options.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="(%(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="searches of which the median is taken (%(default)s)")
    arguments = options.parse_args()
    measured = [measure(rows, arguments.rounds, arguments.seed) for rows in arguments.rows]
    show(measured)
    write(arguments, measured)
    bars(arguments, measured, label="rows", value="similar ms")


if __name__ == "__main__":
    main()
