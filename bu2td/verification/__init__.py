"""Stage 6, verification: the emitted network, measured afresh -> a report."""

from bu2td.verification.graph import LevelClaim, Report, verify_graph
from bu2td.verification.numbers import verify_numbers

__all__ = ["LevelClaim", "Report", "verify_graph", "verify_numbers"]
