"""What the benchmarks have in common: their options, and a table, JSON and a plot of what they measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kimera_sql import embedded, migrate, open_pool

Measurement = dict[str, Any]


def parser(description: str | None, *, server: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has, or every one that needs a *server*."""
    options = argparse.ArgumentParser(description=description)
    if server:
        options.add_argument("--database", metavar="URL", help="measure on this empty database, not an embedded one")
    options.add_argument("--json", metavar="FILE", type=Path, help="write what was measured to FILE")
    options.add_argument("--plot", metavar="FILE", type=Path, help="draw it to FILE (.png, .svg; extra `plot`)")
    options.add_argument("--seed", type=int, default=0, help="seed of the made vectors (%(default)s)")
    return options


@contextmanager
def database(options: argparse.Namespace) -> Iterator[str]:
    """Yield the conninfo of the database of *options*, which has the schema."""
    with ExitStack() as stack:
        conninfo = options.database or stack.enter_context(embedded.server())
        with open_pool(conninfo) as pool, pool.connection() as conn:
            migrate(conn)
        yield conninfo


def show(measured: Sequence[Measurement]) -> None:
    """Print *measured*, dicts of the same keys, as a table."""
    if not measured:
        return
    cells = [list(measured[0]), *([_cell(value) for value in row.values()] for row in measured)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _cell(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def write(
    options: argparse.Namespace,
    measured: Sequence[Measurement] | Mapping[str, Sequence[Measurement]],
    **about: Any,
) -> None:
    """Write *measured*, or several by name, and what it was measured on to the file of --json, if it was given."""
    if options.json is not None:
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), **about}
        every = dict(measured) if isinstance(measured, Mapping) else list(measured)
        options.json.write_text(json.dumps({"machine": machine, "measured": every}, indent=2) + "\n")


def bars(options: argparse.Namespace, measured: Sequence[Measurement], *, label: str, value: str) -> None:
    """Draw a bar for each of *measured* to the file of --plot, if it was given."""
    if options.plot is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.35 * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([row[label] for row in measured], [row[value] for row in measured])
    axes.invert_yaxis()
    axes.set_xlabel(value)
    figure.savefig(options.plot)


def lines(
    options: argparse.Namespace,
    measured: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    title: str,
    dashed: Iterable[str] = (),
) -> None:
    """Draw a line through the points of each name, the *dashed* ones so, to the file of --plot, if it was given."""
    if options.plot is None:
        return
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab20"]
    axes.set_prop_cycle(color=[colors(number) for number in (*range(0, 20, 2), *range(1, 20, 2))])
    for name, points in measured.items():
        style = "--" if name in dashed else "-"
        axes.plot(*zip(*points, strict=True), style, marker=".", linewidth=1.2, label=name)
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(options.plot, dpi=120)
