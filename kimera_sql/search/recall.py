# Generated from kimera_sql/aio/search/recall.py by .ci/twins.py: change that one.
"""Measure recall, the share of the true nearest neighbours that a search finds, and tune indexes to a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from numpy.typing import NDArray

from .. import checks, sql, tables
from ..errors import InvalidValue
from ..progress import Bar
from ..search import looks, measures
from ..search.measures import KS, Recall, Tuned
from ..search.plan import MAX_EF_SEARCH, Options, VectorIndex
from ..sql import Connection, Queries
from ..tables import Table
from ..vectors import Vector, VectorLike, as_vector
from . import run, samples

__all__ = ["Recall", "Tuned", "check", "measure", "sampled", "tune"]

_queries = Queries("recall")

_CHUNK: Final = 2000
"""Vectors held in memory at once."""


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
    The 95 % confidence interval is Wilson's (1927), with the effective sample size given by the spread between queries.
    Raises InvalidValue for a table without rows, and UnsupportedByServer on SQLite, whose searches are exact.
    """
    server, searched = _searched(conn, table)
    k = checks.limit(k, "k")
    asked = _asked(server, searched, sample, queries)
    options = Options(False, probes, ef_search, recall)
    shares = _shares(server, searched, asked, _truth(server, searched, asked, k), k, options)
    chosen = run.plan(server, searched, k, _unfiltered(searched), options)
    return measures.summary(shares, k, chosen.index.name if chosen.index else None, chosen.setting)


def tune(
    conn: Connection,
    table: str,
    *,
    target: float | Sequence[float] | None = None,
    sample: int = 600,
    queries: Sequence[VectorLike] | None = None,
) -> list[Tuned]:
    """Find the cheapest probes or ef_search that reach a recall of *target*, and store them.

    *target* is one recall or several, which are measured in one run; by default 0.95 and 0.99.

    Settings are found for the index that searches use, for 10 and for 100 neighbours, with *queries*. Without them, the
    searches that were sampled serve if there are 100 of them, and check's record of their recall is brought up to date;
    else the queries are those that measure makes.
    A setting reaches the target if the low end of the confidence interval of its recall does. Queries made from rows
    can be easier than fresh ones, so with them a setting may have only half of the misses that the target allows.
    *sample* or *queries* are run in blocks of 200, until the interval lies on one side of the target or all have run.
    Searches of this and every other process use the setting within two seconds. A search that asks for a recall that
    no setting reaches is exact.
    Raises InvalidValue for a table without rows or index, and UnsupportedByServer on SQLite.
    """
    targets = measures.wanted(target)
    server, searched = _searched(conn, table)
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
            trial = _Trial(server, searched, index, asked, truth[-k:], k)
            steps = measures.ladder(index, k)
            for wanted in targets:
                bar.draw(f"tuning {index.name}", len(chosen), len(KS) * len(targets))
                setting = trial.cheapest(steps, measures.aim(wanted, made=made))
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
    return _record(server, searched, asked, _truth(server, searched, asked, max(KS)))


def _real(conn: psycopg.Connection[Any], table: Table, sample: int) -> list[Vector]:
    """Return up to *sample* of *table*'s searches that were sampled; none where they are too few to go by."""
    found = samples.newest(conn, table, max(checks.limit(sample, "sample"), samples.ENOUGH))
    return found[:sample] if len(found) >= samples.ENOUGH else []


def _record(conn: psycopg.Connection[Any], table: Table, asked: Sequence[Vector], truth: NDArray[Any]) -> Recall:
    """Measure the recall of searches for the first of *asked*, which were sampled, and record it."""
    k = min(samples.usual_k(conn, table) or max(KS), max(KS))
    options = Options()
    shares = _shares(conn, table, asked[: measures.BLOCK], truth[-k:, : measures.BLOCK], k, options)
    chosen = run.plan(conn, table, k, _unfiltered(table), options)
    measured = measures.summary(shares, k, chosen.index.name if chosen.index else None, chosen.setting)
    samples.record(conn, table, measured)
    return measured


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

    def cheapest(self, steps: Sequence[int], aim: float) -> int | None:
        """Return the smallest of *steps* that reaches *aim*, None if none does; every larger step must reach it too."""
        search = measures.Bisection(steps)
        while (step := search.step) is not None:
            search.answer(self.reaches(step, aim))
        return search.found

    def reaches(self, setting: int, aim: float) -> bool:
        """Return whether the low end of *setting*'s recall interval reaches *aim*; run only the queries needed."""
        shares = self._shares.setdefault(setting, [])
        while True:
            low, high = measures.interval(shares, self._k) if shares else (0.0, 1.0)
            if low >= aim or high < aim or len(shares) == len(self._asked):
                return low >= aim
            options = Options(probes=setting, ef_search=min(setting, MAX_EF_SEARCH))
            block = slice(len(shares), len(shares) + measures.BLOCK)
            asked, truth = self._asked[block], self._truth[:, block]
            shares += _shares(self._conn, self._table, asked, truth, self._k, options, complete=False)

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
        for number, (row,) in enumerate(picked):
            bar.draw("making queries", number, len(picked))
            asked.append(_moved(conn, table, measures.unit(row), number))
    return asked


def _moved(conn: psycopg.Connection[Any], table: Table, row: Vector, number: int) -> Vector:
    """Return a query of norm 1 made from *row*; see measures.moved."""
    (found,) = run.rows(
        conn, table, [row], measures.NEIGHBOURS + 1, _unfiltered(table), measures.NEAR, with_vectors=True
    )
    return measures.moved(row, [measures.unit(vector) for *_, vector in found[1:]], number)


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
