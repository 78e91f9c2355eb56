"""Makes the synchronous twin of each asynchronous module: kimera_sql/aio/geoids.py becomes kimera_sql/geoids.py.

    python .ci/twins.py            writes them
    python .ci/twins.py --check    exits with 1 where one is not what its source gives

The asynchronous modules are written by hand, as psycopg's are. What is pure stands in modules of its own and is shared.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = PROJECT / "kimera_sql"
SOURCES: Final = PACKAGE / "aio"
OF_THEIR_OWN: Final = re.compile(r"/__init__\.py$|/aio/sqlite\.py$")
"""Files without a twin: what the packages name, and the pools of SQLite, which wait for threads and for tasks."""

WORDS: Final = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncClusterPool": "ClusterPool",
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncCopy": "Copy",
    "AsyncExitStack": "ExitStack",
    "AsyncCursor": "Cursor",
    "AsyncIterable": "Iterable",
    "AsyncIterator": "Iterator",
    "AsyncLibpqWriter": "LibpqWriter",
    "AsyncPool": "Pool",
    "AsyncPooledConnection": "PooledConnection",
    "AsyncServerCursor": "ServerCursor",
    "acall": "call",
    "aclosing": "closing",
    "aeach": "each",
    "akept": "kept",
    "apause": "pause",
    "aiosqlite": "sqlite3",
    "asynccontextmanager": "contextmanager",
    "enter_async_context": "enter_context",
    "push_async_callback": "callback",
    "avalue": "value",
    "ALock": "Lock",
    "aclose": "close",
    "anext": "next",
}
"""What is called otherwise in a synchronous module."""

_WORD: Final = re.compile(rf"\b({'|'.join(WORDS)})\b")
_KEYWORD: Final = re.compile(r"\b(?:async (?=def|with|for)|await )")
_EITHER: Final = re.compile(r"\b(?:Awaitable\[([\w\[\]]+)\] \| \1(?!\w)|AsyncIterable(\[\w+\]) \| Iterable\2)")
_IMPORT: Final = re.compile(r"^( *from )(\.+)", re.MULTILINE)


def twin(source: Path) -> str:
    """Return the synchronous module that *source* gives, before it is formatted."""
    depth = len(source.relative_to(SOURCES).parts)
    text = source.read_text(encoding="utf-8")
    # What climbs out of aio climbs one step less from beside it.
    text = _IMPORT.sub(lambda found: found[1] + found[2][: -1 if len(found[2]) > depth else None], text)
    text = _EITHER.sub(lambda found: found[1] or f"Iterable{found[2]}", text)
    text = _WORD.sub(lambda found: WORDS[found[1]], _KEYWORD.sub("", text))
    return f"# Generated from {source.relative_to(PROJECT).as_posix()} by .ci/twins.py: change that one.\n{text}"


def formatted(texts: dict[Path, str]) -> dict[Path, str]:
    """Return *texts* as ruff formats them."""
    made = {}
    for path, text in texts.items():
        for arguments in (["check", "--fix-only", "--quiet"], ["format", "--quiet"]):
            command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(path), "-"]
            text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603
        made[path] = text
    return made


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--check", action="store_true", help="write nothing")
    arguments = options.parse_args()
    sources = [path for path in sorted(SOURCES.rglob("*.py")) if not OF_THEIR_OWN.search(path.as_posix())]
    texts = formatted({PACKAGE / path.relative_to(SOURCES): twin(path) for path in sources})
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(PROJECT)} {'is not what its source gives' if arguments.check else 'written'}")
        if not arguments.check:
            path.write_text(texts[path], encoding="utf-8")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
