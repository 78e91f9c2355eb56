"""What hypothesis makes: vectors, and items of every entity that a database can hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kimera_sql.embeddings import NewEmbedding
from kimera_sql.geoids import NewGeoid
from kimera_sql.metrics import NewMetric
from kimera_sql.portals import NewPortal
from kimera_sql.vectors import DIMENSIONS, Vector


def unit(seed: int) -> Vector:
    """A vector of length 1 in a direction of its own."""
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def _scaled(seed: int, exponent: int, zeros: int) -> Vector:
    vector = unit(seed) * np.float32(10.0**exponent)
    vector[:zeros] = 0
    return vector


vectors = st.builds(_scaled, st.integers(0, 2**32), st.integers(-14, 17), st.integers(0, DIMENSIONS // 2))
numbers = st.floats(allow_nan=False, allow_infinity=False)
# No NUL and no lone surrogates: what PostgreSQL's text can hold
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
optional_moments = st.none() | moments
ids = st.none() | st.uuids()
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
dimensions = st.integers(-(2**31), 2**31 - 1)

new_geoids = st.builds(
    NewGeoid,
    state_vector=vectors,
    entropy=numbers,
    coherence_factor=numbers,
    energy_level=numbers,
    metadata=json_objects,
    creation_context=st.none() | texts,
    tags=st.lists(texts, max_size=3),
    timestamp=optional_moments,
    id=ids,
)
new_embeddings = st.builds(
    NewEmbedding,
    text_content=texts,
    embedding=vectors,
    source=st.none() | texts,
    metadata=json_objects,
    timestamp=optional_moments,
    id=ids,
)
new_portals = st.builds(
    NewPortal,
    source_dimension=dimensions,
    target_dimension=dimensions,
    radius=numbers,
    energy_requirement=st.floats(0, allow_infinity=False),
    stability_factor=numbers,
    configuration_parameters=json_objects,
    status=texts,
    creation_timestamp=optional_moments,
    last_used_timestamp=optional_moments,
    id=ids,
)
new_metrics = st.builds(
    NewMetric,
    metric_name=texts,
    metric_value=numbers,
    component=texts,
    context=json_objects,
    timestamp=optional_moments,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """*whole* with some bytes changed, left out or added."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 4)))
        data[start:end] = draw(st.binary(max_size=8) | st.binary(min_size=end - start, max_size=end - start))
    return bytes(data)
