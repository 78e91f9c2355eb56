"""Similarity search: recall against speed for every kind of index, with filters, many clients and inserts.

One run, one server. Recall is the share of the true nearest, which numpy finds, that a search returns.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice, permutations
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias, get_args
from unittest.mock import patch

import numpy as np
import psycopg
from data import Data, UnusableFile, contrast, loaded, made, nearest
from report import Measurement, database, lines, parser, show, write

from kimera_sql import add_adapters, geoids
from kimera_sql.geoids import NewGeoid
from kimera_sql.search import (
    Method,
    Options,
    Precision,
    VectorIndex,
    catalogue,
    indexes,
    looks,
    measures,
    plan,
    recall,
    run,
)
from kimera_sql.search.plan import DEFAULT_RECALL
from kimera_sql.tables import VECTOR_TABLES
from kimera_sql.vectors import Vector

Client: TypeAlias = psycopg.Connection[Any]
Results: TypeAlias = dict[str, list[Measurement]]

TABLE = "geoid_states"
GEOID_STATES = VECTOR_TABLES[TABLE]
KINDS: dict[str, tuple[Method, Precision]] = {
    f"{method}/{precision}": (method, precision) for precision in get_args(Precision) for method in get_args(Method)
}
SPECIFIED = "ivfflat/full"
"""The specification's own kind of index, to which the others are compared."""

CONTENDERS = ("ivfflat/full", "hnsw/half", "hnsw/binary")
"""Kinds that are compared side by side at the end. No two of them serve the same expression, so they can coexist."""

KS = (10, 100)
LADDERS = {
    "hnsw": (10, 15, 20, 25, 30, 40, 60, 80, 120, 160, 200, 300, 400, 600, 1000),
    "ivfflat": (1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100),
}
ENOUGH = 0.998
"""The recall past which a wider setting is not tried."""

TARGETS = measures.TARGETS
CLIENTS = (1, 2, 4, 8)
SHARES = {"50 %": 0.5, "10 %": 0.1, "1 %": 0.01, "0.1 %": 0.001}
TOGETHER = {"10 % in one place": 0.1, "1 % in one place": 0.01}
"""Tags of rows picked at random, and of those nearest to some row, which most queries are far from."""

_DEFAULT = " by default"

TIE = 1e-5
"""Cosines as near as this to the k-th are ties."""


@dataclass(frozen=True)
class Truth:
    """What is to be found: for each k the cosine of the k-th nearest to each query, and how many there are."""

    worst: Mapping[int, Vector]
    count: int

    @classmethod
    def of(cls, rows: Vector, queries: Vector) -> Truth:
        best = nearest(rows, queries, max(KS))
        return cls({k: best[:, min(k, best.shape[1]) - 1] for k in KS}, len(rows))

    def share(self, query: int, hits: Sequence[geoids.Hit], k: int) -> float:
        """Return the share of the nearest *k* to the query of that number that is among *hits*."""
        worst = self.worst[k][query]
        return sum(hit.similarity >= float(worst) - TIE for hit in hits[:k]) / min(k, self.count)


def summary(times: Sequence[float], shares: Sequence[float]) -> Measurement:
    p50, p95, p99 = np.percentile(times, (50, 95, 99)) * 1000
    return {
        "recall": float(np.mean(shares)),
        "below 0.8": float(np.mean(np.asarray(shares) < measures.WORST)),
        "p50 ms": float(p50),
        "p95 ms": float(p95),
        "p99 ms": float(p99),
        "qps": len(times) / sum(times),
    }


def ask(
    conn: Client, data: Data, truth: Truth, k: int, seconds: float, *, least: int = 50, **how: Any
) -> tuple[list[float], list[float]]:
    """Search for each query, at least *least* and then until *seconds* are over, and return times and recalls."""
    times: list[float] = []
    shares = []
    for number, query in enumerate(data.queries):
        began = perf_counter()
        hits = geoids.similar(conn, query, k, **how)
        times.append(perf_counter() - began)
        shares.append(truth.share(number, hits, k))
        if sum(times) > seconds and len(times) >= least:
            break
    return times, shares


