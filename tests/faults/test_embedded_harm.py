"""An embedded server ends with its users, whatever ends them, and nobody else's process or folder is touched."""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kimera_sql import ConnectionFailed, embedded
from kimera_sql.ops.backup import tools

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from pathlib import Path
from kimera_sql import embedded
with embedded.server(Path(sys.argv[1]) if sys.argv[1:] else None) as conninfo:
    print(conninfo, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """The data of an embedded server, which runs no more: a start of it takes no initdb."""
    with tempfile.TemporaryDirectory(prefix="kimera_test_") as parent:
        Path(parent).chmod(0o711)
        folder = Path(parent) / "data"
        with embedded.server(folder):
            pass
        yield folder


def held(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe, **options)


@pytest.fixture
def hold() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """A function that starts a process, waits until that uses a server, and returns the server's conninfo too."""
    processes = []

    def start(*arguments: str | Path, **options: Any) -> tuple[subprocess.Popen[str], str]:
        process = held(HOLD, *arguments, **options)
        processes.append(process)
        assert process.stdout
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def postmaster(folder: Path) -> int:
    return int((folder / "postmaster.pid").read_text().split()[0])


def supervisor_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def wait_for_end(pid: int) -> None:
    wait_until(lambda: not is_there(pid), f"process {pid} is still there")


def answers(conninfo: str) -> bool:
    with psycopg.connect(conninfo) as conn:
        return conn.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_it_ends_with_its_user_whatever_ends_that(data: Path, hold: Any, number: signal.Signals) -> None:
    process, _ = hold(data)
    pid = postmaster(data)
    process.send_signal(number)
    wait_for_end(pid)
    wait_until(lambda: not (data / "kimera.socket").exists(), "the supervisor is still there")


def test_a_temporary_one_that_was_killed_leaves_no_folder(hold: Any, tmp_path: Path) -> None:
    process, _ = hold(env={**os.environ, "TMPDIR": str(tmp_path)})
    process.kill()
    wait_until(lambda: not list(tmp_path.iterdir()), f"{tmp_path} is not empty")


def test_a_killed_user_does_not_end_it_for_the_others(data: Path, hold: Any) -> None:
    (first, conninfo), (second, same) = hold(data), hold(data)
    assert conninfo == same
    pid = postmaster(data)
    first.kill()
    first.wait()
    assert answers(conninfo)
    second.kill()
    wait_for_end(pid)


def test_it_ends_with_its_supervisor(data: Path) -> None:
    with embedded.server(data) as conninfo:
        pid = postmaster(data)
        os.kill(supervisor_of(pid), signal.SIGKILL)
        wait_for_end(pid)
        with embedded.server(data):
            assert answers(conninfo)


def test_a_killed_server_is_started_again_by_the_next_user(data: Path) -> None:
    with embedded.server(data) as conninfo:
        pid = postmaster(data)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        with embedded.server(data):
            assert answers(conninfo)
            assert postmaster(data) != pid


def test_a_killed_initdb_leaves_nothing_that_looks_like_data(open_folder: Path) -> None:
    folder = open_folder / "data"
    process = held(HOLD, folder)
    wait_until(lambda: (folder / ".unfinished/PG_VERSION").exists(), "initdb has not begun")
    process.kill()
    process.communicate()
    (initdb,) = (pid for pid in processes_in(folder / ".unfinished") if program(pid) == "initdb")
    os.kill(supervisor_of(initdb), signal.SIGKILL)
    wait_until(lambda: not processes_in(folder / ".unfinished"), "initdb is still there")
    with embedded.server(folder) as conninfo:
        assert answers(conninfo)


def processes_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").samefile(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""  # it has ended


@pytest.mark.parametrize("content", ["", "12", "{pid}\n", "{pid}\n{data}\n1\n5432\n{data}\n\n1 2\nready   \n"])
def test_a_stale_pid_file_harms_nobody(data: Path, content: str) -> None:
    status = data.stat()
    user = status.st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as unrelated:
        pid_file = data / "postmaster.pid"
        pid_file.write_text(content.format(pid=unrelated.pid, data=data))
        os.chown(pid_file, status.st_uid, status.st_gid)
        with embedded.server(data) as conninfo:
            assert answers(conninfo)
        assert unrelated.poll() is None
        unrelated.kill()


@pytest.mark.parametrize("content", ["", "1\n"])
def test_a_pid_file_that_is_cut_off_meanwhile_does_not_keep_it_running(data: Path, content: str) -> None:
    with embedded.server(data) as conninfo:
        pid = postmaster(data)
        (data / "postmaster.pid").write_text(content)
        with embedded.server(data) as same:
            assert same == conninfo
    assert not is_there(pid)


def test_beside_another_server_in_the_folder_it_does_not_start(data: Path) -> None:
    user = pwd.getpwuid(data.stat().st_uid).pw_name if os.geteuid() == 0 else None
    pg_ctl, settings = tools.find("pg_ctl", 180000, exact=True), f"-h '' -k {data}"
    tools.run(pg_ctl, ["start", "-w", "-s", f"-D{data}", "-l/dev/null", f"-o{settings}"], user=user)
    try:
        pid = postmaster(data)
        with pytest.raises(ConnectionFailed, match=f"process {pid} of another PostgreSQL"):
            embedded.server(data).__enter__()
        assert is_there(pid)
    finally:
        tools.run(pg_ctl, ["stop", "-w", "-s", f"-D{data}"], user=user)


def test_no_folder_above_gets_another_mode(data: Path) -> None:
    data.parent.chmod(0o700)
    try:
        with embedded.server(data) as conninfo:
            assert answers(conninfo)
        assert stat.S_IMODE(data.parent.stat().st_mode) == 0o700
    finally:
        data.parent.chmod(0o711)


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["data", "long" * 30])
def test_no_other_user_reaches_its_socket(data: Path, name: str) -> None:
    folder = data.rename(data.with_name(name))
    with embedded.server(folder) as conninfo, psycopg.connect(conninfo) as conn:
        sockets = Path(conn.info.host)
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        for path in (".s.PGSQL.5432", "kimera.socket"):
            attempt = f"exec 3<>{shlex.quote(str(sockets / path))}"
            tried = subprocess.run(["bash", "-c", attempt], user="nobody", stderr=subprocess.PIPE, text=True)
            assert "Permission denied" in tried.stderr
    folder.rename(data)


def test_its_processes_have_no_secrets_of_the_environment(data: Path, hold: Any) -> None:
    secrets = {"KIMERA_DB_PASSWORD": "planted", "PGPASSWORD": "planted", "DATABASE_URL": "postgresql://u:planted@h/d"}
    _, conninfo = hold(data, env={**os.environ, **secrets, "PGPORT": "5499", "PGHOSTADDR": "127.0.0.1"})
    assert conninfo
    pid = postmaster(data)
    for one in (pid, supervisor_of(pid)):
        assert b"planted" not in Path(f"/proc/{one}/environ").read_bytes()


def test_a_forked_child_ends_it_for_nobody(data: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from kimera_sql import embedded
with embedded.server(Path(sys.argv[1])) as conninfo:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        import psycopg
        psycopg.connect(conninfo).close()
"""
    subprocess.run([sys.executable, "-c", script, data], cwd=ROOT, check=True)


def test_two_that_start_at_once_share_it(data: Path) -> None:
    both = [held(HOLD, data) for _ in range(2)]
    said = [process.communicate("end\n", timeout=60) for process in both]
    assert said[0] == said[1]
    assert said[0][1] == ""
