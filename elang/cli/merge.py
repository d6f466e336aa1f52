"""`elang merge`: parts of a data set's records put together."""

from elang.records.merging import merge

__all__ = ["merge"]
