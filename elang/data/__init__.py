"""Labelled texts: what `--data` takes, examples and their splits, tokens and batches."""
