"""`kimera-sql maintain`, `kimera-sql config` and `kimera-sql roles`: upkeep."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

from ..ops import maintenance, roles, tuning
from ..search import indexes
from ..sql import Connection, is_postgres
from .arguments import size
from .connection import autocommit, pool
from .output import add_json, print_json, print_records, print_table, size_text
from .watch import watched

T = TypeVar("T")


def add(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the commands of `kimera-sql maintain`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parsers = {}
    for name, run, what in (
        ("vacuum", _vacuum, "VACUUM (ANALYZE) the tables"),
        ("analyze", _analyze, "let the planner know what the tables hold"),
        ("reindex", _reindex, "build vector indexes anew while they serve, and tune them again"),
        ("retrain", _retrain, "the same, for the ivfflat indexes that their table has outgrown"),
        ("prune", _prune, "delete old states, embeddings and metrics"),
        (
            "all",
            _all,
            "prune system_metrics, reindex and vacuum; goes on after a step that fails, and then exits with 1",
        ),
    ):
        parsers[name] = commands.add_parser(name, help=what)
        parsers[name].set_defaults(run=run)
        add_json(parsers[name])
        if name != "prune":
            parsers[name].add_argument(
                "--lock-timeout",
                metavar="SECONDS",
                type=_seconds,
                default=maintenance.LOCK_TIMEOUT,
                help=f"how long to wait for a lock ({maintenance.LOCK_TIMEOUT.total_seconds():g})",
            )
    parsers["reindex"].add_argument("names", metavar="INDEX", nargs="*", help="(all)")
    parsers["retrain"].add_argument(
        "--growth",
        metavar="FACTOR",
        type=float,
        default=indexes.GROWTH,
        help="how many times the rows it was trained on (%(default)g)",
    )
    parsers["prune"].add_argument("tables", metavar="TABLE", nargs="*", help=f"({', '.join(maintenance.PRUNED)})")
    parsers["prune"].add_argument("--older-than", metavar="DAYS", type=_days, required=True, help="such as 90d")
    parsers["prune"].add_argument(
        "--transitions",
        choices=("refuse", "delete"),
        default="refuse",
        help="what to do if transitions lead from or to old states (%(default)s)",
    )
    parsers["prune"].add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parsers["all"].add_argument(
        "--older-than", metavar="DAYS", type=_days, help="delete metrics older than this (none are deleted without it)"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the commands of `kimera-sql config`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    recommend = commands.add_parser("recommend", help="print the server's settings for its memory")
    form = recommend.add_mutually_exclusive_group()
    form.add_argument("--conf", action="store_true", help="print a file for postgresql.conf's include_dir")
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    recommend.set_defaults(run=_recommend)
    check = commands.add_parser(
        "check", help="compare the server's settings with them; exits with 1 for one off by more than a factor of two"
    )
    add_json(check)
    check.set_defaults(run=_check)
    for one in (recommend, check):
        one.add_argument("--ram", metavar="SIZE", type=size, help="the server's memory, such as 8GB (this machine's)")
        one.add_argument(
            "--connections",
            metavar="N",
            type=int,
            default=tuning.CONNECTIONS,
            help="what all pools open together (%(default)s)",
        )


def add_roles(parser: argparse.ArgumentParser) -> None:
    """Make *parser* that of `kimera-sql roles`."""
    parser.add_argument("--print", dest="shown", action="store_true", help="print the SQL instead, for psql")
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        default=roles.PREFIX,
        help="what their names begin with (%(default)s): another one for each further database of a server",
    )
    parser.set_defaults(run=_roles)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}") from None


def _seconds(text: str) -> timedelta:
    return _span(seconds=_number(text, "seconds"))


def _days(text: str) -> timedelta:
    return _span(days=_number(text.removesuffix("d"), "days"))


def _span(**units: float) -> timedelta:
    try:
        return timedelta(**units)
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError("that is not a span of time") from None


def _work(arguments: argparse.Namespace, work: Callable[[Connection], T]) -> T:
    with watched(arguments, work, maintenance.working) as (_, done):
        return done


def _vacuum(arguments: argparse.Namespace) -> None:
    tables = _work(arguments, lambda conn: maintenance.vacuum(conn, lock_timeout=arguments.lock_timeout))
    print_records(tables, as_json=arguments.json, empty="")
    if not arguments.json and any(table.dead for table in tables):
        print("dead rows were left that an open transaction can still see")


def _analyze(arguments: argparse.Namespace) -> None:
    tables = _work(arguments, lambda conn: maintenance.analyze(conn, lock_timeout=arguments.lock_timeout))
    if arguments.json:
        print_json(tables)
    else:
        print("".join(f"analyzed {table}\n" for table in tables), end="")


def _reindex(arguments: argparse.Namespace) -> None:
    rebuilt = _work(
        arguments,
        lambda conn: maintenance.reindex(conn, arguments.names or None, lock_timeout=arguments.lock_timeout),
    )
    _print_rebuilt(arguments, rebuilt, "there are no vector indexes")


def _retrain(arguments: argparse.Namespace) -> None:
    rebuilt = _work(
        arguments,
        lambda conn: maintenance.retrain(conn, growth=arguments.growth, lock_timeout=arguments.lock_timeout),
    )
    _print_rebuilt(arguments, rebuilt, "no ivfflat index has aged")


def _print_rebuilt(arguments: argparse.Namespace, rebuilt: list[maintenance.Rebuilt], empty: str) -> None:
    if arguments.json:
        print_json([asdict(one) for one in rebuilt])
        return
    for one in rebuilt:
        tuned = ", tuned again for " + ", ".join(f"{target:g}" for target in one.tuned) if one.tuned else ""
        print(
            f"rebuilt {one.index}: {one.rows:,} rows, {size_text(one.size_before)} before, "
            f"{size_text(one.size)} now{tuned}"
        )
    if not rebuilt:
        print(empty)


def _prune(arguments: argparse.Namespace) -> None:
    with pool(arguments) as opened, opened.connection() as conn:
        if is_postgres(conn):
            conn.autocommit = True
        pruned = maintenance.prune(
            conn,
            arguments.older_than,
            arguments.tables or None,
            transitions=arguments.transitions,
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        print_json([asdict(one) for one in pruned])
        return
    for one in pruned:
        print(f"{one.table}: {one.rows:,} rows {'would be ' if arguments.dry_run else ''}deleted")


def _all(arguments: argparse.Namespace) -> int:
    steps = _work(
        arguments,
        lambda conn: maintenance.run_all(conn, metrics_age=arguments.older_than, lock_timeout=arguments.lock_timeout),
    )
    if arguments.json:
        print_json([asdict(step) for step in steps])
    else:
        for step in steps:
            print(f"{step.name}: {step.done}" if step.error is None else f"FAILED  {step.name}: {step.error}")
    return int(any(step.error is not None for step in steps))


def _recommend(arguments: argparse.Namespace) -> None:
    ram = tuning.memory() if arguments.ram is None else arguments.ram
    settings = tuning.recommend(ram, connections=arguments.connections)
    if arguments.json:
        print_json([asdict(setting) for setting in settings])
        return
    comment = "#" if arguments.conf else "--"
    print(f"{comment} for a server with {ram / 2**30:,.1f} GB of memory to itself, {arguments.connections} connections")
    for setting in settings:
        restart = "; needs a restart" if setting.restart else ""
        print(f"{comment} {setting.reason}{restart}")
        if arguments.conf:
            print(f"{setting.name} = {setting.value}")
        else:
            print(f"ALTER SYSTEM SET {setting.name} = '{setting.value}';")
    if not arguments.conf:
        print("SELECT pg_reload_conf();")


def _check(arguments: argparse.Namespace) -> int:
    with autocommit(arguments) as conn:
        checks = tuning.check(conn, memory=arguments.ram, connections=arguments.connections)
    if arguments.json:
        print_json([asdict(one) for one in checks])
    else:
        header = ("setting", "now", "recommended", "from", "")
        rows: list[list[Any]] = [[one.name, one.current, one.recommended, one.source, _verdict(one)] for one in checks]
        print_table(header, rows)
    return int(any(one.serious for one in checks))


def _verdict(check: tuning.Check) -> str:
    pending = "; the file has another value: restart the server" if check.pending_restart else ""
    return ("DIFFERS" if check.serious else "good") + pending


def _roles(arguments: argparse.Namespace) -> None:
    prefix = arguments.prefix
    if arguments.shown:
        print(roles.script(prefix=prefix), end="")
        return
    with autocommit(arguments) as conn:
        roles.create(conn, prefix=prefix)
        lost = roles.lost(conn)
    print(f"the roles {prefix}_owner, _app, _readonly, _monitor and _backup are up to date")
    for one in lost:
        whose = "new logins do" if one.role is None else f"the login {one.role} does"
        print(f"{whose} not find the tables by the search_path {one.path}: {one.remedy}")
