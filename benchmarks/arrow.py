"""Writing many rows: insert_arrow and insert_many against COPY of bytes that were made beforehand, side by side.

They take turns on one server. Each rate is the median of the rounds, each ratio the median of the ratios within one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Any, TypeAlias

import numpy as np
import psycopg
from report import Measurement, bars, database, parser, show, write

from kimera_sql import add_adapters, geoids
from kimera_sql.sql import statements
from kimera_sql.sql.arrow import pyarrow
from kimera_sql.vectors import DIMENSIONS, Vector

Client: TypeAlias = psycopg.Connection[Any]

SENT_AT_ONCE = 2**17
"""Bytes of each write of what was made beforehand."""

COPY = statements("postgres", "geoids")["copy_in"].text


def states(vectors: Vector) -> Iterator[geoids.NewGeoid]:
    for number, vector in enumerate(vectors):
        yield geoids.NewGeoid(
            state_vector=vector,
            entropy=number / 7,
            coherence_factor=0.5,
            energy_level=1.0,
            metadata={"number": number, "source": "benchmark"},
            creation_context="made",
            tags=["dream", "made"],
        )


def prepared(client: Client) -> bytes:
    """Return what COPY TO gives of the table: the same rows as COPY FROM takes them."""
    with client.cursor().copy(COPY.replace("FROM STDIN", "TO STDOUT")) as copy:
        return b"".join(bytes(part) for part in copy)


def send(client: Client, data: bytes) -> None:
    with client.cursor().copy(COPY) as copy:
        for start in range(0, len(data), SENT_AT_ONCE):
            copy.write(data[start : start + SENT_AT_ONCE])


def measure(works: Mapping[str, Callable[[], object]], client: Client, rows: int, rounds: int) -> list[Measurement]:
    """Run *works* in turn, the table emptied before each. The first of them is what the others are compared with."""
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            client.execute("TRUNCATE geoid_states CASCADE")
            wall, client_time = perf_counter(), process_time()
            work()
            costs[name].append((perf_counter() - wall, process_time() - client_time))
    floor = next(iter(costs.values()))
    return [row(name, taken, floor, rows) for name, taken in costs.items()]


def row(
    name: str, taken: Sequence[tuple[float, float]], floor: Sequence[tuple[float, float]], rows: int
) -> Measurement:
    return {
        "by": name,
        "rows/s": round(rows / median(wall for wall, _ in taken)),
        "rate, compared": median(least / wall for (wall, _), (least, _) in zip(taken, floor, strict=True)),
        "client's CPU, µs a row": median(cpu for _, cpu in taken) / rows * 1e6,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=20_000, help="rows at once (%(default)s)")
    options.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    arguments = options.parse_args()
    vectors = np.random.default_rng(arguments.seed).standard_normal((arguments.rows, DIMENSIONS)).astype(np.float32)
    with database(arguments) as conninfo, psycopg.connect(conninfo, autocommit=True) as client:
        add_adapters(client)
        # What a commit waits for on the disk would drown what is compared.
        client.execute("SET synchronous_commit TO off")
        geoids.insert_many(client, states(vectors))
        data, table = prepared(client), pyarrow().Table.from_batches(geoids.stream_arrow(client))
        works = {
            "bytes made beforehand": lambda: send(client, data),
            "insert_arrow": lambda: geoids.insert_arrow(client, table),
            "insert_many": lambda: geoids.insert_many(client, states(vectors)),
        }
        measured = measure(works, client, arguments.rows, arguments.rounds)
        show(measured)
        write(arguments, measured, server=client.info.server_version, rows=arguments.rows)
    bars(arguments, measured, label="by", value="rows/s")


if __name__ == "__main__":
    main()
