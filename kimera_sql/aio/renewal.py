"""Embeddings whose vectors another model makes anew, beside those that serve until it is done.

The new vectors go into a table of the same name and kind in a schema of ours. With that schema first in the search path
the functions for embeddings, indexes and recall work on it as they are. A trigger notes in a queue what changes
meanwhile. In the end the two tables change places, in one transaction. From then on the table that served is the one
beside, and the queue is for its vectors: the way back is the way there.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql as composed
from psycopg.pq import TransactionStatus

from .. import checks
from ..errors import InvalidValue, MaintenanceError, SchemaError, UnsupportedByServer, WrongModel
from ..model.renewal import Renewal, Renewed
from ..progress import Bar
from ..search import looks
from ..twins import apause, avalue
from ..vectors import Vector, VectorLike, as_vector
from . import sql
from .search import catalogue, indexes, recall
from .search.indexes import VectorIndex
from .servers import require_session
from .sql import Connection, Row, postgres

__all__ = [
    "Embed",
    "Renewal",
    "Renewed",
    "end_renewal",
    "going_by",
    "model",
    "name_model",
    "renew",
    "renewal",
    "require_model",
]

Embed: TypeAlias = Callable[[list[str]], Awaitable[Iterable[VectorLike]] | Iterable[VectorLike]]
"""What makes the vectors of texts, in their order: of shape (1024,) each, or an array of shape (n, 1024)."""

_queries = sql.Queries("renewal")
_embeddings = sql.Queries("embeddings")

_TABLE: Final = "semantic_embeddings"
_BESIDE: Final = "kimera_renewal"
"""The schema of the other vectors."""

_BETWEEN: Final = "kimera_renewal_between"
"""A schema that one of the tables is in while they change places."""

_RECORDS: Final = ("kimera_vector_indexes", "kimera_recall_settings")
"""What is recorded of indexes, by their names, which are those of the other vectors' indexes too."""

_COMPARED: Final = 50
"""How many texts the two models are compared by."""

_NEIGHBOURS: Final = 10
"""How many of the nearest texts of each are compared."""

_LOCK_TIMEOUT: Final = 500
"""Milliseconds for which the change of places waits for a lock: searches that come meanwhile wait behind it."""

_ATTEMPTS: Final = 120
"""How often it is tried, to get the lock and to find all vectors made."""

_PAUSE: Final = 0.5
"""Seconds between two attempts."""

_MOST_PAUSE: Final = 60.0
"""The most seconds between two attempts to embed the same texts."""

_SHOWN: Final = 60
"""How many characters of a text a message shows."""


async def model(conn: Connection) -> str | None:
    """Return which model the stored embeddings are of; None while nobody has said it."""
    return await _embeddings.model.fetchval(conn, str)


async def name_model(conn: Connection, model: str) -> None:
    """Say which model the stored embeddings are of. Raises WrongModel if they are known to be of another."""
    named = _name(model)
    async with sql.atomic(conn):
        serving = await _embeddings.model.fetchval(conn, str)
        if serving is None:
            await _embeddings.name_model.execute(conn, model=named)
        elif serving != named:
            raise WrongModel(f"model: the stored embeddings are of {serving!r}; renew makes them of another")


async def require_model(conn: Connection, model: str) -> None:
    """Raise WrongModel unless the stored embeddings are of *model*; they stay that until the transaction ends.

    A transaction that begins with it writes no vector of a model that has been replaced. Raises InvalidValue outside a
    transaction on an autocommit connection.
    """
    if sql.is_postgres(conn) and conn.autocommit and postgres.outside_transaction(conn):
        raise InvalidValue("conn: outside a transaction the model can be another the next moment; begin one")
    await _check(conn, _name(model))


def _name(model: str) -> str:
    if not (name := checks.label("model", model)):
        raise InvalidValue("model: it has no name")
    return name


