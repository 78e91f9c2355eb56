"""Searches per second of 64 tasks at once: kimera_sql.aio, psycopg by hand with the same SQL and pool, and asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import asyncpg
import psycopg
from data import made
from pgvector.asyncpg import register_vector
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from report import Measurement, bars, database, parser, show, write

from kimera_sql import Settings, aio, geoids, open_pool
from kimera_sql import sql as synchronous
from kimera_sql.search import indexes, recall, run
from kimera_sql.search.plan import Options, Plan
from kimera_sql.tables import VECTOR_TABLES
from kimera_sql.vectors import Vector

Search: TypeAlias = Callable[[Vector], Awaitable[object]]

TABLE = VECTOR_TABLES["geoid_states"]
K = 10


def statement(name: str, **parameters: Any) -> tuple[str, dict[str, Any]]:
    """Return a statement of geoids.sql, and its parameters without filters."""
    found = synchronous.statements("postgres", "geoids")[name]
    return found.text, {**dict.fromkeys(found.parameters), "k": K, "with_vectors": False, **parameters}


def by_hand(pool: aio.AsyncPool, plan: Plan) -> Search:
    """The same statements in the same pipeline, on the same pool, and rows as tuples."""
    searches = synchronous.statements("postgres", "search")
    change, undo = searches["set_hnsw"].text, searches["put_back_hnsw"].text
    text, given = statement(plan.query, **plan.parameters)
    setting = {"ef_search": str(plan.setting)}

    async def search(vector: Vector) -> object:
        async with pool.connection() as conn:
            cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
            async with conn.pipeline():
                await psycopg.AsyncCursor(conn).execute(change, setting, binary=True)
                await cursor.execute(text, {**given, "vector": vector}, binary=True)
                await psycopg.AsyncCursor(conn).execute(undo, {}, binary=True)
            return await cursor.fetchall()

    return search


def with_asyncpg(pool: Any, plan: Plan) -> Search:
    """The search alone, with its settings set for the session beforehand."""
    text, given = statement(plan.query, **plan.parameters)
    for number, name in enumerate(given, start=1):
        text = text.replace(f"%({name})s", f"${number}")
    place = list(given).index("vector")

    async def search(vector: Vector) -> object:
        values = list(given.values())
        values[place] = vector
        async with pool.acquire() as conn:
            return await conn.fetch(text, *values)

    return search


async def rate(search: Search, queries: Vector, tasks: int, seconds: float) -> float:
    """Return how many searches a second *tasks* tasks do together."""
    numbers = count()
    end = perf_counter() + seconds

    async def work() -> None:
        while perf_counter() < end:
            await search(queries[next(numbers) % len(queries)])

    began = perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return next(numbers) / (perf_counter() - began)


async def measure(
    conninfo: str, queries: Vector, plan: Plan, tasks: int, rounds: int, seconds: float
) -> list[Measurement]:
    async def prepare(conn: Any) -> None:
        await register_vector(conn)
        await conn.execute("SELECT vector_dims('[1]'::vector)")
        for name, value in plan.settings.items():
            await conn.execute(f"SET {name} = {value}")

    given = conninfo_to_dict(conninfo)
    options = {key: given[name] for key, name in (("host", "host"), ("user", "user"), ("database", "dbname"))}
    settings = Settings(pool_size=15, pool_overflow=0)
    async with (
        aio.open_pool(conninfo, settings=settings) as pool,
        asyncpg.create_pool(**options, min_size=15, max_size=15, init=prepare, reset=_keep) as other,
    ):

        async def ours(vector: Vector) -> object:
            async with pool.connection() as conn:
                return await aio.geoids.similar(conn, vector, K)

        ways = {"psycopg by hand": by_hand(pool, plan), "kimera_sql.aio": ours, "asyncpg": with_asyncpg(other, plan)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, search in ways.items():
                found = await rate(search, queries, tasks, seconds)
                if number:  # the first round warms up
                    rates[way].append(found)
    floor = rates["psycopg by hand"]
    return [
        {
            "way": way,
            "tasks": tasks,
            "searches/s": median(found),
            "ratio": median(one / other for one, other in zip(found, floor, strict=True)),
            "least": min(one / other for one, other in zip(found, floor, strict=True)),
            "most": max(one / other for one, other in zip(found, floor, strict=True)),
        }
        for way, found in rates.items()
    ]


async def _keep(_: object) -> None:
    """Leave a connection's settings as they are: asyncpg would reset them each time."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=20_000, help="vectors in the table (%(default)s)")
    options.add_argument("--tasks", type=int, default=64, help="tasks at once (%(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="rounds, of which the median is taken (%(default)s)")
    options.add_argument("--seconds", type=float, default=2.0, help="seconds a way and round (%(default)s)")
    arguments = options.parse_args()
    data = made(arguments.rows, 500, 0, arguments.seed)
    with database(arguments) as conninfo:
        with open_pool(conninfo) as pool, pool.connection() as conn:
            geoids.insert_many(
                conn,
                (
                    geoids.NewGeoid(state_vector=vector, entropy=0.5, coherence_factor=0.5, energy_level=1.0)
                    for vector in data.rows
                ),
            )
            indexes.build(conn, TABLE.name)
            recall.tune(conn, TABLE.name, target=0.95)
            plan = run.plan(conn, TABLE, K, {}, Options())
        measured = asyncio.run(
            measure(conninfo, data.queries, plan, arguments.tasks, arguments.rounds, arguments.seconds)
        )
    show(measured)
    write(arguments, measured)
    bars(arguments, measured, label="way", value="ratio")


if __name__ == "__main__":
    main()
