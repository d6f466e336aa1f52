"""What an answer costs: FLOPs by token length, counted without weights, measured latency and throughput.

Convention ``"exact"``: twice the multiply-accumulates of every matrix product, attention included, at the input's
true token length; element-wise work is not counted. Of a mixture of experts each token costs those that it is sent to.
A family that cannot be counted is estimated as twice its weights for each token, and a notice says so.
Convention ``"paper"``: twice the encoder's weights times 128 tokens, whatever the length, attention left out; it
reproduces the paper's tables. A decoder's weights count once for each of its tokens.

An encoder-decoder costs its encoder, its decoder over ``(paths, tokens)`` and the language-model head, or, for an input
that is deferred before the decoder runs, its encoder alone.
"""