@asynccontextmanager
async def going_by(conn: Connection, model: str) -> AsyncIterator[None]:
    """Run the block in a transaction. At its end raise WrongModel unless the embeddings that it read are of *model*."""
    wanted = _name(model)
    async with sql.atomic(conn):
        yield
        # Afterwards: by now the table that was read is locked, and none can take its place.
        await _check(conn, wanted)


async def _check(conn: Connection, wanted: str) -> None:
    serving = await _embeddings.model.fetchval(conn, str)
    if serving != wanted:
        known = "nobody has said of which they are" if serving is None else f"they are of {serving!r}"
        raise WrongModel(f"model: the stored embeddings are not known to be of {wanted!r}; {known}")


async def renewal(conn: Connection) -> Renewal | None:
    """Return what there is of another model's vectors beside those that serve; None if there are none."""
    return await _queries.state.fetchone(conn, Renewal) if sql.is_postgres(conn) else None


async def end_renewal(conn: Connection) -> bool:
    """Drop the vectors beside those that serve, and return whether there were any.

    They are those of a renewal that is not to be finished, or the way back. *conn* must be in autocommit. Raises
    UnsupportedByServer on SQLite.
    """
    server = _server(conn)
    async with sql.without_timeouts(server):
        if await renewal(server) is None:
            return False
        await _patiently(server, _drop)
        return True


async def renew(
    conn: Connection,
    embed: Embed,
    *,
    model: str,
    batch: int = 64,
    rate: float | None = None,
    retries: int = 5,
    switch: bool = True,
) -> Renewed:
    """Have *embed* make the vectors of all embeddings anew, by *model*, and let them serve in place of the old ones.

    *embed* gets the texts of *batch* rows at a time, at most *rate* texts a second. What it raises is tried again, up
    to *retries* times, after 1, 2, 4 ... seconds. Searches and writes go on; rows that are written meanwhile are
    followed up. When all vectors are there, vector indexes like the present ones are built and tuned for them, and the
    searches of both models compared. Then, unless *switch* is false, the new vectors take the place of the old in one
    transaction, for which searches and writes wait a moment.

    An interrupted call loses nothing, and the next one goes on from there. The old vectors are kept, so that renew with
    the model before is the way back; it embeds what was written since. end_renewal drops them.

    *conn* must be in autocommit, with a role that owns the table and may create a schema. The present model must have a
    name (name_model). Raises InvalidValue for what cannot be, such as a second renewal, SchemaError where views,
    foreign keys, policies or the like hold on to the table, VectorError for a vector that cannot be stored,
    MaintenanceError if rows are written faster than they are embedded, and UnsupportedByServer on SQLite and where
    Citus distributes the table. What *embed* raises at last passes through.
    """
    server, wanted = _server(conn), _name(model)
    if await catalogue.is_distributed(server, "semantic_embeddings"):
        raise UnsupportedByServer(
            "a renewal needs a trigger, and Citus has none on distributed tables: run `kimera-sql scale undistribute`, "
            "renew, and distribute them again"
        )
    work = _Work(server, embed, batch, rate, retries)
    await require_session(server, "a renewal")
    async with sql.without_timeouts(server):
        previous = await _begin(server, wanted)
        await work.catch_up()
        await _build_like(server, await _indexes(server))
        overlap, previous_recall, recall_now = await _compare(server)
        if switch:
            await work.change_places()
    return Renewed(wanted, previous, work.made, overlap, recall_now, previous_recall, switch)


def _server(conn: Connection) -> psycopg.AsyncConnection[Any]:
    server = sql.require_postgres(conn, "embeddings are renewed on PostgreSQL; on SQLite insert them anew")
    if not (server.autocommit and postgres.outside_transaction(server)):
        raise InvalidValue("conn: a renewal needs an autocommit connection outside a transaction")
    return server


