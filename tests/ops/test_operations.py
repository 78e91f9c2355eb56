"""docs/operations.md: a new administrator who follows it gets there, on Debian's PostgreSQL."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from commands import COMMAND, environment
from fix_servers import NAMES, WHEELS, Server, free_port
from strategies import unit
from test_adoption import SPECIFICATION

from kimera_sql import add_adapters, geoids
from kimera_sql.ops.backup import postgresql_conf, tools

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs/operations.md").read_text()
SECTIONS: Final = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE))

_SHOWN: Final = PAGE.split("```ini\n")[1].split("```")[0]
_OWNER: Final = _SHOWN[_SHOWN.index("[kimera_owner]") :]
_LIKE_IT: Final = {
    "kimera_app": "kimera_service",
    "kimera_readonly": "kimera_reader",
    "kimera_monitor": "kimera_watch",
    "kimera_backup": "kimera_nightly",
}

SERVICES: Final = _SHOWN + "".join(
    _OWNER.replace("kimera_owner", service).replace("kimera_deploy", user) for service, user in _LIKE_IT.items()
)
"""The service file: the services that the page shows, and those that are like them."""

PASSWORD: Final = "of the tests: \\ ' %"


def lines(section: str) -> list[str]:
    """The commands of a section."""
    return re.findall(r"^    (.+)$", re.sub(r"\\\n +", "", SECTIONS[section]), re.MULTILINE)


ROLES: Final = {
    name: role
    for names, role in re.findall(r"^\| (`.+`) \| (.+) \|$", SECTIONS["Who may do what"], re.MULTILINE)
    for name in re.findall(r"`(.+?)`", names)
}
"""What the page's table says of each command."""


def command(line: str) -> str | None:
    """The command of a line of kimera-sql, as the table calls it. None for a line of another program."""
    ran = re.match(r"kimera-sql (?:--dsn \S+ )?(.+)", line)
    return ran and max((name for name in ROLES if f"{ran[1]} ".startswith(f"{name} ")), key=len)


