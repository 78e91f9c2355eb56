"""schema/roles.sql: each role can do what it is for, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from commands import run
from fix_servers import Server
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from strategies import unit

from kimera_sql import (
    add_adapters,
    embeddings,
    geoids,
    metrics,
    migrate,
    migrations,
    portals,
    sql,
    sqlite,
    tables,
    transitions,
)
from kimera_sql.errors import MaintenanceError, SchemaError, UnsupportedByServer
from kimera_sql.migrations import pending
from kimera_sql.ops import doctor, maintenance, monitoring, roles
from kimera_sql.ops.backup import tools
from kimera_sql.search import indexes, recall

pytestmark = [pytest.mark.slow, pytest.mark.ends]

Connection = psycopg.Connection[Any]

KINDS = ("owner", "app", "readonly", "monitor", "backup")
OTHERS = "kimera_second"
GROUPS = tuple(f"{prefix}_{kind}" for prefix in (roles.PREFIX, OTHERS) for kind in KINDS)
ENTITY_TABLES = tables.NAMES
BOOKS = tables.BOOKKEEPING


@pytest.fixture(autouse=True)
def _no_roles_left(server: Server) -> Iterator[None]:
    """Roles belong to the whole server: drop them, and first what the tests' databases gave them."""
    with psycopg.connect(server.conninfo) as conn:
        if conn.execute("SELECT FROM pg_roles WHERE rolname = ANY(%s)", [list(GROUPS)]).rowcount:
            pytest.skip("the server has roles of these names, which are not ours to drop")
    yield
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        rows = conn.execute("SELECT datname FROM pg_database WHERE datname LIKE 'kimera_test_%'").fetchall()
        for (name,) in rows:
            with psycopg.connect(make_conninfo(server.conninfo, dbname=name), autocommit=True) as inside:
                for group in GROUPS:
                    if inside.execute("SELECT FROM pg_roles WHERE rolname = %s", [group]).rowcount:
                        inside.execute(f"REASSIGN OWNED BY {group} TO CURRENT_USER".encode())
                        inside.execute(f"DROP OWNED BY {group}".encode())
        for group in GROUPS:
            conn.execute(f"DROP ROLE IF EXISTS {group}".encode())


@pytest.fixture
def logins(server: Server) -> Iterator[Callable[..., str]]:
    """A function that makes a login in a group, and returns its name."""
    made: list[str] = []

    def make(group: str, attributes: str = "") -> str:
        made.append(f"kimera_test_{uuid4().hex}")
        with psycopg.connect(server.conninfo, autocommit=True) as conn:
            conn.execute(f"CREATE ROLE {made[-1]} LOGIN {attributes} IN ROLE {group}".encode())
        return made[-1]

    yield make
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        for name in made:
            conn.execute(f"DROP ROLE {name}".encode())


@pytest.fixture
def login(database: str, logins: Callable[..., str]) -> Callable[..., str]:
    """A function that makes a login in a group, and returns its conninfo."""
    with psycopg.connect(database, autocommit=True) as conn:
        roles.create(conn)
    return lambda group, attributes="": make_conninfo(database, user=logins(group, attributes))


@contextmanager
def connected(conninfo: str, **options: Any) -> Iterator[Connection]:
    with psycopg.connect(conninfo, **options) as conn:
        add_adapters(conn)
        yield conn


def fill(conn: Connection) -> None:
    geoids.insert_many(
        conn,
        [
            geoids.NewGeoid(
                state_vector=unit(seed), entropy=0.5, coherence_factor=0, energy_level=0, tags=["a"], metadata={"a": 1}
            )
            for seed in range(20)
        ],
    )


