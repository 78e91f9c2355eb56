"""What a row costs by each kind of index as the table grows: memory, disk, time to build, to insert and to search.

The figures that kimera_sql.ops.planning goes by. Server CPU times are those of all its processes, whatever else runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from data import Data, UnusableFile, loaded, made, multiplied
from report import Measurement, database, parser, show, write
from search import GEOID_STATES, KINDS, TABLE, Client, Results, Truth, ask, connect, insert, summary

from kimera_sql import geoids
from kimera_sql.geoids import NewGeoid
from kimera_sql.search import Method, catalogue, indexes, kinds, measures, recall

ORDER = ("hnsw/half", "hnsw/binary", "ivfflat/half", "ivfflat/full", "hnsw/full")
LADDERS: dict[Method, tuple[int, ...]] = {
    "hnsw": (10, 20, 40, 80, 160, 320, 640, 1000),
    "ivfflat": (2, 5, 10, 20, 40, 80, 160, 300),
}
ENOUGH = 0.998
"""The recall past which a wider setting is not tried."""

TUNED_ON = 300
"""How many of the queries recall.tune gets; the others measure what it chose."""

SINGLE = 300
"""How many rows are inserted one by one, each in a transaction of its own."""

WARM_UP = 50
"""How many of them come before the clock starts, until psycopg has prepared the statement and the server its plan."""


class Clock:
    """The CPU seconds of all processes of a server on this machine, of those too that have ended."""

    def __init__(self, conn: Client) -> None:
        self._conn = conn
        self._parent = self._fields(conn.info.backend_pid)[1]

    def read(self) -> float:
        ended = sum(map(int, self._fields(int(self._parent))[13:15])) / os.sysconf("SC_CLK_TCK")
        running = 0
        for (pid,) in self._conn.execute("SELECT pid FROM pg_stat_activity"):
            try:
                running += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
            except FileNotFoundError:  # it has ended meanwhile
                continue
        return ended + running / 1e9

    @staticmethod
    def _fields(pid: int) -> list[str]:
        """Return what /proc/PID/stat says behind the process's name: its state, its parent ..."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Buffers:
    """The buffers that searches read, of the table and of its vector index."""

    def __init__(self, conn: Client, watching: Client, index: str | None) -> None:
        self._conn, self._watching, self._index = conn, watching, index

    def read(self) -> tuple[int, int]:
        self._conn.execute("SELECT pg_stat_force_next_flush()")
        row = self._watching.execute(
            """
            SELECT heap_blks_read + heap_blks_hit,
                (SELECT coalesce(sum(idx_blks_read + idx_blks_hit), 0)::bigint FROM pg_statio_user_indexes
                 WHERE indexrelname = %s)
            FROM pg_statio_user_tables WHERE relname = %s
            """,
            [self._index, TABLE],
        ).fetchone()
        assert row is not None  # noqa: S101 - the table is there
        return row[0], row[1]


