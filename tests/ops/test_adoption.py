"""Databases that have Kimera's tables already, from the specification's DDL or an ORM's, become kimera_sql's own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from commands import run
from fix_servers import Server
from psycopg import sql as composed
from strategies import unit

import kimera_sql
from kimera_sql import (
    MaintenanceError,
    SchemaError,
    UnsupportedByServer,
    add_adapters,
    adopt,
    drift,
    embeddings,
    geoids,
    metrics,
    migrate,
    migrations,
    portals,
    transitions,
)
from kimera_sql.errors import InvalidValue
from kimera_sql.ops import adoption, doctor
from kimera_sql.tables import NAMES

pytestmark = pytest.mark.slow

Connection = psycopg.Connection[Any]

SPECIFICATION: Final = """
CREATE TABLE geoid_states (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    timestamp TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    state_vector VECTOR(1024) NOT NULL,
    metadata JSONB DEFAULT '{}'::jsonb,
    entropy DOUBLE PRECISION NOT NULL,
    coherence_factor DOUBLE PRECISION NOT NULL,
    energy_level DOUBLE PRECISION NOT NULL,
    creation_context TEXT,
    tags TEXT[]
);
CREATE INDEX idx_geoid_vector ON geoid_states USING ivfflat (state_vector vector_cosine_ops);
CREATE INDEX idx_geoid_timestamp ON geoid_states (timestamp);
CREATE INDEX idx_geoid_entropy ON geoid_states (entropy);
CREATE INDEX idx_geoid_tags ON geoid_states USING GIN (tags);
CREATE TABLE cognitive_transitions (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    source_id UUID NOT NULL REFERENCES geoid_states(id),
    target_id UUID NOT NULL REFERENCES geoid_states(id),
    transition_energy DOUBLE PRECISION NOT NULL,
    conservation_error DOUBLE PRECISION NOT NULL,
    transition_type TEXT NOT NULL,
    timestamp TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    metadata JSONB DEFAULT '{}'::jsonb
);
CREATE INDEX idx_transitions_source ON cognitive_transitions (source_id);
CREATE TABLE semantic_embeddings (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    text_content TEXT NOT NULL,
    embedding VECTOR(1024) NOT NULL,
    timestamp TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    source TEXT,
    metadata JSONB DEFAULT '{}'::jsonb
);
CREATE INDEX idx_embedding_vector ON semantic_embeddings USING ivfflat (embedding vector_cosine_ops);
CREATE TABLE portal_configurations (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    source_dimension INTEGER NOT NULL,
    target_dimension INTEGER NOT NULL,
    radius DOUBLE PRECISION NOT NULL,
    energy_requirement DOUBLE PRECISION NOT NULL,
    stability_factor DOUBLE PRECISION NOT NULL,
    creation_timestamp TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    last_used_timestamp TIMESTAMP WITH TIME ZONE,
    configuration_parameters JSONB NOT NULL,
    status TEXT NOT NULL
);
CREATE TABLE system_metrics (
    id BIGSERIAL PRIMARY KEY,
    timestamp TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    metric_name TEXT NOT NULL,
    metric_value DOUBLE PRECISION NOT NULL,
    component TEXT NOT NULL,
    context JSONB DEFAULT '{}'::jsonb
);
CREATE INDEX idx_metrics_timestamp ON system_metrics (timestamp);
"""
"""The tables of the specification, with some of its indexes."""

CREATE_ALL: Final = """
CREATE TABLE geoid_states (
    id UUID NOT NULL,
    timestamp TIMESTAMP WITHOUT TIME ZONE,
    state_vector VECTOR(1024) NOT NULL,
    metadata JSON,
    entropy FLOAT,
    coherence_factor FLOAT,
    energy_level FLOAT,
    creation_context VARCHAR,
    tags VARCHAR[],
    PRIMARY KEY (id)
);
CREATE INDEX idx_geoid_vector ON geoid_states USING ivfflat (state_vector vector_cosine_ops);
CREATE INDEX ix_geoid_states_timestamp ON geoid_states (timestamp);
CREATE TABLE semantic_embeddings (
    id UUID NOT NULL,
    text_content TEXT NOT NULL,
    embedding VECTOR(1024),
    timestamp TIMESTAMP WITHOUT TIME ZONE DEFAULT now(),
    source VARCHAR(255),
    metadata JSON,
    PRIMARY KEY (id)
);
CREATE TABLE portal_configurations (
    id UUID NOT NULL,
    source_dimension INTEGER,
    target_dimension INTEGER,
    radius FLOAT,
    energy_requirement FLOAT,
    stability_factor FLOAT,
    creation_timestamp TIMESTAMP WITHOUT TIME ZONE,
    last_used_timestamp TIMESTAMP WITHOUT TIME ZONE,
    configuration_parameters JSON,
    status VARCHAR(20),
    PRIMARY KEY (id)
);
CREATE TABLE system_metrics (
    id SERIAL NOT NULL,
    timestamp TIMESTAMP WITHOUT TIME ZONE,
    metric_name VARCHAR(100),
    metric_value FLOAT,
    component VARCHAR(100),
    context JSON,
    PRIMARY KEY (id)
);
CREATE TABLE cognitive_transitions (
    id UUID NOT NULL,
    source_id UUID,
    target_id UUID,
    transition_energy FLOAT,
    conservation_error FLOAT,
    transition_type VARCHAR(50),
    timestamp TIMESTAMP WITH TIME ZONE DEFAULT now(),
    metadata JSONB,
    PRIMARY KEY (id),
    FOREIGN KEY(source_id) REFERENCES geoid_states (id) ON DELETE CASCADE,
    FOREIGN KEY(target_id) REFERENCES geoid_states (id) ON DELETE CASCADE
);
CREATE INDEX ix_cognitive_transitions_source_id ON cognitive_transitions (source_id);
"""
"""What SQLAlchemy 2's create_all makes of models of the specification's tables, as people write them."""

WHEN: Final = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


@pytest.fixture
def conn(empty_database: str) -> Iterator[Connection]:
    """An autocommit connection to a database with pgvector and nothing else."""
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
        add_adapters(conn)
        yield conn


@pytest.fixture(params=[SPECIFICATION, CREATE_ALL], ids=["specification", "create_all"])
def old(request: pytest.FixtureRequest, conn: Connection) -> Connection:
    conn.execute(request.param)
    return conn


def add_geoid(conn: Connection, vector: Any = None, **columns: Any) -> Any:
    values = {
        "id": uuid4(),
        "timestamp": WHEN,
        "state_vector": unit(1) if vector is None else vector,
        "metadata": "{}",
        "entropy": 0.5,
        "coherence_factor": 0.25,
        "energy_level": 1.5,
        **columns,
    }
    statement = composed.SQL("INSERT INTO geoid_states ({}) VALUES ({})").format(
        composed.SQL(", ").join(map(composed.Identifier, values)),
        composed.SQL(", ").join(map(composed.Placeholder, values)),
    )
    conn.execute(statement, values)
    return values["id"]


def add_transition(conn: Connection, source: UUID | None, target: UUID | None) -> UUID:
    id_ = uuid4()
    conn.execute(
        "INSERT INTO cognitive_transitions (id, source_id, target_id, transition_energy, conservation_error, "
        "transition_type, timestamp, metadata) VALUES (%s, %s, %s, 1, 0, 'drift', %s, '{}')",
        [id_, source, target, WHEN],
    )
    return id_


def fill(conn: Connection) -> tuple[list[UUID], UUID]:
    """Put good rows into every table, and return the ids of the states and of the transition between the first two."""
    conn.execute("SET TIME ZONE 'UTC'")
    ids = [
        add_geoid(conn, unit(number), metadata='{"a": [1, null]}', tags=["dream", "red"], creation_context="x")
        for number in range(20)
    ]
    transition = add_transition(conn, ids[0], ids[1])
    conn.execute(
        "INSERT INTO semantic_embeddings (id, text_content, embedding, timestamp, source, metadata) "
        "VALUES (%s, 'a text', %s, %s, 'book', '{}')",
        [uuid4(), unit(1), WHEN],
    )
    conn.execute(
        "INSERT INTO portal_configurations (id, source_dimension, target_dimension, radius, energy_requirement, "
        "stability_factor, creation_timestamp, configuration_parameters, status) "
        "VALUES (%s, 1, 2, 1, 0, 1, %s, '{}', 'active')",
        [uuid4(), WHEN],
    )
    conn.execute(
        "INSERT INTO system_metrics (timestamp, metric_name, metric_value, component, context) "
        "VALUES (%s, 'load', 1, 'core', '{}')",
        [WHEN],
    )
    return ids, transition


def counts(conn: Connection) -> dict[str, int]:
    return {name: len(conn.execute(f"TABLE {name}".encode()).fetchall()) for name in NAMES}


def aside(conn: Connection, table: str) -> dict[str, int]:
    """Return how many rows of *table* were set aside, by reason."""
    statement = composed.SQL("SELECT kimera_reason, count(*) FROM {} GROUP BY kimera_reason")
    return dict(conn.execute(statement.format(composed.Identifier(f"{table}_set_aside"))).fetchall())


def test_rows_ids_times_columns_and_indexes_stay(old: Connection) -> None:
    old.execute("ALTER TABLE geoid_states ADD COLUMN mood TEXT DEFAULT 'calm'")
    old.execute("CREATE INDEX by_mood ON geoid_states (mood)")
    old.execute("CREATE INDEX idx_geoid_metadata ON geoid_states (energy_level)")
    ids, transition = fill(old)
    adopted = adopt(old)
    assert dict(adopted.plan.tables) == {
        "geoid_states": 20,
        "cognitive_transitions": 1,
        "semantic_embeddings": 1,
        "portal_configurations": 1,
        "system_metrics": 1,
    }
    assert not adopted.plan.unfit
    add_adapters(old)
    found = geoids.get_many(old, ids)
    assert [one.id for one in found] == ids
    assert {(one.timestamp, one.tags, one.creation_context) for one in found} == {(WHEN, ("dream", "red"), "x")}
    assert found[3].metadata == {"a": [1, None]}
    assert np.array_equal(found[3].state_vector, unit(3))
    assert transitions.get(old, transition).timestamp == WHEN
    assert [one.timestamp for one in embeddings.stream(old)] == [WHEN]
    assert [one.creation_timestamp for one in portals.stream(old)] == [WHEN]
    assert [one.timestamp for one in metrics.stream(old)] == [WHEN]
    assert old.execute("SELECT mood FROM geoid_states LIMIT 1").fetchone() == ("calm",)
    names = {name for (name,) in old.execute("SELECT indexname FROM pg_indexes").fetchall()}
    assert {"by_mood", "idx_geoid_metadata", "kimera_idx_geoid_metadata", "idx_geoid_vector"} <= names


def test_afterwards_it_is_as_a_database_that_was_migrated(old: Connection) -> None:
    fill(old)
    assert migrations.differences(old)
    adopt(old)
    assert migrations.differences(old) == []
    assert migrate(old) == []
    made = {(one.table, one.kind, one.name, one.definition) for one in migrations.elements(old)}
    for one in drift.expected():
        if one.kind in drift.TUNING or one.kind == "type":
            assert (one.table, one.kind, one.name, one.definition) in made
    assert not [one for one in doctor.examine(old) if one.subject == "schema" or "migrations make it" in one.found]


def test_it_can_be_written_to(old: Connection) -> None:
    adopt(old)
    add_adapters(old)
    one = geoids.insert(old, geoids.NewGeoid(state_vector=unit(1), entropy=0.1, coherence_factor=0.2, energy_level=0.3))
    other = geoids.insert(
        old, geoids.NewGeoid(state_vector=unit(2), entropy=0.1, coherence_factor=0.2, energy_level=0.3)
    )
    transitions.insert(
        old,
        transitions.NewTransition(
            source_id=one.id,
            target_id=other.id,
            transition_energy=1,
            conservation_error=0,
            transition_type="drift",
        ),
    )
    new = metrics.NewMetric(metric_name="load", metric_value=1, component="core")
    assert metrics.insert(old, new).id == 1
    assert metrics.insert_many(old, [new]) == 1
    assert [hit.geoid.id for hit in geoids.similar(old, unit(2), k=1)] == [other.id]


def test_numbers_of_metrics_go_on(old: Connection) -> None:
    fill(old)
    before = old.execute("SELECT max(id) FROM system_metrics").fetchone()
    assert before is not None
    adopt(old)
    new = metrics.insert(old, metrics.NewMetric(metric_name="load", metric_value=2, component="core"))
    assert new.id > before[0]
    types = old.execute("SELECT data_type::text FROM pg_sequences WHERE sequencename = 'system_metrics_id_seq'")
    assert types.fetchone() == ("bigint",)


def test_rows_that_cannot_be_kept_stop_it_or_are_set_aside_with_the_reason(old: Connection) -> None:
    ids, _ = fill(old)
    unfit = {
        "timestamp is NULL": add_geoid(old, timestamp=None),
        "metadata is NULL": add_geoid(old, metadata=None),
        "its JSON is no object": add_geoid(old, metadata="[1]"),
        "its vector is zero, or of a norm that is not within 1e-15 to 1e18": add_geoid(old, np.zeros(1024)),
    }
    lost = add_transition(old, unfit["timestamp is NULL"], ids[0])
    old.execute("INSERT INTO geoid_states SELECT * FROM geoid_states WHERE false")
    old.execute(
        "INSERT INTO portal_configurations (id, source_dimension, target_dimension, radius, energy_requirement, "
        "stability_factor, creation_timestamp, configuration_parameters, status) "
        "VALUES (gen_random_uuid(), 1, 2, 1, -1, 1, now(), '{}', 'active')"
    )
    before = counts(old)
    planned = adoption.plan(old)
    assert {(one.table, one.reason): one.rows for one in planned.unfit} == {
        **{("geoid_states", reason): 1 for reason in unfit},
        ("cognitive_transitions", "source_id refers to no row of geoid_states that is kept"): 1,
        ("portal_configurations", "its energy is negative"): 1,
    }
    with pytest.raises(SchemaError, match=r"1 of geoid_states: timestamp is NULL.*--set-aside.*nothing was changed"):
        adopt(old)
    assert counts(old) == before
    assert adopt(old, set_aside=True).plan.unfit == planned.unfit
    assert aside(old, "geoid_states") == dict.fromkeys(unfit, 1)
    assert aside(old, "portal_configurations") == {"its energy is negative": 1}
    kept = old.execute("SELECT id, source_id, transition_type FROM cognitive_transitions_set_aside").fetchall()
    assert kept == [(lost, unfit["timestamp is NULL"], "drift")]
    assert counts(old) == {**before, "geoid_states": 20, "cognitive_transitions": 1, "portal_configurations": 1}
    # As they were: mended, they go back.
    old.execute("UPDATE geoid_states_set_aside SET timestamp = now() WHERE timestamp IS NULL")
    old.execute(
        "INSERT INTO geoid_states (id, timestamp, state_vector, metadata, entropy, coherence_factor, energy_level) "
        "SELECT id, timestamp, state_vector, metadata, entropy, coherence_factor, energy_level "
        "FROM geoid_states_set_aside WHERE id = %s",
        [unfit["timestamp is NULL"]],
    )


def test_columns_of_other_types(conn: Connection) -> None:
    conn.execute(
        SPECIFICATION.replace("state_vector VECTOR(1024) NOT NULL", "state_vector DOUBLE PRECISION[]")
        .replace("CREATE INDEX idx_geoid_vector ON geoid_states USING ivfflat (state_vector vector_cosine_ops);", "")
        .replace("embedding VECTOR(1024)", "embedding VECTOR")
        .replace(
            "CREATE INDEX idx_embedding_vector ON semantic_embeddings USING ivfflat (embedding vector_cosine_ops);", ""
        )
        .replace("UUID PRIMARY KEY DEFAULT gen_random_uuid()", "VARCHAR(36) PRIMARY KEY")
        .replace("UUID NOT NULL REFERENCES", "VARCHAR(36) NOT NULL REFERENCES")
        .replace("metadata JSONB DEFAULT '{}'::jsonb", "metadata JSON DEFAULT '{}'")
        .replace("entropy DOUBLE PRECISION", "entropy NUMERIC(10, 3)")
    )
    good = [str(uuid4()), str(uuid4())]
    vector = unit(3).astype(float).tolist()
    bad = {
        "id is no UUID": ("state-1", vector, "{}"),
        "state_vector has other dimensions than 1024": (str(uuid4()), vector[:5], "{}"),
        "state_vector has components that are not finite numbers of single precision": (
            str(uuid4()),
            [float("nan"), *vector[1:]],
            "{}",
        ),
        "metadata holds the NUL character, which JSONB cannot": (str(uuid4()), vector, '{"a": "\\u0000"}'),
    }
    for id_, components, metadata in [(good[0], vector, "{}"), (good[1], vector, '{"a": "\\\\u0000"}'), *bad.values()]:
        conn.execute(
            "INSERT INTO geoid_states (id, state_vector, entropy, coherence_factor, energy_level, metadata) "
            "VALUES (%s, %s, 0.125, 1, 1, %s)",
            [id_, components, metadata],
        )
    lost = bad["metadata holds the NUL character, which JSONB cannot"][0]
    conn.execute(
        "INSERT INTO semantic_embeddings (id, text_content, embedding) VALUES (%s, 'x', '[1,2]'), (%s, 'y', %s)",
        [str(uuid4()), str(uuid4()), unit(3)],
    )
    conn.execute(
        "INSERT INTO cognitive_transitions (id, source_id, target_id, transition_energy, conservation_error, "
        "transition_type) VALUES (%s, %s, %s, 1, 0, 'x'), (%s, %s, 'state-1', 1, 0, 'x'), (%s, %s, %s, 1, 0, 'x')",
        [str(uuid4()), good[0], good[1], str(uuid4()), good[0], str(uuid4()), good[1], lost],
    )
    conn.execute("SET standard_conforming_strings = off")
    adopt(conn, set_aside=True)
    add_adapters(conn)
    assert aside(conn, "geoid_states") == dict.fromkeys(bad, 1)
    assert aside(conn, "semantic_embeddings") == {"embedding has other dimensions than 1024": 1}
    assert aside(conn, "cognitive_transitions") == {
        "target_id is no UUID": 1,
        "target_id refers to no row of geoid_states that is kept": 1,
    }
    found = geoids.get_many(conn, [UUID(one) for one in good])
    assert [one.metadata for one in found] == [{}, {"a": "\\u0000"}]
    assert [one.entropy for one in found] == [0.125, 0.125]
    assert np.array_equal(found[0].state_vector, unit(3))
    assert migrations.differences(conn) == []


@pytest.mark.ends
def test_what_no_key_holds(conn: Connection) -> None:
    """Tables that something loaded without keys: two rows of one id, none, and transitions to nowhere."""
    conn.execute(re.sub(r" PRIMARY KEY| REFERENCES geoid_states\(id\)", "", SPECIFICATION))
    conn.execute("ALTER TABLE geoid_states ALTER COLUMN id DROP NOT NULL")
    one, nowhere = add_geoid(conn), uuid4()
    add_geoid(conn, id=one)
    conn.execute("UPDATE geoid_states SET tags = '{first}' WHERE ctid = '(0,1)'")
    add_transition(conn, one, one)
    add_transition(conn, nowhere, one)
    add_geoid(conn, id=None)
    adopt(conn, set_aside=True)
    assert aside(conn, "geoid_states") == {"another row has its id": 1, "id is NULL": 1}
    assert aside(conn, "cognitive_transitions") == {"source_id refers to no row of geoid_states that is kept": 1}
    assert migrations.differences(conn) == []


@pytest.mark.ends
def test_tables_and_columns_that_are_missing_are_made(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    conn.execute("DROP TABLE system_metrics, portal_configurations, cognitive_transitions")
    conn.execute("ALTER TABLE geoid_states DROP COLUMN tags, DROP COLUMN metadata, ALTER COLUMN id DROP DEFAULT")
    id_ = uuid4()
    conn.execute("INSERT INTO geoid_states VALUES (%s, %s, %s, 1, 1, 1, 'x')", [id_, WHEN, unit(1)])
    adopt(conn)
    found = geoids.get(conn, id_)
    assert (found.tags, found.metadata, found.creation_context) == ((), {}, "x")
    assert migrations.differences(conn) == []
    assert metrics.insert(conn, metrics.NewMetric(metric_name="a", metric_value=1, component="b")).id == 1


@pytest.mark.ends
def test_what_has_to_be_put_right_first(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    add_geoid(conn)
    conn.execute("ALTER TABLE geoid_states RENAME COLUMN entropy TO disorder")
    conn.execute("ALTER TABLE cognitive_transitions ALTER COLUMN transition_type TYPE BYTEA USING NULL")
    conn.execute("ALTER TABLE system_metrics RENAME TO old_metrics; CREATE VIEW system_metrics AS TABLE old_metrics")
    said = "\n".join(adoption.plan(conn).obstacles)
    assert "geoid_states has no column entropy, which every row has" in said
    assert "cognitive_transitions.transition_type is bytea, not text, and nothing here converts it" in said
    assert "system_metrics is no table" in said
    with pytest.raises(SchemaError, match="no column entropy"):
        adopt(conn, set_aside=True)


@pytest.mark.ends
def test_rows_of_ones_own_tables_do_not_go_with_those_set_aside(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    add_geoid(conn, metadata=None)
    conn.execute("CREATE TABLE notes (geoid UUID REFERENCES geoid_states ON DELETE CASCADE)")
    conn.execute("INSERT INTO notes SELECT id FROM geoid_states")
    with pytest.raises(SchemaError, match="constraint notes_geoid_fkey on table notes involves other data"):
        adopt(conn, set_aside=True)
    conn.execute("ALTER TABLE notes DROP CONSTRAINT notes_geoid_fkey, ADD FOREIGN KEY (geoid) REFERENCES geoid_states")
    (said,) = [one for one in adoption.plan(conn).notes if "notes" in one]
    assert "a row of geoid_states that constraint notes_geoid_fkey on table notes refers to cannot be set aside" in said
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
        adopt(conn, set_aside=True)
    assert "nothing was changed" in "".join(caught.value.__notes__)
    assert counts(conn)["geoid_states"] == 1
    assert conn.execute("SELECT to_regclass('geoid_states_set_aside')").fetchone() == (None,)


def test_rows_that_a_policy_hides_stop_it(server: Server, conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    owner = f"kimera_test_{uuid4().hex[:8]}"
    conn.execute(f"CREATE ROLE {owner}; GRANT CREATE, USAGE ON SCHEMA public TO {owner}".encode())
    try:
        for name in NAMES:
            conn.execute(f"ALTER TABLE {name} OWNER TO {owner}".encode())
        conn.execute("ALTER TABLE geoid_states ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        conn.execute(f"SET SESSION AUTHORIZATION {owner}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            adopt(conn, set_aside=True)
        conn.execute("ALTER TABLE geoid_states NO FORCE ROW LEVEL SECURITY")
        adopt(conn)
        conn.execute("RESET SESSION AUTHORIZATION")
        conn.execute(f"CREATE ROLE {owner}_app".encode())
        conn.execute("DROP TABLE kimera_migrations")
        conn.execute(f"SET ROLE {owner}_app".encode())
        with pytest.raises(SchemaError, match=rf"role {owner}_app does not own geoid_states, .*no CREATE privilege"):
            adopt(conn)
    finally:
        conn.execute("RESET ROLE; RESET SESSION AUTHORIZATION")
        conn.execute(f"DROP OWNED BY {owner} CASCADE".encode())
        conn.execute(f"DROP ROLE {owner}; DROP ROLE IF EXISTS {owner}_app".encode())


@pytest.mark.ends
def test_words_of_other_types_become_text(conn: Connection) -> None:
    """SQLAlchemy makes a type of its own of an Enum."""
    conn.execute(
        "CREATE TYPE portal_status AS ENUM ('active', 'closed'); CREATE DOMAIN word AS TEXT CHECK (VALUE <> '')"
    )
    conn.execute(
        CREATE_ALL.replace("status VARCHAR(20)", "status portal_status DEFAULT 'active'").replace(
            "creation_context VARCHAR", "creation_context word"
        )
    )
    fill(conn)
    adopt(conn)
    assert [one.status for one in portals.stream(conn)] == ["active"]
    assert {one.creation_context for one in geoids.latest(conn)} == {"x"}
    assert migrations.differences(conn) == []


HOLDERS: Final = {
    "CREATE VIEW times AS SELECT timestamp FROM geoid_states": (
        "geoid_states.timestamp must change its type, which rule _RETURN on view times prevents"
    ),
    "CREATE MATERIALIZED VIEW times AS SELECT timestamp FROM geoid_states": "rule _RETURN on materialized view times",
    "CREATE POLICY late ON geoid_states USING (timestamp > '2020-01-01')": "policy late on table geoid_states",
    "CREATE TRIGGER stamp BEFORE UPDATE OF timestamp ON geoid_states EXECUTE FUNCTION nothing()": (
        "trigger stamp on table geoid_states prevents: drop it, and create it again afterwards"
    ),
    "CREATE FUNCTION first() RETURNS timestamp BEGIN ATOMIC SELECT min(timestamp) FROM geoid_states; END": (
        "which function first() prevents"
    ),
    "ALTER TABLE geoid_states ALTER id TYPE VARCHAR(36), ADD parent_id VARCHAR(36) REFERENCES geoid_states": (
        "which constraint geoid_states_parent_id_fkey on table geoid_states prevents"
    ),
    "CREATE TABLE base (timestamp TIMESTAMP); ALTER TABLE geoid_states INHERIT base": "inheritance from base prevents",
    "ALTER TABLE geoid_states ADD CHECK (json_typeof(metadata) = 'object')": (
        "a trial on empty copies of the tables fails at geoid_states: function json_typeof(jsonb) does not exist"
    ),
    "CREATE INDEX ON geoid_states (date(timestamp))": "functions in index expression must be marked IMMUTABLE",
    "ALTER TABLE geoid_states ADD year INT GENERATED ALWAYS AS (EXTRACT(year FROM timestamp)) STORED": (
        'cannot alter type of a column used by a generated column: Column "timestamp" is used'
    ),
    "ALTER TABLE geoid_states DROP COLUMN energy_level, "
    "ADD energy_level DOUBLE PRECISION GENERATED ALWAYS AS (entropy * 2) STORED": (
        "geoid_states.energy_level is a generated column, which kimera_sql could not write"
    ),
    "ALTER TABLE system_metrics DROP CONSTRAINT system_metrics_pkey, ALTER timestamp SET DEFAULT now(), "
    "ADD PRIMARY KEY (id, timestamp)": 'multiple primary keys for table "system_metrics" are not allowed',
}
"""What people have about such tables that the tables can't be adopted with, and what is said about it."""


