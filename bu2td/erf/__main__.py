"""``python -m bu2td.erf MODEL``."""

import sys

from bu2td.erf.command import main

if __name__ == "__main__":
    sys.exit(main())
