"""What asynchronous modules and their synchronous twins need in a form of their own; .ci/twins.py swaps them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TypeVar, cast

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


Lock = threading.Lock
ALock = asyncio.Lock
