"""The command line."""

from bu2td.cli.commands import main

__all__ = ["main"]