@contextmanager
def only(name: str | None) -> Iterator[None]:
    """Let searches see no index but *name*."""
    every = catalogue.look

    def one(*arguments: Any, **options: Any) -> looks.Look:
        seen = every(*arguments, **options)
        return replace(seen, indexes=tuple(index for index in seen.indexes if index.name == name))

    with patch.object(catalogue, "look", one):
        yield


def connect(conninfo: str) -> Client:
    conn = psycopg.connect(conninfo, autocommit=True)
    add_adapters(conn)
    return conn


class Clients:
    """Processes that search at the same time, each with a connection of its own."""

    def __init__(self, conninfo: str, queries: Vector) -> None:
        context = multiprocessing.get_context("spawn")
        self._barriers = {count: context.Barrier(count) for count in CLIENTS}
        self._pool = ProcessPoolExecutor(
            max(CLIENTS), context, initializer=_begin_client, initargs=(conninfo, queries, self._barriers)
        )

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def queries_per_second(self, count: int, name: str | None, seconds: float, **how: Any) -> float:
        tasks = [self._pool.submit(_search_on, count, name, seconds, turn, how) for turn in range(count)]
        return sum(task.result() for task in tasks)


_client: tuple[Client, Vector, Mapping[int, Barrier]]


def _begin_client(conninfo: str, queries: Vector, barriers: Mapping[int, Barrier]) -> None:
    global _client
    _client = connect(conninfo), queries, barriers


def _search_on(count: int, name: str | None, seconds: float, turn: int, how: Mapping[str, Any]) -> float:
    conn, queries, barriers = _client
    looks.forget(conn)
    order = islice(cycle(queries), turn * 17, None)
    with only(name):
        for query in islice(order, 5):
            geoids.similar(conn, query, **how)
        barriers[count].wait()
        began, done = perf_counter(), 0
        while perf_counter() - began < seconds:
            geoids.similar(conn, next(order), **how)
            done += 1
        return done / (perf_counter() - began)


def fill(conn: Client, data: Data, seed: int) -> dict[str, Vector]:
    """Insert the rows with their tags, and return which rows have each tag."""
    random = np.random.default_rng(seed)
    count = len(data.rows)
    tagged = {tag: random.permutation(count)[: max(round(count * share), 1)] for tag, share in SHARES.items()}
    by_nearness = np.argsort(-(data.rows @ data.rows[random.integers(count)]))
    tagged |= {tag: by_nearness[: max(round(count * share), 1)] for tag, share in TOGETHER.items()}
    tags: list[list[str]] = [[] for _ in range(count)]
    for tag, numbers in tagged.items():
        for number in numbers:
            tags[number].append(tag)
    insert(conn, data.rows, tags)
    conn.execute("VACUUM ANALYZE geoid_states")
    return {tag: data.rows[np.sort(numbers)] for tag, numbers in tagged.items()}


def insert(conn: Client, vectors: Vector, tags: Sequence[Sequence[str]] | None = None) -> float:
    """Insert states with *vectors* and return how many a second."""
    states = [
        NewGeoid(state_vector=vector, entropy=0.5, coherence_factor=0.5, energy_level=1.0, tags=having)
        for vector, having in zip(vectors, tags or [()] * len(vectors), strict=True)
    ]
    began = perf_counter()
    geoids.insert_many(conn, states)
    return len(states) / (perf_counter() - began)


