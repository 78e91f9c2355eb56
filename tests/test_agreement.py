"""Random sequences of operations give the same results on SQLite and on PostgreSQL, synchronously and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from fix_servers import NAMES
from fix_twins import asynchronous
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from reference import seconds
from strategies import unit

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, metrics, migrate, portals, transitions
from kimera_sql.errors import KimeraError
from kimera_sql.sql import Connection
from kimera_sql.sql.arrow import pyarrow

pytestmark = [pytest.mark.slow, pytest.mark.ends]

TAGS = st.lists(st.sampled_from("abc"), max_size=3)
TIMES = st.integers(0, 5).map(seconds)
SMALL = st.integers(-3, 3).map(float)
JSON = st.dictionaries(
    st.sampled_from("kl"), st.sampled_from([1, 1.0, True, "1", None, [], [1, [2]], {}, {"k": [1]}]), max_size=2
)
# Few directions, so that some states are equally near
VECTORS = st.integers(0, 4).map(unit)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "tags_all": TAGS,
        "tags_any": TAGS,
        "entropy": st.tuples(st.none() | st.floats(-3, 0), st.none() | st.floats(0, 3)),
        "since": TIMES,
        "until": TIMES,
        "metadata": JSON,
    },
)


class Together(RuleBasedStateMachine):
    """Does everything on several connections, and compares."""

    def __init__(self, *connections: Connection) -> None:
        super().__init__()
        self.connections = connections
        self.one = connections[0]
        self.ids: list[UUID] = []
        self.portals: list[UUID] = []

    def teardown(self) -> None:
        for conn in self.connections:
            conn.rollback()

    def everywhere(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        results = []
        for conn in self.connections:
            try:
                result = function(conn, *arguments, **named)
            except KimeraError as error:
                result = (type(error), str(error))
            results.append(result)
        assert all(same(results[0], result) for result in results[1:])
        return results[0]

    def new_id(self, among: list[UUID]) -> UUID:
        # In an order of its own, so that ties are not in the order of insertion
        among.append(UUID(int=(len(among) * 7919 + 1) % 10007))
        return among[-1]

    @initialize(vector=VECTORS)
    def begin(self, vector: Any) -> None:
        self.insert(vector, 0.0, [], {}, seconds(0))

    @rule(vector=VECTORS, entropy=SMALL, tags=TAGS, metadata=JSON, at=TIMES)
    def insert(self, vector: Any, entropy: float, tags: list[str], metadata: Any, at: Any) -> None:
        new = geoids.NewGeoid(
            id=self.new_id(self.ids),
            state_vector=vector,
            entropy=entropy,
            coherence_factor=0,
            energy_level=0,
            tags=tags,
            metadata=metadata,
            timestamp=at,
        )
        self.everywhere(geoids.insert, new)

    @rule(vectors=st.lists(VECTORS, max_size=5), at=TIMES)
    def insert_many(self, vectors: list[Any], at: Any) -> None:
        news = [
            geoids.NewGeoid(
                id=self.new_id(self.ids),
                state_vector=vector,
                entropy=1,
                coherence_factor=0,
                energy_level=0,
                timestamp=at,
            )
            for vector in vectors
        ]
        self.everywhere(geoids.insert_many, news)

    @rule(
        data=st.data(), vectors=st.lists(VECTORS, max_size=5), at=TIMES, duplicates=st.sampled_from(["last", "refuse"])
    )
    def upsert_many(self, data: st.DataObject, vectors: list[Any], at: Any, duplicates: Any) -> None:
        there = st.sampled_from(self.ids)
        news = [
            geoids.NewGeoid(
                id=data.draw(there) if data.draw(st.booleans()) else self.new_id(self.ids),
                state_vector=vector,
                entropy=number,
                coherence_factor=0,
                energy_level=0,
                timestamp=at,
            )
            for number, vector in enumerate(vectors)
        ]
        self.everywhere(geoids.upsert_many, news, duplicates=duplicates)
        for new in news[:1]:
            self.everywhere(geoids.upsert, new)
            self.everywhere(geoids.replace_vector, new.id, vectors[-1])
            self.everywhere(geoids.get, new.id)

    @rule(vectors=st.lists(VECTORS, min_size=1, max_size=5), tags=TAGS, metadata=JSON, at=TIMES, good=st.booleans())
    def arrow(self, vectors: list[Any], tags: list[str], metadata: Any, at: Any, good: bool) -> None:
        count = len(vectors)
        table = pyarrow().table(
            {
                "id": [str(self.new_id(self.ids)) for _ in vectors],
                "state_vector": vectors,
                "entropy": [*[1.0] * (count - 1), 1.0 if good else float("nan")],
                "coherence_factor": [0.0] * count,
                "energy_level": [0.0] * count,
                "tags": pyarrow().array([tags] * count, pyarrow().list_(pyarrow().string())),
                "metadata": [json.dumps(metadata)] * count,
                "timestamp": [at] * count,
            }
        )
        self.everywhere(geoids.insert_arrow, table)
        self.everywhere(streamed)

    @rule(vector=VECTORS, k=st.integers(1, 20), filters=FILTERS, with_vectors=st.booleans())
    def similar(self, vector: Any, k: int, filters: Any, with_vectors: bool) -> None:
        self.everywhere(geoids.similar, vector, k, exact=True, with_vectors=with_vectors, **filters)

    @rule(vector=VECTORS, least=st.floats(-1, 1), size=st.integers(1, 5), filters=FILTERS, with_vectors=st.booleans())
    def all_similar(self, vector: Any, least: float, size: int, filters: Any, with_vectors: bool) -> None:
        options = {"with_vectors": with_vectors, **filters}
        self.everywhere(geoids.similar, vector, at_least=least, **options)
        self.everywhere(lambda conn: list(geoids.within(conn, vector, least, **options)))
        self.everywhere(lambda conn: list(geoids.similar_pages(conn, vector, size, **options)))

    @rule(limit=st.integers(1, 20), filters=FILTERS)
    def find(self, limit: int, filters: Any) -> None:
        self.everywhere(geoids.find, limit=limit, **filters)
        self.everywhere(geoids.series, timedelta(seconds=2), **filters)
        self.everywhere(geoids.centroid, **filters)
        self.everywhere(lambda conn: [*geoids.pairs(conn, 0.5, **filters)])
        self.everywhere(geoids.delete_where, dry_run=True, **filters)

    @rule(data=st.data(), tags=TAGS, changes=JSON)
    def change(self, data: st.DataObject, tags: list[str], changes: Any) -> None:
        id = data.draw(st.sampled_from(self.ids) | st.just(UUID(int=99)))
        self.everywhere(geoids.add_tags, id, *tags)
        self.everywhere(geoids.update_metadata, id, changes)
        self.everywhere(geoids.remove_tags, id, *tags[:1])
        self.everywhere(geoids.similar_to, id, 3, exact=True)
        self.everywhere(geoids.get, id)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.ids))
        if not transitions.outgoing(self.one, id) and not transitions.incoming(self.one, id):
            self.everywhere(geoids.delete, id)

    @rule(filters=FILTERS, batch=st.integers(1, 3), transitions=st.sampled_from(["refuse", "delete"]))
    def delete_where(self, filters: Any, batch: int, transitions: Any) -> None:
        self.everywhere(geoids.delete_where, batch=batch, transitions=transitions, **filters)

    @precondition(lambda self: geoids.count(self.one) > 0)
    @rule(data=st.data(), energy=SMALL, at=TIMES, kind=st.sampled_from(["drift", "Jump", "ähnlich"]))
    def step(self, data: st.DataObject, energy: float, at: Any, kind: str) -> None:
        there = st.sampled_from([state.id for state in geoids.find(self.one)])
        steps = [
            transitions.NewTransition(
                id=UUID(int=(transitions.count(self.one) * 7919 + 5) % 10007),
                source_id=data.draw(there),
                target_id=data.draw(there),
                transition_energy=energy,
                conservation_error=-energy / 4,
                transition_type=kind,
                timestamp=at,
            )
        ]
        self.everywhere(transitions.insert_many, steps)

    @rule(data=st.data(), most=st.integers(1, 6), tolerance=st.floats(0, 1))
    def walk(self, data: st.DataObject, most: int, tolerance: float) -> None:
        one, other = data.draw(st.sampled_from(self.ids)), data.draw(st.sampled_from(self.ids))
        self.everywhere(transitions.path, one, other, max_steps=most)
        self.everywhere(transitions.trajectory, one, max_steps=most)
        self.everywhere(transitions.outgoing, one)
        self.everywhere(transitions.incoming, one)
        self.everywhere(transitions.by_type, "Jump", limit=most)
        self.everywhere(transitions.between, seconds(1), seconds(most))
        self.everywhere(transitions.energy_balance, since=seconds(1))
        self.everywhere(transitions.summary, timedelta(seconds=most), since=seconds(1))
        self.everywhere(transitions.unbalanced, tolerance)

    @rule(ends=st.tuples(st.integers(0, 3), st.integers(0, 3)), energy=st.integers(0, 3), at=TIMES, open=st.booleans())
    def portal(self, ends: tuple[int, int], energy: int, at: Any, open: bool) -> None:
        new = portals.NewPortal(
            id=self.new_id(self.portals),
            source_dimension=ends[0],
            target_dimension=ends[1],
            radius=1,
            energy_requirement=energy,
            stability_factor=1,
            status="active" if open else "closed",
            creation_timestamp=at,
        )
        self.everywhere(portals.insert, new)
        self.everywhere(portals.upsert, replace(new, radius=2))
        self.everywhere(portals.upsert_many, [replace(new, radius=3)])
        self.everywhere(portals.mark_used, new.id, at=at)
        self.everywhere(portals.update_parameters, new.id, {"k": energy})

    @rule(ends=st.tuples(st.integers(0, 3), st.integers(0, 3)), most=st.integers(1, 5))
    def route(self, ends: tuple[int, int], most: int) -> None:
        self.everywhere(portals.route, *ends, max_steps=most)
        self.everywhere(portals.between, *ends)
        self.everywhere(portals.by_status, "active", limit=most)

    @rule(name=st.sampled_from(["load", "Load", "lärm"]), value=SMALL, at=TIMES)
    def measure(self, name: str, value: float, at: Any) -> None:
        new = metrics.NewMetric(metric_name=name, metric_value=value, component=name[0], timestamp=at)
        self.everywhere(metrics.insert_many, [new])

    @rule(width=st.integers(1, 4), component=st.none() | st.just("l"), at=TIMES)
    def report(self, width: int, component: str | None, at: Any) -> None:
        self.everywhere(metrics.names)
        self.everywhere(
            metrics.series, "load", bucket=timedelta(seconds=width), since=seconds(0), until=at, component=component
        )
        newest = [metrics.latest(conn, "load", limit=9) for conn in self.connections]
        values = [[metric.metric_value for metric in found] for found in newest]
        assert all(found == values[0] for found in values)
        self.everywhere(metrics.prune, seconds(1), batch=1)

    @rule(text=st.sampled_from(["a", "b"]), source=st.none() | st.sampled_from(["s", "t"]), seed=st.integers(0, 4))
    def embed(self, text: str, source: str | None, seed: int) -> None:
        ours = [
            embeddings.get_or_create(conn, text, lambda _: unit(seed), source=source).embedding
            for conn in self.connections
        ]
        assert all(np.array_equal(ours[0], vector) for vector in ours)
        again = embeddings.NewEmbedding(text_content=text, embedding=unit(seed + 1), source=source)
        for conn in self.connections:
            assert np.array_equal(embeddings.upsert(conn, again).embedding, unit(seed + 1))
        news = [again, replace(again, text_content=text + "b"), again]
        self.everywhere(embeddings.upsert_many, news)
        self.everywhere(embeddings.count)
        hits = [embeddings.similar(conn, unit(9), source=source, exact=True) for conn in self.connections]
        hits += [list(embeddings.within(conn, unit(9), -1, source=source)) for conn in self.connections]
        hits += [
            [hit for page in embeddings.similar_pages(conn, unit(9), 3, source=source) for hit in page]
            for conn in self.connections
        ]
        similarities = [
            sorted(pair.similarity for pair in embeddings.duplicates(conn, source=source)) for conn in self.connections
        ]
        assert all(same(found, similarities[0]) for found in similarities)
        texts = [sorted(f"{hit.embedding.text_content} {hit.embedding.source}" for hit in found) for found in hits]
        assert all(found == texts[0] for found in texts)


def streamed(conn: Connection) -> list[Any]:
    rows = [batch.to_pylist() for batch in geoids.stream_arrow(conn, chunk=2)]
    return [[{**row, "metadata": json.loads(row["metadata"])} for row in batch] for batch in rows]


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of what was added up or multiplied in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-6, atol=1e-6))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.allclose(one, other, rtol=1e-6, atol=1e-6))
    if isinstance(one, (geoids.Hit, geoids.Bucket, metrics.Bucket, transitions.Bucket, transitions.EnergyBalance)):
        return all(same(getattr(one, name), getattr(other, name)) for name in type(one).__slots__)
    return bool(np.array_equal(one, other))


def test_both_databases_and_both_twins_agree(shared: Callable[[str], str], database: str, tmp_path: Any) -> None:
    """The newest server and each of the others."""
    for name in ("synchronous.db", "asynchronous.db"):
        with SqlitePool(tmp_path / name) as pool, pool.connection() as conn:
            migrate(conn)
    with (
        psycopg.connect(shared(NAMES[0])) as server,
        SqlitePool(tmp_path / "synchronous.db") as pool,
        pool.connection() as file,
        asynchronous(str(tmp_path / "asynchronous.db")) as file_too,
        asynchronous(database) as server_too,
    ):
        machine: Any = lambda: Together(server, file, server_too, file_too)  # noqa: E731 - it stands for the class
        add_adapters(server)
        run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))
        server.rollback()
