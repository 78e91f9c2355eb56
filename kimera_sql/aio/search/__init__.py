"""Similarity search on asynchronous connections; see kimera_sql.search."""

from ...search.plan import Explanation, Method, Options, Precision, VectorIndex

__all__ = ["Explanation", "Method", "Options", "Precision", "VectorIndex"]
