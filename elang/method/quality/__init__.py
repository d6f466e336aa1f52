"""Task metrics as functions of sums of per-example statistics.

Moving one example to the other model then means adding and subtracting its statistics, which makes the curve over all
thresholds exact and cheap (:mod:`elang.method.curve`). Some metrics add up over groups of examples, and some not at
all; :class:`~elang.method.quality.metric.Quality` says which.
"""
