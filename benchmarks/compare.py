"""What working with these tables costs from Python: kimera_sql and its peers, side by side in one run on one server.

Peers take turns, in short blocks. Each ratio is to psycopg by hand in the same round: the median of the rounds, with
its 95 % interval by the bootstrap.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import psycopg
from blocks import Cost, ServerClock, in_turn, ratios
from data import UnusableFile, loaded, made
from peers import AT_ONCE, DEPTH, FLOOR, MANY, METADATA, PEERS, ByHand, K, Ours, Peer, Setting, state
from psycopg import sql
from report import Measurement, database, parser, write

from kimera_sql import add_adapters, embeddings, geoids, indexes, recall
from kimera_sql.search import run
from kimera_sql.search.plan import Options
from kimera_sql.tables import VECTOR_TABLES

Client: TypeAlias = psycopg.Connection[Any]

SLOW_ROWS = 300
"""Rows at once for the peers that would take minutes for all of them."""

SLOWER = 1.1
"""A ratio has become slower where its whole interval is above this many times its baseline."""


@dataclass(frozen=True)
class Work:
    """What is measured. name: the peers' method. goal: the ratio that is wanted. expected: how many results.

    bulk: it is many rows at once. writes: it is undone after each block.
    """

    name: str
    title: str
    goal: float | None = None
    expected: int | None = None
    bulk: bool = False
    writes: bool = False


WRITES = (
    Work("insert", "insert in a transaction", 1.15, writes=True),
    Work("record", "metrics.record in a transaction", 1.15, writes=True),
    Work("pooled_insert", "insert by a pool or session, with its commit", writes=True),
    Work("insert_many", "insert_many, a row", 1 / 0.92, bulk=True, writes=True),
)
READS = (
    Work("similar", f"similar, k = {K}", 1.08, K),
    Work("exact", f"similar, exact, k = {K}", None, K),
    Work("pooled_similar", "similar by a pool or session", 1.25, K),
    Work("get", "get with vector", 1.08),
    Work("pooled_get", "get by a pool or session"),
    Work("get_many", f"get_many, {MANY} with vectors", 1.05, MANY),
    Work("stream", "stream with vectors, a row", 1 / 0.95, bulk=True),
    Work("many", f"{AT_ONCE} searches", None, AT_ONCE),
    Work("checkout", "take a connection, SELECT 1, give it back", 1 / 0.9),
    Work("hybrid", "hybrid, k = 10", 1.1, K),
)


def texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Return *count* texts of 40 made-up words, few of them frequent, and to search for the two rarest of each."""
    random = np.random.default_rng(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    vocabulary = ["".join(random.choice(syllables, 4)) for _ in range(5000)]
    frequencies = 1 / np.arange(1, len(vocabulary) + 1)
    places = np.sort(random.choice(len(vocabulary), (count, 40), p=frequencies / frequencies.sum()))
    written = [" ".join(vocabulary[place] for place in row) for row in places]
    return written, [f"{vocabulary[one]} or {vocabulary[other]}" for *_, one, other in places]


def empty(conn: Client) -> None:
    """Remove what a block has written. A rollback leaves dead rows, and some peers commit."""
    conn.execute("TRUNCATE geoid_states, semantic_embeddings, system_metrics CASCADE")
    for table in ("vecs.geoids", "langchain_pg_embedding"):
        if conn.execute("SELECT to_regclass(%s)", (table,)).fetchone() != (None,):
            conn.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(*table.split("."))))


def filled(conn: Client, setting: Setting, seed: int) -> Setting:
    """Fill the tables, build and tune their indexes, and return the setting of searches."""
    written, asked = texts(len(setting.rows), seed)
    ids = [uuid4() for _ in setting.rows]
    geoids.insert_many(conn, map(state, setting.rows, ids))
    embeddings.insert_many(
        conn,
        (
            embeddings.NewEmbedding(text_content=text, embedding=row, source="benchmark", metadata=METADATA)
            for text, row in zip(written, setting.rows, strict=True)
        ),
    )
    conn.execute("VACUUM ANALYZE")
    for table in VECTOR_TABLES:
        indexes.build(conn, table)
        recall.tune(conn, table)
    settings, candidates = chosen(conn, "geoid_states", K)
    deep, deep_candidates = chosen(conn, "semantic_embeddings", DEPTH)
    return replace(
        setting,
        ids=ids,
        texts=asked,
        settings=settings,
        candidates=candidates,
        deep=deep,
        deep_candidates=deep_candidates,
    )