@dataclass(frozen=True)
class Machine:
    """A machine as the page presupposes it, with a server as Debian sets it up. folder: where its folders are."""

    folder: Path
    binaries: Path
    port: int
    environment: dict[str, str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def connect(self, user: str) -> psycopg.Connection[Any]:
        return psycopg.connect("host=localhost dbname=kimera_swm", user=user, password=PASSWORD, port=self.port)

    def ctl(self, action: str) -> None:
        arguments: list[str | Path] = [action, "-w", "-s", "-D", self.data, "-l", self.folder / "log"]
        tools.run(self.binaries / "pg_ctl", arguments, user=tools.server_user())

    def here(self, line: str) -> str:
        """The command *line* for the folders of this machine."""
        return re.sub(r"(?<![\w/])/(?=(?:etc|var)/)", f"{self.folder}/", line)

    def run(self, line: str) -> str:
        """Run a line of the page, which must succeed, and return what it prints."""
        if line.startswith("sudo "):
            next(run for beginning, run in BY_ROOT.items() if line.startswith(f"sudo {beginning}"))(self)
            return ""
        ran = self.attempt(line)
        assert ran.returncode == 0, (line, ran.stderr)
        return ran.stdout

    def attempt(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line whatever comes of it. Whoever is asked for a password types it, twice."""
        return subprocess.run(
            ["sh", "-c", self.here(line)],
            env=self.environment,
            input=f"{PASSWORD}\n{PASSWORD}\n",
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # without a terminal, psql reads passwords from its input
        )


def nothing(machine: Machine) -> None:
    """Do nothing: it is there already, or a test does not do it to the machine that it runs on."""


def make_folders(machine: Machine) -> None:
    for place in ("/etc/kimera", "/var/backups/kimera", "/var/backups/kimera/wal"):
        made = Path(machine.here(place))
        made.mkdir(0o700, parents=True)
        if user := tools.server_user():
            shutil.chown(made, user)


def write_services(machine: Machine) -> None:
    """Write the service file as the page shows it, with passwords."""
    path = Path(machine.environment["PGSERVICEFILE"])
    path.touch(0o600)
    with_port = machine.here(SERVICES).replace("dbname=", f"port={machine.port}\ndbname=")
    path.write_text(with_port.replace("password=\n", f"password={PASSWORD}\n"))


def restart(machine: Machine) -> None:
    machine.ctl("restart")


BY_ROOT: Final[dict[str, Callable[[Machine], None]]] = {
    "apt-get": nothing,
    "python3": nothing,
    "install": make_folders,
    "systemctl restart": restart,
    "systemctl enable": nothing,
}
"""What stands for the commands of the machine's administrator, by their beginning."""

PRINTED: Final = {
    "init": r"^applied 0001_|^the schema is up to date$",
    "init --check": r"^the schema is as it should be$",
    "adopt": r"^nothing was changed$|^\d+ queries verified, 0 faults$",
    "roles": r"^the roles kimera_owner, .+ are up to date$",
    "config check": r" good$",
    "index build": r" rows, [\d.]+ MB$",
    "index recall": r"^recall (0\.9\d\d|1\.000) \(0\.\d{3} to [01]\.\d{3}; [01]\.\d\d or more in 99 %, .*\) at k=10, ",
    "backup dump": r", verified$",
    "backup base": r", verified$",
    "backup verify": r": good\n.+: good$",
    "backup drill": r", 0 differences$",
    "verify": r"^\d+ queries, no fault against the server$",
    "maintain all": r"^vacuum: 5 tables ",
    "doctor": r"^0 errors, ",
}
"""What commands print when they have done what they should, as the page tells."""

LESSER: Final = {
    "kimera_admin": "kimera_owner",
    "kimera_owner": "kimera_app",
    "kimera_backup": "kimera_monitor",
    "kimera_readonly": "kimera_monitor",
}
"""For each role one that may less."""

PLACES: Final = (
    "data",
    "bin",
    "etc/postgresql/15/main/conf.d",
    "var/run/postgresql",
    "var/lib/prometheus/node-exporter",
)
"""The folders of the machine that the page does not make."""


@pytest.fixture
def machine(start: Callable[[str], Server]) -> Iterator[Machine]:
    if "debian15" not in NAMES:
        pytest.skip("the tests run on a server of the user's own")
    with psycopg.connect(start("debian15").conninfo) as conn:
        binaries = tools.find("initdb", conn).parent
        certificates = conn.execute("SELECT current_setting('ssl_cert_file'), current_setting('ssl_key_file')")
        ((certificate, key),) = certificates.fetchall()
    user, me, port = tools.server_user(), pwd.getpwuid(os.geteuid()).pw_name, free_port()
    with tempfile.TemporaryDirectory(prefix="kimera_test_") as parent:
        folder = Path(parent)
        folder.chmod(0o755)
        for place in PLACES:
            (folder / place).mkdir(parents=True)
        (folder / "log").touch()
        if user:
            for place in ("data", "log", "var/run/postgresql"):
                shutil.chown(folder / place, user)
        program = folder / "bin/kimera-sql"
        program.write_text(
            f"#!{sys.executable}\n{COMMAND[-1].replace(';', f'; sys.path.insert(0, {str(ROOT)!r});', 1)}\n"
        )
        program.chmod(0o755)
        path = os.pathsep.join(map(str, (program.parent, binaries, os.environ["PATH"])))
        services = str(folder / "etc/kimera/pg_service.conf")
        made = Machine(folder, binaries, port, environment(PATH=path, HOME=str(folder), PGSERVICEFILE=services))
        options = ["--auth-local=peer", "--auth-host=scram-sha-256", "--username=postgres", "--encoding=UTF8"]
        tools.run(binaries / "initdb", [*options, "--no-sync", made.data], user=user)
        # Whoever runs the tests stands for the page's postgres.
        hba = made.data / "pg_hba.conf"
        hba.write_text("local all postgres peer map=tests\n" + hba.read_text())
        (made.data / "pg_ident.conf").write_text(f"tests {me} postgres\n")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(folder / "var/run/postgresql"),
            "ssl": "on",
            "ssl_cert_file": certificate,
            "ssl_key_file": key,
            "include_dir": str(folder / "etc/postgresql/15/main/conf.d"),
        }
        with (made.data / "postgresql.conf").open("a") as conf:
            conf.write(postgresql_conf(settings))
        made.ctl("start")
        try:
            yield made
        finally:
            made.ctl("stop")


def fill(conn: psycopg.Connection[Any], first: int) -> None:
    add_adapters(conn)
    news = (
        geoids.NewGeoid(state_vector=unit(number), entropy=0, coherence_factor=0, energy_level=0)
        for number in range(first, first + 300)
    )
    geoids.insert_many(conn, news)


def make_existing_tables(machine: Machine) -> None:
    """What something else has made: a role without a group, which owns the tables."""
    for line in lines("A new database")[:-1]:
        machine.run(line)
    with machine.connect("kimera_deploy") as conn:
        conn.execute(SPECIFICATION)
        fill(conn, 1000)


@pytest.mark.slow
@pytest.mark.needs(
    "/usr/lib/postgresql/15/bin/initdb", str(WHEELS.get("postgres15", Path("no pgserver")) / "bin/initdb")
)
@pytest.mark.parametrize("beginning", ["A new database", "Existing tables"])
def test_every_command_of_the_page_in_its_order(machine: Machine, beginning: str) -> None:
    """From both starting points, each as the role that the page's table has for it; a lesser one will not do."""
    other, done = {"A new database": "Existing tables", "Existing tables": "A new database"}[beginning], []
    for section in (name for name in SECTIONS if name != other):
        if section == "Existing tables":
            make_existing_tables(machine)
        if section == "Vector indexes":
            with machine.connect("kimera_service") as conn:
                fill(conn, 0)
        for line in lines(section):
            printed = machine.run(line)
            if name := command(line):
                done.append(line)
                assert re.search(PRINTED.get(name, ""), printed, re.MULTILINE), (line, printed)
        if section == "Install":
            write_services(machine)
    textfile = Path(machine.here("/var/lib/prometheus/node-exporter/kimera_swm.prom")).read_text()
    assert re.search(r"^kimera_up\{.+\} 1$", textfile, re.MULTILINE)
    # PostgreSQL 15 has no pg_stat_io.
    assert re.findall(r'^kimera_report_available\{.*report="([\w-]+)".*\} 0$', textfile, re.MULTILINE) == ["io"]
    schedule = Path(machine.here("/var/backups/kimera/schedule.txt")).read_text()
    for service in re.findall(r"^\[kimera_\w+\]\nhost=.+\n(?:.+\n)+", schedule, re.MULTILINE):
        assert all(one in SERVICES for one in service.split("["))
    cron = re.findall(r"^0 \d \* \* [*0] \S+ (.+)$", schedule, re.MULTILINE)
    assert len(cron) == 3
    for line in cron:
        machine.run(line)
    for role, lesser in LESSER.items():
        for line in done:
            # Where nothing is left to do, anyone may say so.
            if f"service={role} " in line and command(line) != "init":
                assert machine.attempt(line.replace(role, lesser)).returncode == 1, line


def test_the_table_has_every_command_with_its_role() -> None:
    for line in (line for section in SECTIONS for line in lines(section)):
        if name := command(line):
            service = re.search("service=(kimera_[a-z]+)", line)
            assert (f"`{service[1]}`" if service else "none") in ROLES[name], line
