"""The examples of docs/recipes.md run, section by section, and print what the page says."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids, indexes, open_pool, transitions

PAGE: Final = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
SECTIONS: Final = dict(section.split("\n", 1) for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])
BLOCK: Final = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

ROWS: Final = 200


def fill(conn: psycopg.Connection) -> Any:
    """Store rows of the last days, and return the id of a state."""
    now = datetime.now(UTC)
    geoids.insert_many(
        conn,
        [
            geoids.NewGeoid(
                state_vector=unit(number),
                entropy=number / ROWS,
                coherence_factor=0.5,
                energy_level=1.0,
                tags=["dream"] if number % 2 else [],
                timestamp=now - timedelta(hours=number),
            )
            for number in range(ROWS)
        ],
    )
    embeddings.insert_many(
        conn,
        [
            embeddings.NewEmbedding(text_content=f"text {number}", embedding=unit(number), source="minilm")
            for number in range(ROWS)
        ],
    )
    newest, older = geoids.latest(conn, 2)
    transitions.record(conn, older.id, newest.id, "association", energy=0.3, error=0.001)
    indexes.build(conn, "geoid_states")
    return newest.id


@pytest.mark.ends
@pytest.mark.parametrize("title", SECTIONS)
def test_a_recipe_runs_and_prints_what_the_page_says(
    title: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_pool(database) as pool, psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        names = {"conn": conn, "pool": pool, "vec": unit(7), "state_id": fill(conn)}
        printed = StringIO()
        said = ""
        blocks = BLOCK.findall(SECTIONS[title])
        assert blocks
        for kind, text in blocks:
            if kind == "text":
                said += text
            else:
                with redirect_stdout(printed):
                    exec(compile(text, title, "exec"), names)  # noqa: S102 - the page's own example
        assert said in printed.getvalue()
