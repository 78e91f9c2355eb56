# Generated from kimera_sql/aio/search/recall.py by .ci/twins.py: change that one.
"""Measure recall, the share of the true nearest neighbours that a search finds, and tune indexes to a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from numpy.typing import NDArray

from .. import checks, sql, tables
from ..errors import InvalidValue
from ..progress import Bar
from ..search import looks, measures
from ..search.measures import KS, Promise, Recall, Tuned
from ..search.plan import MAX_EF_SEARCH, Options, VectorIndex
from ..sql import Connection, Queries
from ..tables import Table
from ..vectors import Vector, VectorLike, as_vector
from . import run, samples

__all__ = ["Recall", "Tuned", "check", "measure", "sampled", "tune"]

_queries = Queries("recall")

_CHUNK: Final = 2000
"""Vectors held in memory at once."""

_AT_ONCE: Final = 50
"""Rows whose neighbours, with their vectors, are fetched in one pipeline."""


def measure(
    conn: Connection,
    table: str,
    *,
    sample: int = 100,
    k: int = 10,
    queries: Sequence[VectorLike] | None = None,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
) -> Recall:
    """Measure the recall of *table*'s searches at *k*: compare them with exact ones.

    *queries* are the vectors to search for, each of shape (1024,). Without them, *sample* queries are made from rows
    picked at random. A row itself would be easier to find than a real query. So each query is moved away from its row,
    by 1.25 times the angle to the row's nearest neighbour, in the direction from one of the row's neighbours to
    another. The other options are those of similar.
    The result is the mean with its 95 % confidence interval, and how the queries are spread around it (see Recall). The
    interval is Wilson's (1927), with the effective sample size given by the spread between queries.
    Raises InvalidValue for a table without rows, and UnsupportedByServer on SQLite, whose searches are exact.
    """
    server, searched = _searched(conn, table)
    k = checks.limit(k, "k")
    options = Options(False, probes, ef_search, recall)
    with sql.without_timeouts(server):
        asked = _asked(server, searched, sample, queries)
        return _measured(server, searched, asked, _truth(server, searched, asked, k), k, options)


def tune(
    conn: Connection,
    table: str,
    *,
    target: float | Sequence[float] | None = None,
    worst: float = measures.WORST,
    sample: int = 800,
    queries: Sequence[VectorLike] | None = None,
) -> list[Tuned]:
    """Find the cheapest probes or ef_search that reach a recall of *target*, and store them.

    *target* is one recall or several, which are measured in one run; by default 0.95 and 0.99. It is reached if the
    mean recall reaches it, and 99 % of the queries have a recall of at least *worst*: 0 asks for the mean alone.

    Settings are found for the index that searches use, for 10 and for 100 neighbours, with *queries*. Without them, the
    searches that were sampled serve if there are 100 of them, and check's record of their recall is brought up to date;
    else the queries are those that measure makes.
    The mean reaches the target if the low end of its confidence interval does. Queries made from rows can be easier
    than fresh ones, so with them a setting may have only half of the misses that the target allows, and a quarter of
    the queries below *worst*. *sample* or *queries* are run in blocks of 200, until it is decided or all have run; for
    100 neighbours 100 of them are enough.
    Searches of this and every other process use the setting within two seconds. A search that asks for a recall that
    no setting reaches is exact.
    Raises InvalidValue for a target, a worst or a table that can't be, and UnsupportedByServer on SQLite.
    """
    targets = measures.wanted(target)
    if not 0 <= checks.number("worst", worst) < 1:
        raise InvalidValue(f"worst: {worst} is not at least 0 and below 1")
    server, searched = _searched(conn, table)
    with sql.without_timeouts(server):
        index = (run.plan(server, searched, KS[0], _unfiltered(searched), Options(probes=1, ef_search=1))).index
        if index is None:
            raise InvalidValue(f"table: {table} has no vector index to tune")
        _queries.check_store.execute(server)  # before measuring for a minute
        # They alone: beside made queries, which can be easier, a setting would have to do less for them.
        real = _real(server, searched, sample) if queries is None else []
        made = queries is None and not real
        asked = _asked(server, searched, sample, real or queries)
        chosen: list[Tuned] = []
        truth = _truth(server, searched, asked, max(KS))
        with Bar() as bar:
            for k in KS:
                enough = len(asked) if k == KS[0] else measures.FEW
                trial = _Trial(server, searched, index, asked[:enough], truth[-k:, :enough], k)
                steps = measures.ladder(index, k)
                setting: int | None = measures.GUESS[index.method]
                for wanted in targets:
                    bar.draw(f"tuning {index.name}", len(chosen), len(KS) * len(targets))
                    promise = measures.Promise.of(wanted, worst, made=made)
                    setting = trial.cheapest(steps, promise, setting or steps[-1])
                    _queries.store.execute(server, index_name=index.name, k=k, target=wanted, setting=setting)
                    chosen.append(Tuned(index.name, k, wanted, setting, trial.recall(setting or steps[-1])))
        looks.forget(server)
        if real:
            _record(server, searched, asked, truth)
    return chosen


def sampled(conn: Connection, table: str, *, limit: int = 600) -> list[Vector]:
    """Return what *table*'s searches that were sampled were for, the newest *limit*, each vector once.

    There are none unless KIMERA_SEARCH_SAMPLE is set where callers search. Raises UnsupportedByServer on SQLite.
    """
    server, searched = _searched(conn, table)
    return samples.newest(server, searched, checks.limit(limit))


def check(conn: Connection, table: str) -> Recall:
    """Measure the recall of *table*'s searches that were sampled, and record it for monitoring and the doctor.

    They are the newest 200, for as many neighbours as most of them were for, up to 100, with the settings of a search
    that asks for no recall of its own.
    Raises InvalidValue if there are fewer than 100, or no rows, and UnsupportedByServer on SQLite.
    """
    server, searched = _searched(conn, table)
    asked = samples.newest(server, searched, measures.BLOCK)
    if len(asked) < samples.ENOUGH:
        raise InvalidValue(
            f"table: {len(asked)} different searches of {table} were sampled, {samples.ENOUGH} are needed; set "
            "KIMERA_SEARCH_SAMPLE where they are made"
        )
    with sql.without_timeouts(server):
        return _record(server, searched, asked, _truth(server, searched, asked, max(KS)))


def _real(conn: psycopg.Connection[Any], table: Table, sample: int) -> list[Vector]:
    """Return up to *sample* of *table*'s searches that were sampled; none where they are too few to go by."""
    found = samples.newest(conn, table, max(checks.limit(sample, "sample"), samples.ENOUGH))
    return found[:sample] if len(found) >= samples.ENOUGH else []


