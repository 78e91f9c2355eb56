"""What a database holds: the smallest change is found, and told."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from kimera_sql.ops import backup
from kimera_sql.ops.backup.contents import differences, read_contents, settle

pytestmark = [pytest.mark.slow, pytest.mark.ends]


def test_differences_are_told(sample: backup.Dump) -> None:
    held = sample.contents
    assert differences(held, held) == []
    first, second, *others = held.tables
    changed = replace(
        held,
        tables=(replace(first, rows=7), replace(second, checksum="0"), *others[1:], replace(first, table="public.new")),
        searches=(replace(held.searches[0], found=()), *held.searches[1:]),
    )
    assert differences(held, changed) == [
        f"{first.table} has 7 rows instead of {first.rows}",
        f"{second.table} has other values: checksum 0 instead of {second.checksum}",
        f"{others[0].table} is missing",
        "public.new should not be there",
        f"the search for {held.searches[0].sample} in {held.searches[0].table} finds other rows",
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE geoid_states SET coherence_factor = 0 WHERE id = (SELECT id FROM geoid_states LIMIT 1)",
        "UPDATE geoid_states SET creation_context = NULL WHERE creation_context = ''",
        "UPDATE system_metrics SET metric_value = 0.33333333333333337",
        "UPDATE semantic_embeddings SET embedding = (SELECT array_agg(v * 1.0000001)::vector(1024)"
        " FROM unnest(embedding::real[]) AS v)",
    ],
)
def test_the_smallest_change_changes_a_checksum(filled: str, change: str) -> None:
    with psycopg.connect(filled) as conn:
        settle(conn)
        before = read_contents(conn)
        assert read_contents(conn) == before
        assert conn.execute(change.encode()).rowcount
        (told,) = differences(before, read_contents(conn))
        assert "has other values" in told
