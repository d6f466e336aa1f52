"""The command line: `elang VERB` is ``cli/VERB.py``. An InputError of a verb names the option and the remedy."""

from elang.cli.verbs import main

__all__ = ["main"]