def _record(conn: psycopg.Connection[Any], table: Table, asked: Sequence[Vector], truth: NDArray[Any]) -> Recall:
    """Measure the recall of searches for the first of *asked*, which were sampled, and record it."""
    k = min(samples.usual_k(conn, table) or max(KS), max(KS))
    newest = asked[: measures.BLOCK]
    measured = _measured(conn, table, newest, truth[-k:, : measures.BLOCK], k, Options())
    samples.record(conn, table, measured)
    return measured


def _measured(
    conn: psycopg.Connection[Any],
    table: Table,
    asked: Sequence[Vector],
    truth: NDArray[Any],
    k: int,
    options: Options,
) -> Recall:
    """Return the recall of searches for *asked* with *options*."""
    shares = _shares(conn, table, asked, truth, k, options)
    chosen = run.plan(conn, table, k, _unfiltered(table), options)
    return measures.summary(shares, k, chosen.index.name if chosen.index else None, chosen.setting)


class _Trial:
    """The recall at *k* of an index's settings on the queries *asked*, measured as far as needed.

    A search that gets too few rows from its index is not completed exactly here: that would hide a poor setting.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        table: Table,
        index: VectorIndex,
        asked: Sequence[Vector],
        truth: NDArray[Any],
        k: int,
    ) -> None:
        self._conn = conn
        self._table = table
        self._index = index
        self._asked = asked
        self._truth = truth
        self._k = k
        self._shares: dict[int, list[float]] = {}
        self._complete: dict[int, int] = {}
        """The narrowest setting with which all the neighbours of a query were found, by the query's number."""

    def cheapest(self, steps: Sequence[int], promise: Promise, first: int) -> int | None:
        """Return the smallest of *steps* that keeps *promise*, None if none does; every larger step must keep it too.

        *first*: the step to try first.
        """
        search = measures.Bisection(steps, first)
        while (step := search.step) is not None:
            search.answer(self._keeps(step, promise))
        return search.found

    def _keeps(self, setting: int, promise: Promise) -> bool:
        """Return whether *setting* keeps *promise*; run only the queries needed."""
        shares = self._shares.setdefault(setting, [])
        while not shares or (kept := promise.is_kept(shares, self._k, len(self._asked))) is None:
            shares += self._next(setting, len(shares))
        return kept

    def _next(self, setting: int, first: int) -> list[float]:
        """Return the recall of each query of the block that begins with number *first*.

        Queries whose neighbours were all found with a narrower setting are not run: a wider search finds what a
        narrower one does. With hnsw there was no exception among 175,000 such queries.
        """
        options = Options(probes=setting, ef_search=min(setting, MAX_EF_SEARCH))
        block = range(first, min(first + measures.BLOCK, len(self._asked)))
        left = [number for number in block if self._complete.get(number, math.inf) > setting]
        asked = [self._asked[number] for number in left]
        truth = self._truth[:, left]
        found = _shares(self._conn, self._table, asked, truth, self._k, options, complete=False)
        self._complete |= {number: setting for number, share in zip(left, found, strict=True) if share == 1}
        shares = dict(zip(left, found, strict=True))
        return [shares.get(number, 1.0) for number in block]

    def recall(self, setting: int) -> Recall:
        """Return the recall of a *setting* that has been tried."""
        return measures.summary(self._shares[setting], self._k, self._index.name, setting)


