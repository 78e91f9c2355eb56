"""Searches without a k: what share of all rows above a threshold is found, how long that takes, and page after page.

The thresholds are those that half of the queries have 5, 50, 500 or 5,000 rows above. The truth is an exact search's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeVar

import numpy as np
import psycopg
from data import Data, UnusableFile, loaded, made, nearest
from report import Measurement, bars, database, parser, show, write

from kimera_sql import add_adapters, geoids
from kimera_sql.search import Method, Precision, indexes, measures, recall

T = TypeVar("T")

TABLE: Final = "geoid_states"
KINDS: Final[dict[str, tuple[Method, Precision]]] = {
    "hnsw/half": ("hnsw", "half"),
    "hnsw/binary": ("hnsw", "binary"),
    "ivfflat/full": ("ivfflat", "full"),
}
ABOVE: Final = (5, 50, 500, 5000)
SIZE: Final = 20
PAGES: Final = (1, 2, 6, 7, 26, 27)
"""Those that are timed: among them each that has a search, or all that is left, to wait for."""


def timed(items: Iterator[T]) -> Iterator[tuple[float, T]]:
    """Yield each of *items* with the seconds that it took."""
    while True:
        began = perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield perf_counter() - began, item


def thresholds(conn: psycopg.Connection, data: Data, kind: str) -> list[Measurement]:
    """Measure within against itself with exact=True, in turn."""
    best = nearest(data.rows, data.queries, max(ABOVE))
    measured = []
    for above in (count for count in ABOVE if count <= len(data.rows)):
        at_least = float(np.median(best[:, above - 1]))
        times: dict[bool, list[float]] = {False: [], True: []}
        counts: list[int] = []
        shares: list[float] = []
        for query in data.queries:
            found: dict[bool, set[Any]] = {}
            for exact in (False, True):
                began = perf_counter()
                found[exact] = {hit.geoid.id for hit in geoids.within(conn, query, at_least, exact=exact)}
                times[exact].append(perf_counter() - began)
            counts.append(len(found[True]))
            if found[True]:
                shares.append(len(found[False] & found[True]) / len(found[True]))
        measured.append(
            {
                "index": kind,
                "rows above": above,
                "similarity": at_least,
                "most above": max(counts),
                "share found": float(np.mean(shares)),
                "below 0.8": float(np.mean(np.asarray(shares) < measures.WORST)),
                "p50 ms": median(times[False]) * 1000,
                "exact p50 ms": median(times[True]) * 1000,
            }
        )
    return measured


def pages(conn: psycopg.Connection, data: Data, kind: str) -> list[Measurement]:
    """Measure each of PAGES, and similar for as many rows as the first has."""
    times: dict[str, list[float]] = {}
    for query in data.queries:
        began = perf_counter()
        geoids.similar(conn, query, SIZE)
        times.setdefault("similar", []).append(perf_counter() - began)
        with closing(geoids.similar_pages(conn, query, SIZE)) as read:  # type: ignore[type-var]
            for number, (seconds, _) in enumerate(islice(timed(read), max(PAGES)), start=1):
                if number in PAGES:
                    times.setdefault(f"page {number}", []).append(seconds)
    return [{"index": kind, "of 20": name, "p50 ms": median(taken) * 1000} for name, taken in times.items()]


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    options = parser(__doc__)
    options.add_argument("--vectors", metavar="FILE", type=Path, help="search these (.npy, .npz, .hdf5), not made ones")
    options.add_argument("--rows", type=int, default=20_000, help="at most so many rows (%(default)s)")
    options.add_argument("--queries", type=int, default=100, help="at most so many queries (%(default)s)")
    options.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of index (all)")
    return options.parse_args()


def main() -> None:
    options = arguments()
    try:
        data = (
            loaded(options.vectors, options.rows, options.queries, 0, options.seed)
            if options.vectors
            else made(options.rows, options.queries, 0, options.seed)
        )
    except UnusableFile as error:
        raise SystemExit(str(error)) from None
    results: dict[str, list[Measurement]] = {"thresholds": [], "pages": []}
    with database(options) as conninfo, psycopg.connect(conninfo, autocommit=True) as conn:
        add_adapters(conn)
        geoids.insert_many(
            conn,
            (geoids.NewGeoid(state_vector=row, entropy=0, coherence_factor=0, energy_level=0) for row in data.rows),
        )
        conn.execute("VACUUM ANALYZE geoid_states")
        for kind in options.only:
            method, precision = KINDS[kind]
            name = indexes.build(conn, TABLE, method=method, precision=precision).name
            recall.tune(conn, TABLE)
            measured = {"thresholds": thresholds(conn, data, kind), "pages": pages(conn, data, kind)}
            for part, rows in measured.items():
                results[part] += rows
                show(rows)
                print()
            indexes.drop(conn, name)
    write(options, results, data=data.name, rows=len(data.rows), queries=len(data.queries))
    named = [{**row, "thresholds": f"{row['index']}, {row['rows above']} above"} for row in results["thresholds"]]
    bars(options, named, label="thresholds", value="share found")


if __name__ == "__main__":
    main()
