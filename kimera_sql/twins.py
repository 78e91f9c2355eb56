"""What asynchronous modules and their synchronous twins need in a form of their own; .ci/twins.py swaps them."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import select
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import Any, TypeVar, cast

import psycopg
from psycopg_pool import PoolClosed

T = TypeVar("T")
C = TypeVar("C", bound=psycopg.Connection[Any] | psycopg.AsyncConnection[Any])


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


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


async def apause(seconds: float) -> None:
    """Wait, and let other tasks go on."""
    await asyncio.sleep(seconds)


def kept(taken: T, give_back: Callable[[T], object]) -> T:
    """Return *taken*."""
    return taken


async def akept(taken: Awaitable[T], give_back: Callable[[T], Awaitable[object]]) -> T:
    """Return what *taken* gives; if the task was cancelled meanwhile, give it back and raise CancelledError.

    Before Python 3.12, asyncio.wait_for loses a cancellation that comes together with what it waits for.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    given = await taken
    if task and task.cancelling() > before:
        await give_back(given)
        raise asyncio.CancelledError
    return given


def enqueue(tasks: Any, task: object) -> None:
    """Put *task* into *tasks*, a queue of threads or of asyncio tasks.

    An interrupt inside queue.Queue's own method can leave the queue locked for ever.
    """
    if isinstance(tasks, queue.Queue):
        with tasks.mutex:
            tasks._put(task)
            tasks.not_empty.notify()
    else:
        tasks.put_nowait(task)


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


def at_once(calls: Mapping[C, Callable[[], Any]]) -> Any:
    """Make all *calls* at once, each of which uses a connection of its own, and return what they give, in their order.

    Functions run in threads, and coroutine functions in tasks, which the caller awaits. The first error cancels the
    other calls, and is raised once they have ended.
    """
    asynchronous = inspect.iscoroutinefunction(next(iter(calls.values())))
    return (_in_tasks if asynchronous else _in_threads)(cast(Any, calls))


def _in_threads(calls: Mapping[psycopg.Connection[Any], Callable[[], T]]) -> list[T]:
    with ThreadPoolExecutor(len(calls)) as threads:
        running = {threads.submit(function): conn for conn, function in calls.items()}
        try:
            for ended in as_completed(running):
                ended.result()
        except BaseException:
            for future, conn in running.items():
                if not future.done():
                    with suppress(psycopg.Error):
                        conn.cancel_safe()
            raise
    return [future.result() for future in running]


async def _in_tasks(calls: Mapping[psycopg.AsyncConnection[Any], Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(function()) for function in calls.values()]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


Lock = threading.Lock
ALock = asyncio.Lock
