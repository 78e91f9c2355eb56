"""The command `kimera-sql`. What a command stands on is imported when the command is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from .interrupts import Interrupts

_COMMANDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "init": ("schema", "add", "create the schema, or bring it up to date"),
    "adopt": ("adopt", "add", "take over tables of these names that something else made"),
    "embeddings": ("embeddings", "add", "which model the stored vectors are of, and renewing them by another"),
    "index": ("index", "add", "vector indexes and their recall"),
    "pairs": ("pairs", "add", "every pair of similar rows, such as near-duplicates"),
    "backup": ("backup", "add", "dumps, base backups and WAL, and proof that they are good"),
    "restore": ("restore", "add", "restore a dump into a database that is checked first"),
    "recover": ("recover", "add", "make a new server that is as this one was at a moment"),
    "monitor": ("monitor", "add_monitor", "what goes on in the server, and how it is doing"),
    "doctor": ("monitor", "add_doctor", "what is wrong, and what to do; exits with 1 for errors"),
    "verify": ("verify", "add_verify", "check every named query against a server, without running it"),
    "queries": ("verify", "add_queries", "list the named queries, with their parameters"),
    "maintain": ("maintain", "add", "VACUUM, ANALYZE, and vector indexes built anew"),
    "config": ("maintain", "add_config", "the server's settings for its memory"),
    "plan": ("plan", "add", "what a number of vectors will cost, and how many machines serve them; needs no server"),
    "roles": ("maintain", "add_roles", "make roles with least privilege; takes a superuser"),
    "scale": ("scale", "add", "distribute the tables over the nodes of a Citus cluster, or bring them back"),
    "copy": ("copy", "add", "copy everything from one database into another"),
    "load": ("files", "add_load", "insert the rows of a file of Parquet, JSON Lines or numpy into a table"),
    "unload": ("files", "add_unload", "write the rows of a table into such a file"),
    "demo": (
        "demo",
        "add",
        "embed, store and search Python's docstrings, on an embedded server that is thrown away",
    ),
}
"""For each command its module here, the function that adds its options, and its help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, as the process's main program, and return its exit code: 0, or 1 after an error.

    A command that finds faults, as verify and doctor do, returns 1 for them. A wrong usage exits with 2. A signal that
    ends the command gives 128 and its number: 130 for Ctrl-C, 143 for SIGTERM, 129 for a terminal that was closed.
    """
    warnings.formatwarning = lambda message, *_, **__: f"kimera-sql: {message}\n"
    with Interrupts() as interrupts:
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        except BaseException as error:
            if interrupts.received is None:
                code = _fail(error)
            else:
                # Whatever has come of the interrupt, a statement that was cancelled or an import that failed
                _say("\n  ".join((interrupts.reason, *getattr(error, "__notes__", ()))))
    if interrupts.received is None:
        return code
    _end_output()
    return 128 + interrupts.received


def _run(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    code: int = arguments.run(arguments) or 0
    sys.stdout.flush()
    return code


def _fail(error: BaseException) -> int:
    """Say what went wrong, and return the exit code. What is a fault of ours is raised again."""
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, OSError):
        _end_output()
        if not isinstance(error, BrokenPipeError):  # where whoever read the output has gone
            _say(f"{error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    from .errors import said

    message = said(error)
    if message is None:
        raise error
    _say(message)
    return 1


def _end_output() -> None:
    """Write out what is left to be written, or drop it if nobody is there to read it: Python would say so at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(message: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        print(f"kimera-sql: {message}", file=sys.stderr)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return a command line as its options and the function that runs it. A wrong usage exits with 2."""
    words = _name_folder(list(argv))
    parser = argparse.ArgumentParser(
        prog="kimera-sql",
        description="The database of Kimera SWM. It is found by --dsn or --embedded, else by KIMERA_DB_HOST, _PORT, "
        "_NAME, _USER and _PASSWORD, else by DATABASE_URL, else by libpq's variables (PGHOST ...). With none of these, "
        "init, load, unload and maintain prune use an SQLite file, and the others refuse.",
    )
    _add_place(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, function, help_) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_)
        if name in words:
            getattr(importlib.import_module(f"{__name__}.{module}"), function)(command)
    return parser.parse_args(words)


def _add_place(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the options that say where the database is."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--dsn",
        metavar="CONNINFO",
        type=_dsn,
        help="run the command on this server, a postgresql:// URL or libpq's keyword=value pairs, instead of the one "
        "in the environment; leave its password to PGPASSWORD or a passfile, because others can see a command line",
    )
    place.add_argument(
        "--embedded",
        metavar="DIR",
        type=Path,
        help="run the command on a private PostgreSQL that keeps its data in DIR, or in a folder of kimera_sql's "
        "where DIR is left out",
    )


def _dsn(text: str) -> str:
    from .errors import fault_of_conninfo

    fault = fault_of_conninfo(text)
    if fault is not None:
        raise argparse.ArgumentTypeError(fault)
    return text


def _name_folder(words: list[str]) -> list[str]:
    """Write out the folder of a lone --embedded, which argparse would take from the command that follows."""
    if "--embedded" in words:
        at = words.index("--embedded") + 1
        if at == len(words) or words[at] in _COMMANDS or words[at].startswith("-"):
            from ..embedded import default_folder

            words.insert(at, str(default_folder()))
    return words