def measure_kind(
    conn: Client,
    clients: Clients,
    data: Data,
    truth: Truth,
    tagged: Mapping[str, Vector],
    kind: str,
    options: argparse.Namespace,
    results: Results,
) -> str:
    """Build the index of *kind*, measure searches by it, and return its name."""
    method, precision = KINDS[kind]
    began = perf_counter()
    name = indexes.build(conn, TABLE, method=method, precision=precision).name
    built = perf_counter() - began
    with only(name):
        began = perf_counter()
        recall.tune(conn, TABLE)
        tuned = perf_counter() - began
        (index,) = catalogue.look(conn, GEOID_STATES, fresh=True).indexes
        results["indexes"].append({"index": kind, "build s": built, "size MB": index.size / 2**20, "tune s": tuned})
        results["search"] += searched(conn, data, truth, kind, index, options.seconds)
        results["promises"] += promised(conn, data, truth, kind, index, options.seconds)
        results["clients"].append(
            {
                "index": kind,
                **{
                    f"qps of {count}": clients.queries_per_second(count, name, options.seconds / 2, k=10)
                    for count in CLIENTS
                },
            }
        )
        results["filters"] += filtered(conn, data, tagged, kind, options.seconds)
        results["many"].append({"index": kind, **many(conn, data.queries)})
        if kind == preferred(options):
            results["overhead"] += [overhead(conn, data.queries, k) for k in KS]
    for part in ("search", "promises", "filters"):
        show([row for row in results[part] if row["index"] == kind])
        print()
    return name


def preferred(options: argparse.Namespace) -> str:
    return "hnsw/half" if "hnsw/half" in options.only else options.only[0]


def searched(
    conn: Client, data: Data, truth: Truth, kind: str, index: VectorIndex, seconds: float
) -> list[Measurement]:
    """Measure a ladder of settings, and those that recall.tune chose."""
    option = "ef_search" if index.method == "hnsw" else "probes"
    measured = []
    for k in KS:
        chosen = {index.tuned[k, target]: f"{target:g}" for target in sorted(TARGETS, reverse=True)}
        ladder = {step for step in LADDERS[index.method] if index.method == "ivfflat" or step >= k}
        ask(conn, data, truth, k, 0, least=20)
        for setting in sorted(ladder | {setting for setting in chosen if setting is not None}):
            times, shares = ask(conn, data, truth, k, seconds, **{option: setting})
            found = summary(times, shares)
            measured.append({"index": kind, "k": k, "setting": setting, "tuned for": chosen.get(setting, ""), **found})
            if found["recall"] >= ENOUGH and setting >= max(step or 0 for step in chosen):
                break
    return measured


def promised(
    conn: Client, data: Data, truth: Truth, kind: str, index: VectorIndex, seconds: float
) -> list[Measurement]:
    """Measure searches that name the recall they want, on queries that recall.tune has not seen."""
    measured = []
    for k in KS:
        for target in TARGETS:
            times, shares = ask(conn, data, truth, k, seconds, recall=target)
            measured.append(
                {
                    "index": kind,
                    "k": k,
                    "promised": target,
                    "setting": index.tuned[k, target] or "exact",
                    **summary(times, shares),
                    "after inserts": None,
                }
            )
    return measured


def filtered(conn: Client, data: Data, tagged: Mapping[str, Vector], kind: str, seconds: float) -> list[Measurement]:
    """Measure what similar chooses for a filter against an exact scan and against the index, in turn."""
    ways: dict[str, Callable[..., list[geoids.Hit]]] = {
        "choice": geoids.similar,
        "exact": partial(geoids.similar, exact=True),
        "index": by_index,
    }
    measured = []
    for tag, rows in tagged.items():
        truth = Truth.of(rows, data.queries)
        times: dict[str, list[float]] = {way: [] for way in ways}
        shares: dict[str, list[float]] = {way: [] for way in ways}
        for number, query in enumerate(data.queries):
            for way in turned(ways, number):
                began = perf_counter()
                hits = ways[way](conn, query, 10, tags_all=[tag])
                times[way].append(perf_counter() - began)
                shares[way].append(truth.share(number, hits, 10))
            if sum(map(sum, times.values())) > 2 * seconds and number >= 20:
                break
        plan = geoids.explain(conn, data.queries[0], 10, tags_all=[tag])
        ms = {way: median(times[way]) * 1000 for way in ways}
        found = {way: float(np.mean(shares[way])) for way in ways}
        best = min(ms[way] for way in ("exact", "index") if found[way] >= DEFAULT_RECALL)
        measured.append(
            {
                "index": kind,
                "filter": tag,
                "rows": len(rows),
                "chosen": "index" if plan.index else "exact",
                **{f"{way} ms": ms[way] for way in ways},
                **{f"{way} recall": found[way] for way in ways},
                "times the better": ms["choice"] / best,
            }
        )
    return measured


