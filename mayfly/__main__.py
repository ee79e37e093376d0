"""Entry point of the command line: `mayfly`, or `python -m mayfly`."""

import sys

from mayfly.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
