"""Finding people by what they wear: queries, their scores, and the trained head that compares both in one space."""

from .queries import Condition, Query


__all__ = ["Condition", "Query"]