def chosen(conn: Client, table: str, k: int) -> tuple[Mapping[str, str], int]:
    """Return the settings of kimera_sql's searches for *k* rows, and how many candidates they re-rank."""
    plan = run.plan(conn, VECTOR_TABLES[table], k, {}, Options())
    if plan.index is None or plan.index.precision != "half":
        raise SystemExit(f"{table} is searched {plan.reason}, which nothing here compares; give more --rows")
    # What the statement by hand is to be planned with; kimera_sql's own may need no more than the first.
    planned = {"jit": "off", "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
    return {**plan.settings, **planned}, int(plan.parameters["candidates"])


def gathered(wanted: Sequence[type[Peer]], setting: Setting, stack: ExitStack, missing: set[str]) -> list[Peer]:
    """Return the *wanted* peers that are installed, and say once which are not."""
    peers = []
    for make in wanted:
        try:
            peers.append(make(setting, stack))
        except ImportError as error:
            if make.name not in missing:
                print(f"left out: {make.name} ({error})")
                missing.add(make.name)
    return peers


def measure(
    works: Sequence[Work], peers: Sequence[Peer], conn: Client, options: argparse.Namespace, rows: int
) -> dict[str, list[Measurement]]:
    """Measure each of *works*, print its table, and return all."""
    clock = ServerClock(conn)
    measured = {}
    for work in works:
        able = [peer for peer in peers if hasattr(peer, work.name)]
        costs = in_turn(
            able,
            work.name,
            clock,
            rounds=max(options.rounds // 3, 3) if work.bulk else options.rounds,
            seconds=options.seconds,
            counts={peer.name: min(rows, SLOW_ROWS) if peer.slow else rows for peer in able if work.bulk},
            clean=(lambda: empty(conn)) if work.writes else None,
            expected=work.expected,
        )
        measured[work.name] = [row(peer.name, costs[peer.name], costs[FLOOR]) for peer in able]
        show(work, measured[work.name])
    return measured


def row(name: str, costs: Sequence[Cost], floor: Sequence[Cost]) -> Measurement:
    ratio, low, high = ratios(costs, floor, "wall")
    client, client_low, client_high = ratios(costs, floor, "client")
    served = [cost.server for cost in costs if cost.server is not None]
    return {
        "peer": name,
        "us": median(cost.wall for cost in costs),
        "ratio": ratio,
        "low": low,
        "high": high,
        "client us": median(cost.client for cost in costs),
        "client ratio": client,
        "client low": client_low,
        "client high": client_high,
        "server us": median(served) if served else None,
    }


def show(work: Work, rows: Sequence[Measurement]) -> None:
    """Print the costs of *work* as a table in Markdown, in microseconds."""
    goal = "" if work.goal is None else f" (goal: {work.goal:.2f})"
    print(f"\n### {work.title}{goal}\n")
    print("| | µs | ratio | interval | client's CPU, µs | ratio | interval | server's CPU, µs |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        server = "" if row["server us"] is None else f"{row['server us']:,.1f}"
        print(
            f"| {row['peer']} | {row['us']:,.1f} | {row['ratio']:.2f} | {row['low']:.2f} to {row['high']:.2f} "
            f"| {row['client us']:,.1f} | {row['client ratio']:.2f} "
            f"| {row['client low']:.2f} to {row['client high']:.2f} | {server} |",
            flush=True,
        )


def plot(file: Path, measured: Mapping[str, Sequence[Measurement]]) -> None:
    """Draw the ratio of each peer, with its spread, under the title of each work."""
    from matplotlib.figure import Figure

    height = sum(len(rows) + 2 for rows in measured.values())
    figure = Figure(figsize=(9, 0.22 * height), layout="constrained")
    axes = figure.subplots(
        len(measured), sharex=True, squeeze=False, height_ratios=[len(rows) + 1 for rows in measured.values()]
    )
    for (name, rows), (part,) in zip(measured.items(), axes, strict=True):
        ratio = np.array([[row[key] for row in rows] for key in ("ratio", "low", "high")])
        colors = ["tab:orange" if row["peer"].startswith("kimera_sql") else "tab:blue" for row in rows]
        part.barh([row["peer"] for row in rows], ratio[0], xerr=abs(ratio[1:] - ratio[0]), color=colors, ecolor="gray")
        part.invert_yaxis()
        part.set_xscale("log")
        part.axvline(1, color="black", linewidth=0.8)
        part.set_title(
            next(work.title for work in (*WRITES, *READS) if work.name == name), loc="left", fontsize="small"
        )
        part.tick_params(labelsize="x-small")
    axes[-1, 0].set_xlabel("times the time of psycopg by hand; the lines are 95 % intervals")
    figure.savefig(file, dpi=120)


def compare(file: Path, measured: Mapping[str, Sequence[Measurement]]) -> None:
    """Exit with what has become slower than the baseline in *file*; write the file if there is none."""
    ours = {name: row for name, rows in measured.items() for row in rows if row["peer"] == Ours.name}
    if not file.exists():
        baseline = {name: {key: round(row[key], 3) for key in ("ratio", "client ratio")} for name, row in ours.items()}
        file.write_text(json.dumps(baseline, indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    slower = [
        f"{name}: {key} {row[key]:.2f}, was {before[name][key]:.2f}"
        for name, row in ours.items()
        for key, low in (("ratio", "low"), ("client ratio", "client low"))
        if name in before and row[low] > before[name][key] * SLOWER
    ]
    if slower:
        raise SystemExit("\n".join(["", "slower than the baseline:", *slower]))
    print("\nnothing is slower than the baseline")


def arguments() -> argparse.Namespace:
    names = [work.name for work in (*WRITES, *READS)]
    options = parser(__doc__)
    options.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        help="an .npz with vectors of 1024 dimensions (`embeddings`), not made ones",
    )
    options.add_argument("--rows", type=int, default=20_000, help="rows of the tables, at most (%(default)s)")
    options.add_argument(
        "--rounds", type=int, default=21, help="blocks of each peer, and a third of many rows (%(default)s)"
    )
    options.add_argument("--seconds", type=float, default=0.1, help="of a block, about (%(default)s)")
    options.add_argument("--only", nargs="+", choices=names, default=names, metavar="WORK", help=", ".join(names))
    options.add_argument(
        "--baseline",
        metavar="FILE",
        type=Path,
        help="measure kimera_sql alone, and say what is slower than in FILE; write FILE if there is none",
    )
    return options.parse_args()


def main() -> None:
    options = arguments()
    try:
        data = (
            loaded(options.data, options.rows, 500, 0, options.seed)
            if options.data
            else made(options.rows, 500, 0, options.seed)
        )
    except UnusableFile as error:
        raise SystemExit(str(error)) from None
    print(f"{data.name}: {len(data.rows):,} rows, {len(data.queries)} queries")
    wanted = PEERS if options.baseline is None else (ByHand, Ours)
    missing: set[str] = set()
    measured: dict[str, list[Measurement]] = {}
    with database(options) as conninfo, psycopg.connect(conninfo, autocommit=True) as conn:
        add_adapters(conn)
        # What a commit waits for on the disk would drown what is compared.
        setting = Setting(conninfo, data.rows, data.queries, every={"synchronous_commit": "off"})
        for works in (WRITES, READS):
            asked = [work for work in works if work.name in options.only]
            if not asked:
                continue
            if works is READS:
                setting = filled(conn, setting, options.seed)
            with ExitStack() as stack:
                peers = gathered(wanted, setting, stack, missing)
                measured |= measure(asked, peers, conn, options, len(data.rows))
        write(
            options,
            measured,
            server=conn.info.server_version,
            data=data.name,
            rows=len(data.rows),
            settings=dict(setting.settings),
        )
    if options.plot is not None:
        plot(options.plot, measured)
    if options.baseline is not None:
        compare(options.baseline, measured)


if __name__ == "__main__":
    main()
