"""Runs the tests of the synchronous functions on the asynchronous ones too.

A connection that `asynchronous` lends looks like a synchronous one: what can be awaited is run to its end, on the
connection's loop. Given such a connection, the functions of the entities, of search and of sql call their
asynchronous twins. So one suite, hypothesis' machines included, holds both to the same results.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, Final

import psycopg

import kimera_sql
from kimera_sql import aio, sql
from kimera_sql.aio.sqlite import connect as open_file

TWINS: Final = (
    "sql",
    "geoids",
    "embeddings",
    "transitions",
    "portals",
    "metrics",
    "migrations",
    "pools",
    "search.indexes",
    "search.recall",
)


class Blocking:
    """An asynchronous object whose awaitables, context managers and iterators block instead."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_runner", runner)

    def __getattr__(self, name: str) -> Any:
        return blocking(getattr(self._target, name), self._runner)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("autocommit", "isolation_level", "read_only") and isinstance(self._target, psycopg.AsyncConnection):
            self._runner.run(getattr(self._target, f"set_{name}")(value))
        else:
            setattr(self._target, name, value)

    def __iter__(self) -> Iterator[Any]:
        return walked(self._target, self._runner)

    def __enter__(self) -> Any:
        return blocking(self._runner.run(self._target.__aenter__()), self._runner)

    def __exit__(self, *error: Any) -> Any:
        return self._runner.run(self._target.__aexit__(*error))


def walked(items: AsyncIterator[Any], runner: asyncio.Runner) -> Iterator[Any]:
    iterator = aiter(items)
    try:
        while True:
            try:
                yield runner.run(one(iterator))
            except StopAsyncIteration:
                return
    finally:
        if inspect.isasyncgen(iterator):
            runner.run(iterator.aclose())


async def one(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


def blocking(value: Any, runner: asyncio.Runner) -> Any:
    """Return *value* so that it can be used without await."""
    if inspect.iscoroutine(value):
        return blocking(runner.run(value), runner)
    if inspect.isawaitable(value):
        return blocking(runner.run(waited(value)), runner)
    if inspect.isasyncgen(value):
        return walked(value, runner)
    if inspect.isroutine(value):

        @functools.wraps(value)
        def called(*arguments: Any, **named: Any) -> Any:
            given = [argument._target if isinstance(argument, Blocking) else argument for argument in arguments]
            return blocking(value(*given, **named), runner)

        return called
    if isinstance(value, (AbstractAsyncContextManager, psycopg.AsyncCursor)) or hasattr(value, "__anext__"):
        return Blocking(value, runner)
    return value


async def waited(value: Any) -> Any:
    return await value


def dispatching(synchronous: Callable[..., Any], asynchronous: Callable[..., Any]) -> Callable[..., Any]:
    """Return *synchronous*, but *asynchronous* where it is given a blocking connection."""

    @functools.wraps(synchronous)
    def called(*arguments: Any, **named: Any) -> Any:
        conn = arguments[0] if arguments else None
        if not isinstance(conn, Blocking):
            return synchronous(*arguments, **named)
        return blocking(asynchronous, conn._runner)(*arguments, **named)

    return called


def _dispatch() -> None:
    for name in TWINS:
        ours, theirs = (importlib.import_module(f"kimera_sql.{prefix}{name}") for prefix in ("", "aio."))
        for function, value in list(vars(ours).items()):
            twin = getattr(theirs, function, value)  # the same where both have it from elsewhere
            if inspect.isroutine(value) and not function.startswith("_") and twin is not value:
                called = dispatching(value, twin)
                setattr(ours, function, called)
                if vars(kimera_sql).get(function) is value:  # somebody has taken it from the package
                    setattr(kimera_sql, function, called)


def _dispatch_queries() -> None:
    for name in ("__call__", "fetchall", "fetchone", "fetchval", "execute", "copy", "stream"):
        ours, theirs = getattr(sql.Query, name), getattr(aio.sql.Query, name)

        def called(query: Any, conn: Any, *given: Any, _ours: Any = ours, _theirs: Any = theirs, **named: Any) -> Any:
            if not isinstance(conn, Blocking):
                return _ours(query, conn, *given, **named)
            twin = aio.sql.Query(query.entity, query.name, query.folder, query.records)
            return blocking(functools.partial(_theirs, twin)(conn._target, *given, **named), conn._runner)

        setattr(sql.Query, name, functools.wraps(ours)(called))


_dispatch_queries()
_dispatch()  # before any test module takes a function by its name


@contextmanager
def asynchronous(conninfo: str) -> Iterator[Any]:
    """Lend a blocking connection to PostgreSQL, or to the SQLite file that *conninfo* is."""
    with asyncio.Runner() as runner:
        conn: Any
        if conninfo.endswith(".db"):
            conn = runner.run(open_file(conninfo))
        else:
            conn = runner.run(psycopg.AsyncConnection.connect(conninfo))
            runner.run(aio.add_adapters(conn))
        try:
            yield Blocking(conn, runner)
        finally:
            with suppress(psycopg.OperationalError):  # the test may have had the connection ended
                runner.run(conn.rollback())
            runner.run(conn.close())
