"""The environment is read once, whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kimera_sql import Settings, SettingsError

SECRET = "Zk9-hidden-Qw4"

VARIABLES: dict[str, tuple[str, str, Any]] = {
    "KIMERA_POOL_SIZE": ("pool_size", "7", 7),
    "KIMERA_POOL_OVERFLOW": ("pool_overflow", "0", 0),
    "KIMERA_POOL_TIMEOUT": ("pool_timeout", "2.5", 2.5),
    "KIMERA_POOL_RECYCLE": ("pool_recycle", "60", 60.0),
    "KIMERA_CONNECT_TIMEOUT": ("connect_timeout", "3", 3),
    "KIMERA_STATEMENT_TIMEOUT": ("statement_timeout", "2.5", 2.5),
    "KIMERA_LOCK_TIMEOUT": ("lock_timeout", "0", 0.0),
    "KIMERA_IDLE_IN_TRANSACTION_TIMEOUT": ("idle_in_transaction_timeout", "0.001", 0.001),
    "KIMERA_DB_REPLICAS": ("replicas", "one, two:5433", ("one", "two:5433")),
    "KIMERA_REPLICA_MAX_LAG": ("replica_max_lag", "3", 3.0),
    "KIMERA_REPLICA_WAIT": ("replica_wait", "0", 0.0),
    "KIMERA_SEARCH_SAMPLE": ("search_sample", "1000", 1000),
    "DATABASE_URL": ("database_url", "postgresql://localhost/x", "postgresql://localhost/x"),
    "KIMERA_SQLITE_PATH": ("sqlite_path", "states.db", Path("states.db")),
    "KIMERA_SQLITE_FALLBACK": ("sqlite_fallback", "never", "never"),
    "KIMERA_DB_HOST": ("credentials", "db.example.org", {"host": "db.example.org"}),
    "KIMERA_DB_PORT": ("credentials", "5433", {"port": "5433"}),
    "KIMERA_DB_NAME": ("credentials", "states", {"dbname": "states"}),
    "KIMERA_DB_USER": ("credentials", "reader", {"user": "reader"}),
    "KIMERA_DB_PASSWORD": ("credentials", SECRET, {"password": SECRET}),
}
LIBPQ = ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"]
LINK = {"KIMERA_DB_PORT": "tcp://10.0.0.1:5432", "KIMERA_DB_SERVICE_HOST": "10.0.0.1"}
NUMBERS = [name for name, (_, _, value) in VARIABLES.items() if isinstance(value, int | float)]


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_sets_its_field_and_no_other(variable: str) -> None:
    field, text, value = VARIABLES[variable]
    assert Settings.from_env({variable: text}) == dataclasses.replace(Settings(), **{field: value})


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings(
        credentials=None,
        database_url=None,
        sqlite_path=Path("kimera_development.db"),
        sqlite_fallback="unconfigured",
        pool_size=5,
        pool_overflow=10,
        pool_timeout=30,
        pool_recycle=3600,
        connect_timeout=None,
        statement_timeout=30,
        lock_timeout=10,
        idle_in_transaction_timeout=60,
        search_sample=None,
        libpq=False,
    )


def test_the_processs_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMERA_POOL_SIZE", "3")
    assert Settings.from_env().pool_size == 3


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_empty_variable_is_refused_by_name(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable} is set but empty"):
        Settings.from_env({variable: text})


@pytest.mark.parametrize("variable", NUMBERS)
def test_what_is_no_number_is_refused_by_name(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable} must be a number, got 'many'"):
        Settings.from_env({variable: "many"})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("KIMERA_POOL_SIZE", "0"),
        ("KIMERA_POOL_OVERFLOW", "-1"),
        ("KIMERA_POOL_TIMEOUT", "0"),
        ("KIMERA_POOL_TIMEOUT", "nan"),
        ("KIMERA_POOL_TIMEOUT", "inf"),
        ("KIMERA_POOL_RECYCLE", "0.5"),
        ("KIMERA_POOL_RECYCLE", "inf"),
        ("KIMERA_CONNECT_TIMEOUT", "0"),
        ("KIMERA_CONNECT_TIMEOUT", "1"),
        ("KIMERA_SEARCH_SAMPLE", "0"),
        ("KIMERA_SEARCH_SAMPLE", "-5"),
    ],
)
def test_a_number_out_of_range_is_refused_by_field(variable: str, text: str) -> None:
    field = VARIABLES[variable][0]
    with pytest.raises(SettingsError, match=f"^{field} must be a number from .* up, got {text}"):
        Settings.from_env({variable: text})


@pytest.mark.parametrize("text", ["-1", "0.0001", "2147484", "inf", "nan"])
@pytest.mark.parametrize(
    "variable", ["KIMERA_STATEMENT_TIMEOUT", "KIMERA_LOCK_TIMEOUT", "KIMERA_IDLE_IN_TRANSACTION_TIMEOUT"]
)
def test_a_timeout_that_the_server_cannot_have_is_refused_by_field(variable: str, text: str) -> None:
    """A part of a millisecond would be 0, which is no timeout at all."""
    field = VARIABLES[variable][0]
    with pytest.raises(SettingsError, match=f"^{field} must be 0, or a number from 0.001 to 2147483, got "):
        Settings.from_env({variable: text})


def test_a_session_is_told_its_timeouts_in_milliseconds() -> None:
    assert Settings(statement_timeout=2.5, lock_timeout=0).session() == {
        "statement_timeout": "2500ms",
        "lock_timeout": "0ms",
        "idle_in_transaction_session_timeout": "60000ms",
    }


@pytest.mark.parametrize(
    "variable", ["KIMERA_POOL_SIZE", "KIMERA_POOL_OVERFLOW", "KIMERA_CONNECT_TIMEOUT", "KIMERA_SEARCH_SAMPLE"]
)
def test_a_fraction_is_refused_where_a_whole_number_is_due(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}"):
        Settings.from_env({variable: "2.5"})


@pytest.mark.parametrize("variable", LIBPQ)
def test_a_variable_of_libpq_that_names_a_database_configures_one(variable: str) -> None:
    assert Settings.from_env({variable: "somewhere"}) == Settings(libpq=True)


@pytest.mark.parametrize("variable", ["PGUSER", "PGPASSWORD", "PGPORT", "PGAPPNAME", "PGSSLMODE"])
def test_a_variable_of_libpq_that_names_no_database_configures_none(variable: str) -> None:
    assert Settings.from_env({variable: "1"}) == Settings()


@pytest.mark.parametrize("variable", LIBPQ)
def test_libpq_takes_an_empty_variable_as_unset(variable: str) -> None:
    assert Settings.from_env({variable: ""}) == Settings()


@pytest.mark.parametrize(("before", "after"), [(" ", "\n"), ("", "\r\n"), ('"', '"'), ("'", "'"), ('"', '" ')])
@pytest.mark.parametrize("variable", sorted(VARIABLES.keys() - {"KIMERA_DB_PASSWORD"}))
def test_what_an_env_file_leaves_around_a_value_is_taken_off(variable: str, before: str, after: str) -> None:
    field, text, value = VARIABLES[variable]
    assert getattr(Settings.from_env({variable: before + text + after}), field) == value


@pytest.mark.parametrize("password", ["'a b'", ' a"', "a ", '"', "'"])
def test_a_password_loses_nothing_but_the_end_of_its_line(password: str) -> None:
    for end in ("", "\n", "\r\n"):
        assert Settings.from_env({"KIMERA_DB_PASSWORD": password + end}).credentials == {"password": password}


@pytest.mark.parametrize("variable", sorted(VARIABLES.keys() - {"KIMERA_DB_PASSWORD"}))
@pytest.mark.parametrize("text", ['""', "''", '" "'])
def test_quotes_with_nothing_between_them_are_empty(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable} is set but empty"):
        Settings.from_env({variable: text})


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "5432,x", "5432/tcp", "tcp://"])
def test_a_port_that_cannot_be_is_refused_with_its_variable_and_value(port: str) -> None:
    with pytest.raises(SettingsError) as failed:
        Settings.from_env({"KIMERA_DB_HOST": "db", "KIMERA_DB_PORT": port, "DATABASE_URL": "postgresql://h/x"})
    assert str(failed.value) == f"KIMERA_DB_PORT must be a number from 1 to 65535, got {port!r}"


def test_a_url_in_the_place_of_a_port_is_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^KIMERA_DB_PORT must be a number from 1 to 65535$"):
        Settings.from_env({"KIMERA_DB_PORT": f"tcp://u:{SECRET}@db:5432"})


@pytest.mark.parametrize(
    "host",
    ["db:5433", "a,b:5433", "[::1]", "[::1]:5433", f"postgresql://u:{SECRET}@db/x", f"u:{SECRET}@db", "tcp://db"],
)
def test_a_host_that_is_not_a_host_alone_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^KIMERA_DB_HOST must be the host alone; write its port as ") as failed:
        Settings.from_env({"KIMERA_DB_HOST": host})
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize(
    "host", ["db", "db-1.example.org", "10.0.0.1", "::1", "fe80::1", "a,b", "/run/x:1", "@abstract"]
)
def test_a_host_is_a_name_an_address_several_or_a_socket(host: str) -> None:
    assert Settings.from_env({"KIMERA_DB_HOST": host}).credentials == {"host": host}


@pytest.mark.parametrize(
    ("configured", "field", "value"),
    [
        ({"DATABASE_URL": "postgresql://h/x"}, "database_url", "postgresql://h/x"),
        ({"KIMERA_DB_HOST": "db"}, "credentials", {"host": "db"}),
        ({"PGHOST": "db"}, "libpq", True),
    ],
)
def test_the_port_that_kubernetes_sets_for_a_service_is_passed_over(
    configured: dict[str, str], field: str, value: Any
) -> None:
    assert Settings.from_env(LINK | configured) == dataclasses.replace(Settings(), **{field: value})


def test_a_service_of_kubernetes_alone_does_not_lead_to_sqlite() -> None:
    with pytest.raises(SettingsError) as failed:
        Settings.from_env(LINK)
    message = str(failed.value)
    assert message.startswith(
        "KIMERA_DB_PORT is 'tcp://10.0.0.1:5432', which Kubernetes sets for a service named kimera-db"
    )
    assert "set KIMERA_DB_HOST or DATABASE_URL" in message
    assert "enableServiceLinks: false" in message


def test_a_fallback_that_is_no_choice_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^sqlite_fallback must be one of .*, got 'sometimes'"):
        Settings.from_env({"KIMERA_SQLITE_FALLBACK": "sometimes"})


def test_a_setting_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().pool_size = 6  # type: ignore[misc]


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda settings: f"{[settings]}"])
def test_neither_the_password_nor_the_url_is_shown(show: Any) -> None:
    settings = Settings.from_env(
        {"KIMERA_DB_PASSWORD": SECRET, "KIMERA_DB_USER": "reader", "DATABASE_URL": f"postgresql://u:{SECRET}@hidden/x"}
    )
    shown = show(settings)
    assert SECRET not in shown
    assert "hidden" not in shown
    assert "'user': 'reader'" in shown
