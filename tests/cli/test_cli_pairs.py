"""The command that lists every pair of similar rows."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from uuid import UUID

import numpy as np
import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_servers import Server
from reference import ABSENT
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids

pytestmark = pytest.mark.slow

# A hundred states that are all alike: 4,950 pairs, 400 kB of output
ROWS = 100


@pytest.fixture
def filled(newest: Server) -> Iterator[str]:
    database = newest.create(template=newest.template)
    random = np.random.default_rng(0)
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert_many(
            conn,
            [
                geoids.NewGeoid(
                    id=UUID(int=number),
                    state_vector=unit(0) + 0.001 * random.standard_normal(1024),
                    entropy=0,
                    coherence_factor=0,
                    energy_level=0,
                )
                for number in range(ROWS)
            ],
        )
        embeddings.insert_many(
            conn,
            [
                embeddings.NewEmbedding(text_content=str(number), embedding=unit(0) + share * unit(1))
                for number, share in enumerate((0, 0.3, 0.45))
            ],
        )
    yield database
    newest.drop(database)


def found(database: str) -> list[geoids.Pair]:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        return list(geoids.pairs(conn))


def lines(pairs: list[geoids.Pair]) -> str:
    return "".join(f"{pair.first}\t{pair.second}\t{pair.similarity:.6f}\n" for pair in pairs)


def test_pairs_prints_a_line_for_each(filled: str) -> None:
    pairs = found(filled)
    assert len(pairs) == ROWS * (ROWS - 1) // 2
    ran = run("pairs", "geoid_states", DATABASE_URL=filled)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, lines(pairs), "4,950 pairs, found exactly\n")
    ran = run("pairs", "geoid_states", "--json", DATABASE_URL=filled)
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [
        {**asdict(pair), "first": str(pair.first), "second": str(pair.second)} for pair in pairs
    ]


def test_pairs_of_embeddings_have_a_similarity_of_their_own(filled: str) -> None:
    for given, count in ((), 2), (("--similarity", "0.9"), 3), (("--similarity", "1"), 0):
        ran = run("pairs", "semantic_embeddings", *given, DATABASE_URL=filled)
        assert (ran.returncode, len(ran.stdout.splitlines())) == (0, count)
        assert ran.stderr == f"{count} pairs, found exactly\n"


def test_pairs_goes_on_behind_a_pair(filled: str) -> None:
    pairs = found(filled)
    ran = run("pairs", "geoid_states", "--after", str(pairs[99].first), str(pairs[99].second), DATABASE_URL=filled)
    assert ran.stdout == lines(pairs[100:])
    assert run("pairs", "geoid_states", "--after", str(ABSENT), str(ABSENT), DATABASE_URL=filled).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("geoid_states", "--similarity", "2"), 1, "kimera-sql: --similarity: 2.0 is not within -1 to 1\n"),
        (("geoid_states", "--similarity", "nan"), 1, "kimera-sql: --similarity: nan is not a finite number\n"),
        (("geoid_states", "--after", "a", "b"), 2, "argument --after: invalid UUID value: 'a'\n"),
        (("system_metrics",), 2, "invalid choice: 'system_metrics'"),
    ],
)
def test_pairs_refuses_what_cannot_be(filled: str, arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = run("pairs", *arguments, DATABASE_URL=filled)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr


def test_interrupted_pairs_says_how_to_go_on(filled: str) -> None:
    whole = lines(found(filled))
    with subprocess.Popen(
        [*COMMAND, "pairs", "geoid_states"],
        env=environment(DATABASE_URL=filled),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        printed = "".join(command.stdout.readline() for _ in range(10))
        # It goes on printing until the pipe is full, which holds less than all.
        command.send_signal(signal.SIGINT)
        printed += command.stdout.read()
        stderr = command.stderr.read()
    assert command.returncode == 130
    found_until = re.fullmatch(r"kimera-sql: interrupted\n  --after (\S+) (\S+) goes on from here\n", stderr)
    assert found_until, stderr
    again = run("pairs", "geoid_states", "--after", *found_until.groups(), DATABASE_URL=filled)
    assert again.returncode == 0
    # The line that was being written may come again.
    assert 0 <= len(printed) + len(again.stdout) - len(whole) < 100
    assert printed[: len(whole) - len(again.stdout)] + again.stdout == whole


def test_pairs_shows_on_a_terminal_how_far_it_is(filled: str) -> None:
    reader, writer = pty.openpty()
    command = subprocess.Popen(
        [*COMMAND, "pairs", "geoid_states"],
        env=environment(DATABASE_URL=filled),
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    os.close(writer)
    shown = b""
    while b"found exactly" not in shown:
        shown += os.read(reader, 1000)
    assert command.wait() == 0
    os.close(reader)
    assert b"comparing rows [" in shown
