"""Many rows with one vector, such as that of an empty text, hide no other row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Final, get_args

import numpy as np
import psycopg
import pytest
from strategies import unit

from kimera_sql import add_adapters, geoids, indexes
from kimera_sql.search import Method, Precision
from kimera_sql.search.measures import unit as scaled
from kimera_sql.vectors import Vector

ROWS: Final = 2000
SAME: Final = unit(0)


def _near(seed: int) -> Vector:
    return scaled(SAME + np.float32(0.05) * unit(seed))


VECTORS: Final = [
    SAME if place % 5 == 0 else _near(place) if place % 100 == 7 else unit(place) for place in range(ROWS)
]


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection]:
    with closing(psycopg.connect(database, autocommit=True)) as conn:
        add_adapters(conn)
        geoids.insert_many(
            conn,
            (
                geoids.NewGeoid(state_vector=vector, entropy=place, coherence_factor=0, energy_level=0)
                for place, vector in enumerate(VECTORS)
            ),
        )
        yield conn


@pytest.mark.slow
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("method", get_args(Method))
def test_rows_beside_many_identical_ones_are_found(
    conn: psycopg.Connection, method: Method, precision: Precision
) -> None:
    if precision != "full" and conn.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
        return
    indexes.build(conn, "geoid_states", method=method, precision=precision)
    near = range(7, ROWS, 100)
    for k in (1, 10):
        found = geoids.similar_many(conn, [VECTORS[place] for place in near], k)
        assert [hits[0].geoid.entropy for hits in found] == list(near)
        assert {len(hits) for hits in found} == {k}
    (hits,) = geoids.similar_many(conn, [SAME], 10)
    assert [hit.similarity for hit in hits] == [pytest.approx(1)] * 10
