"""A file of queries as it stands: where everything is in it, and what the loader would misread.

aiosql reads queries with regular expressions, which know no dollar quotes, array slices or comments behind code. Here
the text is read as the database reads it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Final

from ..sql.files import NOTES

COPY: Final = re.compile(
    # As it is in the file, or as it is sent, with its name
    r"COPY\s+(?:/\*.*?\*/\s*)?(?P<table>[\w.]+)\s*\((?P<columns>[^)]*)\)\s*FROM\s+STDIN\b",
    re.IGNORECASE,
)

_NAME: Final = re.compile(r"--\s*name\s*:\s*")
_NAME_LINE: Final = re.compile(r"^[ \t]*--\s*name\s*:[ \t]*(?P<rest>.*?)[ \t]*\r?$", re.MULTILINE)
_HEADER: Final = re.compile(r"(?P<name>[A-Za-z_]\w*)\((?P<parameters>[\w\s,]*)\)(?P<suffix>[\^$!#]?)")
_COMMENT_LINE: Final = re.compile(r"^[ \t]*--[ \t]*(?P<text>.*?)[ \t]*\r?$", re.MULTILINE)
_NOTE_LIKE: Final = re.compile(r"(?P<key>[A-Za-z_]+(?:[ _-][A-Za-z]+)?)\s*:(?P<value>.*)")

_TOKEN: Final = re.compile(
    r"""
      (?P<comment>--[^\n]*)
    | (?P<block>/\*.*?\*/)
    | (?P<escape>[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<dollar>\$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$)
    | (?P<cast>::)
    | (?P<parameter>:\w+)
    | (?P<percent>%+)
    | (?P<word>\w+)
    | (?P<sign>.)
    """,
    re.DOTALL | re.VERBOSE,
)

_VALUES: Final = {"plan": ("custom",), "only": ("postgres", "sqlite")}
"""The notes that have but few values."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a place of a file. line, column: from 1. query: its name, if it is in one.

    expected, found: where two things differ.
    """

    file: str
    line: int
    column: int
    query: str | None
    message: str
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        name = f"{self.query}: " if self.query else ""
        both = "" if self.expected is None else f" (expected {self.expected}, found {self.found})"
        return f"{self.file}:{self.line}:{self.column}: {name}{self.message}{both}"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a statement. kind: as _TOKEN names it. depth: how many parentheses it is in. offset: in the file.

    A parenthesis itself is not in the one that it opens or closes.
    """

    kind: str
    text: str
    depth: int
    offset: int

    @property
    def keyword(self) -> str:
        """The word in capitals, "" of what is none."""
        return self.text.upper() if self.kind == "word" else ""


@dataclass(slots=True)
class Source:
    """One query in its file. text: as the server is to prepare it, with $1 for the first parameter declared.

    offsets: where each character of text stands in the file. notes: their values, with where each begins.
    used: the parameters in the order in which they are met, with where. readable: nothing of it is misread.
    """

    path: Path
    whole: str
    name: str
    suffix: str
    parameters: tuple[str, ...]
    offset: int
    text: str = ""
    offsets: list[int] = field(default_factory=list)
    notes: dict[str, tuple[str, int]] = field(default_factory=dict)
    used: list[tuple[str, int]] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    readable: bool = True

    def fault(
        self, offset: int | None, message: str, *, expected: object | None = None, found: object | None = None
    ) -> Fault:
        """Return a fault at *offset* of the file, at the query's name if None."""
        return Fault(
            *_place(self.path, self.whole, self.offset if offset is None else offset),
            self.name,
            message,
            None if expected is None else str(expected),
            None if expected is None else str(found),
        )

    def note_offset(self, note: str) -> int | None:
        """Return where the value of a note stands."""
        return self.notes[note][1] if note in self.notes else None

    def parameter_offset(self, name: str) -> int | None:
        """Return where a parameter is used first."""
        return next((offset for used, offset in self.used if used == name), None)

    def column_offset(self, name: str) -> int | None:
        """Return where a result column seems to stand: its name in the last list of columns outside parentheses."""
        outer = [token for token in self.tokens if not token.depth and token.kind in ("word", "quoted")]
        starts = [at for at, token in enumerate(outer) if token.keyword in ("SELECT", "RETURNING")]
        if not starts:
            return None
        listed = takewhile(lambda token: token.keyword != "FROM", outer[starts[-1] + 1 :])
        found = [token for token in listed if token.text.strip('"') == name]
        return found[-1].offset if found else outer[starts[-1]].offset

    def filled(self, values: dict[str, str]) -> str:
        """Return the text with *values* in place of the parameters."""
        # The characters of a parameter all stand at its colon.
        of = {offset: name for name, offset in self.used}
        parts: list[str] = []
        last = -1
        for character, offset in zip(self.text, self.offsets, strict=True):
            if offset not in of:
                parts.append(character)
            elif offset != last:
                parts.append(values[of[offset]])
            last = offset
        return "".join(parts)

    def leaves_out(self, name: str) -> bool:
        """Whether the statement asks if a parameter is NULL, so that it can be left out."""
        place = self.parameters.index(name) + 1
        return re.search(rf"\${place}\b(::[\w.\[\]]+)?\s+IS\s+NULL", self.text, re.IGNORECASE) is not None


def read(path: Path, dialect: str) -> tuple[list[Source], list[Fault]]:
    """Read a file, and return its queries and what is wrong with how they are written."""
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [], [Fault(str(path), 1, 1, None, f"the file cannot be read: {error}")]
    faults = []
    heads = list(_NAME_LINE.finditer(whole))
    starts = {_NAME.search(whole, head.start()).start() for head in heads}  # type: ignore[union-attr]
    faults += [
        _fault(path, whole, found.start(), None, "`-- name:` within a line is read as the begin of another query")
        for found in _NAME.finditer(whole)
        if found.start() not in starts
    ]
    before = whole[: heads[0].start()] if heads else whole
    for line in re.finditer(r"^[ \t]*(?!--|\s)(?P<code>\S)", before, re.MULTILINE):
        faults.append(_fault(path, whole, line.start("code"), None, "what comes before the first `-- name:` is lost"))
        break
    sources: list[Source] = []
    for at, head in enumerate(heads):
        end = heads[at + 1].start() if at + 1 < len(heads) else len(whole)
        header = _HEADER.fullmatch(head["rest"])
        if header is None:
            message = (
                f"a name is written `-- name: thing(param, other)` and one of ^ $ ! # or nothing, not {head['rest']!r}"
            )
            faults.append(_fault(path, whole, head.start("rest"), None, message))
            continue
        declared = tuple(name.strip() for name in header["parameters"].split(",") if name.strip())
        source = Source(path, whole, header["name"], header["suffix"], declared, head.start("rest"))
        if any(other.name == source.name for other in sources):
            faults.append(source.fault(None, "a query of this name stands above already"))
        faults += _read_notes(source, head.end(), end)
        misread = list(_read_statement(source, head.end(), end, dialect))
        source.readable = not misread
        faults += misread
        sources.append(source)
    return sources, faults


def _fault(path: Path, whole: str, offset: int, query: str | None, message: str) -> Fault:
    return Fault(*_place(path, whole, offset), query, message)


def _place(path: Path, whole: str, offset: int) -> tuple[str, int, int]:
    return str(path), whole.count("\n", 0, offset) + 1, offset - whole.rfind("\n", 0, offset)


def _read_notes(source: Source, begin: int, end: int) -> Iterator[Fault]:
    documented = False
    for line in _COMMENT_LINE.finditer(source.whole, begin, end):
        like = _NOTE_LIKE.fullmatch(line["text"])
        key = like["key"] if like else ""
        if not like or not (near := difflib.get_close_matches(re.sub(r"[_-]", " ", key.lower()), NOTES, 1, 0.75)):
            documented = documented or bool(line["text"])
            continue
        at = line.start("text")
        if key != near[0] or not like["value"].startswith(" ") or not like["value"].strip():
            yield source.fault(at, f"{line['text']!r} is no note; write `-- {near[0]}: ` and its value")
            continue
        value, offset = like["value"].strip(), at + like.end("value") - len(like["value"].lstrip())
        if value not in _VALUES.get(key, (value,)):
            yield source.fault(
                offset, f"{key}: {value!r} is none of its values", expected=" or ".join(_VALUES[key]), found=value
            )
        if key in source.notes:
            value, offset = f"{source.notes[key][0]}, {value}", source.notes[key][1]
        source.notes[key] = value, offset
    if not documented:
        yield source.fault(None, "it has no comment that says what it is for")


def _read_statement(source: Source, begin: int, end: int, dialect: str) -> Iterator[Fault]:
    written: list[tuple[str, int]] = []
    depth = brackets = 0
    ended = False
    for token in _TOKEN.finditer(source.whole, begin, end):
        kind, text, at = str(token.lastgroup if token.lastgroup != "tag" else "dollar"), token[0], token.start()
        if kind == "comment":
            line_start = source.whole.rfind("\n", 0, at) + 1
            if source.whole[line_start:at].strip():
                yield from _misread(source, text, at, "a comment behind code", "put it on a line of its own")
            continue
        if kind == "block":
            continue
        if ended and not text.isspace():
            yield source.fault(at, "a second statement under one name; give it a `-- name:` of its own")
            return
        for percent in re.finditer(r"%+", text):
            if dialect == "postgres" and len(percent[0]) % 2:
                yield source.fault(at + percent.start(), "psycopg reads a single % as a parameter; write %%")
            elif dialect == "sqlite" and len(percent[0]) > 1:
                yield source.fault(at + percent.start(), "SQLite takes a single %, and %% as two")
        if kind == "dollar":
            yield from _misread(source, text, at, "a dollar quote", "write it as a string in apostrophes")
        if kind == "escape" and "\\'" in text:
            yield source.fault(at, r"the loader takes the \' for the string's end; write two apostrophes")
        before = source.whole[:at].rstrip()[-1:]
        if kind == "parameter" and brackets and (text[1:].isdigit() or before.isalnum() or before in "_)]"):
            yield source.fault(
                at, f"the loader reads the array slice's {text} as a parameter; write a space after the colon"
            )
        elif kind == "parameter":
            source.tokens.append(Token(kind, text, depth, at))
            yield from _use(source, text[1:], at, written, dialect)
            continue
        if kind == "sign":
            depth += (text == "(") - (text == ")")
            brackets += (text == "[") - (text == "]")
            ended = ended or text == ";"
        if not text.isspace() and not ended:
            source.tokens.append(Token(kind, text, depth - (text == "("), at))
        if not ended:
            # What psycopg makes of it
            sent = re.sub("%%", "%\0", text) if dialect == "postgres" else text
            written += [(character, at + place) for place, character in enumerate(sent) if character != "\0"]
    yield from _finish(source, written)


def _use(source: Source, name: str, at: int, written: list[tuple[str, int]], dialect: str) -> Iterator[Fault]:
    source.used.append((name, at))
    if name not in source.parameters:
        yield source.fault(
            at, f"the parameter {name} is not declared", expected=", ".join(source.parameters) or "none", found=name
        )
        source.parameters += (name,)
    sent = f"${source.parameters.index(name) + 1}" if dialect == "postgres" else f":{name}"
    written += [(character, at) for character in sent]


def _misread(source: Source, text: str, at: int, what: str, remedy: str) -> Iterator[Fault]:
    if found := re.search(r"(?<=[^:]):\w+", text):
        yield source.fault(at + found.start(), f"the loader reads {found[0]} in {what} as a parameter; {remedy}")
    in_comment = text.startswith("--")
    if (found := re.search(r"['\"]", text)) and (in_comment or text.count(found[0]) % 2):
        message = f"the loader reads the {found[0]} in {what} as the begin of a string; {remedy}"
        yield source.fault(at + found.start(), message)
    if in_comment and (found := re.search("%", text)):
        yield source.fault(at + found.start(), f"the database driver reads the % in {what}; {remedy}")


def _finish(source: Source, written: list[tuple[str, int]]) -> Iterator[Fault]:
    joined = "".join(character for character, _ in written)
    written = written[len(joined) - len(joined.lstrip()) : len(joined.rstrip())]
    source.text = "".join(character for character, _ in written)
    source.offsets = [offset for _, offset in written]
    if not source.text:
        yield source.fault(None, "there is no statement under this name")
        return
    used = {name for name, _ in source.used}
    for name in source.parameters:
        if name not in used:
            yield source.fault(
                None, f"the parameter {name} is declared and not used", expected=f":{name}", found="nothing"
            )
