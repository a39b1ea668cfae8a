"""``python -m bu2td``: the command line."""

from bu2td.cli import main

raise SystemExit(main())
