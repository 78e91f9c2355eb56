"""Connections that are cut around their COMMIT: whoever sent it hears that nobody knows its outcome."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import psycopg
import pytest
from fix_proxy import Proxy
from strategies import unit

from kimera_sql import CommitUnknown, add_adapters, geoids

PoolOf = Callable[..., Any]
When = Literal["before", "after", "silent", "ended"]

LOST = (
    r"^the connection was lost during COMMIT: whether the transaction took effect is not known\. Look for its rows by "
)


def state(seed: int = 0) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)


def rows(proxy: Proxy) -> int:
    with psycopg.connect(proxy.server) as conn:
        return geoids.count(conn)


def by_the_pool(pool: Any) -> None:
    with pool.connection() as conn:
        geoids.insert(conn, state())


def by_a_block(pool: Any) -> None:
    with pool.connection() as conn, conn.transaction(), conn.transaction():
        geoids.insert(conn, state())


def by_insert_many(pool: Any) -> None:
    with pool.connection() as conn:
        conn.autocommit = True
        geoids.insert_many(conn, [state()])


@pytest.mark.parametrize(
    ("write", "when"),
    [
        *itertools.product((by_the_pool, by_a_block, by_insert_many), ("before", "after", "ended")),
        (by_the_pool, "silent"),
    ],
)
def test_a_commit_without_an_answer_says_that_its_outcome_is_unknown(
    proxy: Proxy, pool_of: PoolOf, write: Callable[[Any], None], when: When
) -> None:
    pool = pool_of(proxy.conninfo, statement_timeout=0.2)
    by_the_pool(pool)  # what the pool sets up commits too
    proxy.fail_at("COMMIT", when)
    with pytest.raises(CommitUnknown, match=LOST) as caught:
        write(pool)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert rows(proxy) == (1 if when == "before" else 2)
    proxy.resume()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_statement_in_autocommit_says_the_same(proxy: Proxy, pool_of: PoolOf, when: When) -> None:
    with pool_of(proxy.conninfo).connection() as conn:
        conn.autocommit = True
        proxy.fail_at("INSERT", when)
        with pytest.raises(CommitUnknown, match=r"^the connection was lost while a statement ran in autocommit: "):
            geoids.insert(conn, state())
    assert rows(proxy) == (when == "after")


def test_a_connection_of_ones_own_says_the_same_of_our_transactions(proxy: Proxy) -> None:
    with psycopg.connect(proxy.conninfo, autocommit=True) as conn:
        add_adapters(conn)
        proxy.fail_at("COMMIT", "after")
        with pytest.raises(CommitUnknown, match=LOST):
            geoids.insert_many(conn, [state()])
    assert rows(proxy) == 1


@pytest.mark.parametrize("text", ["SELECT 1", "RELEASE"])
def test_what_commits_nothing_leaves_no_doubt(proxy: Proxy, pool_of: PoolOf, text: str) -> None:
    def work(conn: Any) -> None:
        with conn.transaction():
            geoids.insert(conn, state())
            proxy.fail_at(text, "before")
            with conn.transaction():
                conn.execute("SELECT 1")

    with pool_of(proxy.conninfo).connection() as conn, pytest.raises(psycopg.OperationalError) as caught:
        work(conn)
    assert not isinstance(caught.value, CommitUnknown)
    assert rows(proxy) == 0


def test_a_rollback_that_is_lost_is_no_error(proxy: Proxy, pool_of: PoolOf) -> None:
    with pool_of(proxy.conninfo).connection() as conn, conn.transaction(force_rollback=True):
        geoids.insert(conn, state())
        proxy.fail_at("ROLLBACK", "after")
    assert rows(proxy) == 0