def test_the_app_role_can_run_every_entity_function(database: str, login: Callable[..., str]) -> None:
    with connected(database) as conn:
        fill(conn)
        indexes.build(conn, "geoid_states")
        recall.tune(conn, "geoid_states", target=0.5, sample=5)
    with connected(login("kimera_app")) as conn:
        assert pending(conn) == []
        vec, now = unit(100), datetime.now(UTC)
        fill(conn)
        state = geoids.insert(conn, geoids.NewGeoid(state_vector=vec, entropy=0, coherence_factor=0, energy_level=0))
        other = next(geoids.stream(conn))
        assert geoids.get(conn, state.id) == geoids.get_many(conn, [state.id])[0]
        assert geoids.similar(conn, vec, 1)[0].geoid.id == state.id
        assert len(geoids.similar(conn, vec, 3, exact=True)) == 3
        assert len(geoids.similar(conn, vec, 5, recall=0.99, tags_any=["a"], metadata={"a": 1})) == 5
        assert len(geoids.similar_to(conn, state.id, 3)) == 3
        assert len(geoids.similar_many(conn, [vec, vec], k=2)) == 2
        assert len(geoids.similar(conn, vec, 3, diversity=0.3)) == 3
        assert geoids.explain(conn, vec).index is not None
        assert geoids.find(conn, tags_all=["a"], limit=1)
        assert len(geoids.latest(conn, 2)) == 2
        assert geoids.update_metadata(conn, state.id, {"x": 1}) == {"x": 1}
        assert geoids.add_tags(conn, state.id, "blue")
        geoids.remove_tags(conn, state.id, "blue")
        assert geoids.count(conn) == 41

        step = transitions.record(conn, state.id, other.id, "association", energy=0.3, error=0.5)
        transitions.insert_many(
            conn,
            [
                transitions.NewTransition(
                    source_id=other.id,
                    target_id=state.id,
                    transition_type="association",
                    transition_energy=0,
                    conservation_error=0,
                )
            ],
        )
        assert transitions.outgoing(conn, state.id)
        assert transitions.incoming(conn, state.id)
        assert transitions.by_type(conn, "association")
        assert transitions.between(conn, now - timedelta(days=1), now + timedelta(days=1))
        assert transitions.path(conn, state.id, other.id)
        assert transitions.trajectory(conn, state.id)
        assert transitions.energy_balance(conn)
        assert transitions.summary(conn, timedelta(days=1))
        assert transitions.unbalanced(conn, tolerance=0.01)
        assert transitions.delete(conn, step.id)

        def embed(_: str) -> Any:
            return vec

        text = embeddings.get_or_create(conn, "a text", embed, source="test")
        assert embeddings.similar(conn, vec, 1, source="test")[0].embedding.id == text.id
        assert embeddings.hybrid(conn, "text", vec, k=1)
        assert embeddings.delete(conn, text.id)
        embeddings.get_or_create(conn, "a text", embed, source="test")
        assert embeddings.prune(conn, now + timedelta(days=1)) == 1

        portal = portals.insert(
            conn,
            portals.NewPortal(
                source_dimension=3,
                target_dimension=7,
                radius=1,
                energy_requirement=1,
                stability_factor=1,
                configuration_parameters={},
                status="active",
            ),
        )
        assert portals.between(conn, 3, 7)
        assert portals.by_status(conn, "active")
        assert portals.route(conn, 3, 7)
        portals.mark_used(conn, portal.id)
        portals.update_parameters(conn, portal.id, {"a": 1})
        portals.set_status(conn, portal.id, "closed")
        assert portals.delete(conn, portal.id)

        metrics.record(conn, "m", 1, component="c")
        metrics.insert_many(conn, [metrics.NewMetric(metric_name="m", metric_value=1, component="c")])
        assert metrics.latest(conn, "m")
        assert metrics.series(conn, "m", bucket=timedelta(hours=1), since=now - timedelta(days=1))
        assert metrics.names(conn) == ["m"]
        assert metrics.prune(conn, now + timedelta(days=1)) == 2

        assert geoids.series(conn, timedelta(days=1))
        assert geoids.centroid(conn) is not None
        states = geoids.count(conn)
        assert geoids.prune(conn, now + timedelta(days=1), transitions="delete").states == states > 0


