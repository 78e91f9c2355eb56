"""Similarity search: by which index it runs, with which settings, and the recall that comes of it.

Three promises: similarities are exact, whatever the index; k rows come back when k rows match; and the recall that
was asked for is met, because an index's settings are those that recall.tune measured for it.
"""

from .plan import Explanation, Method, Options, Precision, VectorIndex

__all__ = ["Explanation", "Method", "Options", "Precision", "VectorIndex"]
