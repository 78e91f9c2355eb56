"""What there is to say of embeddings whose vectors are made anew by another model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Renewal:
    """The vectors of another model beside those that serve: of the next one, or of the one before.

    waiting: how many of its vectors are still to be made, because they never were, or their rows have changed since.
    since: when they were begun, or began to serve. size: what they take up, in bytes. was_serving: they are of the
    model before.
    """

    serving: str
    other: str
    waiting: int
    since: datetime
    size: int
    was_serving: bool


@dataclass(frozen=True, slots=True)
class Renewed:
    """What embeddings.renew did. previous: the model before. rows: how many vectors were made now.

    overlap: the share of a text's 10 nearest texts that the two models have in common, from 0 to 1, on average; None
    where there are no other texts. recall, previous_recall: of the searches with either, as recall.measure measures it;
    None where they are exact. switched: whether the new vectors serve now.
    """

    model: str
    previous: str
    rows: int
    overlap: float | None
    recall: float | None
    previous_recall: float | None
    switched: bool