FORBIDDEN = [
    *(f"DROP TABLE {table} CASCADE" for table in (*ENTITY_TABLES, *BOOKS)),
    *(f"TRUNCATE {table} CASCADE" for table in (*ENTITY_TABLES, *BOOKS)),
    *(f"ALTER TABLE {table} ADD COLUMN more TEXT" for table in (*ENTITY_TABLES, *BOOKS)),
    "CREATE TABLE mine (id INTEGER)",
    "CREATE TEMPORARY TABLE mine (id INTEGER)",
    "CREATE FUNCTION mine() RETURNS INTEGER LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "CREATE INDEX mine ON geoid_states (energy_level)",
    "DROP INDEX idx_geoid_tags",
    "SELECT setval('system_metrics_id_seq', 1)",
    "DELETE FROM kimera_migrations",
    "UPDATE kimera_recall_settings SET setting = 1",
    "DELETE FROM kimera_vector_indexes",
    "DELETE FROM kimera_sampled_searches",
    "DELETE FROM kimera_sampled_recalls",
    "UPDATE kimera_models SET model = 'another'",
    "INSERT INTO kimera_renewal_queue (id) VALUES (NULL)",
    "DELETE FROM kimera_renewal_queue",
    "DELETE FROM kimera_text_locks",
    "CREATE ROLE more",
    "ALTER TABLE geoid_states OWNER TO CURRENT_USER",
]

WRITES = ("DELETE FROM one", "UPDATE one SET id = id", "INSERT INTO one SELECT * FROM one")


def refused(conn: Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
        conn.execute(statement.encode())


@pytest.mark.parametrize("group", ["kimera_app", "kimera_readonly", "kimera_monitor", "kimera_backup"])
def test_no_group_but_the_owner_changes_the_schema(group: str, login: Callable[..., str]) -> None:
    with connected(login(group)) as conn:
        for statement in FORBIDDEN:
            refused(conn, statement)


def test_the_app_role_does_not_tune_or_build(database: str, login: Callable[..., str]) -> None:
    with connected(database) as conn:
        fill(conn)
        indexes.build(conn, "geoid_states")
    with connected(login("kimera_app"), autocommit=True) as conn:
        # Refused before the queries are looked at
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="kimera_recall_settings"):
            recall.tune(conn, "geoid_states", queries=[np.full(3, np.nan)])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            recall.tune(conn, "geoid_states", sample=5)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            indexes.build(conn, "geoid_states", method="ivfflat")
        assert len(indexes.existing(conn)) == 1


def test_the_readonly_role_reads_and_searches_and_does_not_write(database: str, login: Callable[..., str]) -> None:
    with connected(database) as conn:
        fill(conn)
        indexes.build(conn, "geoid_states")
        metrics.record(conn, "m", 1, component="c")
    with connected(login("kimera_readonly")) as conn:
        assert geoids.count(conn) == 20
        assert len(geoids.similar(conn, unit(0), 3)) == 3
        assert geoids.explain(conn, unit(0)).index is not None
        assert metrics.latest(conn, "m")
        conn.commit()
        for table in ENTITY_TABLES:
            conn.execute("SELECT count(*) FROM one".replace("one", table).encode())
            for statement in WRITES:
                refused(conn, statement.replace("one", table))
        refused(conn, "SELECT nextval('system_metrics_id_seq')")


def test_the_monitor_role_sees_the_server_and_no_row(database: str, login: Callable[..., str]) -> None:
    with connected(database) as conn:
        fill(conn)
        indexes.build(conn, "geoid_states")
    with connected(login("kimera_monitor"), autocommit=True) as conn:
        assert monitoring.visibility(conn).sees_all
        assert len(indexes.existing(conn)) == 1
        with connected(database) as other:
            query = "SELECT query FROM pg_stat_activity WHERE pid = %s"
            other.execute("SELECT 'what others do'")
            assert conn.execute(query, [other.info.backend_pid]).fetchone() == ("SELECT 'what others do'",)
        for table in ENTITY_TABLES:
            refused(conn, "SELECT count(*) FROM one".replace("one", table))


def test_the_backup_role_dumps_everything_and_writes_nothing(
    database: str, login: Callable[..., str], tmp_path: Path
) -> None:
    with connected(database) as conn:
        fill(conn)
        metrics.record(conn, "m", 1, component="c")
    conninfo = login("kimera_backup")
    with connected(conninfo) as conn:
        for table in ENTITY_TABLES:
            for statement in WRITES:
                refused(conn, statement.replace("one", table))
        tool = tools.find("pg_dump", conn)
    dump = tmp_path / "all.dump"
    subprocess.run([tool, "--format=custom", f"--file={dump}", conninfo], check=True)
    listed = subprocess.run([tool.with_name("pg_restore"), "--list", dump], check=True, capture_output=True, text=True)
    assert {f"TABLE DATA public {table} " in listed.stdout for table in (*ENTITY_TABLES, *BOOKS)} == {True}


