"""`kimera-sql scale`: the tables distributed over the nodes of Citus, and back."""

from __future__ import annotations

import argparse

from ..ops import citus
from .connection import autocommit
from .output import print_records, print_table


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's subcommands."""
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    spread = commands.add_parser(
        "citus",
        help="distribute the tables over the nodes of a Citus cluster, with their rows",
        description="Distribute the tables over the nodes of a Citus cluster, with their rows. Run it on the "
        "coordinator. Nobody can use the tables until it is done.",
    )
    spread.add_argument("--shards", type=int, metavar="N", help="shards of a table (4 for each node that holds shards)")
    _add_dry_run(spread)
    spread.set_defaults(run=_distribute)
    status = commands.add_parser("status", help="the nodes of the cluster, and what each has of the tables")
    status.set_defaults(run=_status)
    back = commands.add_parser("undistribute", help="bring the tables back to the coordinator, with their rows")
    _add_dry_run(back)
    back.set_defaults(run=_undistribute)


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the SQL and what stands in its way instead")


def _distribute(arguments: argparse.Namespace) -> int:
    with autocommit(arguments) as conn:
        if arguments.dry_run:
            return _show(citus.plan(conn, shards=arguments.shards), citus.LOSSES)
        for one in citus.distribute(conn, shards=arguments.shards):
            by = "a reference table" if one.column is None else f"{one.shards} shards by {one.column}"
            print(f"{one.table}: {by}")
        for loss in citus.LOSSES:
            print(f"not kept: {loss}")
    return 0


def _undistribute(arguments: argparse.Namespace) -> int:
    with autocommit(arguments) as conn:
        if arguments.dry_run:
            return _show(citus.plan_undo(conn), ())
        citus.undistribute(conn)
        print("the tables are on this server alone")
    return 0


def _status(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        print_records(citus.nodes(conn), as_json=False, empty="no node was added")
        held: dict[tuple[str, str], list[citus.Shard]] = {}
        for shard in citus.shards(conn):
            held.setdefault((shard.table, shard.node), []).append(shard)
    print()
    print_table(
        ["table", "node", "shards", "rows", "size_bytes"],
        [
            [
                table,
                node,
                len(shards),
                sum(one.live_rows for one in shards),
                sum(one.heap_bytes + one.other_bytes + one.index_bytes for one in shards),
            ]
            for (table, node), shards in held.items()
        ],
    )


def _show(plan: citus.Plan, losses: tuple[str, ...]) -> int:
    """Print *plan* as SQL, with the rest as comments; no SQL where something has to be put right first."""
    for said in [f"to be put right first: {one}" for one in plan.obstacles] + [f"not kept: {one}" for one in losses]:
        print("-- " + said.replace("\n", "\n-- "))
    if plan.obstacles:
        return 1
    print(plan.script or "-- there is nothing to do\n", end="")
    return 0
