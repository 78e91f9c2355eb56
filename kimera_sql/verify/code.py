"""What names in a package's code stand for, as far as that can be told without running it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Names: TypeAlias = Mapping[str, ast.AST | None]
"""What names are set to; None for one that is set more than once, or by something else than an assignment."""

_STEPS: Final = 20
"""How many names are followed at most, for they can go round in circles."""


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """A module. names: those that are set at its top."""

    path: Path
    tree: ast.Module
    names: Names


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """Where names are looked up: in a module, class or function, and then in the *outer* one.

    names: those that are set in it. given: what a function's parameters, and `self.name`, stand for if that is known.
    site: the call through which the function is looked at. calls: the functions that were entered on the way.
    """

    module: Module
    names: Names
    outer: Scope | None = None
    given: Mapping[str, Found] = field(default_factory=dict)
    site: tuple[Scope, ast.Call] | None = None
    calls: tuple[Function, ...] = ()

    def is_variable(self, name: str) -> bool:
        """Whether a function sets a name, or has a parameter of it."""
        return self.outer is not None and (name in self.names or self.outer.is_variable(name))


Found: TypeAlias = tuple[Scope, ast.AST]
"""A piece of code, with the scope that it stands in."""

Class: TypeAlias = tuple[Scope, ast.ClassDef]


class Code:
    """The modules of a folder. unreadable: the files that are no Python."""

    def __init__(self, folder: Path) -> None:
        self.unreadable: dict[Path, SyntaxError] = {}
        self._modules: dict[Path, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except SyntaxError as error:
                self.unreadable[path] = error
            else:
                self._modules[path] = Module(path, tree, _names(tree))

    def scopes(self) -> Iterator[Found]:
        """Yield each module, class and function; a method for each object of its class that a module holds."""
        attributes: dict[ast.AST, list[Mapping[str, Found]]] = {}
        for module in self._modules.values():
            for node in module.names.values():
                if isinstance(node, ast.Call) and (found := self._object(_top(module), node)):
                    classes, known = found
                    for _, made in classes:
                        attributes.setdefault(made, []).append(known)
        for module in self._modules.values():
            yield from _scopes(_top(module), module.tree, attributes)

    def resolve(self, scope: Scope, node: ast.AST) -> Found:
        """Return what an expression stands for: itself, unless it is a name whose meaning is known."""
        for _ in range(_STEPS):
            found = self._follow(scope, node)
            if found is None:
                break
            scope, node = found
        return scope, node

    def enter(self, scope: Scope, call: ast.Call) -> tuple[Scope, Function] | None:
        """Return the function that is called, if it is known, and a scope where its parameters are the arguments."""
        owner, function = self.resolve(scope, call.func)
        attributes: Mapping[str, Found] = {}
        bound = 0
        if isinstance(function, ast.Attribute) and (found := self._object(owner, function.value)):
            classes, attributes = found
            owner, function = _method(classes, function.attr) or (owner, function)
            bound = 1
        if not isinstance(function, Function) or function in scope.calls:
            return None
        given = {**attributes, **_arguments(function, scope, call, bound)}
        return _inside(owner, function, given, scope.site or (scope, call), (*scope.calls, function)), function

    def item(self, scope: Scope, node: ast.AST) -> Found | None:
        """Return what an iterable gives one after the other: a generator, as an expression or a call."""
        scope, node = self.resolve(scope, node)
        if isinstance(node, ast.GeneratorExp):
            return scope, node.elt
        if isinstance(node, ast.Call) and (entered := self.enter(scope, node)):
            inside, function = entered
            given = [one.value for one in own_nodes(function) if isinstance(one, ast.Yield) and one.value]
            return (inside, given[0]) if len(given) == 1 else None
        return None

    def keys(self, scope: Scope, node: ast.AST) -> tuple[list[str], bool]:
        """Return the keys of a dict, as far as the code tells, and whether these are known to be all."""
        scope, node = self.resolve(scope, node)
        if isinstance(node, ast.Dict):
            found: list[str] = []
            whole = True
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    names, known = self.keys(scope, value)
                else:
                    known = isinstance(key, ast.Constant)
                    names = [str(key.value)] if isinstance(key, ast.Constant) else []
                found += names
                whole = whole and known
            return list(dict.fromkeys(found)), whole
        if isinstance(node, ast.Call) and (entered := self.enter(scope, node)):
            inside, function = entered
            returned = [one.value for one in own_nodes(function) if isinstance(one, ast.Return) and one.value]
            if len(returned) == 1:
                return self.keys(inside, returned[0])
        return [], False

    def _follow(self, scope: Scope, node: ast.AST) -> Found | None:
        """Return what a name was set to, or is given."""
        if not isinstance(node, (ast.Name, ast.Attribute)):
            return None
        name = ast.unparse(node)
        within: Scope | None = scope
        while within is not None:
            if name in within.given:
                return within.given[name]
            if name in within.names:
                return self._look_up(within, name)
            within = within.outer
        if isinstance(node, ast.Attribute):
            holder, module = self.resolve(scope, node.value)
            if isinstance(module, ast.Module):
                return self._look_up(_top(holder.module), node.attr)
        return None

    def _look_up(self, scope: Scope, name: str) -> Found | None:
        node = scope.names.get(name)
        if isinstance(node, (ast.For, ast.AsyncFor)):
            return self.item(scope, node.iter)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else (scope, node)
        folder = scope.module.path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        (alias,) = node.names
        if module := self._module(folder / alias.name):
            return _top(module), module.tree
        if module := self._module(folder):
            return _top(module), ast.Name(alias.name)
        return None

    def _module(self, path: Path) -> Module | None:
        return self._modules.get(path.with_name(f"{path.name}.py")) or self._modules.get(path / "__init__.py")

    def _object(self, scope: Scope, node: ast.AST) -> tuple[list[Class], Mapping[str, Found]] | None:
        """Return the class of the object that an expression makes, and what its constructor sets `self.name` to.

        `self` is that object. Behind the class come those that it inherits from.
        """
        scope, call = self.resolve(scope, node)
        if not isinstance(call, ast.Call):
            return None
        owner, made = self.resolve(scope, call.func)
        if not isinstance(made, ast.ClassDef):
            return None
        classes = [*self._lineage(owner, made)]
        itself: Found = scope, call
        found = _method(classes, "__init__")
        if found is None:
            return classes, {"self": itself}
        owner, constructor = found
        inside = _inside(owner, constructor, _arguments(constructor, scope, call, bound=1))
        times = Counter(
            ast.unparse(node)
            for _, one in classes
            for node in ast.walk(one)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        )
        attributes: dict[str, Found] = {
            name: (inside, node.value)
            for node in own_nodes(constructor)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if times[name := ast.unparse(target)] == 1
        }
        return classes, {"self": itself, **attributes}

    def _lineage(self, owner: Scope, made: ast.ClassDef) -> Iterator[Class]:
        yield owner, made
        for base in made.bases:
            scope, found = self.resolve(owner, base.value if isinstance(base, ast.Subscript) else base)
            if isinstance(found, ast.ClassDef):
                yield from self._lineage(scope, found)


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module, class or function, and of those in it only the outermost node."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.ClassDef | Function):
            yield from own_nodes(child)


def as_dict(keywords: Sequence[ast.keyword]) -> ast.Dict:
    """Return the dict that keyword arguments are."""
    keys: list[ast.expr | None] = [None if one.arg is None else ast.Constant(one.arg) for one in keywords]
    return ast.Dict(keys, [one.value for one in keywords])


def _scopes(
    scope: Scope, node: ast.AST, attributes: Mapping[ast.AST, Sequence[Mapping[str, Found]]]
) -> Iterator[Found]:
    yield scope, node
    for child in own_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _scopes(_inside(scope, child), child, attributes)
        elif isinstance(child, Function):
            # A method does not see the names of its class.
            outer = scope.outer if isinstance(node, ast.ClassDef) and scope.outer else scope
            for given in attributes.get(node, [{}]):
                yield from _scopes(_inside(outer, child, given), child, attributes)


def _top(module: Module) -> Scope:
    return Scope(module, module.names)


def _inside(
    outer: Scope,
    node: ast.ClassDef | Function,
    given: Mapping[str, Found] | None = None,
    site: tuple[Scope, ast.Call] | None = None,
    calls: tuple[Function, ...] = (),
) -> Scope:
    """Return the scope of a class or function; a parameter that is set in it is no longer what was given."""
    names = {**_names(node)}
    known = {name: found for name, found in (given or {}).items() if name not in names}
    if isinstance(node, Function):
        names |= dict.fromkeys(one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg))
    return Scope(outer.module, names, outer, known, site, calls)


def _method(classes: Sequence[Class], name: str) -> tuple[Scope, Function] | None:
    """Return the method *name* of the first of *classes* that has one."""
    for owner, made in classes:
        for one in made.body:
            if isinstance(one, Function) and one.name == name:
                return owner, one
    return None


def _arguments(function: Function, scope: Scope, call: ast.Call, bound: int) -> dict[str, Found]:
    """Return what *call* hands to each parameter of *function*, whose first ones are *bound* already."""
    taken = [one.arg for one in (*function.args.posonlyargs, *function.args.args)][bound:]
    plain = list(takewhile(lambda one: not isinstance(one, ast.Starred), call.args))
    given: dict[str, Found] = {name: (scope, value) for name, value in zip(taken, plain, strict=False)}
    taken += [one.arg for one in function.args.kwonlyargs]
    given |= {one.arg: (scope, one.value) for one in call.keywords if one.arg in taken}
    if function.args.kwarg:
        given[function.args.kwarg.arg] = scope, as_dict([one for one in call.keywords if one.arg not in taken])
    return given


def _names(scope: ast.AST) -> Names:
    """Return what is set in a module, class or function."""
    times: Counter[str] = Counter()
    found: dict[str, ast.AST] = {}
    for node in own_nodes(scope):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            times[node.id] += 1
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                found |= _assigned(target, node.value)
        elif isinstance(node, (ast.For, ast.AsyncFor)) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.AnnAssign) and node.value:
            found |= _assigned(node.target, node.value)
        elif isinstance(node, ast.ClassDef | Function):
            times[node.name] += 1
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name
                times[name] += 1
                if isinstance(node, ast.ImportFrom) and node.level:
                    found[name] = ast.ImportFrom(node.module, [alias], node.level)
    return {name: found.get(name) if times[name] == 1 else None for name in times}


def _assigned(target: ast.expr, value: ast.expr) -> dict[str, ast.AST]:
    """Return the names that an assignment sets, those of `a, b = c, d` too."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return {
            name: one for pair in zip(target.elts, value.elts, strict=True) for name, one in _assigned(*pair).items()
        }
    return {}