def test_replication_is_the_logins_own_and_not_inherited(login: Callable[..., str]) -> None:
    for attributes, may in (("", False), ("REPLICATION", True)):
        conninfo = make_conninfo(login("kimera_backup", attributes), replication="true")
        with ExitStack() as stack:
            if not may:
                stack.enter_context(pytest.raises(psycopg.OperationalError, match=r"REPLICATION|replication"))
            pg = psycopg.pq.PGconn.connect(conninfo.encode())
            stack.callback(pg.finish)
            if pg.status != psycopg.pq.ConnStatus.OK:
                raise psycopg.OperationalError(pg.error_message.decode())
            assert pg.exec_(b"IDENTIFY_SYSTEM").status == psycopg.pq.ExecStatus.TUPLES_OK


def test_the_owner_role_migrates_builds_tunes_and_keeps_up(database: str, login: Callable[..., str]) -> None:
    with connected(login("kimera_owner"), autocommit=True) as conn:
        assert migrate(conn) == []
        fill(conn)
        indexes.build(conn, "geoid_states", method="ivfflat", lists=2, concurrently=True)
        recall.tune(conn, "geoid_states", sample=5)
        steps = maintenance.run_all(conn, metrics_age=timedelta(days=1))
        assert [step.error for step in steps] == [None] * 3
        indexes.drop(conn, indexes.existing(conn)[0].name)


def test_the_owner_role_renews_embeddings_while_the_app_role_writes(database: str, login: Callable[..., str]) -> None:
    def embed(texts: list[str]) -> list[Any]:
        return [unit(len(text)) for text in texts]

    def new(text: str, vector: Any) -> embeddings.NewEmbedding:
        return embeddings.NewEmbedding(text_content=text, embedding=vector)

    with connected(login("kimera_owner"), autocommit=True) as owner, connected(login("kimera_app")) as app:
        embeddings.insert_many(app, [new("t" * number, unit(-number % 1000)) for number in range(1, 20)])
        app.commit()
        embeddings.name_model(owner, "old")
        indexes.build(owner, "semantic_embeddings")
        assert embeddings.renew(owner, embed, model="new", switch=False).rows == 19
        with app.transaction():
            embeddings.require_model(app, "old")
            embeddings.insert(app, new("written by the app", unit(500)))
            refused(app, "SELECT * FROM kimera_renewal.semantic_embeddings")
        assert embeddings.renew(owner, embed, model="new").rows == 1
        with app.transaction():
            hit = embeddings.similar(app, unit(len("written by the app")), 1, model="new")[0]
            embeddings.insert(app, new("and later", unit(9)))
        assert round(hit.similarity, 6) == 1
        assert migrations.differences(owner) == []
        belongs = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE '%semantic_embeddings%'"
        assert owner.execute(belongs).fetchall() == [("kimera_owner",)]
        with connected(login("kimera_monitor"), autocommit=True) as monitor:
            beside = embeddings.renewal(monitor)
            assert beside is not None
            assert (beside.other, beside.waiting) == ("old", 1)
        assert embeddings.end_renewal(owner)


def test_tables_of_later_migrations_have_the_same_rights(database: str, login: Callable[..., str]) -> None:
    with connected(login("kimera_owner")) as conn:
        conn.execute("SET ROLE kimera_owner")
        conn.execute("CREATE TABLE later (id BIGSERIAL PRIMARY KEY)")
    with connected(login("kimera_app")) as conn:
        conn.execute("INSERT INTO later DEFAULT VALUES")
        refused(conn, "TRUNCATE later")
    with connected(login("kimera_readonly")) as conn:
        assert conn.execute("SELECT id FROM later").fetchall() == [(1,)]
        refused(conn, "DELETE FROM later")
    with connected(login("kimera_monitor")) as conn:
        refused(conn, "SELECT id FROM later")


def test_a_role_of_no_group_is_not_let_in(database: str, login: Callable[..., str]) -> None:
    with connected(database, autocommit=True) as conn:
        name = conninfo_to_dict(login("kimera_app"))["user"]
        conn.execute(f"REVOKE kimera_app FROM {name}".encode())
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(make_conninfo(database, user=name))