async def _begin(conn: psycopg.AsyncConnection[Any], wanted: str) -> str:
    """Make the table of the new vectors unless it is there, and return which model serves."""

    async def begin(conn: psycopg.AsyncConnection[Any]) -> str:
        await _queries.lock.execute(conn)
        serving = await _embeddings.model.fetchval(conn, str)
        if serving is None:
            raise InvalidValue("model: nobody has said which model the stored embeddings are of; name_model says it")
        if serving == wanted:
            raise InvalidValue(f"model: the stored embeddings are of {wanted!r} already")
        await _check_free(conn)
        beside = await renewal(conn)
        if beside is None:
            await _create(conn, wanted)
        elif beside.other != wanted:
            raise InvalidValue(f"model: there are vectors of {beside.other!r} beside those that serve; drop them first")
        return serving

    serving: str = await _patiently(conn, begin)
    return serving


async def _check_free(conn: psycopg.AsyncConnection[Any]) -> None:
    """Raise SchemaError where something would be left with the old vectors, or lost with them."""
    if obstacles := [what for (what,) in await _queries.obstacles.fetchall(conn)]:
        raise SchemaError(f"{_TABLE}: another table cannot take its place while it has {', '.join(obstacles)}")


async def _create(conn: psycopg.AsyncConnection[Any], model: str) -> None:
    for made in (
        _queries.create_schema,
        _queries.create_table,
        _queries.create_records,
        _queries.create_settings,
        _queries.create_searches,
        _queries.create_recalls,
        _queries.create_note,
    ):
        await made.execute(conn)
    for (statement,) in await _queries.likeness.fetchall(conn):
        await conn.execute(statement.encode())
    await _queries.name_next.execute(conn, model=model)
    await _queries.clear_queue.execute(conn)
    await _follow(conn)
    await _queries.enqueue.execute(conn)


async def _follow(conn: psycopg.AsyncConnection[Any]) -> None:
    """Have changes of the embeddings that serve noted in the queue."""
    await _queries.follow.execute(conn)
    await _queries.follow_truncation.execute(conn)


async def _unfollow(conn: psycopg.AsyncConnection[Any]) -> None:
    await _queries.unfollow.execute(conn)
    await _queries.unfollow_truncation.execute(conn)


async def _drop(conn: psycopg.AsyncConnection[Any]) -> None:
    await _queries.lock.execute(conn)
    await _unfollow(conn)
    await _queries.forget_other.execute(conn)
    await _queries.drop.execute(conn)
    await _queries.clear_queue.execute(conn)


