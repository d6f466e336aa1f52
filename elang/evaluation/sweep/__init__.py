"""The exact curve of more examples than memory holds: joint records in any number of files, in any order.

The examples are sorted by DuckDB, which spills to the disk, and pass once through the sums of
:mod:`elang.method.curve`, in pieces. What is read off a curve is found on the way; of the curve itself an even grid is
kept.
"""
