"""The command line."""

from bu2td.cli.program import main

__all__ = ["main"]
