"""Whether queries that find the same rows another way still do: what the note `like` says, and where it is missing.

It is told from the text alone, so for both dialects and without a server; only the names of columns are as prepared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeAlias

from ..errors import QueryError
from ..sql import shapes
from .conditions import Condition, Key, Select, innermost, selects
from .queries import Query
from .text import Fault, Source

_File: TypeAlias = Mapping[str, Query]
"""The queries of one file, by name."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A query and its model, which it is like. added, omitted: what, the note says, only the query or the model has."""

    query: Query
    model: Query
    added: frozenset[str]
    omitted: frozenset[str]

    @property
    def like(self) -> str:
        return f"{self.model.source.name}, which it is like"


@dataclass(frozen=True, slots=True)
class _Difference:
    """The conditions in which two SELECTs differ. offset: of the WHERE that lacks the missing ones."""

    offset: int
    missing: tuple[Condition, ...]
    extra: tuple[Condition, ...]


def check(queries: Iterable[Query]) -> Iterator[Fault]:
    """Compare each query that has the note `like` with the one it names, and find those that should have the note."""
    files: dict[tuple[str, str], dict[str, Query]] = {}
    for query in queries:
        files.setdefault((query.dialect, query.entity), {})[query.source.name] = query
    for (dialect, entity), file in files.items():
        twins = files.get(("sqlite" if dialect == "postgres" else "postgres", entity), {})
        for query in file.values():
            if "like" in query.statement.notes:
                yield from _check_note(query, file, twins)
        yield from _check_unnoted({name: query for name, query in file.items() if query.source.readable})


def _check_note(query: Query, file: _File, twins: _File) -> Iterator[Fault]:
    source, at = query.source, query.source.note_offset("like")
    name, *marks = query.statement.listed("like") or ("",)
    if not name.isidentifier() or not all(re.fullmatch(r"[+-]\w+", mark) for mark in marks):
        message = "like: write a query, then `+name` for what only this one has and `-name` for what only that one has"
        yield source.fault(at, message)
    elif name == source.name:
        yield source.fault(at, "like: a query is like another, not like itself")
    elif name not in file:
        there = f"; {twins[name].dialect} has one, and each dialect is compared by itself" if name in twins else ""
        yield source.fault(at, f"like: there is no query {name} in this file{there}")
    elif source.readable and file[name].source.readable:
        added, omitted = (frozenset(mark[1:] for mark in marks if mark[0] == sign) for sign in "+-")
        pair = _Pair(query, file[name], added, omitted)
        differences = _differences(source, pair.model.source)
        if differences is None:
            yield source.fault(at, f"like: it has more or fewer SELECTs to compare than {pair.like}")
            return
        yield from _check_parameters(pair)
        for difference in differences:
            yield from _check_conditions(pair, difference)
        yield from _check_marks(pair, differences)
        yield from _check_columns(pair)


def _check_parameters(pair: _Pair) -> Iterator[Fault]:
    source, ours, theirs = pair.query.source, pair.query.source.parameters, pair.model.source.parameters
    for name in ours:
        if name not in theirs and name not in pair.added:
            message = f"its parameter {name} is none of {pair.like}; if that is meant the note says `+{name}`"
            yield source.fault(source.parameter_offset(name), message)
    for name in theirs:
        if name not in ours and name not in pair.omitted:
            message = f"it lacks the parameter {name} of {pair.like}; if that is meant the note says `-{name}`"
            yield source.fault(None, message)
    shared = [[name for name in some if name in ours and name in theirs] for some in (theirs, ours)]
    if shared[0] != shared[1]:
        expected, found = map(", ".join, shared)
        message = f"the order of its parameters is not that of {pair.like}"
        yield source.fault(None, message, expected=expected, found=found)


def _check_conditions(pair: _Pair, difference: _Difference) -> Iterator[Fault]:
    source = pair.query.source
    extra = [one for one in difference.extra if not one.names & pair.added]
    for missing in difference.missing:
        if missing.names & pair.omitted:
            continue
        other = next((one for one in extra if one.parameters and one.parameters == missing.parameters), None)
        if other is None:
            yield source.fault(difference.offset, f"it lacks a condition of {pair.like}: {missing.text}")
        else:
            extra.remove(other)
            message = f"its condition is not that of {pair.like}"
            yield source.fault(other.offset, message, expected=missing.text, found=other.text)
    for one in extra:
        yield source.fault(one.offset, f"its condition is none of {pair.like}: {one.text}")


