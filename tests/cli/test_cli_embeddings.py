"""The commands that renew embeddings by another model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from commands import run, run_as_process

from kimera_sql import add_adapters, embeddings
from kimera_sql.ops import doctor

pytestmark = pytest.mark.ends

MODEL = """
import numpy as np

VERSION = "1"

def encode(texts):
    return np.ones((len(texts), 1024)) + np.arange(1024) * [[len(text)] for text in texts]

def broken(texts):
    raise ValueError("no such weights")
"""


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "renewing_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("renewing_model", None)


@pytest.fixture
def filled(database: str) -> str:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        embeddings.insert_many(
            conn,
            [
                embeddings.NewEmbedding(text_content="t" * number, embedding=[number] + [1] * 1023)
                for number in range(1, 20)
            ],
        )
    return database


def findings(conninfo: str) -> list[tuple[str, str]]:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        return [(one.found, one.advice) for one in doctor.examine(conn) if one.subject == "embeddings"]


def test_embeddings_are_renewed_switched_and_the_old_vectors_dropped(filled: str) -> None:
    def call(*arguments: str) -> str:
        ran = run("embeddings", *arguments, DATABASE_URL=filled)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    assert call("status") == "nobody has said which model the embeddings are of\n"
    assert call("name", "old") == "the stored embeddings are of old\n"
    assert call("status") == "the stored embeddings are of old\n"
    assert findings(filled) == []
    renew = ("renew", "--embed", "renewing_model:encode", "--model", "new", "--batch", "7")
    prepared = call(*renew, "--prepare")
    assert prepared.startswith("19 vectors made by new\na text's 10 nearest by old and by new: ")
    assert prepared.endswith("old serves; the next renew brings them up to date and switches\n")
    assert call("status").splitlines()[1].startswith("beside them are vectors of new, ")
    ((found, advice),) = findings(filled)
    assert found.startswith("are of old, and a renewal by new, begun on 2")
    assert found.endswith("is not finished: 0 vectors are still to be made")
    assert "embeddings renew" in advice
    switched = json.loads(call(*renew, "--json"))
    assert (switched["model"], switched["previous"], switched["rows"], switched["switched"]) == ("new", "old", 0, True)
    status = json.loads(call("status", "--json"))
    assert status["model"] == "new"
    assert (status["other"]["other"], status["other"]["waiting"], status["other"]["was_serving"]) == ("old", 0, True)
    ((found, advice),) = findings(filled)
    assert found.startswith("are of new, and the vectors of old, ")
    assert "embeddings drop" in advice
    assert call("drop") == "dropped the vectors of old\n"
    assert findings(filled) == []
    assert run("embeddings", "drop", DATABASE_URL=filled).stderr == (
        "kimera-sql: there are no vectors but those that serve\n"
    )


WRONG = {
    "nowhere:encode": "No module named 'nowhere'",
    "renewing_model:decode": "has no attribute 'decode'",
    "renewing_model": "is no MODULE:FUNCTION",
    "": "is no MODULE:FUNCTION",
    ":encode": "is no MODULE:FUNCTION",
    "renewing_model:VERSION": "is no function",
}


@pytest.mark.parametrize("embed", WRONG)
def test_a_function_that_cannot_serve_is_named(filled: str, embed: str) -> None:
    run("embeddings", "name", "old", DATABASE_URL=filled)
    ran = run("embeddings", "renew", "--embed", embed, "--model", "new", "--retries", "0", DATABASE_URL=filled)
    assert ran.returncode == 1
    assert WRONG[embed] in ran.stderr
    assert ran.stderr.startswith("kimera-sql: ")


def test_what_the_function_raises_is_shown_with_its_place(filled: str) -> None:
    run("embeddings", "name", "old", DATABASE_URL=filled)
    renew = ("embeddings", "renew", "--embed", "renewing_model:broken", "--model", "new", "--retries", "0")
    ran = run_as_process(*renew, DATABASE_URL=filled)
    assert ran.returncode == 1
    assert 'raise ValueError("no such weights")' in ran.stderr
    assert ran.stderr.endswith("raised by embed at attempt 1; what it made before is kept for the next renew\n")


def test_what_cannot_be_is_said_in_options(filled: str) -> None:
    renew = ("embeddings", "renew", "--embed", "renewing_model:encode", "--model")
    unnamed = run(*renew, "new", DATABASE_URL=filled)
    assert unnamed.stderr.startswith("kimera-sql: --model: nobody has said which model the stored embeddings are of")
    run("embeddings", "name", "old", DATABASE_URL=filled)
    assert run(*renew, "old", DATABASE_URL=filled).stderr == (
        "kimera-sql: --model: the stored embeddings are of 'old' already\n"
    )
    assert run(*renew, "new", "--rate", "-1", DATABASE_URL=filled).stderr == (
        "kimera-sql: --rate: -1.0 is not above 0\n"
    )
    assert run(*renew, "new", "--batch", "0", DATABASE_URL=filled).stderr.startswith("kimera-sql: --batch: ")
    assert run("embeddings", "name", "other", DATABASE_URL=filled).returncode == 1