def by_index(conn: Client, query: Vector, k: int, **how: Any) -> list[geoids.Hit]:
    with patch.object(plan, "_exact_is_cheaper", return_value=False):
        return geoids.similar(conn, query, k, **how)


def many(conn: Client, queries: Vector, count: int = 64, rounds: int = 9) -> Measurement:
    """Measure similar_many against the same searches one by one, in turn."""
    asked = list(islice(cycle(queries), count))
    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: [geoids.similar(conn, query) for query in asked],
        "similar_many": lambda: geoids.similar_many(conn, asked),
    }
    times = in_turn(ways, rounds)
    ms = {f"{way} ms": median(taken) * 1000 for way, taken in times.items()}
    return {"searches": count, **ms, "times faster": ms["one by one ms"] / ms["similar_many ms"]}


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run each of *ways* in turn, so that all meet the same machine, and return their times."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in turned(ways, number):
            began = perf_counter()
            ways[way]()
            times[way].append(perf_counter() - began)
    return times


def turned(ways: Mapping[str, object], number: int) -> tuple[str, ...]:
    """Return the names of *ways* in each order in turn: what runs after a slow one finds the caches cold."""
    orders = tuple(permutations(ways))
    return orders[number % len(orders)]


COLUMNS = "id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags"
ORDERS = {
    "full": "state_vector <=> %(vector)s",
    "half": "l2_normalize(state_vector)::halfvec(1024) <=> l2_normalize(%(vector)s)::halfvec(1024)",
    "binary": "binary_quantize(state_vector)::bit(1024) <~> binary_quantize(%(vector)s)::bit(1024)",
}


def overhead(conn: Client, queries: Vector, k: int) -> Measurement:
    """Measure similar against its SQL by hand, with the same settings, on connections of their own and in turn."""
    plan = run.plan(conn, GEOID_STATES, k, {}, Options())
    assert plan.index is not None  # noqa: S101 - only() has shown it
    statement = f"""
        SELECT {COLUMNS}, 1 - distance AS similarity
        FROM (
            SELECT {COLUMNS}, state_vector <=> %(vector)s AS distance
            FROM geoid_states
            ORDER BY {ORDERS[plan.index.precision]}
            LIMIT %(candidates)s
        ) AS nearest
        ORDER BY distance, id
        LIMIT %(k)s
    """  # noqa: S608 - constants
    given = {"k": k, **plan.parameters}
    asked = iter(cycle(queries))
    with connect(conn.info.dsn) as set_before, connect(conn.info.dsn) as set_local:
        for name, value in plan.settings.items():
            set_before.execute("SELECT vector_dims('[1]'::vector), set_config(%s, %s, false)", (name, value))

        def bare() -> None:
            set_before.execute(statement, {"vector": next(asked), **given}, binary=True).fetchall()

        def in_transaction() -> None:
            with set_local.transaction():
                for name, value in plan.settings.items():
                    set_local.execute(f"SET LOCAL {name} = {value}")
                set_local.execute(statement, {"vector": next(asked), **given}, binary=True).fetchall()

        ways: dict[str, Callable[[], object]] = {
            "similar": lambda: geoids.similar(conn, next(asked), k),
            "set before": bare,
            "SET LOCAL": in_transaction,
        }
        in_turn(ways, 20)
        times = in_turn(ways, 1000)
    ms = {f"{way} ms": median(taken) * 1000 for way, taken in times.items()}
    return {
        "k": k,
        **ms,
        "to set before": ms["similar ms"] / ms["set before ms"],
        "to SET LOCAL": ms["similar ms"] / ms["SET LOCAL ms"],
    }


