"""``python -m bu2td.evaluate STAGE``."""

import sys

from bu2td.evaluate.command import main

if __name__ == "__main__":
    sys.exit(main())
