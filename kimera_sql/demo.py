"""The demo: the docstrings of Python's standard library, embedded, stored, indexed and searched."""

from __future__ import annotations

import ast
import math
import re
import sysconfig
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from . import embeddings, geoids, transitions
from .embeddings import NewEmbedding
from .geoids import NewGeoid
from .migrations import migrate
from .progress import progress
from .search import indexes, recall
from .sql import Connection
from .vectors import DIMENSIONS, Vector, as_vector

SOURCE: Final = "python-stdlib"
"""The source under which the paragraphs are stored."""

QUERIES: Final = (
    "parse a date and time from a string",
    "split a shell command line into words",
    "wait until a thread has finished",
)
"""What is searched for unless the user asks for something else."""

_STEPS: Final = 8
"""How many transitions the reading path has."""

_SHORTEST: Final = 60
"""Characters below which a paragraph says too little to be found."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of a docstring, and the dotted name of what it documents."""

    where: str
    text: str


def paragraphs(folder: Path | None = None) -> Iterator[Paragraph]:
    """Yield the paragraphs of all docstrings below *folder*, the running Python's standard library if None.

    Repeated ones are left out, and so are installed packages, the library's own tests, and files that do not parse.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        for where, docstring in _docstrings(tree, module):
            for block in re.split(r"\n\s*\n", docstring):
                text = " ".join(block.split())
                if len(text) >= _SHORTEST and "\0" not in text and text not in seen:
                    seen.add(text)
                    yield Paragraph(where, text)


def _docstrings(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
        docstring := ast.get_docstring(node)
    ):
        yield where, docstring
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", None) if isinstance(child, ast.stmt) else None
        yield from _docstrings(child, f"{where}.{name}" if name else where)


class HashingEmbedder:
    """Texts to 1024-dimensional vectors without a model: feature hashing of words and parts of words.

    A text's features are its words and their runs of four letters. Each is hashed to one of 1024 components and a
    sign (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009), weighted with
    (1 + log tf) * log(1 + n / df) over the *n* texts it was made from, and the sum is scaled to length 1. Texts that
    share rare words are near each other; it knows nothing of meaning.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = len(texts)
        self._frequency = Counter(feature for text in texts for feature in set(self._features(text)))

    @staticmethod
    def _features(text: str) -> Iterator[str]:
        for word in re.findall(r"[a-z]+|\d+", text.lower()):
            yield word
            padded = f"<{word}>"
            if len(padded) > 4:
                yield from (f"~{padded[at : at + 4]}" for at in range(len(padded) - 3))

    def __call__(self, text: str) -> Vector:
        """Return the vector of *text*: float32, shape (1024,), length 1."""
        counts = Counter(self._features(text)) or Counter([text])
        vector = np.zeros(DIMENSIONS)
        for feature, count in counts.items():
            hashed = zlib.crc32(feature.encode())
            weight = (1 + math.log(count)) * math.log(1 + self._texts / max(self._frequency[feature], 1))
            vector[hashed % DIMENSIONS] += weight if hashed >> 31 else -weight
        return as_vector(vector / (np.linalg.norm(vector) or 1.0))


def run(conn: Connection, queries: Sequence[str]) -> None:
    """Run the demo on *conn* and print what was done and how fast; what an earlier run stored is used again."""
    with _timed("schema") as step:
        step.did = f"{len(migrate(conn))} files applied"
    with _timed("read") as step:
        texts = list(paragraphs())
        step.did = f"{len(texts):,} paragraphs of the docstrings of Python's standard library"
    with _timed("learned") as step:
        embed = HashingEmbedder([paragraph.text for paragraph in texts])
        step.did = f"{len(embed._frequency):,} features"
    if not embeddings.similar(conn, embed(QUERIES[0]), 1, source=SOURCE):
        with _timed("loaded") as step:
            rows = (
                NewEmbedding(
                    text_content=paragraph.text,
                    embedding=embed(paragraph.text),
                    source=SOURCE,
                    metadata={"where": paragraph.where},
                )
                for paragraph in texts
            )
            loaded = embeddings.insert_many(conn, progress(rows, len(texts), "embedding and loading"))
            step.did = f"{loaded:,} rows embedded and sent with COPY"
        with _timed("indexed") as step:
            index = indexes.build(conn, "semantic_embeddings")
            step.did = f"{index.method} in {index.precision} precision, {index.size / 2**20:.0f} MB"
        with _timed("tuned") as step:
            tuned = recall.tune(conn, "semantic_embeddings", target=0.95)[0]
            step.did = f"ef_search {tuned.setting} finds {tuned.recall.recall:.0%} of the nearest {tuned.k}"
    for query in queries or QUERIES:
        _search(conn, embed, query)
    _read_on(conn, embed, (queries or QUERIES)[0])


def _search(conn: Connection, embed: HashingEmbedder, query: str) -> None:
    vector = embed(query)
    began = perf_counter()
    hits = embeddings.similar(conn, vector, 3, source=SOURCE)
    print(f"\n? {query}  ({(perf_counter() - began) * 1000:.1f} ms)")
    for hit in hits:
        text = textwrap.shorten(hit.embedding.text_content, 90, placeholder=" ...")
        print(f"  {hit.similarity:.3f}  {hit.embedding.metadata['where']}\n         {text}")


def _read_on(conn: Connection, embed: HashingEmbedder, query: str) -> None:
    """Walk from text to the nearest text not read yet, and keep the walk as states and transitions."""
    print("\nA reading path, kept as geoid states and transitions:")
    read: list[embeddings.EmbeddingSummary] = []
    vector, previous, first = embed(query), None, None
    for _ in range(_STEPS + 1):
        hits = embeddings.similar(conn, vector, len(read) + 1, source=SOURCE, with_vectors=True)
        hit = next(hit for hit in hits if hit.embedding not in read)
        assert hit.vector is not None  # noqa: S101 - it was asked for
        read.append(hit.embedding)
        vector = hit.vector
        share = np.square(vector.astype(np.float64))
        state = geoids.insert(
            conn,
            NewGeoid(
                state_vector=vector,
                entropy=float(-np.sum(share[share > 0] * np.log2(share[share > 0]))),
                coherence_factor=hit.similarity,
                energy_level=1 - hit.similarity,
                creation_context=hit.embedding.text_content,
                tags=["demo", hit.embedding.metadata["where"].split(".")[0]],
            ),
        )
        if previous is not None:
            energy = state.energy_level - previous.energy_level
            transitions.record(conn, previous.id, state.id, "reading", energy=energy)
        first, previous = first or state, state
    assert first is not None  # noqa: S101 - the loop ran
    steps = transitions.trajectory(conn, first.id)
    order = [first.id, *(step.target_id for step in steps)]
    for state in geoids.get_many(conn, order):
        text = textwrap.shorten(state.creation_context or "", 70, placeholder=" ...")
        print(f"  entropy {state.entropy:4.1f} bits  {state.tags[-1]}: {text}")


class _timed:  # noqa: N801 - used as a statement
    """Prints what a step did and how long it took."""

    did = ""

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> _timed:
        self._began = perf_counter()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if not failed:
            print(f"{self._label:8} {perf_counter() - self._began:6.1f} s  {self.did}")
