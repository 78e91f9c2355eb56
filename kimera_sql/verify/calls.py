"""Whether a package's calls of its queries pass the parameters that the files declare; read from the code alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ..errors import QueryError
from ..sql import Statement, shapes
from .code import Code, Scope, as_dict, own_nodes
from .text import COPY, Fault

_METHODS: Final = ("fetchall", "fetchone", "fetchval", "execute", "stream")
_NO_QUERIES: Final = ("entity", "__dict__")
"""Attributes of Queries itself."""
_OWN: Final = {"stream": {"chunk"}}
"""Keywords of a method's own."""


def check(folder: Path, statements: Mapping[str, Statement]) -> Iterator[Fault]:
    """Check the modules of *folder*; *statements* go by their whole names."""
    code = Code(folder)
    for path, error in code.unreadable.items():
        yield Fault(str(path), error.lineno or 1, error.offset or 1, None, f"the code cannot be read: {error.msg}")
    checker = _Checker(code, statements)
    # A method is read once for each object, and a function once for each call that hands a query on.
    yield from dict.fromkeys(fault for scope, node in code.scopes() for fault in checker.check(scope, node))


class _Checker:
    """Checks pieces of *code* against *statements*."""

    def __init__(self, code: Code, statements: Mapping[str, Statement]) -> None:
        self._code = code
        self._statements = statements

    def check(self, scope: Scope, within: ast.AST) -> Iterator[Fault]:
        """Check a module, class or function, and the functions that it hands queries to."""
        for node in own_nodes(within):
            if isinstance(node, (ast.Attribute, ast.Call)):
                pattern = self._pattern(scope, node)
                if pattern is not None and not self._matching(pattern):
                    message = f"{ast.unparse(node)} names a query that its file does not have"
                    yield _fault(scope, node, pattern, message)
            if isinstance(node, ast.Call):
                yield from self._check_call(scope, node)
                yield from self._check_pipelined(scope, node)
                yield from self._check_copy(scope, node)
                handed = (*node.args, *(keyword.value for keyword in node.keywords))
                if any(self._queries(scope, one) for one in handed) and (entered := self._code.enter(scope, node)):
                    yield from self.check(*entered)

    def _check_call(self, scope: Scope, call: ast.Call) -> Iterator[Fault]:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in _METHODS:
            return
        method, query = call.func.attr, call.func.value
        # What is wrong with a query that was handed in is to be put right where it was.
        handed_in = isinstance(query, ast.Name) and query.id in scope.given
        place = scope.site if scope.site and handed_in else (scope, call)
        keys, whole = self._code.keys(scope, as_dict(call.keywords))
        passed = [key for key in keys if key not in _OWN.get(method, ())]
        for statement in self._queries(scope, query):
            if statement.suffix == "#":
                yield _fault(*place, statement.name, "a COPY is run by its method copy")
                continue
            yield from _check_parameters(place, statement, passed, whole=whole)
            if len(call.args) > 1 and "returns" in statement.notes:
                wrong = self._check_type(scope, method, call.args[1], statement.notes["returns"])
                if wrong is not None:
                    yield _fault(*place, statement.name, *wrong)

    def _check_pipelined(self, scope: Scope, call: ast.Call) -> Iterator[Fault]:
        """Check the parameters of `Call(query.statement(conn), parameters)`, which a pipeline is given."""
        match call:
            case ast.Call(
                func=ast.Attribute(attr="Call"),
                args=[ast.Call(func=ast.Attribute(attr="statement", value=query)), parameters, *_],
            ):
                keys, whole = self._code.keys(scope, parameters)
                for statement in self._queries(scope, query):
                    yield from _check_parameters((scope, call), statement, keys, whole=whole)

    def _check_copy(self, scope: Scope, call: ast.Call) -> Iterator[Fault]:
        """Compare the keys of the rows that a COPY is sent, whose order counts, with its columns."""
        if not (isinstance(call.func, ast.Attribute) and call.func.attr == "copy" and len(call.args) == 2):
            return
        item = self._code.item(scope, call.args[1])
        sent, whole = ([], False) if item is None else self._code.keys(*item)
        for statement in self._queries(scope, call.func.value) if whole else ():
            copy = COPY.search(statement.text)
            columns = [name.strip() for name in copy["columns"].split(",")] if copy else sent
            if sent != columns:
                message = "the rows do not have the columns of the COPY in their order"
                yield _fault(scope, call, statement.name, message, ", ".join(columns), ", ".join(sent))

    def _check_type(self, scope: Scope, method: str, node: ast.expr, note: str) -> tuple[str, str, str] | None:
        """Compare the dataclass that rows become, or the type that fetchval is given, with the note `returns`."""
        given = self._type(scope, node)
        if given is None:
            return None
        if method in ("fetchall", "fetchone"):
            message = "the rows are made into another dataclass than the note says"
            return (message, note, given) if given[0].isupper() and given != note else None
        try:
            columns = shapes.parse(note).columns
        except QueryError:
            return None  # said at the note
        kinds = [kind.kind for _, kind in columns]
        if len(kinds) != 1 or shapes.TYPES.get(given) is kinds[0] or given == kinds[0].__name__:
            return None
        return "fetchval is given another type than the note `returns`", kinds[0].__name__, given

    def _type(self, scope: Scope, node: ast.AST) -> str | None:
        """Return the name of the class that an argument is, None of a variable."""
        scope, node = self._code.resolve(scope, node)
        if isinstance(node, ast.ClassDef):
            return node.name
        if not isinstance(node, (ast.Name, ast.Attribute)) or scope.is_variable(ast.unparse(node).partition(".")[0]):
            return None
        return ast.unparse(node).rpartition(".")[2]

    def _queries(self, scope: Scope, node: ast.AST) -> list[Statement]:
        """Return the queries that an expression can be, [] if it is none."""
        scope, node = self._code.resolve(scope, node)
        if isinstance(node, ast.IfExp):
            return [*self._queries(scope, node.body), *self._queries(scope, node.orelse)]
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            return next(filter(None, (self._queries(scope, one) for one in node.values)), [])
        pattern = self._pattern(scope, node)
        return [] if pattern is None else self._matching(pattern)

    def _matching(self, pattern: str) -> list[Statement]:
        return [one for name, one in self._statements.items() if fnmatchcase(name, pattern)]

    def _pattern(self, scope: Scope, node: ast.AST) -> str | None:
        """Return the whole name of the query that `_queries.name` or `getattr(_queries, f"...")` is, None of others.

        What is not known of it is a *.
        """
        scope, node = self._code.resolve(scope, node)
        if isinstance(node, ast.Attribute):
            holder, name = node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 2:
            holder, name = node.args[0], _known(node.args[1])
        else:
            return None
        scope, made = self._code.resolve(scope, holder)
        if not (isinstance(made, ast.Call) and ast.unparse(made.func) in ("sql.Queries", "Queries")):
            return None
        if len(made.args) != 1 or name in _NO_QUERIES:
            return None
        _, entity = self._code.resolve(scope, made.args[0])
        pattern = f"{_known(entity)}.{name}"
        return None if pattern == "*.*" else pattern


def _check_parameters(
    place: tuple[Scope, ast.expr], statement: Statement, passed: Sequence[str], *, whole: bool
) -> Iterator[Fault]:
    """Compare the names that are *passed*, all there are if *whole*, with those that *statement* declares."""
    unknown, missing = set(passed) - statement.declared, statement.declared - set(passed)
    if unknown or (whole and missing):
        message = "the call does not pass the parameters that the file declares"
        declared, given = (", ".join(names) or "none" for names in (statement.parameters, passed))
        yield _fault(*place, statement.name, message, declared, given)


def _known(node: ast.AST) -> str:
    """Return a string as it stands in the code, with a * for what is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_known, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "*"


def _fault(
    scope: Scope, node: ast.expr, query: str, message: str, expected: str | None = None, found: str | None = None
) -> Fault:
    return Fault(str(scope.module.path), node.lineno, node.col_offset + 1, query, message, expected, found)
