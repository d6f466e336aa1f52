"""The exact operating curve of a Swift and a Super, and how to read it.

With ``a_i`` and ``b_i`` the statistics of example ``i`` under the Swift and the Super, the pair that defers the
``k`` hardest examples has ``sum a + cumsum(b - a)[k]``. One sort and one cumulative sum give every metric of
:mod:`elang.method.quality` at every threshold, equal to scoring the mixed answers again at each. Where a metric adds up
over groups of examples, each deferral changes the statistics of its group, and these changes are cumulated.
"""
