"""`kimera-sql monitor` and `kimera-sql doctor`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg_pool import PoolTimeout

from ..errors import ConnectionFailed, SettingsError
from ..ops import doctor, monitoring
from ..ops.monitoring import Rows, Unavailable
from ..settings import Settings
from ..sql import Connection
from .arguments import size
from .connection import autocommit
from .output import add_json, print_json, print_records

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CLEAR: Final = "\033[2J\033[H"

_WIDEST: Final = 60
"""Characters of a text that a table shows; JSON has all of it."""

_STDOUT: Final = Path("-")


def add_monitor(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the options of `kimera-sql monitor`."""
    parser.add_argument(
        "names", nargs="*", metavar="REPORT", type=_report, help=f"of {', '.join(monitoring.REPORTS)} (all)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    form.add_argument(
        "--prometheus",
        metavar="FILE.prom",
        type=_textfile,
        nargs="?",
        const=_STDOUT,
        help="print Prometheus' text format, or write it into a file for the node exporter",
    )
    parser.add_argument("--backups", metavar="DIR", type=Path, help="the folder of the backups, as one more report")
    parser.add_argument(
        "--watch", metavar="SECONDS", type=_seconds, nargs="?", const=2.0, help="again every 2 SECONDS, until Ctrl-C"
    )
    parser.add_argument("--record", action="store_true", help="store the numbers into system_metrics as well")
    parser.set_defaults(run=_monitor)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the options of `kimera-sql doctor`."""
    parser.add_argument("--backups", metavar="DIR", type=Path, help="the folder of the backups: is one recent?")
    parser.add_argument(
        "--processes", metavar="N", type=int, default=1, help="how many processes have a pool (%(default)s)"
    )
    parser.add_argument(
        "--ram", metavar="SIZE", type=size, help="the memory of the server's machine, as in 8GB (this one's if local)"
    )
    add_json(parser)
    parser.set_defaults(run=_doctor)


def _report(name: str) -> str:
    if name not in monitoring.REPORTS:
        raise argparse.ArgumentTypeError(f"there is no report {name!r}; there are {', '.join(monitoring.REPORTS)}")
    return name


def _textfile(name: str) -> Path:
    if not name.endswith(".prom"):
        raise argparse.ArgumentTypeError(
            f"{name!r} does not end in .prom, and the node exporter reads no other file; reports go before --prometheus"
        )
    return Path(name)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds


def _monitor(arguments: argparse.Namespace) -> None:
    try:
        _report_on(arguments)
    except (ConnectionFailed, PoolTimeout, psycopg.OperationalError) as error:
        if arguments.prometheus and not arguments.embedded:
            down = {"server": Unavailable(str(error))}
            _expose(down, monitoring.configured_labels(Settings.from_env()), arguments.prometheus)
        raise


def _report_on(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        if not (seen := monitoring.visibility(conn)).sees_all:
            print(
                f"kimera-sql: role {seen.role} is not shown what other roles' sessions do: "
                f"GRANT pg_monitor TO {seen.role}",
                file=sys.stderr,
            )
        _look(conn, arguments)
        while arguments.watch is not None:
            time.sleep(arguments.watch)
            if sys.stdout.isatty():
                print(_CLEAR, end="")
            _look(conn, arguments)


def _look(conn: Connection, arguments: argparse.Namespace) -> None:
    measured = [name for name in monitoring.REPORTS if name in monitoring.MEASURED]
    reports = monitoring.collect(conn, arguments.names or (measured if arguments.prometheus else None))
    if arguments.backups:
        reports["backups"] = monitoring.backups(arguments.backups)
    if arguments.json:
        print_json({name: _plain(report) for name, report in reports.items()})
    elif arguments.prometheus:
        _expose(reports, monitoring.target_labels(conn), arguments.prometheus)
    else:
        _print_tables(reports)
    if arguments.record:
        recorded = monitoring.store_samples(conn, monitoring.samples(reports))
        print(f"kimera-sql: {recorded:,} numbers recorded", file=sys.stderr)
    sys.stdout.flush()


def _expose(reports: Mapping[str, Rows | Unavailable], labels: Mapping[str, str], path: Path) -> None:
    """Put the numbers of *reports* into the file *path*, or print them, and say in comments which ones are lacking."""
    lacking = {name: report.reason for name, report in reports.items() if isinstance(report, Unavailable)}
    comments = "".join(f"# {name}: {_short(reason)}\n" for name, reason in lacking.items())
    text = monitoring.exposition(monitoring.samples(reports), labels) + comments
    if path == _STDOUT:
        print(text, end="")
        return
    try:
        monitoring.write_textfile(path, text)
    except OSError as error:
        raise SettingsError(f"--prometheus {path}: {error.strerror}") from error


def _plain(report: Rows | Unavailable) -> Any:
    return {"unavailable": report.reason} if isinstance(report, Unavailable) else [asdict(row) for row in report]


def _print_tables(reports: Mapping[str, Rows | Unavailable]) -> None:
    for number, (name, report) in enumerate(reports.items()):
        print(("\n" if number else "") + name.upper())
        if isinstance(report, Unavailable):
            print(f"not available: {report.reason}")
        else:
            print_records([_fitting(row) for row in report], as_json=False, empty="nothing")


def _fitting(row: DataclassInstance) -> DataclassInstance:
    """Return *row* with its texts short and on one line."""
    values = {item.name: getattr(row, item.name) for item in fields(row)}
    texts = {name: ", ".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return replace(row, **{name: _short(value) for name, value in texts.items() if isinstance(value, str)})


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 3]}..."


def _doctor(arguments: argparse.Namespace) -> int:
    settings = Settings.from_env()
    with autocommit(arguments) as conn:
        findings = doctor.examine(
            conn,
            backups=arguments.backups,
            pool_connections=settings.pool_size + settings.pool_overflow,
            processes=arguments.processes,
            memory=arguments.ram,
        )
    count = {severity: sum(one.severity == severity for one in findings) for severity in doctor.SEVERITIES}
    if arguments.json:
        print_json([asdict(one) for one in findings])
    else:
        for one in findings:
            print(f"{one.severity.upper():8} {one.subject}: {one.found}\n{'':8} -> {one.advice}")
        print(", ".join(f"{number} {severity}{'' if number == 1 else 's'}" for severity, number in count.items()))
    return 1 if count["error"] else 0
