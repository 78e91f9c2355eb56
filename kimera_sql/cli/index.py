"""`kimera-sql index`: vector indexes and their recall."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import psycopg

from ..errors import MaintenanceError
from ..search import VectorIndex, indexes, recall
from ..search.measures import WORST
from ..search.plan import DEFAULT_RECALL
from ..sql import Connection
from ..tables import VECTOR_TABLES
from .connection import autocommit
from .output import add_json, print_json, size_text
from .watch import watched


def add(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the commands of `kimera-sql index`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build a table's vector index, and tune it")
    build.add_argument("table", choices=VECTOR_TABLES)
    build.add_argument("--method", choices=("hnsw", "ivfflat"), default="hnsw", help="(%(default)s)")
    build.add_argument(
        "--precision", choices=("full", "half", "binary"), help="(half, or full where pgvector is older than 0.7)"
    )
    build.add_argument("--lists", type=int, metavar="N", help="lists of ivfflat (100, more past 100,000 rows)")
    build.add_argument("--m", type=int, metavar="N", help="connections a node of hnsw (16)")
    build.add_argument("--ef-construction", type=int, metavar="N", help="candidates a node of hnsw (64)")
    build.add_argument("--concurrently", action="store_true", help="let writers go on meanwhile")
    build.set_defaults(run=_build)
    listing = commands.add_parser("list", help="list the vector indexes")
    listing.set_defaults(run=_list)
    for name, run, what in (
        ("retrain", _retrain, "build an index anew while it serves, and tune it"),
        ("drop", _drop, "drop an index"),
    ):
        one = commands.add_parser(name, help=what)
        one.add_argument("name")
        one.set_defaults(run=run)
    commands.add_parser("clean", help="drop what killed builds left behind").set_defaults(run=_clean)
    tune = commands.add_parser("tune", help="find the cheapest settings that reach a recall, and keep them")
    tune.add_argument("table", choices=VECTOR_TABLES)
    tune.add_argument("--target", type=float, metavar="RECALL", help="(0.95 and 0.99)")
    tune.add_argument(
        "--worst",
        type=float,
        metavar="RECALL",
        default=WORST,
        help="the least that 99 %% of the searches find, 0 for the mean alone (%(default)s)",
    )
    tune.set_defaults(run=_tune)
    measured = commands.add_parser("recall", help="measure the recall of a table's searches")
    measured.add_argument("table", choices=VECTOR_TABLES)
    measured.add_argument("--k", type=int, metavar="N", default=10, help="neighbours a search (%(default)s)")
    measured.add_argument("--sample", type=int, metavar="N", default=100, help="searches (%(default)s)")
    measured.set_defaults(run=_recall)
    check = commands.add_parser(
        "check",
        help="measure and record the recall of the searches that were sampled; exits with 1 if it is below 0.95",
    )
    check.add_argument("table", choices=VECTOR_TABLES)
    check.set_defaults(run=_check)
    for one in (listing, tune, measured, check):
        add_json(one)


def _build(arguments: argparse.Namespace) -> None:
    options = {
        name: getattr(arguments, name)
        for name in ("method", "precision", "lists", "m", "ef_construction", "concurrently")
    }

    def build(conn: Connection) -> VectorIndex:
        try:
            return indexes.build(conn, arguments.table, **options)
        except psycopg.errors.DuplicateTable as error:
            raise MaintenanceError(
                f"{error.diag.message_primary}; `kimera-sql index retrain` builds it anew while it serves, and `index "
                "clean` drops one that is unfinished"
            ) from error

    with watched(arguments, build, indexes.building) as (conn, index):
        print(f"built {index.name}: {index.rows_at_build:,} rows, {size_text(index.size)}")
        _print_tuned(recall.tune(conn, arguments.table))


def _retrain(arguments: argparse.Namespace) -> None:
    with watched(arguments, lambda conn: indexes.retrain(conn, arguments.name), indexes.building) as (conn, index):
        print(f"rebuilt {index.name}: {index.rows_at_build:,} rows, {size_text(index.size)}")
        _print_tuned(recall.tune(conn, index.table))


def _list(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        found = indexes.existing(conn)
    if arguments.json:
        print_json([_plain(index) for index in found])
        return
    for index in found:
        built = f"{index.rows_at_build:,}" if index.rows_at_build is not None else "?"
        reached = ", ".join(
            f"{target:g} at k={k}: {'none' if setting is None else setting}"
            for (k, target), setting in index.tuned.items()
        )
        print(
            f"{index.name}  {index.method} {index.precision}  {size_text(index.size)}  "
            f"{'valid' if index.usable else 'INVALID'}  {index.scans:,} scans  built from {built} rows, now some "
            f"{index.rows:,}\n    {'ef_search' if index.method == 'hnsw' else 'probes'} for a recall of "
            f"{reached or '... not tuned yet'}"
        )
    if not found:
        print("there are no vector indexes")


def _plain(index: VectorIndex) -> dict[str, Any]:
    tuned = [{"k": k, "target": target, "setting": setting} for (k, target), setting in index.tuned.items()]
    return {**asdict(replace(index, tuned={})), "tuned": tuned, "pgvector": ".".join(map(str, index.pgvector))}


def _drop(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        indexes.drop(conn, arguments.name)
    print(f"dropped {arguments.name}")


def _clean(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        dropped = indexes.clean(conn)
    print("\n".join(f"dropped {name}" for name in dropped) or "there is nothing to clean up")


def _tune(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        tuned = recall.tune(conn, arguments.table, target=arguments.target, worst=arguments.worst)
    if arguments.json:
        print_json([asdict(one) for one in tuned])
    else:
        _print_tuned(tuned)


def _print_tuned(settings: Sequence[recall.Tuned]) -> None:
    for tuned in settings:
        chosen = "no setting; searches that ask for it are exact" if tuned.setting is None else f"{tuned.setting}"
        print(f"{tuned.index}  recall {tuned.target:g} at k={tuned.k}: {chosen}, measured {_spread(tuned.recall)}")


def _spread(measured: recall.Recall) -> str:
    return (
        f"{measured.recall:.3f} ({measured.low:.3f} to {measured.high:.3f}; "
        f"{measured.p1:.2f} or more in 99 %, {measured.p10:.2f} or more in 90 % of the searches)"
    )


def _recall(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        measured = recall.measure(conn, arguments.table, sample=arguments.sample, k=arguments.k)
    _print_measured(arguments, measured)


def _check(arguments: argparse.Namespace) -> int:
    with autocommit(arguments) as conn:
        measured = recall.check(conn, arguments.table)
    _print_measured(arguments, measured)
    return int(measured.high < DEFAULT_RECALL)


def _print_measured(arguments: argparse.Namespace, measured: recall.Recall) -> None:
    if arguments.json:
        print_json(asdict(measured))
        return
    served = f"{measured.index} at {measured.setting}" if measured.index else "exact search"
    print(
        f"recall {_spread(measured)} at k={measured.k}, {measured.queries} queries by {served}; "
        f"{measured.poor:.1%} of them below {WORST:g}"
    )
