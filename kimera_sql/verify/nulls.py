"""Whether a result column can be NULL, and how many dimensions a vector has: told from PostgreSQL's own parse tree.

The body of an SQL function that is written BEGIN ATOMIC is kept in pg_proc.prosqlbody as the tree that the parser made
of it (nodes/outfuncs.c), in which every name is resolved. PostgreSQL 15 to 18 write the nodes looked at here alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Node: TypeAlias = dict[str, Any]

_TOKEN: Final = re.compile(r"\{\w+|[{}()]|\[[^\]]*\]|\"(?:\\.|[^\"\\])*\"|(?:\\.|[^\s(){}\\])+")

# Functions are strict as a rule, but some give NULL for what is not, as extract of infinity: they are not here.
_NEVER: Final = frozenset(
    {
        "clock_timestamp", "concat", "concat_ws", "count", "cume_dist", "current_database", "dense_rank",
        "gen_random_uuid", "jsonb_build_array", "jsonb_build_object", "json_build_array", "json_build_object", "now",
        "ntile", "percent_rank", "pg_backend_pid", "pg_is_in_recovery", "pg_postmaster_start_time", "random", "rank",
        "row_number", "statement_timestamp", "transaction_timestamp", "uuid_generate_v4", "version",
    }
)  # fmt: skip
_UNLESS_GIVEN: Final = frozenset(
    {
        "abs", "binary_quantize", "btrim", "cardinality", "ceil", "char_length", "cosine_distance", "current_setting",
        "date_bin", "date_trunc", "exp", "floor", "format_type", "generate_series",
        "hashtextextended", "inner_product", "json_array_length", "jsonb_array_length", "jsonb_typeof", "l1_distance",
        "l2_distance", "l2_norm", "left", "length", "ln", "lower", "ltrim", "make_interval", "md5", "octet_length",
        "pg_size_bytes", "pg_size_pretty", "pg_wal_lsn_diff", "power", "replace", "right", "round", "rtrim", "sqrt",
        "to_json", "to_jsonb", "to_timestamp", "to_tsvector", "trunc", "ts_rank", "ts_rank_cd", "upper",
        "vector_dims", "vector_norm", "websearch_to_tsquery",
    }
)  # fmt: skip
_AGGREGATES: Final = frozenset(
    {
        "array_agg", "avg", "bool_and", "bool_or", "every", "json_agg", "json_object_agg", "jsonb_agg",
        "jsonb_object_agg", "max", "min", "mode", "percentile_cont", "percentile_disc", "string_agg", "sum",
    }
)  # fmt: skip
_GIVE_NULL: Final = frozenset({"->", "->>", "#>", "#>>"})

_FREE: Final = 0
"""The modifier of NULL itself, which goes with any."""


@dataclass(frozen=True, slots=True)
class Column:
    """nullable: None where it cannot be told. modifier: of the type, a vector's dimensions; -1 for none."""

    nullable: bool | None
    modifier: int = -1


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a tree refers to. attributes: (table, number of the column) to (NOT NULL, modifier)."""

    functions: Mapping[int, str]
    operators: Mapping[int, str]
    attributes: Mapping[tuple[int, int], tuple[bool, int]]


def parse(text: str) -> Any:
    """Read a node tree as PostgreSQL writes it: nodes as dicts, whose name is under "", and lists."""
    return _value(iter(_TOKEN.findall(text)), "")


def _value(tokens: Iterator[str], begin: str) -> Any:
    begin = begin or next(tokens)
    if begin.startswith("{"):
        node: Node = {"": begin[1:]}
        key = ""
        for part in tokens:
            if part.startswith("}"):
                break
            if part.startswith(":"):
                key = part[1:]
                node[key] = None
            else:
                value = _value(tokens, part)
                # A datum is its length and its bytes; nothing here asks for either.
                node[key] = value if node[key] is None and value != "<>" else node[key]
        return node
    if begin.startswith("("):
        values: list[Any] = []
        for part in tokens:
            if part.startswith(")"):
                break
            values.append(_value(tokens, part))
        return values
    return begin


def tables(tree: Any) -> set[int]:
    """Return the oids of the tables in *tree*."""
    found = set()
    if isinstance(tree, dict):
        if tree[""] == "RANGETBLENTRY" and tree["rtekind"] == "0" and tree["relkind"] != "v":
            found.add(int(tree["relid"]))
        tree = list(tree.values())
    if isinstance(tree, list):
        for one in tree:
            found |= tables(one)
    return found


def columns(tree: Any, catalogue: Catalogue) -> list[Column]:
    """Return what is known of the result columns of the statement that *tree* is the body of."""
    while isinstance(tree, list):
        tree = tree[-1]
    return _Reader(catalogue).columns(tree, ())


class _Reader:
    """Walks a tree. *outer* are the queries that a query is in, the nearest first."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._known: dict[int, list[Column]] = {}
        self._recursive: dict[int, list[Column]] = {}

    def columns(self, query: Node, outer: tuple[Node, ...]) -> list[Column]:
        if id(query) not in self._known:
            self._known[id(query)] = self._columns(query, outer)
        return self._known[id(query)]

    def _columns(self, query: Node, outer: tuple[Node, ...]) -> list[Column]:
        if query.get("setOperations"):
            several = [
                self.columns(query["rtable"][leaf - 1]["subquery"], (query, *outer))
                for leaf in _leaves(query["setOperations"])
            ]
            return [_either(same) for same in zip(*several, strict=True)]
        targets = query["targetList"] if query["commandType"] == "1" else query.get("returningList")
        return [
            self._expression(target["expr"], (query, *outer))
            for target in targets or []
            if target.get("resjunk") != "true"
        ]

    def _all(self, nodes: Iterable[Node], queries: tuple[Node, ...]) -> list[Column]:
        return [self._expression(node, queries) for node in nodes]

    def _expression(self, node: Node, queries: tuple[Node, ...]) -> Column:
        match node[""]:
            case "VAR":
                return self._variable(node, queries[int(node["varlevelsup"]) :])
            case "CONST":
                null = node["constisnull"] == "true"
                return Column(null, _FREE if null else int(node["consttypmod"]))
            case "PARAM":
                return Column(True)
            case "RELABELTYPE" | "COERCEVIAIO" | "ARRAYCOERCEEXPR" | "COLLATEEXPR" | "COERCETODOMAIN":
                of = self._expression(node["arg"], queries)
                return Column(of.nullable, int(node.get("resulttypmod") or -1))
            case "FUNCEXPR":
                return self._function(node, queries)
            case "OPEXPR":
                given = self._all(node["args"], queries)
                operator = self._catalogue.operators.get(int(node["opno"]), "->")
                return Column(True if operator in _GIVE_NULL else _any(given))
            case "AGGREF":
                return self._aggregate(node, queries)
            case "WINDOWFUNC":
                return Column(False if self._named(node["winfnoid"]) in _NEVER else None)
            case "COALESCEEXPR" | "MINMAXEXPR":
                given = self._all(node["args"], queries)
                return Column(_all_of(given), _same(given))
            case "CASEEXPR":
                given = self._all([when["result"] for when in node["args"]], queries)
                given.append(self._expression(node["defresult"], queries))
                return _either(given)
            case "BOOLEXPR":
                return Column(_any(self._all(node["args"], queries)))
            case "SUBLINK":
                return self._sublink(node, queries)
            case "NULLIFEXPR" | "SUBSCRIPTINGREF":
                return Column(True)
            case "NULLTEST" | "BOOLEANTEST" | "DISTINCTEXPR" | "ARRAYEXPR" | "ARRAY" | "ROWEXPR" | "ROW":
                return Column(False)
            case "SQLVALUEFUNCTION" | "GROUPINGFUNC":
                return Column(False)
        return Column(None)

    def _named(self, oid: str) -> str:
        return self._catalogue.functions.get(int(oid), "")

    def _function(self, node: Node, queries: tuple[Node, ...]) -> Column:
        name = self._named(node["funcid"])
        if name in _NEVER:
            return Column(False)
        given = self._all(node.get("args") or [], queries)
        cast = node["funcformat"] in ("1", "2")
        if cast or (name in _UNLESS_GIVEN and (name != "current_setting" or len(given) == 1)):
            return Column(_any(given))
        return Column(None)

    def _aggregate(self, node: Node, queries: tuple[Node, ...]) -> Column:
        name = self._named(node["aggfnoid"])
        if name == "count":
            return Column(False)
        if name not in _AGGREGATES:
            return Column(None)
        query = queries[int(node["agglevelsup"])]
        if not query.get("groupClause") or query.get("groupingSets") or node.get("aggfilter"):
            return Column(True)  # over no row at all it is NULL
        if name in ("array_agg", "json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg"):
            return Column(False)
        given = [*(node.get("aggdirectargs") or []), *(target["expr"] for target in node["args"])]
        return Column(_any(self._all(given, queries)))

    def _sublink(self, node: Node, queries: tuple[Node, ...]) -> Column:
        kind, query = int(node["subLinkType"]), node["subselect"]
        if kind in (0, 6):  # EXISTS, ARRAY
            return Column(False)
        if kind != 4:
            return Column(None)
        (value,) = self.columns(query, queries)
        one_row = query["hasAggs"] == "true" and not any(
            query.get(part) for part in ("groupClause", "groupingSets", "havingQual", "limitOffset", "limitCount")
        )
        return Column(value.nullable if one_row else True, value.modifier)

    def _variable(self, node: Node, queries: tuple[Node, ...]) -> Column:
        query, place = queries[0], int(node["varno"])
        if place < 1 or place > len(query["rtable"]):
            return Column(None)
        column = self._entry(query["rtable"][place - 1], int(node["varattno"]), queries)
        if node["vartypmod"] != "-1":
            column = Column(column.nullable, int(node["vartypmod"]))
        if place in _outer_joined(query) or query.get("groupingSets") or _no_such_row(node, query):
            return Column(True, column.modifier)
        return column

    def _entry(self, entry: Node, number: int, queries: tuple[Node, ...]) -> Column:
        if number <= 0:
            return Column(False)  # the row as a whole, or a system column
        match int(entry["rtekind"]):  # RTEKind (nodes/parsenodes.h)
            case 0:
                found = self._catalogue.attributes.get((int(entry["relid"]), number))
                return Column(None) if found is None else Column(not found[0], found[1])
            case 1:
                return self.columns(entry["subquery"], queries)[number - 1]
            case 2:
                return self._expression(entry["joinaliasvars"][number - 1], queries)
            case 3:
                return self._from_function(entry, number, queries)
            case 5:
                return _either([self._expression(row[number - 1], queries) for row in entry["values_lists"]])
            case 6:
                return self._common(entry, number, queries)
            case 9:
                return self._expression(entry["groupexprs"][number - 1], queries)
        return Column(None)

    def _from_function(self, entry: Node, number: int, queries: tuple[Node, ...]) -> Column:
        before = 0
        for function in entry["functions"]:
            count = int(function["funccolcount"])
            if number <= before + count:
                if function["funcexpr"][""] != "FUNCEXPR" or count > 1:
                    return Column(None)
                return self._expression(function["funcexpr"], queries)
            before += count
        return Column(False)  # WITH ORDINALITY

    def _common(self, entry: Node, number: int, queries: tuple[Node, ...]) -> Column:
        holder = queries[int(entry["ctelevelsup"]) :]
        for common in holder[0].get("cteList") or []:
            if _bare(common["ctename"]) == _bare(entry["ctename"]):
                return self._of_common(common, holder)[number - 1]
        return Column(None)

    def _of_common(self, common: Node, holder: tuple[Node, ...]) -> list[Column]:
        if common["cterecursive"] != "true":
            return self.columns(common["ctequery"], holder)
        place = id(common)
        if place not in self._recursive:
            # Where it refers to itself no column is NULL at first, then as was found, until nothing changes.
            found: list[Column] = []
            self._recursive[place] = [Column(False)] * len(common["ctecolnames"])
            while found != self._recursive[place]:
                self._recursive[place] = found or self._recursive[place]
                self._known.clear()
                found = self.columns(common["ctequery"], holder)
        return self._recursive[place]


