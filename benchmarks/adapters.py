"""The vector adapters against those of the pgvector client: the same statements, the same server, one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from report import Measurement, bars, database, parser, show, write

from kimera_sql import add_adapters
from kimera_sql.vectors import DIMENSIONS, Vector

Client: TypeAlias = psycopg.Connection[Any]

SINGLE_ROUNDS = 2000
"""Rounds of what handles one vector, which takes microseconds."""


def convert_in(vector: Vector, client: Client) -> None:
    Transformer(client).get_dumper(vector, PyFormat.BINARY).dump(vector)


def convert_out(client: Client, data: bytes) -> None:
    as_array(Transformer(client).get_loader(client.adapters.types["vector"].oid, Format.BINARY).load(data))


def as_array(vector: Any) -> None:
    # What a caller wants is an array; the pgvector client gives a Vector, which to_numpy turns into one.
    if not isinstance(vector, np.ndarray):
        vector.to_numpy()


def send(vector: Vector, client: Client) -> None:
    client.execute("SELECT %s IS NULL", (vector,))


def copy(vectors: Vector, client: Client) -> None:
    client.execute("TRUNCATE adapters")
    with client.cursor().copy("COPY adapters (v) FROM STDIN (FORMAT BINARY)") as stream:
        stream.set_types(["vector"])
        for vector in vectors:
            stream.write_row((vector,))


def read(count: int, binary: bool, client: Client) -> None:
    for (vector,) in client.execute("SELECT v FROM adapters LIMIT %s", (count,), binary=binary):
        as_array(vector)


def measure(clients: dict[str, Client], rows: int, rounds: int, seed: int) -> list[Measurement]:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIMENSIONS)).astype(np.float32)
    for client in clients.values():
        client.execute("CREATE TEMPORARY TABLE adapters (v VECTOR(1024))")
        copy(vectors, client)
    wire = b"\x04\x00\x00\x00" + vectors[0].astype(">f4").tobytes()
    tasks: dict[str, tuple[Callable[[Client], None], int]] = {
        "array to bytes": (partial(convert_in, vectors[0]), 1),
        "bytes to array": (partial(convert_out, data=wire), 1),
        "send 1 in a query": (partial(send, vectors[0]), 1),
        f"COPY BINARY of {rows:,}": (partial(copy, vectors), rows),
        "read 1, binary": (partial(read, 1, True), 1),
        f"read {rows:,}, binary": (partial(read, rows, True), rows),
        "read 100, text": (partial(read, 100, False), 100),
    }
    measured = []
    for task, (action, count) in tasks.items():
        times: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(SINGLE_ROUNDS if count == 1 else rounds):
            for name, client in clients.items():  # in turn, so that both meet the same machine
                began = perf_counter()
                action(client)
                times[name].append((perf_counter() - began) / count * 1e6)
        theirs, ours = (median(times[name]) for name in clients)
        measured.append(
            {"task": task, "pgvector us/vector": theirs, "kimera_sql us/vector": ours, "times faster": theirs / ours}
        )
    return measured


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=5000, help="vectors to copy and to read (%(default)s)")
    options.add_argument("--rounds", type=int, default=9, help="rounds of which the median is taken (%(default)s)")
    arguments = options.parse_args()
    with (
        database(arguments) as conninfo,
        psycopg.connect(conninfo) as theirs,
        psycopg.connect(conninfo) as ours,
    ):
        register_vector(theirs)
        add_adapters(ours)
        measured = measure({"pgvector": theirs, "kimera_sql": ours}, arguments.rows, arguments.rounds, arguments.seed)
        show(measured)
        write(arguments, measured, server=ours.info.server_version)
        bars(arguments, measured, label="task", value="times faster")


if __name__ == "__main__":
    main()
