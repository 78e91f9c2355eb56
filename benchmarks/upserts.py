"""What writing again costs: upsert_many, and a temporary table in its place, beside insert_many of the same rows.

All take turns, in one run on one server. Each ratio is insert_many's time to that of the same round: the median of the
rounds, with the least and the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any, cast
from uuid import UUID

import numpy as np
import psycopg
from report import Measurement, bars, database, parser, show, write

from kimera_sql import add_adapters, embeddings, geoids
from kimera_sql.model.geoids import values
from kimera_sql.sql import binary, statements
from kimera_sql.vectors import DIMENSIONS, Vector

Work = Callable[[], object]

COLUMNS = "id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector"
SET = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS.split(", ")[1:])
STAGE = (
    f"CREATE TEMPORARY TABLE staged ON COMMIT DROP AS SELECT {COLUMNS}, 0::int8 AS item FROM geoid_states WITH NO DATA",  # noqa: S608
    "ALTER TABLE pg_temp.staged ALTER state_vector SET STORAGE PLAIN",
)
COPY = f"COPY pg_temp.staged ({COLUMNS}, item) FROM STDIN (FORMAT BINARY)"
# Ids and places alone are sorted: a sort copies each row that it is given.
MERGE = f"""
    INSERT INTO geoid_states ({COLUMNS})
    SELECT {", ".join(f"given.{column}" for column in COLUMNS.split(", "))}
    FROM (SELECT DISTINCT ON (id) id, ctid AS place FROM pg_temp.staged ORDER BY id, item DESC) AS last
    CROSS JOIN LATERAL (SELECT * FROM pg_temp.staged WHERE staged.ctid = last.place OFFSET 0) AS given
    ORDER BY last.id
    ON CONFLICT (id) DO UPDATE SET {SET}
"""  # noqa: S608 - the names are this file's own


def states(vectors: list[Vector], entropy: float) -> Iterator[geoids.NewGeoid]:
    for number, vector in enumerate(vectors):
        yield geoids.NewGeoid(
            id=UUID(int=number * 2654435761 % 2**64),
            state_vector=vector,
            entropy=entropy,
            coherence_factor=0.9,
            energy_level=1.2,
            metadata={"phase": "rem"},
            tags=["dream", "blue"],
        )


def texts(vectors: list[Vector]) -> Iterator[embeddings.NewEmbedding]:
    for number, vector in enumerate(vectors):
        yield embeddings.NewEmbedding(text_content=f"text number {number}", embedding=vector, source="benchmark")


def by_temporary_table(conn: psycopg.Connection[Any], items: Iterator[geoids.NewGeoid]) -> None:
    """What upsert_many was weighed against: COPY into a temporary table, and one INSERT from there."""
    types = (*statements("postgres", "geoids")["copy_in"].types, "int8")
    encode = cast("Callable[[list[list[Any]]], bytes]", binary.rows_encoder(types, "utf-8"))
    with conn.transaction():
        row = conn.execute("SELECT clock_timestamp()").fetchone()
        for statement in STAGE:
            conn.execute(statement.encode())
        with conn.cursor().copy(COPY.encode()) as copy:
            copy.write(binary.BEGIN)
            taken: list[list[Any]] = []
            for number, item in enumerate(items):
                taken.append([*{**values(item), "timestamp": row and row[0]}.values(), number])
                if len(taken) == 32:
                    copy.write(encode(taken))
                    taken.clear()
            copy.write(encode(taken) + binary.END)
        conn.execute(MERGE.encode())
        conn.execute("DROP TABLE pg_temp.staged")


def measure(conn: psycopg.Connection[Any], vectors: list[Vector], rounds: int) -> list[Measurement]:
    # The rows of a work are there already for the next one, unless it begins with None: then the tables are emptied.
    turns: list[tuple[str, str, Work] | None] = [
        None,
        ("insert_many", "", lambda: geoids.insert_many(conn, states(vectors, 0))),
        None,
        ("upsert_many, all new", "insert_many", lambda: geoids.upsert_many(conn, states(vectors, 0))),
        ("upsert_many, all there", "insert_many", lambda: geoids.upsert_many(conn, states(vectors, 1))),
        None,
        ("temporary table, all new", "insert_many", lambda: by_temporary_table(conn, states(vectors, 0))),
        ("temporary table, all there", "insert_many", lambda: by_temporary_table(conn, states(vectors, 1))),
        None,
        ("insert_many of texts", "", lambda: embeddings.insert_many(conn, texts(vectors))),
        None,
        ("upsert_many by text, all new", "insert_many of texts", lambda: embeddings.upsert_many(conn, texts(vectors))),
        (
            "upsert_many by text, all there",
            "insert_many of texts",
            lambda: embeddings.upsert_many(conn, texts(vectors)),
        ),
    ]
    took: dict[str, list[float]] = {}
    beside: dict[str, str] = {}
    for _ in range(rounds):
        for turn in turns:
            if turn is None:
                conn.execute("TRUNCATE geoid_states, semantic_embeddings CASCADE")
                continue
            name, floor, work = turn
            began = perf_counter()
            work()
            took.setdefault(name, []).append(perf_counter() - began)
            beside[name] = floor or name
    measured = []
    for name, seconds in took.items():
        ratios = [floor / own for floor, own in zip(took[beside[name]], seconds, strict=True)]
        measured.append(
            {
                "rows": f"{len(vectors):,}",
                "work": name,
                "rows/s": round(len(vectors) / median(seconds)),
                "of insert_many's rate": median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    return measured


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="(%(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="of each work (%(default)s)")
    arguments = options.parse_args()
    measured: list[Measurement] = []
    with database(arguments) as conninfo, psycopg.connect(conninfo, autocommit=True) as conn:
        add_adapters(conn)
        conn.execute("SET synchronous_commit = off")  # what a commit waits for on the disk would drown the difference
        for rows in arguments.rows:
            vectors = list(np.random.default_rng(arguments.seed).standard_normal((rows, DIMENSIONS), dtype=np.float32))
            found = measure(conn, vectors, arguments.rounds)
            show(found)
            measured += found
        write(arguments, measured, server=conn.info.server_version)
    bars(arguments, measured, label="work", value="of insert_many's rate")


if __name__ == "__main__":
    main()
