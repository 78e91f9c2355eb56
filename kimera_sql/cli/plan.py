"""`kimera-sql plan`: what vectors will cost, and how many machines serve them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from typing import Final

from ..errors import InvalidValue
from ..ops import planning
from ..ops.planning import Estimate, Figure, Fleet
from .arguments import in_options, size
from .output import add_json, number_text, print_json, print_table, size_text, time_text

HEADER: Final = (
    "kind of index",
    "table",
    "index",
    "memory",
    "build",
    "inserts/s",
    "setting",
    "searches/s",
    "table on disk",
    "both on disk",
)

_LEGEND: Final = """\
memory: to hold the index while it is built anew; build: CPU time; inserts/s, searches/s: of one core; setting:
ef_search or probes; on disk: how long a search waits for it. ~ modelled, * interpolated, the others measured; see
docs/scale.md
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Make *parser* that of `kimera-sql plan`."""
    parser.add_argument("--rows", type=float, required=True, metavar="N", help="vectors in the table, such as 50e6")
    parser.add_argument("--qps", type=float, required=True, metavar="N", help="searches a second")
    parser.add_argument(
        "--recall", type=float, default=0.95, metavar="RECALL", help="what searches ask for (%(default)s)"
    )
    parser.add_argument(
        "--ram",
        type=size,
        default=planning.MEMORY,
        metavar="SIZE",
        help=f"memory of the smallest machine to consider ({size_text(planning.MEMORY)})",
    )
    parser.add_argument(
        "--cores", type=int, default=planning.CORES, metavar="N", help="its cores; larger ones have more (%(default)s)"
    )
    add_json(parser)
    parser.set_defaults(run=partial(_plan, parser))


def _plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    try:
        plan = planning.plan(
            arguments.rows, arguments.qps, arguments.recall, memory=arguments.ram, cores=arguments.cores
        )
    except InvalidValue as error:
        parser.error(in_options(str(error)))
    if arguments.json:
        print_json(asdict(plan))
        return
    print(f"{plan.rows:,} vectors, {number_text(plan.qps)} searches a second at a recall of {plan.recall:g}\n")
    print_table(HEADER, [cells(one) for one in plan.estimates])
    print(_LEGEND)
    print_table(
        ("machines with", "number", "memory", "cores", "shards", "replicas", "searches/s", "bound by"),
        [_machines(fleet) for fleet in plan.fleets],
    )
    best = plan.fleets[0]
    print("replicas: of each shard; the first line is the best: fewest shards, then the least memory\n")
    print(f"# postgresql.conf of each {size_text(best.memory)} machine")
    for setting in plan.settings:
        print(f"{setting.name} = {setting.value}")
    if best.build_memory:
        method, precision = best.index.split()
        print(
            f"# the index\nPGOPTIONS='-c maintenance_work_mem={best.build_memory // 2**20 + 1}MB' "
            f"kimera-sql index build TABLE --method {method} --precision {precision}"
        )
    if best.replicas:
        print("# in each program's environment: docs/scale.md#read-replicas\nKIMERA_DB_REPLICAS=STANDBY,...")


def cells(estimate: Estimate) -> list[str]:
    """Return what a table shows of *estimate*, under HEADER."""
    return [
        estimate.index,
        *(_marked(figure, size_text(int(figure.value))) for figure in (estimate.table, estimate.size, estimate.memory)),
        _marked(estimate.build, time_text(estimate.build.value)),
        *(
            _marked(figure, number_text(figure.value))
            for figure in (estimate.inserts, estimate.setting, estimate.searches)
        ),
        *(_marked(figure, time_text(figure.value / 1000)) for figure in (estimate.table_wait, estimate.wait)),
    ]


def _marked(figure: Figure, text: str) -> str:
    if not figure.value:
        return "-"
    match figure.basis:
        case "measured":
            return text
        case "interpolated":
            return f"{text}*"
        case "modelled":
            return f"~{text}"


def _machines(fleet: Fleet) -> list[str | int]:
    return [
        fleet.index,
        fleet.machines,
        size_text(fleet.memory),
        fleet.cores,
        fleet.shards,
        fleet.replicas,
        number_text(fleet.searches),
        fleet.bound,
    ]
