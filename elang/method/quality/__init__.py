"""Task metrics as functions of sums of per-example statistics.

A metric of this form can be moved from one operating point to the next by adding and subtracting single examples, which
is what makes the curve over all thresholds exact and cheap (:mod:`elang.method.curve`). Some metrics add up over groups
of examples instead, and some not at all; :class:`~elang.method.quality.metric.Quality` says which.
"""