@asynccontextmanager
async def _beside(conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Let the block find the other vectors, and what is recorded of them, under the names of those that serve."""
    before = await _queries.search_path.fetchval(conn, str)
    with looks.apart(conn):
        await _queries.set_search_path.fetchval(conn, str, path=f"{_BESIDE}, {before}")
        try:
            yield
        finally:
            # What fails within a transaction puts the path back by being rolled back.
            if conn.info.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
                await _queries.set_search_path.fetchval(conn, str, path=before)


async def _patiently(conn: psycopg.AsyncConnection[Any], change: Callable[[psycopg.AsyncConnection[Any]], Any]) -> Any:
    """Run *change* in a transaction, and again where it gets no lock at once: who comes meanwhile waits behind it."""
    for attempt in itertools.count(1):
        try:
            async with conn.transaction():
                await _queries.set_lock_timeout.fetchval(conn, str, milliseconds=str(_LOCK_TIMEOUT))
                result = await change(conn)
            break
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if attempt == _ATTEMPTS:
                error.add_note(f"{_TABLE} is in use all the time: its lock could not be had in {attempt} attempts")
                raise
            await apause(_PAUSE)
    looks.forget(conn)
    return result


class _Work:
    """Making the vectors that the queue asks for. made: how many were."""

    def __init__(
        self, conn: psycopg.AsyncConnection[Any], embed: Embed, batch: int, rate: float | None, retries: int
    ) -> None:
        self._conn = conn
        self._embed = embed
        self._batch = checks.limit(batch, "batch")
        self._rate = rate
        self._retries = checks.integer("retries", retries, least=0)
        self._due = 0.0
        self.made = 0
        if rate is not None and not checks.number("rate", rate) > 0:
            raise InvalidValue(f"rate: {rate} is not above 0")

    async def catch_up(self) -> None:
        """Make vectors until none is waiting."""
        done, waiting = 0, await _queries.waiting.fetchval(self._conn, int) or 0
        with Bar() as bar:
            while queued := await _queries.next.fetchall(self._conn, limit=self._batch):
                texts = {id: text for _, id, text in queued if text is not None}
                vectors = await self._vectors(list(dict.fromkeys(texts.values())))
                self.made += await _put(self._conn, queued, vectors)
                done += len(queued)
                bar.draw("embedding", done, max(done, waiting))

    async def change_places(self) -> None:
        """Let the new vectors serve, and keep the old ones beside them.

        Nothing is embedded while searches wait for the lock: where rows were written a moment ago, that is done first.
        """

        async def change(conn: psycopg.AsyncConnection[Any]) -> bool:
            await _queries.shut.execute(conn)
            if await _queries.waiting.fetchval(conn, int):
                return False
            await _check_free(conn)
            await _exchange(conn)
            return True

        for _ in range(_ATTEMPTS):
            await self.catch_up()
            if await _patiently(self._conn, change):
                return
        raise MaintenanceError(
            f"{_TABLE}: rows are written faster than they are embedded, so that the new vectors, which are kept, never "
            "were complete; call renew again when less is written"
        )

    async def _vectors(self, texts: list[str]) -> dict[str, Vector]:
        if not texts:
            return {}
        if self._rate is not None:
            await apause(max(self._due - monotonic(), 0))
            self._due = max(self._due, monotonic()) + len(texts) / self._rate
        made = await self._tried(texts)
        if len(made) != len(texts):
            raise InvalidValue(f"embed: it gave {len(made)} vectors for {len(texts)} texts")
        return {
            text: as_vector(vector, field=f"embed: the vector of {text[:_SHOWN]!r}")
            for text, vector in zip(texts, made, strict=True)
        }

    async def _tried(self, texts: list[str]) -> list[VectorLike]:
        failed = 0
        while True:
            try:
                return [*await avalue(self._embed(texts))]
            except Exception as error:
                failed += 1
                if failed > self._retries:
                    error.add_note(
                        f"raised by embed at attempt {failed}; what it made before is kept for the next renew"
                    )
                    raise
                await apause(min(2.0 ** (failed - 1), _MOST_PAUSE))


async def _put(conn: psycopg.AsyncConnection[Any], queued: Sequence[Row], vectors: Mapping[str, Vector]) -> int:
    """Bring the rows of *queued* up to date beside those that serve, and return how many vectors that took."""
    numbers, ids = [number for number, _, _ in queued], list({id for _, id, _ in queued})
    embedded = {id: text for _, id, text in queued}
    async with sql.atomic(conn):
        await _queries.lock.execute(conn)
        if None in ids:
            # All rows were removed. Those that there are now were written since.
            async with _beside(conn):
                await _queries.clear.execute(conn)
            await _queries.clear_queue.execute(conn)
            await _queries.enqueue.execute(conn)
            return 0
        # A row whose text has changed since, or that is gone, has a later place in the queue.
        rows = [row for row in await _queries.rows.fetchall(conn, ids=ids) if embedded[row[0]] == row[1]]
        async with _beside(conn):
            await _embeddings.delete_by_ids.execute(conn, ids=ids)
            await _queries.put.execute(
                conn,
                rows=[described for _, _, described in rows],
                vectors=[str(vectors[text].tolist()) for _, text, _ in rows],
            )
        await _queries.done.execute(conn, numbers=numbers)
        return len(rows)


async def _exchange(conn: psycopg.AsyncConnection[Any]) -> None:
    """Let the two tables, and what is recorded of their indexes, change places."""
    home = await _queries.home.fetchval(conn, str) or ""
    serving = [name for (name,) in await _queries.index_names.fetchall(conn)]
    await _unfollow(conn)
    for records in _RECORDS:
        await _exchange_records(conn, home, records, serving)
    await _queries.forget_searches.execute(conn)
    await conn.execute("CREATE SCHEMA kimera_renewal_between")
    for source, target in ((home, _BETWEEN), (_BESIDE, home), (_BETWEEN, _BESIDE)):
        await conn.execute(
            composed.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                composed.Identifier(source, _TABLE), composed.Identifier(target)
            )
        )
    await conn.execute("DROP SCHEMA kimera_renewal_between")
    await _queries.exchange_models.execute(conn)
    await _follow(conn)


async def _exchange_records(
    conn: psycopg.AsyncConnection[Any], home: str, records: str, indexes: Sequence[str]
) -> None:
    here, there = composed.Identifier(home, records), composed.Identifier(_BESIDE, records)
    taken = await conn.execute(
        composed.SQL("DELETE FROM {here} AS taken WHERE index_name = ANY(%s) RETURNING to_jsonb(taken)::text").format(
            here=here
        ),
        [indexes],
    )
    old = [row[0] for row in await taken.fetchall()]
    await conn.execute(composed.SQL("INSERT INTO {} SELECT * FROM {}").format(here, there))
    await conn.execute(composed.SQL("DELETE FROM {}").format(there))
    await conn.execute(
        composed.SQL(
            "INSERT INTO {there} SELECT made.* FROM unnest(%s::text[]) AS given (row) "
            "CROSS JOIN LATERAL jsonb_populate_record(NULL::{there}, given.row::jsonb) AS made"
        ).format(there=there),
        [old],
    )


async def _indexes(conn: psycopg.AsyncConnection[Any]) -> list[VectorIndex]:
    return [index for index in await indexes.existing(conn) if index.table == _TABLE and index.usable]


async def _build_like(conn: psycopg.AsyncConnection[Any], models: Sequence[VectorIndex]) -> None:
    """Build and tune those of *models*, vector indexes, that the vectors beside lack."""
    async with _beside(conn):
        if not await _embeddings.count_all.fetchval(conn, int):
            return
        there = {(index.method, index.precision) for index in await _indexes(conn)}
        for index in models:
            if (index.method, index.precision) not in there:
                await indexes.build(
                    conn,
                    _TABLE,
                    method=index.method,
                    precision=index.precision,
                    lists=index.lists,
                    m=index.m,
                    ef_construction=index.ef_construction,
                )
        await _queries.analyze.execute(conn)
        if models and not any(index.tuned for index in await _indexes(conn)):
            await recall.tune(conn, _TABLE)


async def _compare(conn: psycopg.AsyncConnection[Any]) -> tuple[float | None, float | None, float | None]:
    """Return the overlap of the models' nearest texts, and the recall of the searches that serve and of the others."""
    serving, of_serving = await _neighbours(conn), await _recall(conn)
    async with _beside(conn):
        others, of_others = await _neighbours(conn), await _recall(conn)
    shares = [len(near & others[id]) / len(near) for id, near in serving.items() if near and id in others]
    return sum(shares) / len(shares) if shares else None, of_serving, of_others


async def _neighbours(conn: psycopg.AsyncConnection[Any]) -> dict[str, set[str]]:
    """Return the texts nearest to some texts, the same ones for both models, found exactly."""
    found = await _embeddings.sample_searches.fetchall(conn, samples=_COMPARED, k=_NEIGHBOURS + 1)
    return {sample: set([id for id in near if id != sample][:_NEIGHBOURS]) for sample, near in found}


async def _recall(conn: psycopg.AsyncConnection[Any]) -> float | None:
    if not await _indexes(conn):
        return None
    return (await recall.measure(conn, _TABLE)).recall
