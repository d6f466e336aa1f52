"""The command line: one verb, one file."""

from elang.cli.verbs import main

__all__ = ["main"]