def _check_marks(pair: _Pair, differences: Sequence[_Difference]) -> Iterator[Fault]:
    """Look for a mark that says nothing, as one that was left when the queries became more alike."""
    source, ours, theirs = pair.query.source, set(pair.query.source.parameters), set(pair.model.source.parameters)
    extra = {name for one in differences for condition in one.extra for name in condition.names}
    missing = {name for one in differences for condition in one.missing for name in condition.names}
    idle = [f"+{name}" for name in sorted(pair.added - extra - (ours - theirs))]
    idle += [f"-{name}" for name in sorted(pair.omitted - missing - (theirs - ours))]
    for mark in idle:
        whose = "this query" if mark[0] == "+" else pair.model.source.name
        yield source.fault(source.note_offset("like"), f"like: `{mark}` names nothing that only {whose} has")


def _check_columns(pair: _Pair) -> Iterator[Fault]:
    ours, theirs = ([column.name for column in one.interface.columns] for one in (pair.query, pair.model))
    if ours and theirs and ours != theirs and (sorted(ours) == sorted(theirs) or _same_shape(pair)):
        source = pair.query.source
        wrong = next((one for one, other in zip(ours, theirs, strict=False) if one != other), ours[-1])
        message = f"its columns are not those of {pair.like}"
        yield source.fault(source.column_offset(wrong), message, expected=", ".join(theirs), found=", ".join(ours))


def _same_shape(pair: _Pair) -> bool:
    """Whether the rows of both become the same dataclass, and both or neither have further columns."""
    try:
        ours, theirs = (shapes.parse(one.note or "") for one in (pair.query, pair.model))
    except QueryError:
        return False  # said at the note
    return (ours.record, bool(ours.columns)) == (theirs.record, bool(theirs.columns)) and ours.record is not None


def _check_unnoted(file: _File) -> Iterator[Fault]:
    """Find the queries of a file that are like others and do not say so.

    Two are alike if they share two conditions on parameters, and half of all that either has.
    """
    models = {name: next(iter(query.statement.listed("like")), None) for name, query in file.items()}
    # What names no other query has its fault already.
    sound = [name for name, model in models.items() if model is None or model in file.keys() - {name}]
    named = [name for name in sound if name in models.values()]
    passes = {name: _on_parameters(file[name].source) for name in sound}
    unnoted = [name for name in sound if models[name] is None and name not in named]
    for place, name in enumerate(unnoted):
        for other in (*named, *unnoted[:place]):
            shared = len(passes[name] & passes[other])
            if shared >= max(2, len(passes[name]) / 2, len(passes[other]) / 2):
                message = (
                    f"it shares {shared} conditions with {other}: write `-- like: {other}`, with `+name` for what only "
                    "this one has and `-name` for what only that one has"
                )
                yield file[name].source.fault(None, message)
                break


def _on_parameters(source: Source) -> frozenset[Key]:
    inner = innermost(selects(source.tokens))
    return frozenset(one.key for select in inner for one in select.conditions if one.parameters)


def _differences(ours: Source, theirs: Source) -> list[_Difference] | None:
    """Return how what two queries let pass differs, None where they have not as many SELECTs to compare."""
    (inner, around), (their_inner, around_theirs) = _levels(ours), _levels(theirs)
    if len(their_inner) not in (1, len(inner)):
        return None
    return [_difference(*both) for both in (*zip(inner, cycle(their_inner), strict=False), (around, around_theirs))]


def _levels(source: Source) -> tuple[list[Select], Select]:
    """Return the innermost SELECTs of a query, and those around them as one."""
    found = selects(source.tokens)
    inner = innermost(found) or [Select(0, source.offset)]
    around = [select for select in found if select.depth < inner[0].depth]
    conditions = tuple(condition for select in around for condition in select.conditions)
    return inner, Select(0, around[0].offset if around else source.offset, conditions)


def _difference(ours: Select, theirs: Select) -> _Difference:
    here, there = ({condition.key for condition in select.conditions} for select in (ours, theirs))
    return _Difference(
        ours.offset,
        tuple(condition for condition in theirs.conditions if condition.key not in here),
        tuple(condition for condition in ours.conditions if condition.key not in there),
    )
