"""Whatever vector is accepted is found again, whichever kind of index there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Final, get_args

import numpy as np
import psycopg
import pytest
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids, indexes
from kimera_sql.search import Method, Precision
from kimera_sql.vectors import MAX_NORM, MIN_NORM, Vector

SCALES: Final = (MIN_NORM * 1.01, 1e-12, 3e-8, 1e-5, 1.0, 1e3, 65_504.0, 1e6, 1e12, MAX_NORM * 0.99)
"""The norms of the vectors: half precision holds numbers from 6e-8 to 65,504."""


def _stored() -> list[Vector]:
    directions = [unit(seed) for seed in range(len(SCALES) * 4)]
    made = [direction * np.float32(SCALES[place % len(SCALES)]) for place, direction in enumerate(directions)]
    lonely = np.zeros(1024, np.float32)
    lonely[7] = 2e5
    uneven = unit(99) * np.float32(1e-3)
    uneven[5] = 7e4
    return [*made, lonely, uneven]


STORED: Final = _stored()


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection]:
    with closing(psycopg.connect(database, autocommit=True)) as conn:
        add_adapters(conn)
        yield conn


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("method", get_args(Method))
def test_a_vector_of_any_norm_is_its_own_nearest(
    conn: psycopg.Connection, method: Method, precision: Precision
) -> None:
    if precision != "full" and conn.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
        return
    half = len(STORED) // 2
    states = [
        geoids.NewGeoid(state_vector=vector, entropy=place, coherence_factor=0, energy_level=0)
        for place, vector in enumerate(STORED)
    ]
    texts = [
        embeddings.NewEmbedding(text_content=str(place), embedding=vector, source="s")
        for place, vector in enumerate(STORED)
    ]
    geoids.insert_many(conn, states[:half])
    embeddings.insert_many(conn, texts[:half])
    for table in ("geoid_states", "semantic_embeddings"):
        indexes.build(conn, table, method=method, precision=precision)
    geoids.insert_many(conn, states[half:])
    embeddings.insert_many(conn, texts[half:])
    for place, vector in enumerate(STORED):
        assert geoids.explain(conn, vector, 1, probes=100, ef_search=200).used
        (state,) = geoids.similar(conn, vector, 1, probes=100, ef_search=200)
        assert state.geoid.entropy == place
        assert state.similarity == pytest.approx(1, abs=1e-6)
        (text,) = embeddings.similar(conn, vector, 1, probes=100, ef_search=200)
        assert text.embedding.text_content == str(place)
        assert text.similarity == pytest.approx(1, abs=1e-6)