def acl(conn: Connection) -> list[Any]:
    return conn.execute(
        "SELECT relname, relowner::regrole::text, relacl::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')"
        " UNION ALL SELECT 'default', defaclrole::regrole::text, defaclacl::text FROM pg_default_acl"
        " UNION ALL SELECT datname, datdba::regrole::text, datacl::text FROM pg_database"
        " WHERE datname = current_database() ORDER BY 1, 2, 3"
    ).fetchall()


def test_applied_again_it_changes_nothing_and_takes_back_what_was_given_since(database: str) -> None:
    with connected(database, autocommit=True) as conn:
        roles.create(conn)
        before = acl(conn)
        conn.execute("GRANT ALL ON geoid_states TO kimera_app")
        conn.execute("GRANT SELECT ON geoid_states TO PUBLIC")
        assert acl(conn) != before
        roles.create(conn)
        assert sorted(map(str, acl(conn))) == sorted(map(str, before))
        logins = conn.execute("SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname = ANY(%s)", [list(GROUPS)])
        assert logins.fetchall() == []


def test_psql_applies_the_file_too(database: str) -> None:
    with connected(database) as conn:
        psql = tools.find("pg_dump", conn).with_name("psql")
    printed = run("roles", "--print").stdout
    arguments = ["--no-psqlrc", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-q", database]
    subprocess.run([psql, *arguments], check=True, capture_output=True, input=printed, text=True)
    with connected(database) as conn:
        row = conn.execute("SELECT pg_has_role('kimera_monitor', 'pg_monitor', 'USAGE')").fetchone()
        assert row == (True,)


def test_who_owned_the_tables_can_still_do_everything(database: str, server: Server) -> None:
    name = f"kimera_test_{uuid4().hex}"
    with connected(database, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN".encode())
        for table in (*ENTITY_TABLES, *BOOKS):
            conn.execute(f"ALTER TABLE {table} OWNER TO {name}".encode())
        roles.create(conn)
    try:
        with connected(make_conninfo(database, user=name), autocommit=True) as conn:
            fill(conn)
            assert len(maintenance.vacuum(conn)) == 5
            conn.execute("ALTER TABLE geoid_states ADD COLUMN more TEXT")
    finally:
        server.drop(database)
        with connected(server.conninfo, autocommit=True) as conn:
            conn.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize("attribute", ["SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"])
def test_a_group_that_may_too_much_already_is_refused(database: str, attribute: str) -> None:
    with connected(database, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE kimera_app {attribute}".encode())
        with pytest.raises(MaintenanceError, match=r"^roles\.sql: role kimera_app may do more than a group should"):
            roles.create(conn)
        rows = conn.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [list(GROUPS)]).fetchall()
        assert rows == [("kimera_app",)]


def test_only_a_superuser_makes_them(database: str, login: Callable[..., str]) -> None:
    for group in ("kimera_owner", "kimera_app"):
        ran = run("roles", DATABASE_URL=login(group))
        assert ran.returncode == 1
        assert ran.stderr.startswith("kimera-sql: roles.sql: ")
        assert ran.stderr.endswith("; run this as a superuser; nothing was changed\n")


def test_the_command_makes_them(database: str) -> None:
    ran = run("roles", DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "the roles kimera_owner, _app, _readonly, _monitor and _backup are up to date\n"
    with connected(database) as conn:
        rows = conn.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [list(GROUPS)])
        assert rows.rowcount == 5


def test_without_the_tables_nothing_is_made(empty_database: str) -> None:
    with connected(empty_database, autocommit=True) as conn:
        with pytest.raises(
            SchemaError, match=r"^there is no table geoid_states, .+; kimera-sql init makes the schema$"
        ):
            roles.create(conn)
        rows = conn.execute("SELECT FROM pg_roles WHERE rolname = ANY(%s)", [list(GROUPS)])
        assert rows.rowcount == 0


@pytest.fixture
def placed(request: pytest.FixtureRequest, empty_database: str) -> str:
    """The conninfo of a database with the tables and pgvector in two schemas, found by the superuser's own path."""
    tables_in, vector_in = request.param
    path = f'"{tables_in}", "{vector_in}"'
    with psycopg.connect(empty_database, autocommit=True) as conn:
        for schema in (tables_in, vector_in):
            conn.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'.encode())
        conn.execute(f'CREATE EXTENSION vector SCHEMA "{vector_in}"'.encode())
        conn.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    conninfo = make_conninfo(empty_database, options=f"-c search_path={path.replace(' ', '')}")
    with psycopg.connect(conninfo) as conn:
        migrate(conn)
        fill(conn)
        indexes.build(conn, "geoid_states")
    return conninfo


PLACES = pytest.mark.parametrize(
    "placed",
    [("public", "extensions"), ("Kimera's", "public"), ("Kimera's", "extensions"), ("app", "app")],
    indirect=True,
    ids=" and ".join,
)


def at(conninfo: str, user: str) -> str:
    """*conninfo* for another role, without a path of its own."""
    return make_conninfo("", **{**conninfo_to_dict(conninfo), "user": user, "options": ""})


@PLACES
@pytest.mark.parametrize("path_of", ["database", "role"])
def test_the_roles_are_for_the_tables_wherever_they_are(placed: str, logins: Callable[..., str], path_of: str) -> None:
    with connected(placed, autocommit=True) as conn:
        roles.create(conn)
        before = acl(conn)
        roles.create(conn)
        assert acl(conn) == before
        app, reader, monitor, owner = (logins(f"kimera_{kind}") for kind in ("app", "readonly", "monitor", "owner"))
        members = sorted((app, reader, monitor, owner))
        lost = roles.lost(conn)
        # Others that can log in are other tests' business.
        assert [one.role for one in lost if one.role in members] == members
        assert lost[-1].role is None
        with connected(at(placed, app)) as astray, pytest.raises(psycopg.ProgrammingError):
            geoids.similar(astray, unit(100), 1)
        remedies = [one.remedy for one in lost if one.role in (members if path_of == "role" else [None])]
        for remedy in remedies:
            conn.execute(remedy.encode())
        assert [one.role for one in roles.lost(conn)] == ([None] if path_of == "role" else [])
        states = conn.execute("SELECT 'geoid_states'::regclass::oid").fetchone()
    with connected(at(placed, app), autocommit=True) as conn:
        assert conn.execute("SELECT 'geoid_states'::regclass::oid").fetchone() == states
        assert pending(conn) == []
        fill(conn)
        metrics.record(conn, "m", 1, component="c")
        assert len(geoids.similar(conn, unit(0), 3)) == 3
        for statement in FORBIDDEN:
            refused(conn, statement)
    with connected(at(placed, reader), autocommit=True) as conn:
        assert len(geoids.similar(conn, unit(0), 3)) == 3
        refused(conn, "DELETE FROM geoid_states")
        refused(conn, "CREATE TABLE mine (id INTEGER)")
    with connected(at(placed, monitor), autocommit=True) as conn:
        assert len(indexes.existing(conn)) == 1
        refused(conn, "SELECT count(*) FROM geoid_states")
    with connected(at(placed, owner), autocommit=True) as conn:
        assert migrate(conn) == []
        assert [step.error for step in maintenance.run_all(conn)] == [None] * 3
        conn.execute("SET ROLE kimera_owner")
        conn.execute("CREATE TABLE later (id BIGSERIAL PRIMARY KEY)")
    with connected(at(placed, app), autocommit=True) as conn:
        conn.execute("INSERT INTO later DEFAULT VALUES")
    with connected(at(placed, reader), autocommit=True) as conn:
        assert conn.execute("SELECT id FROM later").fetchall() == [(1,)]


@pytest.mark.parametrize("placed", [("Kimera's", "extensions")], indirect=True)
def test_a_login_that_does_not_find_the_tables_is_told(placed: str, logins: Callable[..., str]) -> None:
    database = conninfo_to_dict(placed)["dbname"]
    ran = run("roles", DATABASE_URL=placed)
    path = """search_path = "Kimera's", extensions"""
    told = (
        f'new logins do not find the tables by the search_path "$user", public: ALTER DATABASE {database} SET {path}\n'
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith(f"are up to date\n{told}")
    app = logins("kimera_app")
    ran = run("roles", DATABASE_URL=placed)
    assert f"the login {app} does not find the tables" in ran.stdout
    assert f"ALTER ROLE {app} IN DATABASE {database} SET {path}\n" in ran.stdout
    # The groups' privileges are no help to someone who looks in the wrong schema.
    for command in ("roles", "init"):
        ran = run(command, DATABASE_URL=at(placed, app))
        assert ran.returncode == 1
        assert 'the tables are in schema "Kimera\'s" and pgvector is in schema extensions' in ran.stderr
        assert f"ALTER ROLE {app} SET {path[:23]}" in ran.stderr


def astray_logins(conn: Connection, role: str) -> list[doctor.Finding]:
    return [
        one for one in doctor.examine(conn) if one.subject == f"role {role}" and "by its search_path (" in one.found
    ]


@PLACES
def test_the_doctor_notices_paths_that_do_not_lead_to_the_tables(placed: str, logins: Callable[..., str]) -> None:
    with connected(placed, autocommit=True) as conn:
        roles.create(conn)
        app = logins("kimera_app")
        (found,) = astray_logins(conn, app)
        assert (found.severity, found.advice) == ("warning", roles.lost(conn)[0].remedy)
        with connected(at(placed, app), autocommit=True) as astray:
            (lost,) = [one for one in doctor.examine(astray) if one.subject == "schema"]
            assert lost.severity == "error"
            assert f"which the search_path of the role {app} (" in lost.found
            assert lost.advice.startswith(f"ALTER ROLE {app} SET search_path = ")
            vectors = monitoring.collect(astray, ["vectors"])["vectors"]
            assert "kimera-sql init" not in str(vectors)
        conn.execute(found.advice.encode())
        with connected(at(placed, app), autocommit=True) as mended:
            assert "schema" not in [one.subject for one in doctor.examine(mended)]
        assert astray_logins(conn, app) == []


def test_members_for_one_database_do_not_get_at_another(
    server: Server, database: str, login: Callable[..., str], logins: Callable[..., str]
) -> None:
    first = login("kimera_app")
    second = server.create(template=server.template)
    try:
        with connected(second, autocommit=True) as conn:
            before = acl(conn)
            with pytest.raises(MaintenanceError) as caught:
                roles.create(conn)
            assert acl(conn) == before
            assert str(caught.value) == (
                "roles.sql: the groups kimera_owner, kimera_app ... belong to the database "
                f"{conninfo_to_dict(database)['dbname']}, and their members would be let into this one; give it groups "
                "of its own: kimera-sql roles --prefix NAME; nothing was changed"
            )
            roles.create(conn, prefix=OTHERS)
            owners = conn.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
            assert owners == [(f"{OTHERS}_owner",)]
        ran = run("roles", "--prefix", OTHERS, DATABASE_URL=second)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"the roles {OTHERS}_owner, _app, _readonly, _monitor and _backup are up to date\n"
        user, other = conninfo_to_dict(first)["user"], logins(f"{OTHERS}_app")
        for mine, theirs, name in ((database, second, user), (second, database, other)):
            with connected(make_conninfo(mine, user=name)) as conn:
                assert geoids.count(conn) == 0
                refused(conn, "DROP TABLE geoid_states")
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(make_conninfo(theirs, user=name))
        # The first one is brought up to date as before.
        with connected(database, autocommit=True) as conn:
            roles.create(conn)
    finally:
        server.drop(second)


@pytest.mark.parametrize("prefix", ["", "Kimera", "1st", "pg_kimera", "a-b", "x" * 51, "a; DROP", "a\n"])
def test_a_prefix_is_a_plain_name(database: str, prefix: str) -> None:
    ran = run("roles", "--print", "--prefix", prefix)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("kimera-sql: --prefix: expected up to 50 of a to z, 0 to 9 and _, got ")


def test_sqlite_has_no_roles() -> None:
    with (
        closing(sqlite.connect(":memory:")) as conn,
        pytest.raises(UnsupportedByServer, match=r"^SQLite has no roles"),
    ):
        roles.create(conn)


def test_no_password_is_in_the_file() -> None:
    lines = (sql.shipped("schema") / "roles.sql").read_text(encoding="utf-8").splitlines()
    assert "PASSWORD" not in "\n".join(line.partition("--")[0] for line in lines).upper()
