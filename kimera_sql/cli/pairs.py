"""`kimera-sql pairs`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Final
from uuid import UUID

from .. import embeddings, geoids
from .connection import autocommit
from .output import add_json

_TABLES: Final[Mapping[str, Callable[..., Iterator[geoids.Pair]]]] = {
    "geoid_states": geoids.pairs,
    "semantic_embeddings": embeddings.duplicates,
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("table", choices=_TABLES)
    parser.add_argument(
        "--similarity", type=float, metavar="COSINE", help="the least (0.9, or 0.95 for semantic_embeddings)"
    )
    parser.add_argument(
        "--after",
        nargs=2,
        type=UUID,
        metavar=("FIRST", "SECOND"),
        help="go on behind this pair, the last one of a run that was interrupted",
    )
    add_json(parser)
    parser.set_defaults(run=_pairs)


def _pairs(arguments: argparse.Namespace) -> None:
    given = {} if arguments.similarity is None else {"similarity": arguments.similarity}
    last = tuple(arguments.after) if arguments.after else None
    count = 0
    try:
        with autocommit(arguments) as conn:
            for pair in _TABLES[arguments.table](conn, after=last, **given):
                line = f"{pair.first}\t{pair.second}\t{pair.similarity:.6f}"
                # An interrupt would take along what waits to be written.
                print(json.dumps(asdict(pair), default=str) if arguments.json else line, flush=True)
                last = (pair.first, pair.second)
                count += 1
    except (Exception, KeyboardInterrupt) as error:
        if last is not None:
            error.add_note(f"--after {last[0]} {last[1]} goes on from here")
        raise
    print(f"{count:,} pairs, found exactly", file=sys.stderr)