@pytest.mark.ends
@pytest.mark.parametrize(("change", "said"), HOLDERS.items())
def test_what_stands_in_the_way_of_a_change_is_told_beforehand(conn: Connection, change: str, said: str) -> None:
    conn.execute(CREATE_ALL)
    conn.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    if "parent_id" in change:
        conn.execute("ALTER TABLE cognitive_transitions DROP source_id, DROP target_id")
    conn.execute(change.encode())
    before = migrations.elements(conn)
    (obstacle,) = adoption.plan(conn).obstacles
    assert said in obstacle
    with pytest.raises(SchemaError) as caught:
        adopt(conn, set_aside=True)
    assert str(caught.value) == obstacle
    assert migrations.elements(conn) == before


REACHING: Final = {
    "CREATE TRIGGER clear AFTER DELETE ON geoid_states FOR EACH ROW EXECUTE FUNCTION clear()": (
        "trigger clear on table geoid_states"
    ),
    "ALTER TABLE geoid_states ADD parent_id UUID REFERENCES geoid_states ON DELETE CASCADE": (
        "constraint geoid_states_parent_id_fkey on table geoid_states"
    ),
    "ALTER TABLE cognitive_transitions ADD cause UUID REFERENCES geoid_states ON DELETE SET NULL": (
        "constraint cognitive_transitions_cause_fkey on table cognitive_transitions"
    ),
    "CREATE RULE keep AS ON DELETE TO geoid_states DO INSTEAD NOTHING": "rule keep on table geoid_states",
    "CREATE TABLE dreams (dream TEXT) INHERITS (geoid_states)": "inheritance by table dreams",
}
"""What would lose or change more than the rows that are set aside."""


