"""The vectors of embeddings are made anew by another model while they serve, and take the old ones' place at once."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from fix_connections import NEWEST_TWINS, to_own_database
from fix_servers import ENDS, Server
from psycopg.pq import TransactionStatus

from kimera_sql import (
    InvalidValue,
    SqlitePool,
    add_adapters,
    aio,
    embeddings,
    indexes,
    migrate,
    migrations,
    open_pool,
    recall,
)
from kimera_sql.errors import MaintenanceError, SchemaError, UnsupportedByServer, WrongModel
from kimera_sql.sql import Connection
from kimera_sql.vectors import Vector

ROWS: Final = 120
OLD, NEW, OTHER = "minilm", "bge", "e5"


def vector(model: str, text: str) -> Vector:
    """What *model* makes of *text*."""
    made = np.random.default_rng(zlib.crc32(f"{model} {text}".encode())).standard_normal(1024).astype(np.float32)
    return made / np.linalg.norm(made)


def by(model: str) -> embeddings.Embed:
    return lambda texts: [vector(model, text) for text in texts]


def embedding(text: str, model: str = OLD) -> embeddings.NewEmbedding:
    return embeddings.NewEmbedding(
        text_content=text, embedding=vector(model, text), source="tests", metadata={"of": text, "exactly": 1e300}
    )


@pytest.fixture
def committed(database: str) -> str:
    """The conninfo of a database of the test's own with embeddings of a model that has a name."""
    with closing(connect(database)) as conn:
        fill(conn)
    return database


def fill(conn: Connection) -> None:
    embeddings.insert_many(conn, [embedding(f"text {number}") for number in range(ROWS)])
    embeddings.name_model(conn, OLD)


@pytest.fixture
def indexed(committed: str) -> str:
    """The same with an index, which is tuned."""
    with closing(connect(committed)) as conn:
        indexes.build(conn, "semantic_embeddings")
        recall.tune(conn, "semantic_embeddings", sample=100)
    return committed


def connect(conninfo: str) -> psycopg.Connection:
    conn = psycopg.connect(conninfo, autocommit=True)
    add_adapters(conn)
    return conn


@pytest.fixture
def conn(committed: str) -> Iterator[psycopg.Connection]:
    with closing(connect(committed)) as conn:
        yield conn