def _bare(name: str) -> str:
    return name.strip('"')


def _leaves(node: Node) -> list[int]:
    if node[""] == "RANGETBLREF":
        return [int(node["rtindex"])]
    return _leaves(node["larg"]) + _leaves(node["rarg"])


def _outer_joined(query: Node) -> set[int]:
    """Return the places in the range table that an outer join can fill with NULL."""
    found: set[int] = set()

    def walk(node: Node, nulled: bool) -> None:
        match node[""]:
            case "RANGETBLREF":
                if nulled:
                    found.add(int(node["rtindex"]))
            case "FROMEXPR":
                for one in node.get("fromlist") or []:
                    walk(one, nulled)
            case "JOINEXPR":
                kind = int(node["jointype"])  # 1 left, 2 full, 3 right
                walk(node["larg"], nulled or kind in (2, 3))
                walk(node["rarg"], nulled or kind in (1, 2))
                if nulled:
                    found.add(int(node["rtindex"]))

    if query.get("jointree"):
        walk(query["jointree"], False)
    return found


def _no_such_row(variable: Node, query: Node) -> bool:
    """Whether it is of the old or the new row in RETURNING, where there may be none (PostgreSQL 18)."""
    command, which = query["commandType"], variable.get("varreturningtype", "0")
    update, insert, delete = "2", "3", "4"  # CmdType (nodes/nodes.h); MERGE may do any of them
    return (which == "1" and command not in (update, delete)) or (which == "2" and command not in (update, insert))


def _any(columns: Sequence[Column]) -> bool | None:
    """Whether one of *columns* can be NULL."""
    known = [column.nullable for column in columns]
    return True if True in known else None if None in known else False


def _all_of(columns: Sequence[Column]) -> bool | None:
    """Whether all of *columns* can be NULL at once."""
    known = [column.nullable for column in columns]
    return False if False in known else None if None in known else True


def _same(columns: Sequence[Column]) -> int:
    modifiers = {column.modifier for column in columns} - {_FREE}
    return modifiers.pop() if len(modifiers) == 1 else -1


def _either(columns: Sequence[Column]) -> Column:
    return Column(_any(columns), _same(columns))
