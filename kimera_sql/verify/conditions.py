"""Which rows a statement lets pass: the conditions of its WHEREs, read from its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from .text import Token

_CLAUSES: Final = frozenset(
    {
        "SELECT", "FROM", "JOIN", "ON", "WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", "OFFSET", "FETCH",
        "FOR", "SET", "VALUES", "RETURNING", "UNION", "INTERSECT", "EXCEPT",
    }
)  # fmt: skip
_ROWS_FOLLOW: Final = frozenset(
    {
        "FROM", "JOIN", "LATERAL", "USING", "AS", "MATERIALIZED", "UNION", "INTERSECT", "EXCEPT", "ALL", "DISTINCT", "",
    }
)  # fmt: skip
"""What stands before the parenthesis of a subquery, "" for a sign. Before that of arguments there is a name."""

Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the conditions that AND joins. key: the same where only white space and case differ.

    names: of the parameters, columns and functions in it. offset: in the file.
    """

    text: str
    key: Key
    parameters: frozenset[str]
    names: frozenset[str]
    offset: int


@dataclass(slots=True)
class Select:
    """A SELECT, UPDATE or DELETE. depth: how many parentheses it is in. offset: of its WHERE, its own without one."""

    depth: int
    offset: int
    conditions: tuple[Condition, ...] = ()


@dataclass(slots=True)
class _Group:
    """What one pair of parentheses holds. reads: its rows go into those of the statement. clause: where we are."""

    reads: bool
    clause: str = ""
    select: Select | None = None


def selects(tokens: Sequence[Token]) -> list[Select]:
    """Return the SELECTs whose rows go into those of the statement, as those in FROM and WITH do.

    One that stands in an expression, as in a condition, is part of the expression.
    """
    found: list[Select] = []
    groups = [_Group(reads=True)]
    for place, token in enumerate(tokens):
        group, before = groups[-1], tokens[place - 1].keyword if place else ""
        if token.text == "(":
            within = group.clause in ("", "FROM", "JOIN", "UNION", "INTERSECT", "EXCEPT")
            groups.append(_Group(group.reads and within and before in _ROWS_FOLLOW))
        elif token.text == ")" and len(groups) > 1:
            groups.pop()
        elif token.text == "," and group.clause == "ON":
            group.clause = "FROM"
        elif token.keyword == "SELECT" or (token.keyword in ("UPDATE", "DELETE") and not group.clause):
            group.clause, group.select = token.keyword, Select(token.depth, token.offset)
            if group.reads:
                found.append(group.select)
        elif _begins_clause(token, before):
            group.clause = token.keyword
            if token.keyword == "WHERE" and group.select and not group.select.conditions:
                group.select.offset = token.offset
                group.select.conditions = tuple(map(_condition, _split(_where(tokens[place + 1 :], token.depth))))
    return found


def innermost(found: Sequence[Select]) -> list[Select]:
    """Return those of *found* that are in most parentheses: what is left out there is never counted or cut off."""
    deepest = max((select.depth for select in found), default=0)
    return [select for select in found if select.depth == deepest]


def _begins_clause(token: Token, before: str) -> bool:
    """Whether a token begins a clause; FROM and ON that follow DISTINCT do not."""
    return token.keyword in _CLAUSES and not (before == "DISTINCT" and token.keyword in ("FROM", "ON"))


def _where(tokens: Sequence[Token], depth: int) -> list[Token]:
    """Return the tokens of a WHERE at *depth*, which ends with the next clause or the parenthesis that it is in."""
    before = ""
    for place, token in enumerate(tokens):
        if token.depth < depth or (token.depth == depth and _begins_clause(token, before)):
            return list(tokens[:place])
        before = token.keyword
    return list(tokens)


def _split(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Yield the parts that AND joins; where an OR stands beside it, what counts is the whole."""
    start = cases = 0
    between = False
    ends = []
    for place, token in enumerate(tokens):
        if token.depth != tokens[0].depth:
            continue
        cases += (token.keyword == "CASE") - (token.keyword == "END")
        if token.keyword == "OR" and not cases:
            yield tokens
            return
        if token.keyword == "AND" and not cases and not between:
            ends.append(place)
        between = token.keyword == "BETWEEN" or (between and token.keyword != "AND")
    for end in (*ends, len(tokens)):
        if start < end:
            yield tokens[start:end]
        start = end + 1


def _condition(tokens: Sequence[Token]) -> Condition:
    text, end = "", tokens[0].offset
    for token in tokens:
        text += (" " if token.offset > end else "") + token.text
        end = token.offset + len(token.text)
    parameters = frozenset(token.text[1:] for token in tokens if token.kind == "parameter")
    return Condition(
        text,
        tuple(token.text.lower() if token.kind == "word" else token.text for token in tokens),
        parameters,
        parameters | {token.text.strip('"') for token in tokens if token.kind in ("word", "quoted")},
        tokens[0].offset,
    )
