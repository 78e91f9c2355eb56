"""Runs the command `kimera-sql`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO
from unittest import mock

from kimera_sql.cli import main

COMMAND = [sys.executable, "-c", "import sys; from kimera_sql.cli import main; sys.exit(main())"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without a configured database, and with *variables*; warnings are errors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KIMERA_", "DATABASE_", "PG"))}
    return {**kept, "PYTHONWARNINGS": "error", **variables}


def run_as_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end as a user does, in an environment with *variables*."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(**variables), capture_output=True, text=True, check=False
    )


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same within this process: a process of its own takes longer to start than most commands to run."""
    surroundings = environment(**variables)
    with (
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
        mock.patch.dict(os.environ, surroundings, clear=True),
        warnings.catch_warnings(action="error" if surroundings["PYTHONWARNINGS"] == "error" else "ignore"),
        _as_it_was(),
    ):
        with redirect_stdout(output), redirect_stderr(errors), _children(output, errors):
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, code, output.read(), errors.read())


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Give back what a command changes in its process, and let it look for its temporary folder anew."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with (
        mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
        mock.patch.object(tempfile, "tempdir", None),
    ):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def _children(output: IO[str], errors: IO[str]) -> Iterator[None]:
    """Have the processes that a command starts write where it writes."""
    kept = [os.dup(number) for number in (1, 2)]
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    try:
        yield
    finally:
        output.flush()
        errors.flush()
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