@pytest.mark.ends
@pytest.mark.parametrize(("change", "said"), REACHING.items())
def test_setting_aside_reaches_nothing_else(conn: Connection, change: str, said: str) -> None:
    conn.execute(SPECIFICATION)
    conn.execute("CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    conn.execute(change.encode())
    add_geoid(conn)
    assert adoption.plan(conn).obstacles == ()
    add_geoid(conn, timestamp=None)
    with pytest.raises(SchemaError, match=f"rows of geoid_states must be set aside, and {said} involves other data"):
        adopt(conn, set_aside=True)
    assert counts(conn)["geoid_states"] == 2


@pytest.mark.ends
def test_a_trigger_that_is_disabled_is_in_nobodys_way(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    conn.execute("CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    conn.execute("CREATE TRIGGER clear BEFORE DELETE ON geoid_states FOR EACH ROW EXECUTE FUNCTION clear()")
    conn.execute("ALTER TABLE geoid_states DISABLE TRIGGER clear")
    add_geoid(conn, timestamp=None)
    adopt(conn, set_aside=True)
    assert aside(conn, "geoid_states") == {"timestamp is NULL": 1}


@pytest.mark.ends
def test_values_that_a_conversion_would_refuse(conn: Connection) -> None:
    conn.execute(
        CREATE_ALL.replace("entropy FLOAT", "entropy NUMERIC")
        .replace("state_vector VECTOR(1024)", "state_vector REAL[]")
        .replace("CREATE INDEX idx_geoid_vector ON geoid_states USING ivfflat (state_vector vector_cosine_ops);", "")
    )
    vector = unit(1).tolist()
    good = [
        add_geoid(conn, vector, entropy=entropy, metadata=metadata)
        for entropy, metadata in (
            ("1.7976931348623157e308", '{"a": "\\ud83d\\ude00"}'),
            ("-4.94065645841246544e-324", '{"a": "\\\\ud83d"}'),
            ("0", '{"a": 1, "a": 2}'),
        )
    ]
    for entropy in ("1e400", "-1e309", "1e-400"):
        add_geoid(conn, vector, entropy=entropy)
    for metadata in ('{"a": "\\ud83d"}', '{"a": "\\ude00\\ud83d"}', '{"a": "\\ud83d\\ud83d\\ude00"}'):
        add_geoid(conn, vector, metadata=metadata)
    for odd in ([], unit(1).reshape(32, 32).tolist()):
        add_geoid(conn, odd)
    adopt(conn, set_aside=True)
    assert aside(conn, "geoid_states") == {
        "entropy is beyond double precision": 3,
        "metadata holds half of a character (a lone surrogate), which JSONB cannot": 3,
        "state_vector has other dimensions than 1024": 2,
    }
    add_adapters(conn)
    found = geoids.get_many(conn, good)
    assert [one.entropy for one in found] == [1.7976931348623157e308, -5e-324, 0]
    assert [one.metadata for one in found] == [{"a": "\U0001f600"}, {"a": "\\ud83d"}, {"a": 2}]


@pytest.mark.ends
def test_what_is_too_long_for_an_index(conn: Connection) -> None:
    """Deleted rows are in a new index too, so setting them aside would not help."""
    conn.execute(SPECIFICATION.replace("CREATE INDEX idx_geoid_tags ON geoid_states USING GIN (tags);", ""))
    long = "".join(uuid4().hex for _ in range(100))
    state = add_geoid(conn, tags=["short", long])
    conn.execute(
        "UPDATE cognitive_transitions SET transition_type = %s WHERE id = %s",
        [long, add_transition(conn, state, state)],
    )
    with pytest.raises(SchemaError) as caught:
        adopt(conn, set_aside=True)
    assert str(caught.value) == (
        "geoid_states.tags is too long for its index in 1 rows: shorten it to 2,000 bytes; "
        "cognitive_transitions.transition_type is too long for its index in 1 rows: shorten it to 2,000 bytes"
    )
    conn.execute("UPDATE cognitive_transitions SET transition_type = left(transition_type, 2000)")
    conn.execute("UPDATE geoid_states SET tags = ARRAY[left(tags[2], 2000)]")
    conn.execute("VACUUM geoid_states, cognitive_transitions")
    adopt(conn)


@pytest.mark.ends
def test_names_that_are_taken_stay(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    conn.execute("ALTER TABLE geoid_states ADD CONSTRAINT geoid_states_vector_norm CHECK (entropy > -1)")
    conn.execute("CREATE STATISTICS kimera_metrics_component ON metric_name, timestamp FROM system_metrics")
    adopt(conn)
    names = {
        name for (name,) in conn.execute("SELECT conname FROM pg_constraint UNION SELECT stxname FROM pg_statistic_ext")
    }
    assert {
        "geoid_states_vector_norm",
        "kimera_geoid_states_vector_norm",
        "kimera_metrics_component",
        "kimera_kimera_metrics_component",
    } <= names
    assert migrations.differences(conn) == []


@pytest.mark.ends
def test_keys_that_are_checked_at_the_end_of_a_transaction(conn: Connection) -> None:
    conn.execute(SPECIFICATION.replace("REFERENCES geoid_states(id)", "REFERENCES geoid_states(id) INITIALLY DEFERRED"))
    fill(conn)
    add_geoid(conn, timestamp=None)
    adopt(conn, set_aside=True)
    assert aside(conn, "geoid_states") == {"timestamp is NULL": 1}


@pytest.mark.ends
def test_partitioned_tables(conn: Connection) -> None:
    conn.execute(
        SPECIFICATION.replace(
            "tags TEXT[]\n);",
            "tags TEXT[]\n) PARTITION BY HASH (id);"
            "CREATE TABLE half PARTITION OF geoid_states FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
            "CREATE TABLE other_half PARTITION OF geoid_states FOR VALUES WITH (MODULUS 2, REMAINDER 1);",
        )
    )
    ids, _ = fill(conn)
    for _ in range(8):
        add_geoid(conn, timestamp=None)
    adopt(conn, set_aside=True)
    assert aside(conn, "geoid_states") == {"timestamp is NULL": 8}
    assert [one.id for one in geoids.get_many(conn, ids)] == ids
    assert migrations.differences(conn) == []


@pytest.mark.ends
def test_new_tables_are_made_beside_the_others(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    conn.execute("CREATE SCHEMA app; SET search_path = app, public")
    with pytest.raises(SchemaError, match=r"schema public has geoid_states, .* let the search path begin with it"):
        adopt(conn)
    conn.execute("SET search_path = public, app")
    adopt(conn)


@pytest.mark.ends
def test_a_limit_on_statements_is_not_for_the_adoption(conn: Connection) -> None:
    conn.execute(SPECIFICATION)
    add_geoid(conn)
    conn.execute("ALTER TABLE geoid_states ALTER COLUMN entropy TYPE REAL")
    # Slow where the index is built anew, in the adoption's transaction alone.
    conn.execute(
        "CREATE FUNCTION dawdle(DOUBLE PRECISION) RETURNS DOUBLE PRECISION IMMUTABLE LANGUAGE plpgsql AS $$BEGIN "
        "IF current_setting('row_security') = 'off' THEN PERFORM pg_sleep(1.5); END IF; RETURN $1; END$$"
    )
    conn.execute("CREATE INDEX ON geoid_states (dawdle(entropy)); SET statement_timeout = '1s'")
    adopt(conn)
    assert conn.execute("SHOW statement_timeout").fetchone() == ("1s",)


@pytest.mark.ends
def test_a_lock_that_is_not_granted_names_its_holder(conn: Connection, empty_database: str) -> None:
    conn.execute(SPECIFICATION)
    with psycopg.connect(empty_database) as reader:
        reader.execute("SELECT FROM geoid_states")
        pid = reader.info.backend_pid
        with pytest.raises(MaintenanceError, match=rf"could not be locked within 0.2 s, .*process {pid};"):
            adopt(conn, lock_timeout=timedelta(seconds=0.2))
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)
    adopt(conn)


@pytest.mark.ends
def test_a_session_that_is_killed_leaves_everything_as_it_was(conn: Connection, empty_database: str) -> None:
    conn.execute(SPECIFICATION)
    add_geoid(conn, metadata=None)
    add_geoid(conn)
    # The index is built anew after rows were set aside, because its column is converted.
    conn.execute(
        "CREATE FUNCTION dawdle(DOUBLE PRECISION) RETURNS DOUBLE PRECISION IMMUTABLE LANGUAGE plpgsql AS $$BEGIN "
        "IF current_setting('application_name') = 'adopting' THEN PERFORM pg_sleep(60); END IF; RETURN $1; END$$"
    )
    conn.execute("ALTER TABLE geoid_states ALTER COLUMN entropy TYPE REAL")
    conn.execute("CREATE INDEX ON geoid_states (dawdle(entropy)); SET application_name = 'adopting'")
    before, pid = counts(conn), conn.info.backend_pid
    with psycopg.connect(empty_database, autocommit=True) as other, ThreadPoolExecutor() as pool:
        adopting = pool.submit(adopt, conn, set_aside=True)
        while not other.execute(
            "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", [pid]
        ).fetchall():
            time.sleep(0.01)
        other.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(psycopg.OperationalError):
            adopting.result()
        assert counts(other) == before
        assert other.execute("SELECT to_regclass('geoid_states_set_aside')").fetchone() == (None,)


@pytest.mark.ends
def test_the_command(conn: Connection, empty_database: str) -> None:
    conn.execute(SPECIFICATION)
    fill(conn)
    add_geoid(conn, timestamp=None)
    refused = run("init", DATABASE_URL=empty_database)
    assert refused.returncode == 1
    assert "which kimera_sql did not make; `kimera-sql adopt --dry-run`" in refused.stderr
    assert "kimera-sql adopt --dry-run" in run("doctor", DATABASE_URL=empty_database).stdout
    planned = run("adopt", "--dry-run", DATABASE_URL=empty_database)
    assert planned.returncode == 0
    for line in (
        "geoid_states: 21 rows",
        "geoid_states.timestamp can be NULL",
        "semantic_embeddings lacks an index hash (text_content)",
        "there is no table kimera_vector_indexes",
        "geoid_states: 1 rows cannot be kept as they are: timestamp is NULL",
        "nothing was changed",
    ):
        assert line in planned.stdout.splitlines()
    assert conn.execute("SELECT to_regclass('kimera_migrations')").fetchone() == (None,)
    stopped = run("adopt", DATABASE_URL=empty_database)
    assert stopped.returncode == 1
    assert "--set-aside" in stopped.stderr
    done = run("adopt", "--set-aside", DATABASE_URL=empty_database)
    assert (done.returncode, done.stderr) == (0, "")
    assert "idx_geoid_vector: trained on the rows there are" in done.stdout
    assert re.search(r"^idx_geoid_vector: recall [01]\.\d{3} ", done.stdout, re.MULTILINE)
    assert re.search(r"^\d+ queries verified, 0 faults$", done.stdout, re.MULTILINE)
    assert run("init", DATABASE_URL=empty_database).stdout == "the schema is up to date\n"
    again = run("adopt", DATABASE_URL=empty_database)
    assert (again.returncode, again.stdout) == (1, "")
    assert "has adopted them" in again.stderr


def test_where_there_is_nothing_to_adopt(conn: Connection, empty_database: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"nothing to adopt, .*`kimera-sql init` makes them"):
        adopt(conn)
    with psycopg.connect(empty_database) as inside, pytest.raises(InvalidValue, match="autocommit"):
        adopt(inside)
    with kimera_sql.SqlitePool(tmp_path / "file.db") as pool, pool.connection() as file:
        file.execute("CREATE TABLE geoid_states (id TEXT)")
        with pytest.raises(UnsupportedByServer):
            adopt(file)
        with pytest.raises(SchemaError, match="has geoid_states, which kimera_sql did not make; name another file"):
            migrate(file)


DRIFTS: Final = {
    "ALTER TABLE geoid_states RENAME COLUMN entropy TO disorder": "geoid_states has no column entropy",
    "DROP INDEX idx_metrics_name_timestamp": "system_metrics lacks an index btree (metric_name, timestamp)",
    "ALTER TABLE geoid_states ALTER COLUMN timestamp DROP NOT NULL": "geoid_states.timestamp can be NULL",
    "ALTER TABLE system_metrics ALTER COLUMN metric_value TYPE REAL": (
        "system_metrics.metric_value is real, not double precision"
    ),
    "ALTER TABLE geoid_states ALTER COLUMN id DROP DEFAULT": "geoid_states.id has no default (gen_random_uuid())",
    "ALTER TABLE cognitive_transitions DROP CONSTRAINT cognitive_transitions_source_id_fkey": (
        "cognitive_transitions lacks the constraint FOREIGN KEY (source_id) REFERENCES geoid_states(id)"
    ),
    "ALTER TABLE portal_configurations DROP CONSTRAINT portal_configurations_energy_not_negative": (
        "portal_configurations lacks the constraint CHECK ((energy_requirement >= (0)::double precision))"
    ),
    "ALTER TABLE semantic_embeddings DROP CONSTRAINT semantic_embeddings_pkey": (
        "semantic_embeddings lacks the constraint PRIMARY KEY (id)"
    ),
    "DROP STATISTICS kimera_metrics_component": (
        "system_metrics lacks the statistics (dependencies) ON metric_name, component FROM system_metrics"
    ),
    "DROP TABLE kimera_recall_settings": "there is no table kimera_recall_settings",
    "ALTER TABLE geoid_states ADD COLUMN mood TEXT NOT NULL": (
        "geoid_states.mood is NOT NULL and has no default, so nothing can be inserted"
    ),
}


@pytest.mark.ends
@pytest.mark.parametrize(("change", "found"), DRIFTS.items())
def test_a_database_that_has_drifted_is_told_by_doctor_and_by_init(database: str, change: str, found: str) -> None:
    assert run("init", "--check", DATABASE_URL=database).returncode == 0
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(change.encode())
        assert [str(one) for one in migrations.differences(conn) if one.name != "disorder"] == [found]
        told = [one for one in doctor.examine(conn) if found in one.found]
        assert [one.severity for one in told] == [
            "warning" if " index " in found or " statistics " in found else "error"
        ]
        checked = run("init", "--check", DATABASE_URL=database)
        assert (checked.returncode, checked.stdout.splitlines()[0]) == (1, found)
        if told[0].advice.startswith(("ALTER", "CREATE")) and "NOT NULL and" not in found and "column" not in found:
            conn.execute(told[0].advice.encode())
            assert migrations.differences(conn) == []


def test_what_is_an_administrators_to_choose_is_no_drift(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("ALTER TABLE geoid_states ALTER COLUMN state_vector SET STORAGE EXTERNAL, ADD COLUMN mood TEXT")
        conn.execute("ALTER TABLE geoid_states RESET (autovacuum_vacuum_scale_factor), SET (fillfactor = 90)")
        conn.execute("ALTER TABLE geoid_states ALTER COLUMN timestamp SET DEFAULT now()")
        conn.execute("ALTER INDEX idx_geoid_entropy RENAME TO by_entropy; CREATE INDEX ON geoid_states (mood)")
        conn.execute("SET quote_all_identifiers = on; SET standard_conforming_strings = off")
        conn.execute("REINDEX INDEX by_entropy; ALTER INDEX by_entropy SET (fillfactor = 90)")
        assert migrations.differences(conn) == []


def test_a_damaged_list_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalogue.txt"
    monkeypatch.setattr(drift, "path", lambda: path)
    path.write_text("geoid_states\tcolour\tid\n")
    with pytest.raises(SchemaError, match="is not as `kimera-sql verify --update` writes it"):
        drift.expected()
