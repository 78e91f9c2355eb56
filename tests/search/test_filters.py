"""Every filter, alone and all together, by every kind of index and without one, against plain Python."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from fix_servers import NAMES, Server, index_kinds
from numpy.typing import NDArray
from reference import assert_nearest, contains, cosines, seconds

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, migrate
from kimera_sql.search import indexes
from kimera_sql.sql import Connection
from kimera_sql.vectors import DIMENSIONS, Vector

pytestmark = pytest.mark.ends

ROWS: Final = 1600
# Each filter leaves out one or two rows of so many: not all of the nearest pass, but enough for an index to be used.
EVERY: Final = 36


def _vectors() -> tuple[Vector, NDArray[np.float32]]:
    """A query and vectors that every index finds with ease, the nearest first: they lie in eight directions alone."""
    random = np.random.default_rng(0)
    made = (random.standard_normal((1 + ROWS, 8)) @ random.standard_normal((8, DIMENSIONS))).astype(np.float32)
    query, vectors = made[0], made[1:]
    return query, vectors[np.argsort(-cosines(made[:1], vectors)[0])]


QUERY, VECTORS = _vectors()
SIMILARITIES: Final = cosines(QUERY[np.newaxis], VECTORS)[0]


def shared(number: int) -> dict[str, Any]:
    """What a row of either table has."""
    turn = number % EVERY
    return {
        "timestamp": seconds({0: -1, 1: ROWS, 2: 0}.get(turn, number)),
        "metadata": {"sleep": {"phase": "deep" if turn == 7 else "rem", "number": number}},
        "id": UUID(int=number),
    }


def geoid(number: int) -> geoids.NewGeoid:
    turn = number % EVERY
    either = "c" if number // EVERY % 12 else "d"
    return geoids.NewGeoid(
        state_vector=VECTORS[number],
        entropy={3: 0.1, 4: 0.9}.get(turn, (0.25, 0.5, 0.75)[number % 3]),
        coherence_factor=0,
        energy_level=0,
        tags=[tag for tag, without in (("a", None), ("b", 5), (either, 6)) if turn != without],
        **shared(number),
    )


def embedding(number: int) -> embeddings.NewEmbedding:
    return embeddings.NewEmbedding(
        text_content="a word",
        embedding=VECTORS[number],
        source={3: None, 4: "another"}.get(number % EVERY, "one"),
        **shared(number),
    )


@dataclass(frozen=True)
class Entity:
    """An entity that is searched. filters: its TypedDict; values: one for each; passes: whether a row does."""

    module: ModuleType
    table: str
    rows: list[Any]
    filters: type
    values: Mapping[str, Any]
    passes: Mapping[str, Callable[[Any, Any], bool]]

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: self.values[name] for name in names}

    def passing(self, names: tuple[str, ...]) -> list[int]:
        """The rows that pass all of them, the nearest to QUERY first."""
        return [
            n for n, row in enumerate(self.rows) if all(self.passes[name](row, self.values[name]) for name in names)
        ]


SHARED: Final = {"since": seconds(0), "until": seconds(ROWS), "metadata": {"sleep": {"phase": "rem"}}}
SHARED_PASSES: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "since": lambda row, since: row.timestamp >= since,
    "until": lambda row, until: row.timestamp < until,
    "metadata": lambda row, part: contains(row.metadata, part),
}
GEOIDS: Final = Entity(
    geoids,
    "geoid_states",
    [geoid(number) for number in range(ROWS)],
    geoids.Filters,
    {"tags_all": ["b", "a"], "tags_any": ["c", "d"], "entropy": (0.25, 0.75), **SHARED},
    {
        "tags_all": lambda row, tags: set(tags) <= set(row.tags),
        "tags_any": lambda row, tags: bool(set(tags) & set(row.tags)),
        "entropy": lambda row, ends: ends[0] <= row.entropy <= ends[1],
        **SHARED_PASSES,
    },
)
EMBEDDINGS: Final = Entity(
    embeddings,
    "semantic_embeddings",
    [embedding(number) for number in range(ROWS)],
    embeddings.Filters,
    {"source": "one", **SHARED},
    {"source": lambda row, source: bool(row.source == source), **SHARED_PASSES},
)


def cases(*entities: Entity) -> list[Any]:
    """Each filter that an entity's TypedDict has by itself, and all of them together."""
    return [
        pytest.param(entity, names, id=f"{entity.table}-{'all' if len(names) > 1 else names[0]}")
        for entity in entities
        for names in (*((name,) for name in entity.filters.__annotations__), tuple(entity.filters.__annotations__))
    ]


