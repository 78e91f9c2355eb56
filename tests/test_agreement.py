"""Random sequences of operations give the same results on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from reference import seconds
from strategies import unit

from kimera_sql import SqlitePool, embeddings, geoids, metrics, migrate, portals, transitions
from kimera_sql.errors import KimeraError
from kimera_sql.sql import Connection

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


class Both(RuleBasedStateMachine):
    """Does everything twice, and compares."""

    def __init__(self, one: Connection, other: Connection) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.ids: list[UUID] = []
        self.portals: list[UUID] = []

    def teardown(self) -> None:
        self.one.rollback()
        self.other.rollback()

    def both(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        results = []
        for conn in (self.one, self.other):
            try:
                result = function(conn, *arguments, **named)
            except KimeraError as error:
                result = (type(error), str(error))
            results.append(result)
        assert same(*results)
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
        self.both(geoids.insert, new)

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
        self.both(geoids.insert_many, news)

    @rule(vector=VECTORS, k=st.integers(1, 20), filters=FILTERS, with_vectors=st.booleans())
    def similar(self, vector: Any, k: int, filters: Any, with_vectors: bool) -> None:
        self.both(geoids.similar, vector, k, exact=True, with_vectors=with_vectors, **filters)

    @rule(limit=st.integers(1, 20), filters=FILTERS)
    def find(self, limit: int, filters: Any) -> None:
        self.both(geoids.find, limit=limit, **filters)

    @rule(data=st.data(), tags=TAGS, changes=JSON)
    def change(self, data: st.DataObject, tags: list[str], changes: Any) -> None:
        id = data.draw(st.sampled_from(self.ids) | st.just(UUID(int=99)))
        self.both(geoids.add_tags, id, *tags)
        self.both(geoids.update_metadata, id, changes)
        self.both(geoids.remove_tags, id, *tags[:1])
        self.both(geoids.similar_to, id, 3, exact=True)
        self.both(geoids.get, id)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.ids))
        if not transitions.outgoing(self.one, id) and not transitions.incoming(self.one, id):
            self.both(geoids.delete, id)

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
        self.both(transitions.insert_many, steps)

    @rule(data=st.data(), most=st.integers(1, 6), tolerance=st.floats(0, 1))
    def walk(self, data: st.DataObject, most: int, tolerance: float) -> None:
        one, other = data.draw(st.sampled_from(self.ids)), data.draw(st.sampled_from(self.ids))
        self.both(transitions.path, one, other, max_steps=most)
        self.both(transitions.trajectory, one, max_steps=most)
        self.both(transitions.outgoing, one)
        self.both(transitions.incoming, one)
        self.both(transitions.by_type, "Jump", limit=most)
        self.both(transitions.between, seconds(1), seconds(most))
        self.both(transitions.energy_balance, since=seconds(1))
        self.both(transitions.unbalanced, tolerance)

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
        self.both(portals.insert, new)
        self.both(portals.mark_used, new.id, at=at)
        self.both(portals.update_parameters, new.id, {"k": energy})

    @rule(ends=st.tuples(st.integers(0, 3), st.integers(0, 3)), most=st.integers(1, 5))
    def route(self, ends: tuple[int, int], most: int) -> None:
        self.both(portals.route, *ends, max_steps=most)
        self.both(portals.between, *ends)
        self.both(portals.by_status, "active", limit=most)

    @rule(name=st.sampled_from(["load", "Load", "lärm"]), value=SMALL, at=TIMES)
    def measure(self, name: str, value: float, at: Any) -> None:
        new = metrics.NewMetric(metric_name=name, metric_value=value, component=name[0], timestamp=at)
        self.both(metrics.insert_many, [new])

    @rule(width=st.integers(1, 4), component=st.none() | st.just("l"), at=TIMES)
    def report(self, width: int, component: str | None, at: Any) -> None:
        self.both(metrics.names)
        self.both(
            metrics.series, "load", bucket=timedelta(seconds=width), since=seconds(0), until=at, component=component
        )
        newest = [metrics.latest(conn, "load", limit=9) for conn in (self.one, self.other)]
        assert [metric.metric_value for metric in newest[0]] == [metric.metric_value for metric in newest[1]]
        self.both(metrics.prune, seconds(1), batch=1)

    @rule(text=st.sampled_from(["a", "b"]), source=st.none() | st.sampled_from(["s", "t"]), seed=st.integers(0, 4))
    def embed(self, text: str, source: str | None, seed: int) -> None:
        ours = [
            embeddings.get_or_create(conn, text, lambda _: unit(seed), source=source).embedding
            for conn in (self.one, self.other)
        ]
        assert np.array_equal(ours[0], ours[1])
        hits = [embeddings.similar(conn, unit(9), source=source, exact=True) for conn in (self.one, self.other)]
        texts = [sorted(f"{hit.embedding.text_content} {hit.embedding.source}" for hit in found) for found in hits]
        assert texts[0] == texts[1]


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of what was added up or multiplied in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-6, atol=1e-6))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (geoids.Hit, metrics.Bucket, transitions.EnergyBalance)):
        return all(same(getattr(one, name), getattr(other, name)) for name in type(one).__slots__)
    return bool(np.array_equal(one, other))


def test_sqlite_and_postgres_agree(pg_conn: psycopg.Connection, tmp_path: Any) -> None:
    with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as file:
        migrate(file)
        machine: Any = lambda: Both(pg_conn, file)  # noqa: E731 - it stands for the class
        run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))
