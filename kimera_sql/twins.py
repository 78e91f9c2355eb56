"""What asynchronous modules and their synchronous twins need in a form of their own; .ci/twins.py swaps them."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TypeVar, cast

from psycopg_pool import PoolClosed

T = TypeVar("T")


def each(items: Iterable[T]) -> Iterator[T]:
    """Yield each of *items*."""
    yield from items


async def aeach(items: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    """Yield each of *items*, which may be asynchronous."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def value(given: T) -> T:
    """Return *given*."""
    return given


async def avalue(given: Awaitable[T] | T) -> T:
    """Return *given*, or what it gives once it is awaited."""
    if isinstance(given, Awaitable):
        return cast(T, await given)
    return given


def call(function: Callable[..., T], *arguments: object) -> T:
    """Call *function*, which blocks."""
    return function(*arguments)


async def acall(function: Callable[..., T], *arguments: object) -> T:
    """Call *function*, which blocks, in a thread."""
    return await asyncio.to_thread(function, *arguments)


def check_process(opened_in: int) -> None:
    """Raise PoolClosed in a process other than the one, *opened_in*, that has opened a pool."""
    if os.getpid() != opened_in:
        raise PoolClosed(
            "this pool was opened by the parent process, and two processes cannot share a connection: open a pool in "
            "the child"
        )


def is_readable(descriptor: int) -> bool:
    """Return whether a socket has something to read, or its end; True where the system has no cheap way to tell."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


Lock = threading.Lock
ALock = asyncio.Lock
