"""`kimera-sql adopt`."""

from __future__ import annotations

import argparse

from .. import drift
from ..errors import SchemaError
from ..ops import adoption
from ..verify import verify_queries
from .connection import autocommit


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Make tables that kimera_sql did not make, the specification's or an ORM's of the same names, into those that "
        "it works with. Rows, ids, times, columns and indexes of your own stay."
    )
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and change nothing")
    parser.add_argument(
        "--set-aside",
        action="store_true",
        help="move rows that cannot be kept as they are into tables of their own, with the reason; without it they "
        "stop the command",
    )
    parser.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> int:
    with autocommit(arguments) as conn:
        if arguments.dry_run:
            found = adoption.plan(conn)
            _show(found)
            print("nothing was changed")
            return 1 if found.obstacles else 0
        done = adoption.adopt(conn, set_aside=arguments.set_aside)
        _show(done.plan)
        print("adopted")
        for index in done.rebuilt:
            print(f"{index}: trained on the rows there are")
        for one in done.recall:
            print(f"{one.index}: recall {one.recall:.3f} ({one.low:.3f} to {one.high:.3f}) at k={one.k}")
        try:
            report = verify_queries(conn)
        except SchemaError as error:
            print(f"the queries were not verified: {error}")
            return 0
        for fault in report.faults:
            print(fault)
        print(f"{report.queries} queries verified, {len(report.faults)} faults")
    return 1 if report.faults else 0


def _show(plan: adoption.Plan) -> None:
    for table, rows in plan.tables:
        print(f"{table}: {rows:,} rows")
    for change in drift.causes(plan.changes):
        print(change)
    for unfit in plan.unfit:
        print(f"{unfit.table}: {unfit.rows:,} rows cannot be kept as they are: {unfit.reason}")
    for obstacle in plan.obstacles:
        print(f"to be put right first: {obstacle}")
    for note in plan.notes:
        print(f"note: {note}")