class Run:
    """The measuring of one size after the other."""

    def __init__(self, conn: Client, watching: Client, options: argparse.Namespace, results: Results) -> None:
        self._conn, self._watching, self._options, self._results = conn, watching, options, results
        self._clock = Clock(watching)

    def add(self, part: str, row: Measurement) -> None:
        """Keep *row*, print it, and write all that there is: the next step can take minutes."""
        row = {**row, "load": os.getloadavg()[0]}
        self._results[part].append(row)
        print(part)
        show([row])
        write(self._options, self._results, server=self._conn.info.server_version)

    def load(self, data: Data, first: int) -> None:
        """Insert the rows from number *first* on, and measure the table and exact searches."""
        began, busy = perf_counter(), self._clock.read()
        insert(self._conn, data.rows[first:])
        count = len(data.rows) - first
        row = {"rows": len(data.rows), "inserted": count, "wall s": perf_counter() - began}
        row["CPU s"] = self._clock.read() - busy
        self._conn.execute("VACUUM ANALYZE geoid_states")
        (table, others) = self._conn.execute(
            "SELECT pg_table_size('geoid_states'), pg_indexes_size('geoid_states')"
        ).fetchone() or (0, 0)
        self.add("table", {**row, "table bytes": table, "other indexes bytes": others})

    def searches(
        self, data: Data, truth: Truth, kind: str, index: str | None, setting: Any, least: int, **how: Any
    ) -> float:
        """Measure searches with the options *how*, and return their recall."""
        buffers = Buffers(self._conn, self._watching, index)
        ask(self._conn, data, truth, 10, 0, least=min(least, 50), **how)
        before, busy = buffers.read(), self._clock.read()
        times, shares = ask(self._conn, data, truth, 10, self._options.seconds, least=least, **how)
        cpu = self._clock.read() - busy
        heap, pages = (after - first for after, first in zip(buffers.read(), before, strict=True))
        found = summary(times, shares)
        self.add(
            "search",
            {
                "rows": len(data.rows),
                "index": kind,
                "setting": setting,
                **found,
                "CPU ms": cpu / len(times) * 1000,
                "table buffers": heap / len(times),
                "index buffers": pages / len(times),
                "searches": len(times),
            },
        )
        return float(found["recall"])

    def kind(self, data: Data, tuning: Sequence[Any], truth: Truth, kind: str) -> None:
        """Build an index of *kind*, measure all about it, and drop it."""
        method, precision = KINDS[kind]
        count = len(data.rows)
        began, busy = perf_counter(), self._clock.read()
        built = indexes.build(self._conn, TABLE, method=method, precision=precision)
        wall, cpu = perf_counter() - began, self._clock.read() - busy
        chosen = kinds.options(method, count, lists=None, m=None, ef_construction=None)
        (workers,) = self._conn.execute("SHOW max_parallel_maintenance_workers").fetchone() or ("",)
        self.add(
            "index",
            {
                "rows": count,
                "index": kind,
                **chosen,
                "bytes": built.size,
                "bytes a row": built.size / count,
                "build wall s": wall,
                "build CPU s": cpu,
                "build needs": kinds.memory(method, precision, count, chosen),
                "workers": workers,
            },
        )
        option = "ef_search" if method == "hnsw" else "probes"
        for step in LADDERS[method]:
            reached = self.searches(data, truth, kind, built.name, step, len(data.queries), **{option: step})
            if reached >= ENOUGH:
                break
        recall.tune(self._conn, TABLE, queries=tuning)
        (tuned,) = catalogue.look(self._conn, GEOID_STATES, fresh=True).indexes
        for target in measures.TARGETS:
            setting = f"{target:g} by {tuned.tuned[10, target]}"
            self.searches(data, truth, kind, built.name, setting, len(data.queries), recall=target)
        self.inserts(data, kind)
        indexes.drop(self._conn, built.name)
        self._conn.execute("VACUUM geoid_states")

    def inserts(self, data: Data, kind: str) -> None:
        """Measure inserts, one by one and in bulk, and take them back."""
        singly = [
            NewGeoid(state_vector=vector, entropy=0.5, coherence_factor=0.5, energy_level=1.0)
            for vector in data.fresh[:SINGLE]
        ]
        warm, singly = singly[:WARM_UP], singly[WARM_UP:]
        kept = [geoids.insert(self._conn, state).id for state in warm]
        began, busy = perf_counter(), self._clock.read()
        kept += [geoids.insert(self._conn, state).id for state in singly]
        wall, cpu = perf_counter() - began, self._clock.read() - busy
        self._conn.execute("DELETE FROM geoid_states WHERE id = ANY(%s)", [kept])
        with self._conn.transaction(force_rollback=True):
            busy = self._clock.read()
            rate = insert(self._conn, data.fresh)
            bulk = self._clock.read() - busy
        self.add(
            "inserts",
            {
                "rows": len(data.rows),
                "index": kind,
                "single/s": len(singly) / wall,
                "single CPU ms": cpu / len(singly) * 1000,
                "many/s": rate,
                "many CPU ms": bulk / len(data.fresh) * 1000,
            },
        )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--vectors", metavar="FILE", type=Path, help="load these (.npy, .npz, .hdf5), not made ones")
    options.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000], help="rows (%(default)s)")
    options.add_argument("--seconds", type=float, default=2.0, help="at most for one setting (%(default)s)")
    options.add_argument("--only", nargs="+", choices=KINDS, default=list(ORDER), help="kinds of index (%(default)s)")
    arguments = options.parse_args()
    most = max(arguments.sizes)
    try:
        data = (
            loaded(arguments.vectors, most, 500, 1000, arguments.seed)
            if arguments.vectors
            else made(most, 500, 1000, arguments.seed)
        )
        rows = multiplied(data.rows, most)
    except UnusableFile as error:
        raise SystemExit(str(error)) from None
    tuning, queries = np.split(data.queries, [TUNED_ON])
    print(f"{data.name}: {len(data.rows):,} rows, with moved copies {len(rows):,}", flush=True)
    results: Results = {"table": [], "index": [], "search": [], "inserts": []}
    with database(arguments) as conninfo, connect(conninfo) as conn, connect(conninfo) as watching:
        run = Run(conn, watching, arguments, results)
        loaded_rows = 0
        for size in sorted(arguments.sizes):
            part = Data(data.name, rows[:size], queries, data.fresh)
            run.load(part, loaded_rows)
            loaded_rows = size
            truth = Truth.of(part.rows, part.queries)
            run.searches(part, truth, "none", None, "exact", 20, exact=True)
            run.inserts(part, "none")
            for kind in arguments.only:
                run.kind(part, list(tuning), truth, kind)


if __name__ == "__main__":
    main()