@pytest.fixture(params=[*ENDS, *NEWEST_TWINS[1:]])
def twin(request: pytest.FixtureRequest, start: Callable[[str], Server]) -> Iterator[Any]:
    """The same on the newest and the oldest server, and on the newest through an asynchronous connection."""
    with to_own_database(request.param, start, autocommit=True) as conn:
        fill(conn)
        yield conn


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a renewal would have made."""
    made: list[float] = []

    async def apause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("kimera_sql.renewal.pause", made.append)
    monkeypatch.setattr("kimera_sql.aio.renewal.apause", apause)
    return made


def stored(conn: Connection) -> dict[UUID, tuple[Any, ...]]:
    """Every row without its vector."""
    return {one.id: (one.text_content, one.timestamp, one.source, one.metadata) for one in embeddings.stream(conn)}


def are_of(conn: Connection, model: str) -> bool:
    """Whether all vectors are those of *model*, and at least one is there."""
    found = list(embeddings.stream(conn))
    return bool(found) and all(np.array_equal(one.embedding, vector(model, one.text_content)) for one in found)


def schemas(conn: psycopg.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'kimera%'")]


@pytest.mark.usefixtures("indexed")
def test_another_model_takes_the_place_of_the_first_and_the_way_back_is_the_same(conn: psycopg.Connection) -> None:
    before, index = stored(conn), indexes.existing(conn)[0]
    renewed = embeddings.renew(conn, by(NEW), model=NEW)
    assert (renewed.model, renewed.previous, renewed.rows, renewed.switched) == (NEW, OLD, ROWS, True)
    assert renewed.overlap is not None
    assert 0 <= renewed.overlap < 0.5
    assert renewed.recall is not None
    assert renewed.previous_recall is not None
    assert min(renewed.recall, renewed.previous_recall) > 0.9
    assert are_of(conn, NEW)
    assert stored(conn) == before
    (new,) = indexes.existing(conn)
    assert (new.name, new.method, new.precision, new.m) == (index.name, index.method, index.precision, index.m)
    assert new.oid != index.oid
    assert new.tuned
    assert new.rows_at_build == ROWS
    assert migrations.differences(conn) == []
    assert embeddings.model(conn) == NEW
    hit = embeddings.similar(conn, vector(NEW, "text 5"), 1)[0]
    assert (hit.embedding.text_content, round(hit.similarity, 6)) == ("text 5", 1)

    # Written since
    later = embeddings.insert(conn, embedding("later", NEW))
    gone, changed = list(before)[:2]
    embeddings.delete(conn, gone)
    conn.execute("UPDATE semantic_embeddings SET text_content = 'changed', embedding = %s WHERE id = %s",
                 [vector(NEW, "changed"), changed])  # fmt: skip
    beside = embeddings.renewal(conn)
    assert beside is not None
    assert (beside.serving, beside.other, beside.waiting) == (NEW, OLD, 3)
    assert beside.size > 0
    after = stored(conn)
    texts: list[str] = []

    def embed(given: list[str]) -> list[Vector]:
        texts.extend(given)
        return [vector(OLD, text) for text in given]

    assert embeddings.renew(conn, embed, model=OLD).rows == 2
    assert sorted(texts) == ["changed", "later"]
    assert are_of(conn, OLD)
    assert stored(conn) == after
    assert later.id in after
    assert indexes.existing(conn)[0].oid == index.oid
    assert indexes.existing(conn)[0].tuned == index.tuned
    assert embeddings.end_renewal(conn)
    assert not embeddings.end_renewal(conn)
    assert (embeddings.renewal(conn), embeddings.model(conn)) == (None, OLD)
    assert schemas(conn) == []
    assert conn.execute("SELECT FROM kimera_renewal_queue").rowcount == 0
    embeddings.insert(conn, embedding("no more noted"))
    assert conn.execute("SELECT FROM kimera_renewal_queue").rowcount == 0


@pytest.mark.ends
def test_asynchronous_programs_do_the_same(committed: str) -> None:
    async def embed(texts: list[str]) -> list[Vector]:
        await asyncio.sleep(0)
        return [vector(NEW, text) for text in texts]

    async def main() -> None:
        async with aio.open_pool(committed) as pool, pool.connection() as conn:
            await conn.set_autocommit(True)
            await aio.indexes.build(conn, "semantic_embeddings")
            renewed = await aio.embeddings.renew(conn, embed, model=NEW)
            assert (renewed.rows, renewed.switched) == (ROWS, True)
            assert None not in (renewed.overlap, renewed.recall, renewed.previous_recall)
            (index,) = await aio.indexes.existing(conn)
            assert index.tuned
            (hits,) = await aio.embeddings.similar_many(pool, [vector(NEW, "text 1")], 1, model=NEW)
            assert hits[0].embedding.text_content == "text 1"
            with pytest.raises(WrongModel):
                await aio.embeddings.similar(conn, vector(OLD, "text 1"), model=OLD)
            assert await aio.embeddings.end_renewal(conn)

    asyncio.run(main())
    with closing(connect(committed)) as conn:
        assert are_of(conn, NEW)


def test_columns_privileges_and_settings_of_ones_own_are_kept(conn: psycopg.Connection) -> None:
    conn.execute("CREATE ROLE renewal_reader")
    try:
        conn.execute("ALTER TABLE semantic_embeddings ADD extra NUMERIC DEFAULT 1.00000000000000000000001")
        conn.execute('CREATE INDEX "An Index" ON semantic_embeddings (extra DESC) WHERE extra > 0')
        conn.execute("COMMENT ON TABLE semantic_embeddings IS 'it''s ours'")
        conn.execute("GRANT SELECT ON semantic_embeddings TO renewal_reader WITH GRANT OPTION")
        conn.execute("GRANT UPDATE (extra) ON semantic_embeddings TO PUBLIC")
        likeness = """
            SELECT reloptions, relacl::text, obj_description(oid), relowner,
                (SELECT array_agg((attname, attacl::text, attstattarget, attstorage)::text ORDER BY attname)
                    FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped),
                (SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY 1) FROM pg_index WHERE indrelid = pg_class.oid)
            FROM pg_class WHERE oid = 'semantic_embeddings'::regclass"""
        before = conn.execute(likeness).fetchone()
        extra = conn.execute("SELECT id, extra::text FROM semantic_embeddings ORDER BY id").fetchall()
        embeddings.renew(conn, by(NEW), model=NEW)
        after = conn.execute(likeness).fetchone()
        assert before is not None
        assert after is not None
        assert after[:-1] == before[:-1]
        assert sorted(after[-1]) == sorted(before[-1])
        assert conn.execute("SELECT id, extra::text FROM semantic_embeddings ORDER BY id").fetchall() == extra
        embeddings.end_renewal(conn)
    finally:
        conn.execute("DROP OWNED BY renewal_reader")
        conn.execute("DROP ROLE renewal_reader")


HOLDING: Final = {
    "view seen": "CREATE VIEW seen AS SELECT text_content FROM semantic_embeddings",
    "view materialised": "CREATE MATERIALIZED VIEW materialised AS SELECT id FROM semantic_embeddings",
    "rule quiet": "CREATE RULE quiet AS ON UPDATE TO semantic_embeddings WHERE false DO INSTEAD NOTHING",
    "foreign key refers_text_fkey of refers": "CREATE TABLE refers (text UUID REFERENCES semantic_embeddings)",
    "policy own_rows": "CREATE POLICY own_rows ON semantic_embeddings USING (true)",
    "row-level security": "ALTER TABLE semantic_embeddings ENABLE ROW LEVEL SECURITY",
    "trigger own": "CREATE TRIGGER own BEFORE UPDATE ON semantic_embeddings FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "publication told": "CREATE PUBLICATION told FOR TABLE semantic_embeddings",
    "inheritance by heir": "CREATE TABLE heir () INHERITS (semantic_embeddings)",
    "generated column length": "ALTER TABLE semantic_embeddings "
    "ADD length INTEGER GENERATED ALWAYS AS (length(text_content)) STORED",
    "sequence semantic_embeddings_number_seq": "ALTER TABLE semantic_embeddings ADD number SERIAL",
    "statistics related": "CREATE STATISTICS related ON source, timestamp FROM semantic_embeddings",
    "function titles()": "CREATE FUNCTION titles() RETURNS SETOF text BEGIN ATOMIC "
    "SELECT text_content FROM semantic_embeddings; END",
}


@pytest.mark.parametrize("what", HOLDING)
def test_what_holds_on_to_the_table_is_named_and_nothing_is_begun(conn: psycopg.Connection, what: str) -> None:
    conn.execute(HOLDING[what].encode())
    with pytest.raises(SchemaError, match="semantic_embeddings") as caught:
        embeddings.renew(conn, by(NEW), model=NEW)
    assert what in str(caught.value)
    assert schemas(conn) == []
    assert embeddings.renewal(conn) is None


def test_what_has_come_to_hold_on_to_the_table_meanwhile_is_named_too(conn: psycopg.Connection) -> None:
    embeddings.renew(conn, by(NEW), model=NEW, switch=False)
    conn.execute("CREATE VIEW seen AS SELECT text_content FROM semantic_embeddings")
    with pytest.raises(SchemaError, match="view seen"):
        embeddings.renew(conn, by(NEW), model=NEW)
    conn.execute("DROP VIEW seen")
    conn.execute("ALTER TABLE semantic_embeddings ADD extra INTEGER")
    with pytest.raises(SchemaError, match="column extra, which was added since the renewal began"):
        embeddings.renew(conn, by(NEW), model=NEW)
    assert are_of(conn, OLD)
    embeddings.end_renewal(conn)
    embeddings.renew(conn, by(NEW), model=NEW)
    conn.execute("CREATE VIEW seen AS SELECT extra FROM semantic_embeddings")
    with pytest.raises(SchemaError, match="view seen"):
        embeddings.renew(conn, by(OLD), model=OLD)
    assert are_of(conn, NEW)


def test_a_renewal_that_was_interrupted_goes_on_where_it_was(twin: psycopg.Connection) -> None:
    embedded: list[str] = []

    def failing(texts: list[str]) -> list[Vector]:
        if len(embedded) == 48:
            raise ConnectionError("the model is gone")
        embedded.extend(texts)
        return [vector(NEW, text) for text in texts]

    with pytest.raises(ConnectionError) as caught:
        embeddings.renew(twin, failing, model=NEW, batch=16, retries=0)
    assert caught.value.__notes__ == ["raised by embed at attempt 1; what it made before is kept for the next renew"]
    beside = embeddings.renewal(twin)
    assert beside is not None
    assert (beside.serving, beside.other, beside.waiting) == (OLD, NEW, ROWS - 48)
    assert are_of(twin, OLD)
    assert embeddings.renew(twin, by(NEW), model=NEW).rows == ROWS - 48
    assert are_of(twin, NEW)


def test_a_renewal_can_be_prepared_and_switched_to_later(twin: psycopg.Connection) -> None:
    prepared = embeddings.renew(twin, by(NEW), model=NEW, switch=False)
    assert (prepared.rows, prepared.switched) == (ROWS, False)
    assert are_of(twin, OLD)
    assert embeddings.model(twin) == OLD
    with pytest.raises(InvalidValue, match="vectors of 'bge' beside"):
        embeddings.renew(twin, by(OTHER), model=OTHER)
    embeddings.insert(twin, embedding("meanwhile"))
    switched = embeddings.renew(twin, by(NEW), model=NEW)
    assert (switched.rows, switched.switched) == (1, True)
    assert are_of(twin, NEW)


def test_what_embed_raises_for_a_while_is_tried_again(twin: psycopg.Connection, pauses: list[float]) -> None:
    faults = iter([OSError("once"), OSError("twice"), OSError("three times")])

    def embed(texts: list[str]) -> Vector:
        for fault in faults:
            raise fault
        return np.array([vector(NEW, text) for text in texts])

    assert embeddings.renew(twin, embed, model=NEW, retries=3).rows == ROWS
    assert pauses == [1, 2, 4]


def test_embed_is_asked_no_faster_than_the_rate(twin: psycopg.Connection, pauses: list[float]) -> None:
    embeddings.renew(twin, by(NEW), model=NEW, rate=0.001, batch=50)
    assert len(pauses) == 3
    assert pauses[0] == 0
    assert 49_000 < pauses[1] <= 50_000
    assert 99_000 < pauses[2] <= 100_000


def test_rows_that_are_written_meanwhile_are_followed(committed: str, conn: psycopg.Connection) -> None:
    step = iter(range(1000))
    with closing(connect(committed)) as other:

        def embed(texts: list[str]) -> list[Vector]:
            number = next(step)
            if number < 5:
                ids = list(stored(other))
                embeddings.insert_many(other, [embedding(f"meanwhile {number} {n}") for n in range(3)])
                embeddings.delete(other, ids[number])
                other.execute(
                    "UPDATE semantic_embeddings SET text_content = %s, embedding = %s, metadata = '{}' WHERE id = %s",
                    [f"changed {number}", vector(OLD, f"changed {number}"), ids[-1 - number]],
                )
                other.execute("UPDATE semantic_embeddings SET id = %s WHERE id = %s", [uuid4(), ids[10 + number]])
            return [vector(NEW, text) for text in texts]

        embeddings.renew(conn, embed, model=NEW, batch=32)
        assert embeddings.count(conn) == ROWS + 10
        assert are_of(conn, NEW)
        before = stored(conn)
        embeddings.renew(conn, by(OLD), model=OLD)
        assert stored(conn) == before
        assert are_of(conn, OLD)


def test_a_truncation_meanwhile_is_followed(twin: psycopg.Connection) -> None:
    emptied = iter([True])
    with closing(connect(twin.info.dsn)) as other:

        def embed(texts: list[str]) -> list[Vector]:
            if len(texts) == 32 and next(emptied, False):
                other.execute("TRUNCATE semantic_embeddings")
                embeddings.insert_many(other, [embedding(f"fresh {number}") for number in range(3)])
            return [vector(NEW, text) for text in texts]

        embeddings.renew(twin, embed, model=NEW, batch=32)
    assert sorted(text for text, *_ in stored(twin).values()) == ["fresh 0", "fresh 1", "fresh 2"]
    assert are_of(twin, NEW)


@pytest.fixture(params=NEWEST_TWINS)
def hurried(request: pytest.FixtureRequest, start: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same on the newest server alone, for a renewal that tries once to get what it needs."""
    for module in ("kimera_sql.renewal", "kimera_sql.aio.renewal"):
        monkeypatch.setattr(f"{module}._ATTEMPTS", 1)
    with to_own_database(request.param, start, autocommit=True) as conn:
        fill(conn)
        yield conn


