"""`python -m segkern.cli`, the same as the command `segkern`."""

import sys

from segkern.cli import main

if __name__ == "__main__":
    sys.exit(main())