@pytest.fixture(scope="module")
def filled(start: Callable[[str], Server]) -> Iterator[Callable[[str], Connection]]:
    """A function that returns a connection to a database with all the rows, on the server of a name or SQLite."""
    with ExitStack() as stack:

        @cache
        def made(name: str) -> Connection:
            conn: Connection
            if name == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kimera_test_"))
                conn = stack.enter_context(stack.enter_context(SqlitePool(f"{folder}/file.db")).connection())
                migrate(conn)
            else:
                server = start(name)
                conninfo = server.create(template=server.template)
                stack.callback(server.drop, conninfo)
                conn = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
                add_adapters(conn)
            for entity in (GEOIDS, EMBEDDINGS):
                entity.module.insert_many(conn, entity.rows)
            return conn

        yield made


@pytest.fixture(
    scope="module",
    params=index_kinds(),
    ids="-".join,
)
def indexed(
    request: pytest.FixtureRequest, filled: Callable[[str], Connection]
) -> Iterator[tuple[Connection, dict[str, Any]]]:
    """A connection to a database with each kind of index in turn, and a setting that finds the nearest."""
    server, method, precision = request.param
    conn = filled(server)
    assert isinstance(conn, psycopg.Connection)
    lists = 4 if method == "ivfflat" else None
    built = [
        indexes.build(conn, entity.table, method=method, precision=precision, lists=lists).name
        for entity in (GEOIDS, EMBEDDINGS)
    ]
    yield conn, {"probes": lists} if lists else {"ef_search": 100}
    for name in built:
        indexes.drop(conn, name)


@pytest.mark.parametrize(("entity", "names"), cases(GEOIDS, EMBEDDINGS))
def test_every_filter_is_tried_and_leaves_some_of_the_nearest(entity: Entity, names: tuple[str, ...]) -> None:
    assert entity.values.keys() == entity.passes.keys() == entity.filters.__annotations__.keys()
    assert 0 < len(set(range(EVERY)) & set(entity.passing(names))) < EVERY


@pytest.mark.parametrize(("entity", "names"), cases(GEOIDS, EMBEDDINGS))
def test_the_nearest_that_pass_are_found_by_an_index(
    indexed: tuple[Connection, dict[str, Any]], entity: Entity, names: tuple[str, ...]
) -> None:
    conn, setting = indexed
    assert entity.module.explain(conn, QUERY, EVERY, **setting, **entity.given(names)).used
    hits = entity.module.similar(conn, QUERY, EVERY, **setting, **entity.given(names))
    assert_found(hits, entity.passing(names), EVERY)


@pytest.mark.parametrize(("entity", "names"), cases(GEOIDS, EMBEDDINGS))
@pytest.mark.parametrize("place", [*NAMES, "sqlite"])
def test_all_that_pass_are_found_by_an_exact_search(
    filled: Callable[[str], Connection], place: str, entity: Entity, names: tuple[str, ...]
) -> None:
    hits = entity.module.similar(filled(place), QUERY, ROWS, exact=True, **entity.given(names))
    assert_found(hits, entity.passing(names), ROWS)


@pytest.mark.parametrize(("entity", "names"), cases(GEOIDS))
@pytest.mark.parametrize("place", [*NAMES, "sqlite"])
def test_all_that_pass_are_found_without_a_vector(
    filled: Callable[[str], Connection], place: str, entity: Entity, names: tuple[str, ...]
) -> None:
    found = geoids.find(filled(place), limit=ROWS, **entity.given(names))
    assert sorted(row.id.int for row in found) == entity.passing(names)


@pytest.mark.parametrize(("entity", "names"), cases(EMBEDDINGS))
@pytest.mark.parametrize("place", NAMES)
def test_all_that_pass_are_found_by_a_word(
    filled: Callable[[str], Connection], place: str, entity: Entity, names: tuple[str, ...]
) -> None:
    found = embeddings.hybrid(filled(place), "words", QUERY, ROWS, **entity.given(names))
    assert sorted(hit.embedding.id.int for hit in found if hit.by_words) == entity.passing(names)


def assert_found(hits: list[Any], passing: list[int], k: int) -> None:
    """Assert that *hits* are the *k* nearest of the rows that pass."""
    found = [((hit.geoid if isinstance(hit, geoids.Hit) else hit.embedding).id, hit.similarity) for hit in hits]
    assert_nearest(found, [(UUID(int=number), SIMILARITIES[number]) for number in passing], k)
