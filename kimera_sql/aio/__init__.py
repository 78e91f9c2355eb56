"""The data layer for asynchronous programs, on asyncio: the same functions with the same results, to be awaited.

    from kimera_sql.aio import geoids, open_pool

    async with open_pool() as pool, pool.connection() as conn:
        hits = await geoids.similar(conn, vec, k=10)

Dataclasses, filters, settings and errors are those of kimera_sql.
"""

from collections.abc import Coroutine, Generator, Sequence
from typing import Any, Generic, TypeVar, overload

from ..settings import Settings
from . import connect, embeddings, geoids, metrics, portals, sql, transitions
from .migrations import migrate
from .pools import AsyncPool, add_adapters
from .retries import retry
from .search import indexes, recall
from .sqlite import SqlitePool

__all__ = [
    "AsyncPool",
    "SqlitePool",
    "add_adapters",
    "embeddings",
    "geoids",
    "indexes",
    "metrics",
    "migrate",
    "open_pool",
    "portals",
    "recall",
    "retry",
    "sql",
    "transitions",
]

P = TypeVar("P", bound=AsyncPool | SqlitePool)


class Opening(Generic[P]):
    """A pool that is opened when it is awaited, or entered with `async with`, which closes it at the end."""

    def __init__(self, opening: Coroutine[Any, Any, P]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, Any, P]:
        return self._opening.__await__()

    async def __aenter__(self) -> P:
        self._pool = await self
        return self._pool

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()


@overload
def open_pool(
    conninfo: str, *, replicas: Sequence[str] = (), settings: Settings | None = None
) -> Opening[AsyncPool]: ...
@overload
def open_pool(
    conninfo: None = None, *, replicas: Sequence[str] = (), settings: Settings | None = None
) -> Opening[AsyncPool | SqlitePool]: ...
def open_pool(
    conninfo: str | None = None, *, replicas: Sequence[str] = (), settings: Settings | None = None
) -> Opening[Any]:
    """Open a pool of connections to the database that is configured, as kimera_sql.open_pool does.

    `pool = await open_pool()`, or `async with open_pool() as pool`. Raises SettingsError and ConnectionFailed.
    """
    return Opening(connect.open_pool(conninfo, replicas=replicas, settings=settings))
