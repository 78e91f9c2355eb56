"""The commands behind PgBouncer: each works, or says that it needs a session of its own. None leaves anything there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from commands import run
from fix_servers import Server
from pgbouncer import PgBouncer
from strategies import unit
from test_adoption import SPECIFICATION

from kimera_sql import add_adapters, embeddings, geoids, indexes
from kimera_sql.vectors import Vector

pytestmark = [pytest.mark.slow, pytest.mark.needs("pgbouncer")]

WORKING: Final = """
init
init --check
embeddings status
embeddings drop
embeddings name mini
index build semantic_embeddings
index list
index clean
index tune geoid_states
index recall geoid_states --sample 20
index drop idx_embedding_vector_hnsw_half
pairs geoid_states
monitor
monitor --prometheus
monitor --record --json
verify {folder}
queries
maintain prune --older-than 1d
config recommend
roles --print
unload geoid_states {folder}/states.jsonl
load geoid_states {folder}/new.jsonl
copy --from postgres --to sqlite
copy --from sqlite --to postgres --skip-existing
"""

REFUSED: Final = {
    "index build geoid_states --method ivfflat --precision full --concurrently": "what runs concurrently",
    "index retrain idx_geoid_vector_hnsw_half": "what runs concurrently",
    "maintain vacuum": "upkeep",
    "maintain analyze": "upkeep",
    "maintain reindex": "upkeep",
    "maintain retrain": "upkeep",
    "maintain all --older-than 1d": "upkeep",
    "embeddings renew --model maxi --embed test_pooled_operations:embedded": "a renewal",
    "backup dump --dir {folder}/backups": "a dump",
    "backup drill {folder}/new.jsonl --on-server": "a restore",
    "restore {folder}/new.jsonl --into restored": "a restore",
    "backup base --dir {folder}/backups": "replication",
    "backup receive-wal --dir {folder}/backups": "replication",
}
"""What needs a session of its own, and how the message calls it."""


def said(what: str) -> str:
    return f"kimera-sql: {what} needs a session of its own; connect to the server and not to a pooler\n"


def embedded(texts: list[str]) -> list[Vector]:
    return [unit(len(text)) for text in texts]


def state(number: int) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(number), entropy=0, coherence_factor=0, energy_level=0)


@pytest.fixture(params=["transaction", "session"])
def bouncer(request: pytest.FixtureRequest, newest: Server, open_folder: Path) -> Iterator[PgBouncer]:
    """PgBouncer before a database with states, and with embeddings that another model is to replace."""
    database = newest.create(template=newest.template)
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, map(state, range(60)))
        indexes.build(conn, "geoid_states")
        embeddings.insert_many(conn, [embeddings.NewEmbedding(text_content="text", embedding=unit(1))])
        embeddings.name_model(conn, "mini")
        embeddings.renew(conn, embedded, model="midi", switch=False)
    with PgBouncer(database, open_folder, request.param) as running:
        yield running
    newest.drop(database)


def test_each_command_works_or_says_why_not_and_leaves_nothing(bouncer: PgBouncer, tmp_path: Path) -> None:
    (tmp_path / "own.sql").write_text("-- name: one()$\n-- One.\n-- returns: int\nSELECT 1 AS one;\n")
    row = {"state_vector": unit(99).tolist(), "entropy": 0, "coherence_factor": 0, "energy_level": 0}
    (tmp_path / "new.jsonl").write_text(json.dumps(row) + "\n")
    surroundings = {"DATABASE_URL": bouncer.conninfo, "KIMERA_SQLITE_PATH": f"{tmp_path}/kimera.db"}
    for command in WORKING.strip().splitlines():
        ran = run(*command.format(folder=tmp_path).split(), **surroundings)
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
    for command, what in REFUSED.items():
        ran = run(*command.format(folder=tmp_path).split(), **surroundings)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said(what)), command
    assert bouncer.leftovers() == []


@pytest.mark.parametrize(("command", "fault"), [("doctor", "ERROR    fsync: is off"), ("config check", "DIFFERS")])
def test_the_server_is_judged_as_without_it(bouncer: PgBouncer, command: str, fault: str) -> None:
    judged, expected = (
        run(*command.split(), "--ram=8GB", DATABASE_URL=way) for way in (bouncer.conninfo, bouncer.server)
    )
    assert (judged.returncode, judged.stdout, judged.stderr) == (1, expected.stdout, "")
    assert fault in judged.stdout


def test_the_machine_of_a_server_behind_it_is_not_known(bouncer: PgBouncer) -> None:
    ran = run("config", "check", DATABASE_URL=bouncer.conninfo)
    assert ran.stderr == (
        "kimera-sql: --ram: the server is not known to be on this machine (127.0.0.1); say how much it has\n"
    )


def test_tables_are_taken_over_past_it_alone(newest: Server, open_folder: Path) -> None:
    database = newest.create()
    with psycopg.connect(database) as conn:
        conn.execute("CREATE EXTENSION vector")
        conn.execute(SPECIFICATION)
    with PgBouncer(database, open_folder, "transaction") as running:
        planned = run("adopt", "--dry-run", DATABASE_URL=running.conninfo)
        assert (planned.returncode, planned.stderr) == (0, "")
        assert "geoid_states.timestamp can be NULL" in planned.stdout
        ran = run("adopt", DATABASE_URL=running.conninfo)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said("upkeep"))
        assert run("adopt", "--dry-run", DATABASE_URL=running.conninfo).stdout == planned.stdout
        assert running.leftovers() == []
    newest.drop(database)


def test_a_build_takes_as_long_as_it_needs(bouncer: PgBouncer) -> None:
    """The session's bounds are the role's, and only a transaction can have others."""
    with psycopg.connect(bouncer.conninfo, autocommit=True, prepare_threshold=None) as conn:
        conn.execute("CREATE TABLE seen (bound TEXT)")
        conn.execute(
            "CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO seen VALUES (current_setting('statement_timeout')), (current_setting('lock_timeout')); "
            "END $$"
        )
        conn.execute(
            "CREATE EVENT TRIGGER note ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION note()"
        )
        add_adapters(conn)
        indexes.build(conn, "geoid_states", method="ivfflat", precision="full")
        assert conn.execute("SELECT bound FROM seen").fetchall() == [("0",), ("30s",)]
    assert bouncer.leftovers() == []
