"""`kimera-sql embeddings`: which model the stored vectors are of, and renewing them by another."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .. import embeddings
from ..errors import NotFound, SettingsError
from .arguments import module
from .connection import autocommit
from .output import add_json, print_json, size_text


def add(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the commands of `kimera-sql embeddings`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    renew = commands.add_parser(
        "renew", help="have another model make the vectors anew while the old ones serve, then let them serve"
    )
    renew.add_argument(
        "--embed", metavar="MODULE:FUNCTION", required=True, help="what makes the vectors of a list of texts"
    )
    renew.add_argument("--model", metavar="NAME", required=True, help="the name of the model")
    renew.add_argument("--batch", type=int, metavar="N", default=64, help="texts a call (%(default)s)")
    renew.add_argument("--rate", type=float, metavar="N", help="the most texts a second (no limit)")
    renew.add_argument(
        "--retries", type=int, metavar="N", default=5, help="after an error of the function (%(default)s)"
    )
    renew.add_argument("--prepare", action="store_true", help="let the old ones go on serving; a later renew switches")
    renew.set_defaults(run=_renew)
    status = commands.add_parser("status", help="which model serves, and which other vectors there are")
    status.set_defaults(run=_status)
    name = commands.add_parser("name", help="say which model the stored vectors are of")
    name.add_argument("model")
    name.set_defaults(run=_name)
    drop = commands.add_parser("drop", help="drop the vectors that do not serve: a renewal, or the way back")
    drop.set_defaults(run=_drop)
    for one in (renew, status):
        add_json(one)


def _renew(arguments: argparse.Namespace) -> None:
    embed = _imported(arguments.embed)
    with autocommit(arguments) as conn:
        renewed = embeddings.renew(
            conn,
            embed,
            model=arguments.model,
            batch=arguments.batch,
            rate=arguments.rate,
            retries=arguments.retries,
            switch=not arguments.prepare,
        )
    if arguments.json:
        print_json(asdict(renewed))
        return
    print(f"{renewed.rows:,} vectors made by {renewed.model}")
    if renewed.overlap is not None:
        print(f"a text's 10 nearest by {renewed.previous} and by {renewed.model}: {renewed.overlap:.0%} are the same")
    if renewed.recall is not None and renewed.previous_recall is not None:
        print(f"recall {renewed.recall:.3f}, and {renewed.previous_recall:.3f} by {renewed.previous}")
    print(
        f"{renewed.model} serves; the vectors of {renewed.previous} are kept until `kimera-sql embeddings drop`"
        if renewed.switched
        else f"{renewed.previous} serves; the next renew brings them up to date and switches"
    )


def _imported(place: str) -> embeddings.Embed:
    name, _, function = place.partition(":")
    if not (name and function):
        raise SettingsError(f"--embed: {place!r} is no MODULE:FUNCTION")
    try:
        found = getattr(module("--embed", name), function)
    except AttributeError as error:
        raise SettingsError(f"--embed: {place!r}: {error}") from error
    if not callable(found):
        raise SettingsError(f"--embed: {place!r} is no function")
    return found  # type: ignore[no-any-return]


def _status(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        model, other = embeddings.model(conn), embeddings.renewal(conn)
    if arguments.json:
        print_json({"model": model, "other": other and asdict(other)})
        return
    print(f"the stored embeddings are of {model}" if model else "nobody has said which model the embeddings are of")
    if other is not None:
        missing = f"{other.waiting:,} are still to be made" if other.waiting else "complete"
        print(f"beside them are vectors of {other.other}, {size_text(other.size)}: {missing}")


def _name(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        embeddings.name_model(conn, arguments.model)
    print(f"the stored embeddings are of {arguments.model}")


def _drop(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        other = embeddings.renewal(conn)
        if other is None or not embeddings.end_renewal(conn):
            raise NotFound("there are no vectors but those that serve")
    print(f"dropped the vectors of {other.other}")
