"""`kimera-sql verify` and `kimera-sql queries`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..verify import Report, listed, verify_queries
from .arguments import module
from .connection import server
from .output import add_json, print_json


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify`."""
    parser.description = (
        "Check every named query, those that are shipped or those of DIR, against a server, without running one. Exits "
        "with 1 where there is a fault."
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="a folder of .sql files of your own")
    parser.add_argument("--records", metavar="MODULE", help="the module of DIR's dataclasses, as package.module")
    parser.add_argument("--stub", metavar="FILE", type=Path, help="the .pyi of the module that loads DIR as `queries`")
    parser.add_argument(
        "--async-stub", metavar="FILE", type=Path, help="the same, for a module that uses kimera_sql.aio"
    )
    parser.add_argument(
        "--update", action="store_true", help="write the snapshot, and the stub, unless there is a fault"
    )
    parser.add_argument("--offline", action="store_true", help="compare with the snapshot instead of a server")
    add_json(parser)
    parser.set_defaults(run=_verify)


def add_queries(parser: argparse.ArgumentParser) -> None:
    """Add the options of `queries`."""
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="a folder of .sql files of your own")
    add_json(parser)
    parser.set_defaults(run=_queries)


def _verify(arguments: argparse.Namespace) -> int:
    records = None if arguments.records is None else module("--records", arguments.records)
    options = {"stub": arguments.stub, "async_stub": arguments.async_stub, "update": arguments.update}
    if arguments.offline:
        report = verify_queries(None, arguments.folder, records, **options)
    else:
        with server(arguments) as opened, opened.connection() as conn:
            report = verify_queries(conn, arguments.folder, records, **options)
    if arguments.json:
        print_json(asdict(report))
    else:
        _print(report, "the snapshot" if arguments.offline else "the server")
    return 1 if report.faults else 0


def _print(report: Report, against: str) -> None:
    for fault in report.faults:
        print(fault)
    for skipped in report.skipped:
        print(f"{skipped.query} was not prepared: the server lacks {skipped.lacks}")
    for path in report.written:
        print(f"wrote {path}")
    faults = {0: "no fault", 1: "1 fault"}.get(len(report.faults), f"{len(report.faults)} faults")
    print(f"{report.queries} queries, {faults} against {against}")


def _queries(arguments: argparse.Namespace) -> None:
    found = listed(arguments.folder)
    if arguments.json:
        print_json([asdict(query) for query in found])
        return
    for query in found:
        result = f" -> {query.returns}" if query.returns else ""
        only = f"  ({query.dialects[0]} alone)" if len(query.dialects) == 1 else ""
        print(f"{query.name}({', '.join(query.parameters)}){query.suffix}{result}{only}\n    {query.doc}")
