"""The steps of a suite, its file and its table."""
