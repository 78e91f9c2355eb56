"""Geoid states: filters, similarity, and changes of metadata and tags."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    ABSENT,
    BAD_IDS,
    BAD_LIMITS,
    BAD_MOMENTS,
    BAD_OBJECTS,
    BAD_SPANS,
    BAD_VECTORS,
    assert_nearest,
    contains,
    cosine,
    near,
    same_json,
    seconds,
)
from strategies import json_objects, texts, unit

from kimera_sql import geoids
from kimera_sql.errors import InvalidValue, NotFound, VectorError
from kimera_sql.geoids import Bucket, Geoid, NewGeoid
from kimera_sql.sql import Connection

VECTORS = [unit(seed) for seed in range(40)]
few_tags = st.lists(st.sampled_from("abc"), max_size=3)
json_scalars: st.SearchStrategy[Any] = st.sampled_from([0, 1, 1.0, 1.5, True, False, None, "", "a"])
small_objects: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from("xy"),
    st.recursive(
        json_scalars,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=2,
)
moments = st.integers(0, 3).map(seconds)
entropies = st.sampled_from([-1.0, 0.0, 0.5, 1.0])
states = st.lists(
    st.builds(
        NewGeoid,
        state_vector=st.sampled_from(VECTORS),
        entropy=entropies,
        coherence_factor=st.just(0.5),
        energy_level=st.just(1.0),
        metadata=small_objects,
        tags=few_tags,
        timestamp=moments,
        id=st.uuids(),
    ),
    max_size=12,
    unique_by=lambda new: new.id,
)


def ordered_pair(ends: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    least, most = ends
    return (most, least) if least is not None and most is not None and least > most else ends


FILTERS: dict[str, st.SearchStrategy[Any]] = {
    "tags_all": st.none() | few_tags,
    "tags_any": st.none() | few_tags,
    "entropy": st.none() | st.tuples(st.none() | entropies, st.none() | entropies).map(ordered_pair),
    "since": st.none() | moments,
    "until": st.none() | moments,
    "metadata": st.none() | small_objects,
}
filters: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=FILTERS)


def passes(
    new: NewGeoid,
    *,
    tags_all: Any = None,
    tags_any: Any = None,
    entropy: Any = None,
    since: Any = None,
    until: Any = None,
    metadata: Any = None,
) -> bool:
    """Whether a state passes the filters of find and similar."""
    least, most = entropy or (None, None)
    assert new.timestamp is not None
    return (
        (tags_all is None or set(tags_all) <= set(new.tags))
        and (tags_any is None or bool(set(tags_any) & set(new.tags)))
        and (least is None or new.entropy >= least)
        and (most is None or new.entropy <= most)
        and (since is None or new.timestamp >= since)
        and (until is None or new.timestamp < until)
        and (metadata is None or contains(new.metadata, metadata))
    )


def state(number: int, **changes: Any) -> NewGeoid:
    """A state at so many seconds after START, in a direction of its own."""
    new = NewGeoid(
        state_vector=VECTORS[number], entropy=0.5, coherence_factor=0.5, energy_level=1, timestamp=seconds(number)
    )
    return replace(new, **changes)


def add(conn: Connection, count: int) -> list[Geoid]:
    return [geoids.insert(conn, state(number)) for number in range(count)]


@given(news=states, filters=filters, limit=st.integers(1, 15))
def test_find_returns_the_newest_that_pass_all_filters(
    conn: Connection, news: list[NewGeoid], filters: dict[str, Any], limit: int
) -> None:
    conn.rollback()
    geoids.insert_many(conn, news)
    expected = [new for new in news if passes(new, **filters)]
    expected.sort(key=lambda new: (seconds(0) - (new.timestamp or seconds(0)), new.id))
    found = geoids.find(conn, limit=limit, **filters)
    assert [summary.id for summary in found] == [new.id for new in expected[:limit]]


@given(whole=small_objects, part=small_objects)
def test_metadata_filter_is_containment(conn: Connection, whole: dict[str, Any], part: dict[str, Any]) -> None:
    conn.rollback()
    geoids.insert(conn, state(0, metadata=whole))
    assert len(geoids.find(conn, metadata=part)) == contains(whole, part)


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({}, True),
        ({"n": 1}, True),
        ({"n": 1.0}, True),
        ({"n": True}, False),
        ({"list": [3, 1]}, True),
        ({"list": [1, 1]}, True),
        ({"list": 1}, False),
        ({"list": []}, True),
        ({"deep": {"a": None}}, True),
        ({"deep": {"b": None}}, False),
        ({"deep": {}}, True),
        ({"a": None}, False),
        ({"naïve %s :x 'q'": '"'}, True),
    ],
)
def test_metadata_filter_examples(conn: Connection, part: dict[str, Any], found: bool) -> None:
    whole = {"n": 1, "list": [1, 2, 3], "deep": {"a": None, "c": 0}, "naïve %s :x 'q'": '"'}
    geoids.insert(conn, state(0, metadata=whole))
    assert bool(geoids.find(conn, metadata=part)) is found


def test_find_without_filters_returns_at_most_100(conn: Connection) -> None:
    geoids.insert_many(conn, [state(0) for _ in range(101)])
    assert len(geoids.find(conn)) == 100


def test_find_returns_what_get_does_but_the_vector(conn: Connection) -> None:
    stored = geoids.insert(conn, state(0, metadata={"a": [1]}, tags=["b", "a", "b"], creation_context="here"))
    (found,) = geoids.find(conn)
    assert not isinstance(found, Geoid)
    assert all(getattr(found, name) == getattr(stored, name) for name in geoids.GeoidSummary.__slots__)
    assert stored.tags == ("b", "a", "b")


def test_entropy_includes_both_ends(conn: Connection) -> None:
    geoids.insert_many(conn, [state(number, entropy=number / 4) for number in range(5)])
    assert [found.entropy for found in geoids.find(conn, entropy=(0.25, 0.75))] == [0.75, 0.5, 0.25]


def test_since_is_included_and_until_is_not(conn: Connection) -> None:
    geoids.insert_many(conn, [state(number) for number in range(5)])
    found = geoids.find(conn, since=seconds(1), until=seconds(3))
    assert [summary.timestamp for summary in found] == [seconds(2), seconds(1)]


def test_all_of_no_tags_is_every_state_and_any_of_no_tags_is_none(conn: Connection) -> None:
    geoids.insert_many(conn, [state(0), state(1, tags=["a"])])
    assert len(geoids.find(conn, tags_all=[])) == 2
    assert geoids.find(conn, tags_any=[]) == []


def test_latest_returns_the_newest_first_and_ties_by_id(conn: Connection) -> None:
    low, high = sorted([uuid4(), uuid4()])
    geoids.insert_many(conn, [state(0), state(1, id=high), state(1, id=low)])
    assert [found.id for found in geoids.latest(conn, 2)] == [low, high]


def test_latest_returns_10_unless_told(conn: Connection) -> None:
    add(conn, 11)
    assert len(geoids.latest(conn)) == 10


@given(
    news=states,
    filters=filters,
    k=st.integers(1, 15),
    query=st.integers(0, 2**32).map(unit),
    exact=st.booleans(),
)
def test_similar_returns_the_nearest_that_pass_all_filters(
    conn: Connection, news: list[NewGeoid], filters: dict[str, Any], k: int, query: Any, exact: bool
) -> None:
    conn.rollback()
    geoids.insert_many(conn, news)
    hits = geoids.similar(conn, query, k, exact=exact, **filters)
    expected = [
        (new.id, cosine(np.asarray(new.state_vector), query))
        for new in news
        if new.id is not None and passes(new, **filters)
    ]
    assert_nearest([(hit.geoid.id, hit.similarity) for hit in hits], expected, k)


def test_similar_does_not_depend_on_length_and_reaches_from_minus_1_to_1(conn: Connection) -> None:
    geoids.insert_many(conn, [state(0, state_vector=VECTORS[0] * scale) for scale in (1e-14, 1e15, -3)])
    hits = geoids.similar(conn, VECTORS[0] * 7)
    np.testing.assert_allclose([hit.similarity for hit in hits], [1, 1, -1], rtol=0, atol=1e-6)


def test_similar_returns_10_unless_told_and_all_where_there_are_fewer(conn: Connection) -> None:
    add(conn, 11)
    assert len(geoids.similar(conn, VECTORS[0])) == 10
    assert len(geoids.similar(conn, VECTORS[0], k=2**31 - 1)) == 11


def test_similar_of_no_states_is_empty(conn: Connection) -> None:
    assert geoids.similar(conn, VECTORS[0]) == []


@pytest.mark.parametrize("exact", [True, False])
def test_similar_brings_vectors_only_when_asked(conn: Connection, exact: bool) -> None:
    (stored,) = add(conn, 1)
    (without,) = geoids.similar(conn, VECTORS[0], exact=exact)
    (hit,) = geoids.similar(conn, VECTORS[0], exact=exact, with_vectors=True)
    assert without.vector is None
    assert hit.vector is not None
    assert not hit.vector.flags.writeable
    np.testing.assert_array_equal(hit.vector, stored.state_vector)
    assert hit == replace(without, vector=stored.state_vector)


def test_similar_breaks_ties_by_id_where_it_is_exact(conn: Connection) -> None:
    ids = sorted(uuid4() for _ in range(8))
    geoids.insert_many(conn, [state(0, id=id) for id in reversed(ids)])
    assert [hit.geoid.id for hit in geoids.similar(conn, VECTORS[1], 5, exact=True)] == ids[:5]


@pytest.mark.parametrize("exact", [True, False])
def test_similar_to_is_similar_without_the_state_itself(conn: Connection, exact: bool) -> None:
    first, *others = add(conn, 12)
    hits = geoids.similar_to(conn, first.id, 5, exact=exact, with_vectors=True)
    expected = [(other.id, cosine(other.state_vector, first.state_vector)) for other in others]
    assert_nearest([(hit.geoid.id, hit.similarity) for hit in hits], expected, 5)
    assert all(hit.vector is not None for hit in hits)


def test_similar_to_finds_another_state_of_the_same_vector(conn: Connection) -> None:
    one, other = (geoids.insert(conn, state(0)) for _ in range(2))
    assert [hit.geoid.id for hit in geoids.similar_to(conn, one.id)] == [other.id]


def test_similar_to_takes_filters(conn: Connection) -> None:
    first, _, wanted = (geoids.insert(conn, state(number, tags=[str(number)])) for number in range(3))
    assert [hit.geoid.id for hit in geoids.similar_to(conn, first.id, tags_any=["0", "2"])] == [wanted.id]


@given(metadata=json_objects, changes=json_objects)
def test_update_metadata_merges_at_the_top_level(
    conn: Connection, metadata: dict[str, Any], changes: dict[str, Any]
) -> None:
    stored = geoids.insert(conn, state(0, metadata=metadata))
    merged = geoids.update_metadata(conn, stored.id, changes)
    assert same_json(merged, {**metadata, **changes})
    assert geoids.get(conn, stored.id).metadata == merged


def test_update_metadata_replaces_what_is_inside_a_key(conn: Connection) -> None:
    stored = geoids.insert(conn, state(0, metadata={"a": {"x": 1}, "b": 2}))
    assert geoids.update_metadata(conn, stored.id, {"a": {"y": None}}) == {"a": {"y": None}, "b": 2}


@given(tags=st.lists(texts | st.sampled_from("abc"), max_size=4), more=st.lists(texts | st.sampled_from("abc")))
def test_add_tags_appends_the_new_ones_in_their_order(conn: Connection, tags: list[str], more: list[str]) -> None:
    stored = geoids.insert(conn, state(0, tags=tags))
    added = tuple(tag for tag in dict.fromkeys(more) if tag not in tags)
    assert geoids.add_tags(conn, stored.id, *more) == (*tags, *added)
    assert geoids.get(conn, stored.id).tags == (*tags, *added)


@given(tags=st.lists(texts | st.sampled_from("abc"), max_size=4), gone=st.lists(texts | st.sampled_from("abc")))
def test_remove_tags_keeps_the_others_in_their_order(conn: Connection, tags: list[str], gone: list[str]) -> None:
    stored = geoids.insert(conn, state(0, tags=tags))
    left = tuple(tag for tag in tags if tag not in gone)
    assert geoids.remove_tags(conn, stored.id, *gone) == left
    assert geoids.get(conn, stored.id).tags == left


def test_changes_leave_other_states_alone(conn: Connection) -> None:
    one, other = (geoids.insert(conn, state(number, tags=["a"])) for number in range(2))
    geoids.update_metadata(conn, one.id, {"n": 1})
    geoids.add_tags(conn, one.id, "b")
    geoids.remove_tags(conn, one.id, "a")
    assert geoids.get(conn, other.id) == other


def change_metadata(conn: Connection, id: UUID) -> object:
    return geoids.update_metadata(conn, id, {"n": 1})


def add_tag(conn: Connection, id: UUID) -> object:
    return geoids.add_tags(conn, id, "a")


def remove_tag(conn: Connection, id: UUID) -> object:
    return geoids.remove_tags(conn, id, "a")


BY_ID: list[Callable[..., object]] = [geoids.similar_to, change_metadata, add_tag, remove_tag]


@pytest.mark.parametrize("function", BY_ID)
def test_what_asks_for_a_missing_state_raises_not_found(conn: Connection, function: Callable[..., object]) -> None:
    add(conn, 1)
    with pytest.raises(NotFound, match=str(ABSENT)):
        function(conn, ABSENT)


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("function", BY_ID)
def test_a_bad_id_is_refused(conn: Connection, function: Callable[..., object], bad: Any) -> None:
    add(conn, 1)
    with pytest.raises(InvalidValue, match=r"^id: "):
        function(conn, bad)
    assert geoids.count(conn) == 1


@pytest.mark.parametrize("bad", BAD_LIMITS)
def test_a_bad_limit_is_refused(conn: Connection, bad: Any) -> None:
    (stored,) = add(conn, 1)
    with pytest.raises(InvalidValue, match=r"^limit: "):
        geoids.find(conn, limit=bad)
    with pytest.raises(InvalidValue, match=r"^limit: "):
        geoids.latest(conn, bad)
    with pytest.raises(InvalidValue, match=r"^k: "):
        geoids.similar(conn, VECTORS[0], bad)
    with pytest.raises(InvalidValue, match=r"^k: "):
        geoids.similar_to(conn, stored.id, bad)
    assert geoids.count(conn) == 1


@given(
    news=states,
    filters=filters,
    bucket=st.sampled_from([1e-6, 0.7, 2, 3600, 1e7]).map(lambda length: timedelta(seconds=length)),
)
def test_series_sums_up_what_passes_all_filters_in_buckets(
    conn: Connection, news: list[NewGeoid], filters: dict[str, Any], bucket: timedelta
) -> None:
    conn.rollback()
    news = [
        replace(new, coherence_factor=number / 4, energy_level=-(number**2)) for number, new in enumerate(news, start=1)
    ]
    geoids.insert_many(conn, news)
    buckets = defaultdict(list)
    for new in news:
        assert new.timestamp is not None
        if passes(new, **filters):
            buckets[new.timestamp - (new.timestamp - datetime(1970, 1, 1, tzinfo=UTC)) % bucket].append(new)
    expected = []
    for start, group in sorted(buckets.items()):
        numbers = []
        for name in ("entropy", "coherence_factor", "energy_level"):
            values = [getattr(new, name) for new in group]
            p95 = near(float(np.percentile(values, 95)))
            numbers += [near(sum(values) / len(values)), min(values), max(values), p95]
        expected.append(Bucket(start, len(group), *numbers))
    assert geoids.series(conn, bucket, **filters) == expected


def test_series_begins_buckets_before_1970_too(conn: Connection) -> None:
    geoids.insert(conn, state(0, timestamp=datetime(1969, 12, 31, 23, tzinfo=UTC)))
    assert [found.bucket for found in geoids.series(conn, timedelta(days=1))] == [datetime(1969, 12, 31, tzinfo=UTC)]


def test_series_has_the_means_of_numbers_of_any_size(conn: Connection) -> None:
    geoids.insert_many(
        conn,
        [state(0, energy_level=1.7e308, entropy=entropy, coherence_factor=1e200 * entropy) for entropy in (0, 1e-9, 1)],
    )
    (found,) = geoids.series(conn, timedelta(days=1))
    assert found.mean_energy_level == pytest.approx(1.7e308)
    assert found.p95_energy_level == found.max_energy_level == 1.7e308
    assert found.mean_coherence_factor == pytest.approx(1e200 / 3)


@given(news=states, filters=filters)
def test_centroid_is_the_mean_of_what_passes_all_filters(
    conn: Connection, news: list[NewGeoid], filters: dict[str, Any]
) -> None:
    conn.rollback()
    geoids.insert_many(conn, news)
    vectors = [np.asarray(new.state_vector, np.float64) for new in news if passes(new, **filters)]
    found = geoids.centroid(conn, **filters)
    if not vectors:
        assert found is None
        return
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape == (1024,)
    assert not found.flags.writeable
    np.testing.assert_allclose(found, np.mean(vectors, axis=0), rtol=1e-6, atol=1e-8)


def test_centroid_of_opposites_is_zero_and_of_one_is_itself(conn: Connection) -> None:
    geoids.insert_many(conn, [state(0), state(1, state_vector=-VECTORS[0])])
    assert not np.any(geoids.centroid(conn))
    np.testing.assert_array_equal(geoids.centroid(conn, until=seconds(1)), VECTORS[0])


def test_centroid_of_the_longest_vectors_does_not_overflow(conn: Connection) -> None:
    longest = np.zeros(1024, np.float32)
    longest[0] = 9e17
    geoids.insert_many(conn, [state(0, state_vector=longest)] * 5)
    np.testing.assert_array_equal(geoids.centroid(conn), longest)


def test_an_empty_table_has_no_summaries(conn: Connection) -> None:
    assert geoids.series(conn, timedelta(days=1)) == []
    assert geoids.centroid(conn) is None


@pytest.mark.parametrize("bad", BAD_SPANS)
def test_a_bad_bucket_is_refused(conn: Connection, bad: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^bucket: "):
        geoids.series(conn, bad)


@pytest.mark.parametrize("bad", BAD_VECTORS)
def test_a_bad_vector_is_refused(conn: Connection, bad: Any) -> None:
    add(conn, 1)
    with pytest.raises(VectorError, match=r"^vector: "):
        geoids.similar(conn, bad)
    assert geoids.count(conn) == 1


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("tags_all", bad) for bad in ("abc", 5, [1], ["\0"], ["\ud800"])),
        *(("tags_any", bad) for bad in ("abc", 5, [None], ["\0"], ["\ud800"])),
        *(("entropy", bad) for bad in (0.5, "01", (0,), (0, 1, 2), (1, 0), ("0", 1), (0, float("nan")), (True, 1))),
        *(("since", bad) for bad in BAD_MOMENTS),
        *(("until", bad) for bad in BAD_MOMENTS),
        *(("metadata", bad) for bad in BAD_OBJECTS),
    ],
)
def test_a_bad_filter_is_refused(conn: Connection, field: str, bad: Any) -> None:
    (stored,) = add(conn, 1)
    filters: Any = {field: bad}
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        geoids.find(conn, **filters)
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        geoids.similar(conn, VECTORS[0], **filters)
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        geoids.similar_to(conn, stored.id, **filters)
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        geoids.series(conn, timedelta(days=1), **filters)
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        geoids.centroid(conn, **filters)
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        geoids.delete_where(conn, **filters)
    assert geoids.count(conn) == 1


@pytest.mark.parametrize("bad", BAD_OBJECTS)
def test_bad_changes_of_metadata_are_refused(conn: Connection, bad: Any) -> None:
    (stored,) = add(conn, 1)
    with pytest.raises(InvalidValue, match=r"^changes: "):
        geoids.update_metadata(conn, stored.id, bad)
    assert geoids.get(conn, stored.id) == stored


@pytest.mark.parametrize("bad", [1, None, "\0", "\ud800"])
def test_bad_tags_are_refused(conn: Connection, bad: Any) -> None:
    (stored,) = add(conn, 1)
    with pytest.raises(InvalidValue, match=r"^tags: "):
        geoids.add_tags(conn, stored.id, "a", bad)
    with pytest.raises(InvalidValue, match=r"^tags: "):
        geoids.remove_tags(conn, stored.id, bad)
    assert geoids.get(conn, stored.id) == stored