def ingest(
    conn: Client, data: Data, kind: str | None, name: str | None, others: Sequence[str], results: Results
) -> None:
    """Insert fresh rows while *name* is the only index, measure what is found then, and undo it."""
    with conn.transaction(force_rollback=True):
        for other in others:
            indexes.drop(conn, other)
        rate = insert(conn, data.fresh)
        if kind is not None:
            truth = Truth.of(np.concatenate([data.rows, data.fresh]), data.queries)
            with only(name):
                for row in results["promises"]:
                    if row["index"] == kind:
                        _, shares = ask(conn, data, truth, row["k"], 3, recall=row["promised"])
                        row["after inserts"] = float(np.mean(shares))
    looks.forget(conn)
    results["ingest"].append({"index": kind or "none", "rows/s": rate})


def compare(
    conn: Client, data: Data, truth: Truth, names: Mapping[str, str], results: Results, rounds: int = 5
) -> None:
    """Measure the contenders side by side, in blocks taken in turn, at their cheapest settings of a mean recall.

    Also the searches that callers get by default: their settings keep the worst queries' recall too.
    """
    ways: dict[tuple[str, float], dict[str, Any]] = {}
    for kind in names:
        option = "ef_search" if KINDS[kind][0] == "hnsw" else "probes"
        for target in TARGETS:
            enough = [
                row for row in results["search"] if row["index"] == kind and row["k"] == 10 and row["recall"] >= target
            ]
            if enough:
                ways[kind, target] = {option: max(enough, key=lambda row: float(row["qps"]))["setting"]}
        if kind != SPECIFIED:
            ways[f"{kind}{_DEFAULT}", DEFAULT_RECALL] = {}
    ways["exact", 1.0] = {"exact": True}
    times: dict[tuple[str, float], list[float]] = {way: [] for way in ways}
    shares: dict[tuple[str, float], list[float]] = {way: [] for way in ways}
    for block in np.array_split(np.arange(len(data.queries)), rounds):
        for (kind, target), how in ways.items():
            with only(names.get(kind.removesuffix(_DEFAULT))):
                for number in block if kind != "exact" else block[:8]:
                    began = perf_counter()
                    hits = geoids.similar(conn, data.queries[number], 10, **how)
                    times[kind, target].append(perf_counter() - began)
                    shares[kind, target].append(truth.share(number, hits, 10))
    results["side by side"] = [
        {
            "index": kind,
            "wanted": target,
            "setting": ", ".join(f"{name} {value}" for name, value in ways[kind, target].items()),
            **summary(times[kind, target], shares[kind, target]),
        }
        for kind, target in ways
    ]


Finder: TypeAlias = tuple[str, int | None, float, Callable[[Vector], Vector]]
"""A library's name, a setting of it, the seconds that its index took, and what gives the cosines of the nearest 10."""


def references(data: Data, truth: Truth, seconds: float) -> list[Measurement]:
    """Measure the same searches in memory: by numpy, and in one thread by faiss and hnswlib where installed."""
    measured: list[Measurement] = []
    for finders in (in_numpy, in_faiss, in_hnswlib):
        try:
            for name, setting, built, find in finders(data.rows):
                times: list[float] = []
                shares: list[float] = []
                for number, query in enumerate(data.queries):
                    began = perf_counter()
                    cosines = find(query)
                    times.append(perf_counter() - began)
                    shares.append(float(np.sum(cosines >= truth.worst[10][number] - TIE)) / 10)
                    if sum(times) > seconds and number >= 20:
                        break
                measured.append({"library": name, "setting": setting, "build s": built, **summary(times, shares)})
        except ImportError as missing:
            print(f"no reference line: {missing}")
    return measured


def in_numpy(rows: Vector) -> Iterator[Finder]:
    def find(query: Vector) -> Vector:
        cosines: Vector = rows @ query
        return -np.partition(-cosines, 10)[:10]

    yield "numpy, exact", None, 0.0, find


