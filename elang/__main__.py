"""``python -m elang``."""

import sys

from elang.cli.verbs import main

if __name__ == "__main__":
    sys.exit(main())
