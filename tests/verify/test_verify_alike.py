"""verify: queries that find the same rows another way, which the note `like` tells, do not drift apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import psycopg
import pytest
from fix_verify import found, planted, query

from kimera_sql.verify import alike, conditions, text, verify_queries

pytestmark = [pytest.mark.slow, pytest.mark.ends]

FAST: Final = query(
    """\
SELECT id, timestamp, entropy, 1 AS rank, 2 AS weight
FROM (
    SELECT id, timestamp, entropy
    FROM geoid_states
    WHERE (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:least::float8 IS NULL OR entropy >= :least)
    ORDER BY entropy, id
    LIMIT :candidates
) AS nearest
ORDER BY id
LIMIT :k""",
    "like: exact, +candidates",
    "returns: Dream, rank int, weight int",
    name="fast(since, until, least, k, candidates)",
)
EXACT: Final = (
    FAST.replace("-- like: exact, +candidates\n", "")
    .replace("fast(since, until, least, k, candidates)", "exact(since, until, least, k)")
    .replace(":candidates", ":k")
)
FILTER: Final = "(:least::float8 IS NULL OR entropy >= :least)"
LEAST: Final = f"\n        AND {FILTER}"

DRIFTS: Final[dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]]] = {
    "condition dropped with its parameter": (
        (("fast(since, until, least", "@@fast(since, until"), (LEAST, "")),
        (
            "it lacks the parameter least of exact, which it is like; if that is meant the note says `-least`",
            f"it lacks a condition of exact, which it is like: {FILTER}",
        ),
    ),
    "condition dropped": (
        (("WHERE", "@@WHERE"), (LEAST, ""), ("2 AS", "CASE WHEN :least::float8 > 1 THEN 2 ELSE 3 END AS")),
        (f"it lacks a condition of exact, which it is like: {FILTER}",),
    ),
    "all conditions moved behind the limit": (
        (
            ("    WHERE (:since::timestamptz IS NULL OR timestamp >= :since)\n", "    WHERE @@"),
            ("    WHERE @@        AND ", "    @@WHERE "),
            ("AS nearest\n", "AS nearest\nWHERE (:since::timestamptz IS NULL OR timestamp >= :since)\n"),
        ),
        (
            "it lacks a condition of exact, which it is like: (:since::timestamptz IS NULL OR timestamp >= :since)",
            "its condition is none of exact, which it is like: (:since::timestamptz IS NULL OR timestamp >= :since)",
        ),
    ),
    "operator changed": (
        (("(:until::timestamptz IS NULL OR timestamp <", "@@(:until::timestamptz IS NULL OR timestamp <="),),
        (
            "its condition is not that of exact, which it is like "
            "(expected (:until::timestamptz IS NULL OR timestamp < :until), "
            "found (:until::timestamptz IS NULL OR timestamp <= :until))",
        ),
    ),
    "AND changed to OR": (
        (("WHERE", "@@WHERE"), (LEAST, LEAST.replace("AND", "OR"))),
        (
            f"it lacks a condition of exact, which it is like: {FILTER}",
            "it lacks a condition of exact, which it is like: (:since::timestamptz IS NULL OR timestamp >= :since)",
            "it lacks a condition of exact, which it is like: (:until::timestamptz IS NULL OR timestamp < :until)",
            "its condition is none of exact, which it is like: (:since::timestamptz IS NULL OR timestamp >= :since) ",
        ),
    ),
    "parameter added": (
        (("candidates)", "candidates, most)"), (LEAST, f"{LEAST}\n        AND @@entropy <= :most")),
        (
            "its condition is none of exact, which it is like: entropy <= :most",
            "its parameter most is none of exact, which it is like; if that is meant the note says `+most`",
        ),
    ),
    "condition added": (
        ((LEAST, f"{LEAST}\n        AND @@entropy > 0"),),
        ("its condition is none of exact, which it is like: entropy > 0",),
    ),
    "parameters in another order": (
        (("fast(since, until", "@@fast(until, since"),),
        (
            "the order of its parameters is not that of exact, which it is like "
            "(expected since, until, least, k, found until, since, least, k)",
        ),
    ),
    "columns in another order": (
        (("rank int, weight int", "weight int, rank int"), ("1 AS rank, 2 AS weight", "2 AS @@weight, 1 AS rank")),
        (
            "its columns are not those of exact, which it is like "
            "(expected id, timestamp, entropy, rank, weight, found id, timestamp, entropy, weight, rank)",
        ),
    ),
    "column of another name": (
        (("weight int", "size int"), ("AS weight", "AS @@size")),
        ("its columns are not those of exact, which it is like (expected id, ",),
    ),
    "column too few": (
        (("rank int, weight int", "rank int"), ("1 AS rank, 2 AS weight", "1 AS @@rank")),
        ("its columns are not those of exact, which it is like (expected id, ",),
    ),
    "no such query": ((("like: exact", "like: @@exakt"),), ("like: there is no query exakt in this file",)),
    "itself": ((("like: exact", "like: @@fast"),), ("like: a query is like another, not like itself",)),
    "mark without a sign": (
        (("exact, +candidates", "@@exact, candidates"),),
        ("like: write a query, then `+name` for what only this one has and `-name` for what only that one has",),
    ),
    "no query": ((("like: exact, +", "like: @@+"),), ("like: write a query, then",)),
    "nothing but a comma": (
        (("name: fast", "name: @@fast"), ("like: exact, +candidates", "like: ,")),
        ("it shares 3 conditions with exact: write `-- like: exact`", "like: write a query, then"),
    ),
    "idle marks": (
        (("exact, +candidates", "@@exact, +candidates, -entropy, +least, -most"),),
        (
            "like: `+least` names nothing that only this query has",
            "like: `-entropy` names nothing that only exact has",
            "like: `-most` names nothing that only exact has",
        ),
    ),
}  # fmt: skip


def in_dialect(text: str, dialect: str) -> str:
    """Return *text* as a file of a folder that has queries for this dialect alone."""
    if dialect == "postgres":
        return text
    return re.sub(r"::\w+", "", text).replace("-- What it is for.\n", "-- What it is for.\n-- only: sqlite\n")


def drifted(changes: tuple[tuple[str, str], ...], dialect: str) -> str:
    text = FAST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return in_dialect(EXACT + text, dialect)


@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_drift_is_found_in_its_place(pg_conn: psycopg.Connection, tmp_path: Path, drift: str, dialect: str) -> None:
    changes, messages = DRIFTS[drift]
    place = planted(
        drifted(changes, dialect), tmp_path, f"{dialect}/dreams.sql" if dialect == "sqlite" else "dreams.sql"
    )
    faults = found(pg_conn, tmp_path)
    assert faults[0].startswith(place)
    assert len(faults) == len(messages)
    for fault, message in zip(faults, messages, strict=True):
        assert f"fast: {in_dialect(message, dialect)}" in fault


@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
def test_what_is_alike_has_no_fault(pg_conn: psycopg.Connection, tmp_path: Path, dialect: str) -> None:
    listed = query(
        "SELECT id, timestamp, entropy FROM geoid_states\n"
        "where ( :until::timestamptz is null OR timestamp<:until ) and entropy > :above AND coherence_factor > 0\n"
        "    AND (:since::timestamptz IS NULL OR timestamp >= :since)\nORDER BY id",
        "like: exact, -least, -k",
        "like: +above, +coherence_factor",
        "returns: Dream",
        name="listed(since, until, above)",
    )
    removed = query(
        "DELETE FROM geoid_states\nWHERE (:least::float8 IS NULL OR entropy >= :least)\n"
        "    AND (:since::timestamptz IS NULL OR timestamp >= :since)",
        "like: exact, -k, -until",
        name="removed(since, least)!",
    )
    either = query(
        FAST[FAST.index("    SELECT") : FAST.index("    ORDER")]
        + "UNION ALL\n"
        + FAST[FAST.index("    SELECT") : FAST.index("    ORDER")],
        "like: fast, -k, -candidates",
        "returns: Dream",
        name="either(since, until, least)",
    )
    text = in_dialect(EXACT + FAST + listed + removed + either, dialect)
    planted(text, tmp_path, f"{dialect}/dreams.sql" if dialect == "sqlite" else "dreams.sql")
    assert found(pg_conn, tmp_path) == []


def test_of_several_selects_each_is_compared(pg_conn: psycopg.Connection, tmp_path: Path) -> None:
    branch = FAST[FAST.index("    SELECT") : FAST.index("    ORDER")]
    lacking = branch.replace(LEAST, "").replace("WHERE", "@@WHERE")
    either = query(
        f"{branch}UNION ALL\n{lacking}", "like: exact, -k", "returns: Dream", name="either(since, until, least)"
    )
    place = planted(EXACT + either, tmp_path)
    (fault,) = found(pg_conn, tmp_path)
    assert fault.startswith(place)
    assert fault.endswith(f"it lacks a condition of exact, which it is like: {FILTER}")


def test_there_are_as_many_selects_to_compare(pg_conn: psycopg.Connection, tmp_path: Path) -> None:
    one, model = "SELECT id FROM geoid_states WHERE id = :id", "SELECT id FROM geoid_states WHERE id <> :id"
    place = planted(
        query(f"{one} UNION ALL {model}", "returns: UUID", name="both(id)")
        + query(one, "like: @@both", "returns: UUID", name="one(id)"),
        tmp_path,
    )
    (fault,) = found(pg_conn, tmp_path)
    assert fault == f"{place}one: like: it has more or fewer SELECTs to compare than both, which it is like"


@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
def test_a_model_of_the_other_dialect_is_none(pg_conn: psycopg.Connection, tmp_path: Path, dialect: str) -> None:
    other = "sqlite" if dialect == "postgres" else "postgres"
    only = "-- What it is for.\n-- only: {}\n"
    planted(EXACT.replace("-- What it is for.\n", only.format("postgres")), tmp_path, "postgres/dreams.sql")
    planted(in_dialect(EXACT, "sqlite"), tmp_path, "sqlite/dreams.sql")
    fast = (
        in_dialect(FAST, dialect)
        if dialect == "sqlite"
        else FAST.replace("-- What it is for.\n", only.format("postgres"))
    )
    place = planted(fast.replace("exact,", "@@exact,"), tmp_path, f"{dialect}/dreams.sql")
    faults = found(pg_conn, tmp_path)
    assert [fault for fault in faults if fault.startswith(place)] == [
        f"{place}fast: like: there is no query exact in this file; "
        f"{other} has one, and each dialect is compared by itself"
    ]


@pytest.mark.parametrize("changes", [(), (("fast(since, until, least", "fast(since, until"), (LEAST, ""))])
@pytest.mark.parametrize("first", [EXACT, FAST.replace("fast(", "faster(") + EXACT], ids=["two", "three"])
def test_a_query_that_lacks_the_note_is_found(
    pg_conn: psycopg.Connection, tmp_path: Path, first: str, changes: tuple[tuple[str, str], ...]
) -> None:
    new = FAST.replace("-- like: exact, +candidates\n", "").replace("name: ", "name: @@")
    for old, with_ in changes:
        assert old in new
        new = new.replace(old, with_)
    place = planted(first + new, tmp_path)
    (fault,) = found(pg_conn, tmp_path)
    assert fault.startswith(f"{place}fast: it shares ")
    assert ": write `-- like: exact`, with `+name` for what only this one has" in fault


def test_a_new_query_above_the_others_lacks_the_note_too(pg_conn: psycopg.Connection, tmp_path: Path) -> None:
    new = FAST.replace("-- like: exact, +candidates\n", "").replace("name: fast", "name: @@new")
    place = planted(new + EXACT + FAST, tmp_path)
    (fault,) = found(pg_conn, tmp_path)
    assert fault.startswith(f"{place}new: it shares 3 conditions with ")
    assert ": write `-- like: exact`" in fault


def test_a_query_that_shares_little_needs_no_note(pg_conn: psycopg.Connection, tmp_path: Path) -> None:
    since = "SELECT id FROM geoid_states WHERE (:since::timestamptz IS NULL OR timestamp >= :since)"
    others = [
        query(since, "returns: UUID", name="one(since)"),
        query(f"{since} AND id <> :id", "returns: UUID", name="two(since, id)"),
        query("SELECT id FROM geoid_states WHERE id = :id", "returns: UUID", name="three(id)^"),
        query("DELETE FROM geoid_states WHERE id = :id", name="four(id)!"),
    ]
    planted(EXACT + FAST + "".join(others), tmp_path)
    assert found(pg_conn, tmp_path) == []


SPLIT: Final = {
    "SELECT a FROM t WHERE b = :b AND (c OR d)": ["b = :b", "(c OR d)"],
    "SELECT a FROM t WHERE b = :b AND c OR d": ["b = :b AND c OR d"],
    "SELECT a FROM t WHERE b NOT BETWEEN :c AND :d AND e": ["b NOT BETWEEN :c AND :d", "e"],
    "SELECT a FROM t WHERE CASE WHEN b AND c OR d THEN e END AND f": ["CASE WHEN b AND c OR d THEN e END", "f"],
    "SELECT a FROM t WHERE b IS NOT DISTINCT FROM :b AND c ORDER BY d": ["b IS NOT DISTINCT FROM :b", "c"],
    "SELECT a FROM t WHERE b = 'x AND y' AND \"WHERE\" -- and\n    AND c LIMIT 1": ["b = 'x AND y'", '"WHERE"', "c"],
    "SELECT a FROM t WHERE EXISTS (SELECT b FROM u WHERE c AND d) AND e": [
        "EXISTS (SELECT b FROM u WHERE c AND d)",
        "e",
    ],
    "SELECT (SELECT a FROM u WHERE b) FROM t WHERE c GROUP BY d HAVING e": ["c"],
    "SELECT DISTINCT ON (a) a, (SELECT b FROM u WHERE c) FROM t WHERE d": ["d"],
    "SELECT count(*) FILTER (WHERE a) FROM unnest(ARRAY(SELECT b FROM u WHERE c)) WHERE d": ["d"],
    "SELECT a FROM (SELECT b FROM t WHERE c) AS s WHERE d": ["c"],
    "SELECT a FROM t JOIN LATERAL (SELECT b FROM u WHERE c) AS s ON s.b = t.b WHERE d": ["c"],
    "SELECT a FROM t JOIN u ON u.b IN (SELECT b FROM v WHERE c), (SELECT d FROM w WHERE e) AS s WHERE f": ["e"],
    "WITH s AS MATERIALIZED (SELECT a FROM t WHERE b) SELECT a FROM s WHERE c": ["b"],
    "WITH s AS (SELECT a FROM t) SELECT a FROM s WHERE b": [],
    "(SELECT a FROM t WHERE b UNION SELECT a FROM u WHERE c) EXCEPT (SELECT a FROM v WHERE d)": ["b", "c", "d"],
    "SELECT a FROM t WHERE b FOR UPDATE": ["b"],
    "UPDATE t SET a = (SELECT b FROM u WHERE c) WHERE d RETURNING e": ["d"],
    "DELETE FROM t USING (SELECT a FROM u WHERE b) AS s WHERE c": ["b"],
    "INSERT INTO t (a) SELECT b FROM u WHERE c ON CONFLICT (a) DO UPDATE SET a = 1 WHERE d": ["c"],
    "EXPLAIN (FORMAT JSON) SELECT a FROM t WHERE b": ["b"],
    "SELECT a FROM t WHERE ORDER BY b": [],
    "VALUES (1, (SELECT a FROM t WHERE b))": [],
}  # fmt: skip


@pytest.mark.parametrize("statement", SPLIT)
def test_the_conditions_are_those_of_the_innermost_where(tmp_path: Path, statement: str) -> None:
    (tmp_path / "dreams.sql").write_text(query(statement, name="one(b, c, d)"))
    (source,), _ = text.read(tmp_path / "dreams.sql", "postgres")
    inner = conditions.innermost(conditions.selects(source.tokens))
    assert [condition.text for select in inner for condition in select.conditions] == SPLIT[statement]


@pytest.mark.ends
def test_a_filter_dropped_from_one_way_of_searching_is_found(
    pg_conn: psycopg.Connection, shipped_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shipped_copy / "postgres/geoids.sql"
    before, name, after = file.read_text().partition("-- name: similar_half(")
    header = after.replace("until, metadata)", "until)", 1)
    file.write_text(
        before + name + header.replace("\n        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)", "", 1)
    )
    # Without the comparison nobody objects, and the snapshot takes it for right.
    with monkeypatch.context() as context:
        context.setattr(alike, "check", lambda queries: ())
        report = verify_queries(pg_conn, update=True)
        assert (report.faults, report.written) == ((), (str(shipped_copy / "snapshot.txt"),))
    line = before.count("\n") + 1
    expected = [
        f"{file}:{line}:10: similar_half: it lacks the parameter metadata of similar_exact, which it is like; "
        "if that is meant the note says `-metadata`",
        f"{file}:{line + 18}:5: similar_half: it lacks a condition of similar_exact, which it is like: "
        "(:metadata::jsonb IS NULL OR metadata @> :metadata)",
    ]
    assert [str(fault) for fault in verify_queries(None).faults] == expected
    assert [str(fault) for fault in verify_queries(pg_conn).faults] == expected
