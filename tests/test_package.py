"""What the package names, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import kimera_sql


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(kimera_sql.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == kimera_sql._PLACES.keys()
    for name in told:
        assert getattr(kimera_sql, name) is not None
        assert name in dir(kimera_sql)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(kimera_sql, "nothing")


def test_every_error_is_named() -> None:
    raised = {
        name
        for name, value in vars(kimera_sql.errors).items()
        if isinstance(value, type) and issubclass(value, (kimera_sql.KimeraError, Warning))
    }
    assert raised <= kimera_sql._PLACES.keys()


def test_the_plug_in_loads_neither_numpy_nor_a_driver() -> None:
    code = (
        "import sys, kimera_sql.pytest_plugin; print({'numpy', 'psycopg', 'aiosql', 'pgvector'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
