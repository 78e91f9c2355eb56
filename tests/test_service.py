"""docs/service.md: the application on that page serves 50 clients at once, and its errors are status codes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from strategies import unit

from kimera_sql import add_adapters, geoids, sql

pytestmark = pytest.mark.slow

PAGE = (sql.shipped("queries").parent / "docs" / "service.md").read_text(encoding="utf-8")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture
def service(database: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """The application of the page, run by uvicorn, with 200 states to find."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "service.py").write_text(code)
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        states = [
            geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)
            for seed in range(200)
        ]
        geoids.insert_many(conn, states)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    with (
        subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "DATABASE_URL": database}) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            for _ in range(300):
                try:
                    client.get("/ready")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None
                    time.sleep(0.1)
            yield client
        finally:
            process.terminate()


def test_the_page_has_some_forty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert 30 <= sum(bool(line.strip()) for line in code.splitlines()) <= 60


def test_fifty_clients_at_once_find_what_one_does(service: httpx.Client) -> None:
    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.base_url, timeout=60) as client:

            async def search(seed: int) -> list[httpx.Response]:
                return [await client.post("/similar?k=3", json=unit(seed).tolist()) for _ in range(4)]

            several = await asyncio.gather(*map(search, range(50)))
            return [answer for answers in several for answer in answers]

    answers = asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200}
    nearest = [answer.json()[0] for answer in answers]
    assert len({hit["id"] for hit in nearest}) == 50
    assert all(hit["similarity"] == pytest.approx(1, abs=1e-5) for hit in nearest)
    ready = service.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["pool_max"] == 15
    assert ready.json()["requests_num"] >= 200


def test_errors_are_status_codes(service: httpx.Client, database: str) -> None:
    id = service.post("/similar?k=1", json=unit(0).tolist()).json()[0]["id"]
    assert len(service.get(f"/geoids/{id}/similar").json()) == 10
    stored = service.post("/geoids?entropy=0.5", json=unit(500).tolist())
    assert stored.status_code == 201
    assert service.post("/similar?k=1", json=unit(500).tolist()).json()[0]["id"] == stored.json()["id"]
    missing = service.get(f"/geoids/{uuid4()}/similar")
    assert (missing.status_code, "no row has the id" in missing.json()["detail"]) == (404, True)
    short = service.post("/similar", json=[1.0, 2.0])
    assert short.status_code == 422
    assert short.json() == {"detail": "vector: expected shape (1024,), got (2,)"}
    assert service.post("/similar?k=0", json=unit(0).tolist()).status_code == 422
    with psycopg.connect(psycopg.conninfo.make_conninfo(database, dbname="postgres"), autocommit=True) as conn:
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        conn.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false".encode())
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    gone = service.get("/ready")
    assert (gone.status_code, gone.headers["retry-after"]) == (503, "1")
