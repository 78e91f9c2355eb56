"""Whether a package's calls of its queries pass the parameters that the files declare; read from the code alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from ..errors import QueryError
from ..sql import Statement, shapes
from .text import Fault

_METHODS: Final = ("fetchall", "fetchone", "fetchval", "execute", "stream")
_OWN: Final = {"stream": {"chunk"}}
"""Keywords of a method's own."""

_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class _Module:
    """A module. queries: names that stand for the queries of an entity, at the module's level."""

    path: Path
    statements: Mapping[str, Statement]
    queries: dict[str, str] = field(default_factory=dict)
    functions: dict[str, _Function] = field(default_factory=dict)

    def fault(self, node: ast.expr, query: str | None, message: str, expected: str = "", found: str = "") -> Fault:
        place = str(self.path), node.lineno, node.col_offset + 1
        return Fault(*place, query, message, expected or None, found or None)


def check(folder: Path, statements: Mapping[str, Statement]) -> Iterator[Fault]:
    """Check the modules of *folder*; *statements* go by their whole names."""
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            yield Fault(str(path), error.lineno or 1, error.offset or 1, None, f"the code cannot be read: {error.msg}")
            continue
        module = _Module(path, statements)
        for node in tree.body:
            if isinstance(node, _Function):
                module.functions[node.name] = node
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and (name := _entity(node.value)):
                module.queries[node.targets[0].id] = name
        for function in (tree, *(node for node in ast.walk(tree) if isinstance(node, _Function))):
            yield from _check_scope(module, function)


def _entity(node: ast.expr) -> str | None:
    """Return the entity of `sql.Queries("entity")`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sql.Queries", "Queries") and len(node.args) == 1:
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
    return None


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, or of a module, without those of the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, _Function):
            yield child
            yield from _own_nodes(child)


def _check_scope(module: _Module, scope: ast.Module | _Function) -> Iterator[Fault]:
    nodes = list(_own_nodes(scope))
    values = _assigned(nodes)
    for node in nodes:
        if isinstance(node, ast.expr):
            found = _named(module, node)
            if found == []:
                yield module.fault(node, None, f"{ast.unparse(node)} names a query that its file does not have")
        if isinstance(node, ast.Call):
            yield from _check_call(module, node, values)
            yield from _check_record(module, node)


def _assigned(nodes: Sequence[ast.AST]) -> dict[str, ast.expr | None]:
    """Return what names are assigned, None for those that are assigned more than once."""
    values: dict[str, ast.expr | None] = {}
    for node in nodes:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)):
                values[target.id] = None if target.id in values else node.value
    return values


def _named(module: _Module, node: ast.AST) -> list[Statement] | None:
    """Return the queries that `_queries.name` or `getattr(_queries, f"...")` can be, None if it is neither."""
    if isinstance(node, ast.Attribute):
        holder, pattern = node.value, re.escape(node.attr)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 2:
        holder, name = node.args
        parts = name.values if isinstance(name, ast.JoinedStr) else [name]
        pattern = "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"\w+" for p in parts)
    else:
        return None
    entity = module.queries.get(holder.id) if isinstance(holder, ast.Name) else _entity(holder)
    if entity is None or pattern == "entity":
        return None
    return [one for name, one in module.statements.items() if re.fullmatch(rf"{entity}\.{pattern}", name)]


def _check_call(module: _Module, call: ast.Call, values: Mapping[str, ast.expr | None]) -> Iterator[Fault]:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _METHODS:
        return
    passed, whole = _passed(module, call.keywords, values)
    passed = {name: node for name, node in passed.items() if name not in _OWN.get(call.func.attr, ())}
    for statement in _named(module, call.func.value) or []:
        if statement.suffix == "#":
            yield module.fault(call, statement.name, "a COPY is run by its method copy")
            continue
        unknown, missing = passed.keys() - statement.declared, statement.declared - passed.keys()
        if unknown or (whole and missing):
            yield module.fault(
                call,
                statement.name,
                "the call does not pass the parameters that the file declares",
                ", ".join(statement.parameters) or "none",
                ", ".join(passed) or "none",
            )
        yield from _check_value(module, call, statement)


def _check_value(module: _Module, call: ast.Call, statement: Statement) -> Iterator[Fault]:
    """Compare the type that fetchval is given with the note."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "fetchval" and "returns" in statement.notes):
        return
    try:
        shape = shapes.parse(statement.notes["returns"])
    except QueryError:
        return  # said at the note
    if len(call.args) > 1 and len(shape.columns) == 1:
        given, kind = ast.unparse(call.args[1]).rpartition(".")[2], shape.columns[0][1].kind
        if given not in (kind.__name__, *(name for name, one in shapes.TYPES.items() if one is kind)):
            message = "fetchval is given another type than the note `returns`"
            yield module.fault(call, statement.name, message, kind.__name__, given)


def _check_record(module: _Module, call: ast.Call) -> Iterator[Fault]:
    """Compare the dataclass that a query's rows are to become with its note.

    It is in `_queries.name.fetchall(conn, Class, ...)` and, where a function is given the query itself, in
    `_all(conn, Class, _queries.name)`.
    """
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("fetchall", "fetchone"):
        source: ast.expr | None = call.func.value
    else:
        source = call.args[2] if len(call.args) == 3 else None
    if source is None or len(call.args) < 2 or not ast.unparse(call.args[1])[0].isupper():
        return
    given = ast.unparse(call.args[1])
    for statement in _named(module, source) or []:
        note = statement.notes.get("returns")
        if note not in (None, given):
            message = "the rows are made into another dataclass than the note says"
            yield module.fault(call, statement.name, message, note or "", given)


def _passed(
    module: _Module, keywords: Sequence[ast.keyword], values: Mapping[str, ast.expr | None]
) -> tuple[dict[str, ast.expr], bool]:
    """Return the names that keywords pass, and whether these are known to be all."""
    passed: dict[str, ast.expr] = {}
    whole = True
    for keyword in keywords:
        if keyword.arg is not None:
            passed[keyword.arg] = keyword.value
        else:
            names, known = _keys(module, keyword.value, values)
            passed |= names
            whole = whole and known
    return passed, whole


def _keys(module: _Module, node: ast.expr, values: Mapping[str, ast.expr | None]) -> tuple[dict[str, ast.expr], bool]:
    """Return the keys of a dict, as far as the code tells, and whether these are known to be all."""
    if isinstance(node, ast.Name):
        assigned = values.get(node.id)
        return ({}, False) if assigned is None else _keys(module, assigned, values)
    if isinstance(node, ast.Dict):
        found: dict[str, ast.expr] = {}
        whole = True
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                names, known = _keys(module, value, values)
                found |= names
                whole = whole and known
            elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                found[key.value] = value
            else:
                whole = False
        return found, whole
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in module.functions:
        function = module.functions[node.func.id]
        own = list(_own_nodes(function))
        returned = [one.value for one in own if isinstance(one, ast.Return) and one.value is not None]
        if len(returned) == 1:
            return _keys(module, returned[0], _assigned(own))
    return {}, False