def test_a_table_that_is_in_use_all_the_time_is_named(hurried: psycopg.Connection) -> None:
    with psycopg.connect(hurried.info.dsn) as other:
        other.execute("LOCK semantic_embeddings IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
            embeddings.renew(hurried, by(NEW), model=NEW)
    assert caught.value.__notes__ == [
        "semantic_embeddings is in use all the time: its lock could not be had in 1 attempts"
    ]
    assert embeddings.renew(hurried, by(NEW), model=NEW).switched


def test_rows_that_are_written_faster_than_they_are_embedded_keep_the_old_model(
    hurried: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kimera_sql.renewal", "kimera_sql.aio.renewal"):
        monkeypatch.setattr(f"{module}._LOCK_TIMEOUT", 30_000)
    embeddings.renew(hurried, by(NEW), model=NEW, switch=False)
    with psycopg.connect(hurried.info.dsn) as other, closing(connect(hurried.info.dsn)) as watching:
        add_adapters(other)
        embeddings.insert(other, embedding("meanwhile"))

        def commit_once_the_table_is_waited_for() -> None:
            for _ in range(3000):
                if watching.execute("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'").rowcount:
                    break
                sleep(0.01)
            other.commit()

        writing = threading.Thread(target=commit_once_the_table_is_waited_for)
        writing.start()
        with pytest.raises(MaintenanceError, match="rows are written faster than they are embedded"):
            embeddings.renew(hurried, by(NEW), model=NEW)
        writing.join()
    assert are_of(hurried, OLD)
    assert embeddings.renew(hurried, by(NEW), model=NEW).rows == 1
    assert are_of(hurried, NEW)


@pytest.mark.ends
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_are_renewed_too(database: str, rows: int) -> None:
    with closing(connect(database)) as conn:
        embeddings.insert_many(conn, [embedding(f"text {number}") for number in range(rows)])
        embeddings.name_model(conn, OLD)
        renewed = embeddings.renew(conn, by(NEW), model=NEW)
        assert (renewed.rows, renewed.overlap, renewed.recall) == (rows, None, None)
        assert embeddings.model(conn) == NEW
        assert embeddings.count(conn) == rows


REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "same model": ({"model": OLD}, "of 'minilm' already"),
    "no name": ({"model": ""}, "model"),
    "wrong type": ({"model": 7}, "model"),
    "batch": ({"batch": 0}, "batch"),
    "rate": ({"rate": 0}, "rate"),
    "not a number": ({"rate": float("nan")}, "rate"),
    "retries": ({"retries": -1}, "retries"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_begun(twin: psycopg.Connection, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(InvalidValue, match=message):
        embeddings.renew(twin, by(NEW), **{"model": NEW, **options})
    assert schemas(twin) == []


MADE: Final[dict[str, tuple[Callable[[list[str]], Any], str]]] = {
    "too few": (lambda texts: [vector(NEW, text) for text in texts[1:]], "it gave 63 vectors for 64 texts"),
    "too many": (lambda texts: np.ones((len(texts) + 1, 1024)), "it gave 65 vectors for 64 texts"),
    "wrong dimension": (lambda texts: np.ones((len(texts), 384)), "embed: the vector of 'text "),
    "not a number": (lambda texts: np.full((len(texts), 1024), np.nan), "embed: the vector of 'text "),
}


@pytest.mark.parametrize("case", MADE)
def test_vectors_that_cannot_be_stored_are_refused_by_their_text(twin: psycopg.Connection, case: str) -> None:
    embed, message = MADE[case]
    with pytest.raises(InvalidValue, match=message):
        embeddings.renew(twin, embed, model=NEW, retries=0)
    assert are_of(twin, OLD)


@pytest.mark.ends
def test_a_model_without_a_name_cannot_be_renewed(database: str) -> None:
    with closing(connect(database)) as conn:
        assert embeddings.model(conn) is None
        with pytest.raises(InvalidValue, match="name_model"):
            embeddings.renew(conn, by(NEW), model=NEW)
        with pytest.raises(WrongModel, match="nobody has said"):
            embeddings.similar(conn, vector(OLD, "x"), model=OLD)
        embeddings.name_model(conn, OLD)
        embeddings.name_model(conn, OLD)
        with pytest.raises(WrongModel, match="renew"):
            embeddings.name_model(conn, NEW)


@pytest.mark.ends
def test_a_renewal_needs_a_session_outside_a_transaction(committed: str, tmp_path: Path) -> None:
    with psycopg.connect(committed) as conn:
        with pytest.raises(InvalidValue, match="autocommit"):
            embeddings.renew(conn, by(NEW), model=NEW)
        with pytest.raises(InvalidValue, match="autocommit"):
            embeddings.end_renewal(conn)
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as file:
        migrate(file)
        with pytest.raises(UnsupportedByServer, match="PostgreSQL"):
            embeddings.renew(file, by(NEW), model=NEW)
        assert embeddings.renewal(file) is None


def test_a_search_that_says_its_model_is_refused_where_another_serves(committed: str, conn: psycopg.Connection) -> None:
    query = vector(OLD, "text 3")
    for call in (
        lambda where, model: embeddings.similar(where, query, 2, model=model),
        lambda where, model: embeddings.similar(where, query, 2, source="tests", model=model),
        lambda where, model: embeddings.similar(where, query, 2, exact=True, model=model),
        lambda where, model: embeddings.similar_many(where, [query, query], 2, model=model),
        lambda where, model: embeddings.hybrid(where, "text", query, 2, model=model),
    ):
        assert call(conn, OLD)
        with pytest.raises(WrongModel, match="not known to be of 'bge'; they are of 'minilm'"):
            call(conn, NEW)
        assert conn.info.transaction_status == TransactionStatus.IDLE
    with open_pool(committed) as pool:
        assert len(embeddings.similar_many(pool, [query] * 3, 2, model=OLD)) == 3
        with pytest.raises(WrongModel):
            embeddings.similar_many(pool, [query] * 3, 2, model=NEW)


@pytest.mark.ends
def test_a_snapshot_from_before_the_change_is_refused(committed: str, conn: psycopg.Connection) -> None:
    embeddings.renew(conn, by(NEW), model=NEW, switch=False)
    with psycopg.connect(committed) as old:
        add_adapters(old)
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT 1")
        embeddings.insert(conn, embedding("unseen"))
        embeddings.renew(conn, by(NEW), model=NEW)
        with pytest.raises(WrongModel, match="nobody"):
            embeddings.similar(old, vector(NEW, "text 1"), model=NEW)
        old.rollback()
        assert len(embeddings.similar(old, vector(NEW, "unseen"), model=NEW)) == 10


def test_on_sqlite_a_model_has_a_name_too(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as file:
        migrate(file)
        embeddings.insert(file, embedding("text"))
        assert embeddings.model(file) is None
        embeddings.name_model(file, OLD)
        assert embeddings.model(file) == OLD
        assert len(embeddings.similar(file, vector(OLD, "text"), model=OLD)) == 1
        with pytest.raises(WrongModel):
            embeddings.similar(file, vector(NEW, "text"), model=NEW)
        with pytest.raises(WrongModel):
            embeddings.require_model(file, NEW)


@pytest.mark.ends
def test_a_transaction_that_requires_a_model_keeps_the_next_one_waiting(
    committed: str, conn: psycopg.Connection
) -> None:
    with pytest.raises(InvalidValue, match="outside a transaction"):
        embeddings.require_model(conn, OLD)
    with closing(connect(committed)) as writer:
        with writer.transaction():
            embeddings.require_model(writer, OLD)
            renewing = threading.Thread(target=embeddings.renew, args=(conn, by(NEW)), kwargs={"model": NEW})
            renewing.start()
            deadline = monotonic() + 60
            while (beside := embeddings.renewal(writer)) is None or beside.waiting:
                assert monotonic() < deadline
                sleep(0.05)
            sleep(1)
            assert embeddings.model(writer) == OLD
            embeddings.insert(writer, embedding("in time"))
        renewing.join(60)
        assert embeddings.model(writer) == NEW
        assert are_of(writer, NEW)
        assert embeddings.count(writer) == ROWS + 1
        with pytest.raises(WrongModel), writer.transaction():
            embeddings.require_model(writer, OLD)


SCRIPT: Final = """
import sys, zlib
from time import sleep
import numpy as np, psycopg
from kimera_sql import embeddings, add_adapters
sys.path.insert(0, {tests!r})
from test_renewal import vector

def embed(texts):
    sleep(0.02)
    return [vector(sys.argv[2], text) for text in texts]

with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    add_adapters(conn)
    embeddings.renew(conn, embed, model=sys.argv[2], batch=8)
"""


@pytest.mark.slow
@pytest.mark.ends
def test_no_search_fails_or_mixes_models_and_nothing_is_lost_though_renewals_are_killed(
    indexed: str, tmp_path: Path
) -> None:
    """Readers and writers go on through two renewals, there and back, each of which is killed twice."""
    script = tmp_path / "renew.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    chance = random.Random(7)
    ended = threading.Event()
    failures: list[BaseException] = []
    searches, refusals = [0], [0]
    lock = threading.Lock()
    with closing(connect(indexed)) as conn:
        texts = {text for text, *_ in stored(conn).values()}

    def guarded(work: Callable[[psycopg.Connection], None]) -> threading.Thread:
        def run() -> None:
            try:
                with closing(connect(indexed)) as conn:
                    while not ended.is_set():
                        work(conn)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def search(conn: psycopg.Connection) -> None:
        model = embeddings.model(conn) or ""
        query = vector(model, f"text {random.randrange(ROWS)}")
        try:
            hits = embeddings.similar(conn, query, 5, model=model, with_vectors=True)
        except WrongModel:
            refusals[0] += 1
            return
        searches[0] += 1
        assert len(hits) == 5
        for hit in hits:
            assert hit.vector is not None
            assert np.array_equal(hit.vector, vector(model, hit.embedding.text_content))

    def write(conn: psycopg.Connection) -> None:
        text = f"written {uuid4()}"
        with conn.transaction():
            model = embeddings.model(conn) or ""
            embeddings.require_model(conn, model)
            embeddings.insert(conn, embedding(text, model))
            gone = None
            if random.random() < 0.3:
                row = conn.execute(
                    "DELETE FROM semantic_embeddings WHERE id = (SELECT id FROM semantic_embeddings "
                    "WHERE text_content LIKE 'written%' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) "
                    "RETURNING text_content"
                ).fetchone()
                gone = row and row[0]
        with lock:
            texts.add(text)
            texts.discard(gone or "")
        sleep(0.02)

    threads = [guarded(search), guarded(search), guarded(write)]
    try:
        for model in (NEW, OLD):
            for kill in (True, True, False):
                renewing = subprocess.Popen([sys.executable, str(script), indexed, model], stderr=subprocess.PIPE)
                if kill:
                    sleep(0.3 + chance.random())
                    renewing.send_signal(signal.SIGKILL)
                _, said = renewing.communicate(timeout=120)
                assert kill or renewing.returncode == 0 or b"already" in said, said.decode()
            with closing(connect(indexed)) as conn:
                assert embeddings.model(conn) == model
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert searches[0] > 50
    with closing(connect(indexed)) as conn:
        assert are_of(conn, OLD)
        assert {text for text, *_ in stored(conn).values()} == texts
        assert embeddings.count(conn) == len(texts)
        assert migrations.differences(conn) == []
