"""geoids.similar over the shards of a Citus cluster against the same on one server, in turns."""

from __future__ import annotations

from time import perf_counter
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from data import made
from report import Measurement, bars, parser, show, write

from kimera_sql import add_adapters, geoids, indexes, migrate, recall
from kimera_sql.ops import citus
from kimera_sql.vectors import Vector

_MIXED = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""What spreads the numbers of rows over the ids, and so over the shards."""


def connected(conninfo: str) -> psycopg.Connection[Any]:
    conn = psycopg.connect(conninfo, autocommit=True)
    migrate(conn)
    add_adapters(conn)
    return conn


def fill(conn: psycopg.Connection[Any], rows: Vector) -> None:
    """Insert *rows* unless they are there, with an index in half precision."""
    if geoids.count(conn) == len(rows):
        return
    geoids.insert_many(
        conn,
        (
            geoids.NewGeoid(
                id=UUID(int=number * _MIXED % 2**128),
                state_vector=row,
                entropy=number % 1000 / 1000,
                coherence_factor=0,
                energy_level=0,
            )
            for number, row in enumerate(rows)
        ),
    )
    indexes.build(conn, "geoid_states")


def main() -> None:
    options = parser(__doc__, server=False)
    options.add_argument("single", metavar="URL", help="an empty database on one server")
    options.add_argument("coordinator", metavar="URL", help="one on the coordinator, with Citus on all nodes")
    options.add_argument("--rows", type=int, default=100_000, help="rows (%(default)s)")
    options.add_argument("--shards", type=int, default=8, help="shards (%(default)s)")
    options.add_argument("--queries", type=int, default=400, help="searches (%(default)s)")
    given = options.parse_args()
    data = made(given.rows, given.queries, 0, given.seed)
    with connected(given.single) as single, connected(given.coordinator) as coordinator:
        citus.distribute(coordinator, shards=given.shards)
        for conn in (single, coordinator):
            fill(conn, data.rows)
            recall.tune(conn, "geoid_states", target=0.95, queries=list(data.queries))
        measured = compared({"one server": single, f"{given.shards} shards": coordinator}, data.queries)
    show(measured)
    print(f"p50 over shards: {measured[1]['p50 ms'] / measured[0]['p50 ms']:.1f} times that of one server")
    write(given, measured, rows=given.rows, shards=given.shards)
    bars(given, measured, label="where", value="p50 ms")


def compared(conns: dict[str, psycopg.Connection[Any]], queries: Vector) -> list[Measurement]:
    """Search for each of *queries* on each of *conns* in turn; the first tenth warms up."""
    taken: dict[str, list[float]] = {name: [] for name in conns}
    for query in queries:
        for name, conn in conns.items():
            began = perf_counter()
            geoids.similar(conn, query, 10)
            taken[name].append(1000 * (perf_counter() - began))
    return [
        {
            "where": name,
            "setting": geoids.explain(conn, queries[0], 10).settings["hnsw.ef_search"],
            "recall": recall.measure(conn, "geoid_states", queries=list(queries)).recall,
            **{f"p{part} ms": float(np.percentile(taken[name][len(queries) // 10 :], part)) for part in (50, 95)},
        }
        for name, conn in conns.items()
    ]


if __name__ == "__main__":
    main()
