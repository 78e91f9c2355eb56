"""Writing many rows under row-level security, where the server takes no COPY."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from fix_connections import BOTH_TWINS, to_own_database
from fix_servers import Server
from psycopg import sql as composed
from strategies import unit

from kimera_sql import embeddings, geoids, metrics, portals, transitions
from kimera_sql.errors import InvalidValue, NotFound
from kimera_sql.sql.arrow import pyarrow
from kimera_sql.sql.postgres import Connection


def state(number: int, entropy: float = 0) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        id=UUID(int=number), state_vector=unit(number), entropy=entropy, coherence_factor=0, energy_level=0
    )


NEW: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "geoid_states": (geoids, state),
    "semantic_embeddings": (
        embeddings,
        lambda number: embeddings.NewEmbedding(text_content="t", embedding=unit(number), source="s"),
    ),
    "cognitive_transitions": (
        transitions,
        lambda number: transitions.NewTransition(
            source_id=UUID(int=0),
            target_id=UUID(int=0),
            transition_energy=number,
            conservation_error=0,
            transition_type="t",
        ),
    ),
    "portal_configurations": (
        portals,
        lambda number: portals.NewPortal(
            source_dimension=number, target_dimension=1, radius=1, energy_requirement=1, stability_factor=1
        ),
    ),
    "system_metrics": (
        metrics,
        lambda number: metrics.NewMetric(metric_name="m", metric_value=number, component="c"),
    ),
}


@pytest.fixture(params=BOTH_TWINS)
def guarded(request: pytest.FixtureRequest, start: Callable[[str], Server]) -> Iterator[Any]:
    """A connection by a role whom policies let see and write everything but states of negative entropy."""
    role = composed.Identifier(f"kimera_test_{uuid4().hex}")
    with to_own_database(request.param, start) as conn:
        geoids.insert(conn, state(0))
        conn.execute(composed.SQL("CREATE ROLE {}").format(role))
        conn.execute(composed.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(role))
        conn.execute(composed.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {}").format(role))
        for table in NEW:
            name = composed.Identifier(table)
            condition = composed.SQL("entropy >= 0" if table == "geoid_states" else "true")
            conn.execute(composed.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(name))
            conn.execute(composed.SQL("CREATE POLICY mine ON {} USING ({})").format(name, condition))
        conn.commit()
        conn.execute(composed.SQL("SET SESSION ROLE {}").format(role))
        conn.commit()
        yield conn
        conn.rollback()
        conn.execute("RESET ROLE")
        conn.execute(composed.SQL("DROP OWNED BY {}").format(role))
        conn.execute(composed.SQL("DROP ROLE {}").format(role))
        conn.commit()


@pytest.mark.parametrize("table", NEW)
def test_rows_go_in_under_row_level_security(guarded: Connection, table: str) -> None:
    entity, new = NEW[table]
    before = entity.count(guarded)
    assert entity.insert_many(guarded, map(new, range(1, 251))) == 250
    assert entity.count(guarded) == before + 250
    assert entity.insert_many(guarded, []) == 0


def test_rows_of_arrow_go_in_too_and_one_that_is_refused_is_named(guarded: Connection) -> None:
    pa = pyarrow()
    data = {"state_vector": [unit(1)] * 250, "coherence_factor": [0.0] * 250, "energy_level": [0.0] * 250}
    assert geoids.insert_arrow(guarded, pa.table({**data, "entropy": [1.0] * 250})) == 250
    with pytest.raises(InvalidValue, match=r"^item 249: entropy: "):
        geoids.insert_arrow(guarded, pa.table({**data, "entropy": [*[1.0] * 249, float("nan")]}))
    assert geoids.count(guarded) == 251


def test_an_unordered_stream_yields_what_the_policy_lets_see(guarded: Connection) -> None:
    guarded.execute("SET LOCAL ROLE NONE")
    geoids.insert(guarded, state(1, -1))
    assert len(list(geoids.stream(guarded, ordered=False))) == 2
    guarded.commit()
    assert [found.id for found in geoids.stream(guarded, ordered=False)] == [UUID(int=0)]


def test_one_that_the_policy_refuses_leaves_nothing_written(guarded: Connection) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"):
        geoids.insert_many(guarded, [*map(state, range(1, 200)), state(999, -1)])
    assert geoids.count(guarded) == 1


def test_an_item_that_is_refused_here_is_named_all_the_same(guarded: Connection) -> None:
    with pytest.raises(InvalidValue, match=r"^item 150: entropy: "):
        geoids.insert_many(guarded, [*map(state, range(1, 151)), state(999, float("nan"))])
    assert geoids.count(guarded) == 1


@pytest.mark.parametrize("table", ["geoid_states", "semantic_embeddings", "portal_configurations"])
def test_rows_are_written_again_under_row_level_security(guarded: Connection, table: str) -> None:
    entity, new = NEW[table]
    items = [replace(new(number), id=UUID(int=number)) for number in range(1, 301)]
    assert entity.upsert_many(guarded, items[:200]) == entity.Upserted(200, 0)
    assert entity.upsert_many(guarded, items) == entity.Upserted(100, 200)
    assert entity.upsert(guarded, items[0]).id == UUID(int=1)


def test_a_row_that_the_policy_hides_is_not_written_over(guarded: Connection) -> None:
    guarded.execute("SET LOCAL ROLE NONE")
    hidden = geoids.insert(guarded, state(1, -1))
    guarded.commit()
    for write in (
        lambda: geoids.upsert(guarded, state(1)),
        lambda: geoids.upsert_many(guarded, [state(2), state(1)]),
        lambda: geoids.upsert_many(guarded, [state(2), state(3, -1)]),
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"):
            write()
        guarded.rollback()
    with pytest.raises(NotFound):
        geoids.replace_vector(guarded, hidden.id, unit(5))
    guarded.execute("SET LOCAL ROLE NONE")
    assert geoids.get(guarded, hidden.id) == hidden
    assert geoids.count(guarded) == 2
