"""The ways to work with these tables that compare.py measures: kimera_sql, and what else there is in Python.

Each peer is a class with a method for each work that it can do; Peer says what a method is. All get the same rows, and
search by the same index with the same settings, but for the libraries that keep vectors in tables of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .by_hand import Asynchronous, Autocommit, ByHand, Ordered, PgvectorClient, Pinging, Pipelined, Unread
from .in_memory import Faiss, Hnswlib, Numpy
from .ours import (
    Ours,
    OursAsynchronous,
    OursByPool,
    OursInTransaction,
    OursOneByOne,
    OursUnordered,
    state,
)
from .setting import AT_ONCE, DEPTH, MANY, METADATA, K, Peer, Setting, loop
from .stores import LangchainPostgres, Vecs
from .with_asyncpg import Asyncpg
from .with_sqlalchemy import SqlAlchemy, SqlAlchemy2

__all__ = [
    "AT_ONCE",
    "DEPTH",
    "FLOOR",
    "MANY",
    "METADATA",
    "PEERS",
    "ByHand",
    "K",
    "Ours",
    "Peer",
    "Setting",
    "loop",
    "state",
]

FLOOR: Final = ByHand.name

PEERS: Final[Sequence[type[Peer]]] = (
    ByHand,
    Ours,
    OursInTransaction,
    OursUnordered,
    OursOneByOne,
    OursByPool,
    OursAsynchronous,
    Autocommit,
    Pinging,
    Pipelined,
    Asynchronous,
    Unread,
    Ordered,
    PgvectorClient,
    Asyncpg,
    SqlAlchemy,
    SqlAlchemy2,
    Vecs,
    LangchainPostgres,
    Numpy,
    Faiss,
    Hnswlib,
)
