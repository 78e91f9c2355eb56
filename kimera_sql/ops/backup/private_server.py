"""A server of our own, for drills and recoveries, which ends when this process does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Final

from ...errors import BackupError
from ...supervisor import is_ready
from . import tools

_TICK: Final = 0.1
"""Seconds between two looks at a server that starts."""


@contextmanager
def serving(
    postgres: Path,
    data: Path,
    log: Path,
    *,
    user: str | None,
    settings: Mapping[str, str],
    stop: signal.Signals,
    tick: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Run the server *postgres* on *data* for the block, which begins once it is ready; the signal *stop* ends it.

    *settings* go before those of its files. *tick* is called until it is ready. If the block fails it stops at once;
    else its end is waited for, however long *stop* takes. Raises BackupError when it ends before it is ready; what it
    had to say is in *log*.
    """
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # Not by pg_ctl, whose server would live on without us
    with (
        log.open("a") as output,
        tools.running(postgres, ["-D", data, *arguments], output=output, user=user, ends_by=signal.SIGQUIT) as process,
    ):
        while not is_ready(data, process.pid):
            if process.poll() is not None:
                raise BackupError("the server has ended")
            if tick is not None:
                tick()
            sleep(_TICK)
        yield
        process.send_signal(stop)
        process.wait()