def in_faiss(rows: Vector) -> Iterator[Finder]:
    import faiss

    dimensions = rows.shape[1]
    index: Any = faiss.IndexHNSWFlat(dimensions, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    threads = faiss.omp_get_max_threads()

    def fill() -> float:
        faiss.omp_set_num_threads(threads)
        began = perf_counter()
        index.train(rows)
        index.add(rows)
        faiss.omp_set_num_threads(1)
        return perf_counter() - began

    def find(query: Vector) -> Vector:
        cosines: Vector = index.search(query[None], 10)[0][0]
        return cosines

    built = fill()
    for setting in LADDERS["hnsw"]:
        index.hnsw.efSearch = setting
        yield "faiss HNSWFlat", setting, built, find
    centroids = faiss.IndexFlatIP(dimensions)
    index = faiss.IndexIVFFlat(centroids, dimensions, 100, faiss.METRIC_INNER_PRODUCT)
    built = fill()
    for setting in LADDERS["ivfflat"]:
        index.nprobe = setting
        yield "faiss IVFFlat", setting, built, find


def in_hnswlib(rows: Vector) -> Iterator[Finder]:
    import hnswlib

    index: Any = hnswlib.Index("cosine", rows.shape[1])
    index.init_index(len(rows), M=16, ef_construction=64)
    began = perf_counter()
    index.add_items(rows)
    built = perf_counter() - began
    index.set_num_threads(1)

    def find(query: Vector) -> Vector:
        cosines: Vector = 1 - index.knn_query(query, 10)[1][0]
        return cosines

    for setting in LADDERS["hnsw"]:
        index.set_ef(setting)
        yield "hnswlib", setting, built, find


def targets(data: Data, results: Results) -> list[Measurement]:
    """Return what was reached of what was asked for, and whether it is met."""
    reached: list[Measurement] = []

    def add(target: str, value: str, met: bool) -> None:
        reached.append({"target": target, "reached": value, "met": "met" if met else "NOT MET"})

    large = len(data.rows) >= 100_000
    sizes = {row["index"]: row["size MB"] for row in results["indexes"]}
    side = {(row["index"], row["wanted"]): row for row in results["side by side"]}
    for when in ("recall", "after inserts"):
        kept = [(row[when] - row["promised"], row) for row in results["promises"] if row[when] is not None]
        if kept:
            worst, row = min(kept, key=lambda pair: pair[0])
            add(
                f"promised recall{' ' + when if when != 'recall' else ''}",
                f"least: {row[when]:.4f} of {row['promised']:g} ({row['index']}, k {row['k']}); "
                f"{sum(by >= 0 for by, _ in kept)} of {len(kept)} kept",
                worst >= 0,
            )
    base = side.get((SPECIFIED, 0.95))
    for kind, times, share in (("hnsw/half", 10 if large else 5, 3), ("hnsw/binary", 4, 15)):
        if base is not None and (kind, 0.95) in side:
            row = side[kind, 0.95]
            faster, smaller = row["qps"] / base["qps"], sizes[SPECIFIED] / sizes[kind]
            add(f"{kind}: {times} times the qps of {SPECIFIED} at 0.95", f"{faster:.1f} times", faster >= times)
            default = side[f"{kind}{_DEFAULT}", DEFAULT_RECALL]["qps"] / base["qps"]
            add(f"{kind} by default: {times} times that", f"{default:.1f} times", default >= times)
            add(f"{kind}: at most 1/{share} of its size", f"1/{smaller:.1f}", smaller >= share)
    precise = [row["qps"] for (kind, target), row in side.items() if target == 0.99]
    if precise:
        faster = max(precise) / side["exact", 1.0]["qps"]
        add("100 times the exact scan at 0.99 and 100,000 rows", f"{faster:.0f} times", faster >= 100)
    if results["filters"]:
        row = min(results["filters"], key=lambda row: float(row["choice recall"]))
        add(
            "filtered recall at least 0.95",
            f"least: {row['choice recall']:.3f} ({row['index']}, {row['filter']})",
            row["choice recall"] >= 0.95,
        )
        row = max(results["filters"], key=lambda row: float(row["times the better"]))
        add(
            "filtered at most twice the better of index and exact",
            f"most: {row['times the better']:.2f} times ({row['index']}, {row['filter']})",
            row["times the better"] <= 2,
        )
    for row in results["overhead"]:
        for against in ("to set before", "to SET LOCAL"):
            add(f"similar {against} at most 1.15, k {row['k']}", f"{row[against]:.2f}", row[against] <= 1.15)
    return reached


def curves(results: Results) -> dict[str, list[tuple[float, float]]]:
    """Return recall and queries per second of each index and library, for 10 neighbours."""
    drawn: dict[str, list[tuple[float, float]]] = {}
    for row in results["search"]:
        if row["k"] == 10:
            drawn.setdefault(row["index"], []).append((row["recall"], row["qps"]))
    for row in results["references"]:
        drawn.setdefault(row["library"], []).append((row["recall"], row["qps"]))
    for row in results["side by side"]:
        if row["index"] == "exact":
            drawn["PostgreSQL, exact"] = [(row["recall"], row["qps"])]
    return {name: sorted(points) for name, points in drawn.items()}


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    options = parser(__doc__)
    options.add_argument("--vectors", metavar="FILE", type=Path, help="search these (.npy, .npz, .hdf5), not made ones")
    options.add_argument("--rows", type=int, default=20_000, help="at most so many rows (%(default)s)")
    options.add_argument("--queries", type=int, default=200, help="at most so many queries (%(default)s)")
    options.add_argument("--seconds", type=float, default=2.0, help="at most for one setting (%(default)s)")
    options.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of index (all)")
    return options.parse_args()


def measure(options: argparse.Namespace, data: Data, results: Results) -> None:
    fresh = len(data.fresh)
    about = {"data": data.name, "rows": len(data.rows), "queries": len(data.queries), "fresh": fresh}
    print(
        f"{data.name}: {len(data.rows):,} rows, {len(data.queries)} queries, {fresh} rows to insert; "
        f"contrast {contrast(data.rows, data.queries):.2f}\n"
    )
    with (
        database(options) as conninfo,
        connect(conninfo) as conn,
        Clients(conninfo, data.queries) as clients,
    ):
        truth = Truth.of(data.rows, data.queries)
        tagged = fill(conn, data, options.seed)
        ingest(conn, data, None, None, [], results)
        conn.execute("VACUUM ANALYZE geoid_states")
        names: dict[str, str] = {}
        for kind in sorted(options.only, key=lambda kind: kind in CONTENDERS):
            name = measure_kind(conn, clients, data, truth, tagged, kind, options, results)
            if kind in CONTENDERS:
                names[kind] = name
            else:
                ingest(conn, data, kind, name, [], results)
                indexes.drop(conn, name)
                conn.execute("VACUUM ANALYZE geoid_states")
            write(options, results, server=conn.info.server_version, **about)
        compare(conn, data, truth, names, results)
        for kind, name in names.items():
            ingest(conn, data, kind, name, [other for other in names.values() if other != name], results)
        version = conn.info.server_version
    results["references"] = references(data, truth, options.seconds)
    results["targets"] = targets(data, results)
    for part in (
        "indexes",
        "promises",
        "clients",
        "ingest",
        "many",
        "overhead",
        "side by side",
        "references",
        "targets",
    ):
        print(f"\n{part}")
        show(results[part])
    write(options, results, server=version, **about)
    lines(
        options,
        curves(results),
        across="recall of the 10 nearest",
        up="queries a second, one client",
        title=f"{data.name}: {len(data.rows):,} vectors of 1024 dimensions",
        dashed=[row["library"] for row in results["references"]],
    )


def main() -> None:
    options = arguments()
    fresh = max(options.rows // 20, 100)
    try:
        data = (
            loaded(options.vectors, options.rows, options.queries, fresh, options.seed)
            if options.vectors
            else made(options.rows, options.queries, fresh, options.seed)
        )
    except UnusableFile as error:
        raise SystemExit(str(error)) from None
    parts = ("indexes", "search", "promises", "clients", "filters", "ingest", "many", "overhead", "side by side")
    measure(options, data, {part: [] for part in parts})


if __name__ == "__main__":
    main()