def _searched(conn: Connection, table: str) -> tuple[psycopg.Connection[Any], Table]:
    server = sql.require_postgres(conn, "SQLite's searches are exact: their recall is 1")
    return server, tables.with_vectors(table)


def _unfiltered(table: Table) -> dict[str, None]:
    """Return the parameters of a search without filters."""
    return dict.fromkeys(sql.statements("postgres", table.entity)["matching_plan"].parameters)


def _asked(
    conn: psycopg.Connection[Any], table: Table, sample: int, queries: Sequence[VectorLike] | None
) -> list[Vector]:
    if queries is not None:
        asked = [as_vector(query, field=f"queries[{number}]") for number, query in enumerate(queries)]
        if not asked:
            raise InvalidValue("queries: there are none")
        return asked
    picked = Queries(table.entity).sample_vectors.fetchall(conn, rows=checks.limit(sample, "sample"))
    if not picked:
        raise InvalidValue(f"table: {table.name} has no rows")
    asked = []
    with Bar() as bar:
        for first in range(0, len(picked), _AT_ONCE):
            bar.draw("making queries", first, len(picked))
            block = [measures.unit(row) for (row,) in picked[first : first + _AT_ONCE]]
            asked += _moved(conn, table, block, first)
    return asked


def _moved(conn: psycopg.Connection[Any], table: Table, rows: Sequence[Vector], first: int) -> list[Vector]:
    """Return a query of norm 1 made from each of *rows*, which are numbered from *first* on; see measures.moved."""
    found = run.rows(conn, table, rows, measures.NEIGHBOURS + 1, _unfiltered(table), measures.NEAR, with_vectors=True)
    return [
        measures.moved(row, [measures.unit(vector) for *_, vector in near[1:]], first + number)
        for number, (row, near) in enumerate(zip(rows, found, strict=True))
    ]


def _truth(conn: psycopg.Connection[Any], table: Table, asked: Sequence[Vector], k: int) -> NDArray[Any]:
    """Return the similarities of the *k* nearest rows to each of *asked*, found exactly; see measures.Truth.

    Raises InvalidValue for a table without rows.
    """
    truth = measures.Truth(asked, k)
    chunk: list[Vector] = []
    for (vector,) in Queries(table.entity).stream_vectors.stream(conn, chunk=_CHUNK):
        chunk.append(vector)
        if len(chunk) == _CHUNK:
            truth.add(chunk)
            chunk.clear()
    if chunk:
        truth.add(chunk)
    found = truth.similarities()
    if not len(found):
        raise InvalidValue(f"table: {table.name} has no rows")
    return found


def _shares(
    conn: psycopg.Connection[Any],
    table: Table,
    asked: Sequence[Vector],
    truth: NDArray[Any],
    k: int,
    options: Options,
    *,
    complete: bool = True,
) -> list[float]:
    """Search for each of *asked*, and return the share of *truth* that each search finds."""
    found = run.rows(conn, table, asked, k, _unfiltered(table), options, complete=complete)
    return [measures.share([row[-2] for row in hits], truth[:, place]) for place, hits in enumerate(found)]
