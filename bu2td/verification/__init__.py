"""Stage 6, verification: the emitted network, measured afresh -> a report."""

from bu2td.verification.graph import Beside, LevelClaim, Report, verify_graph
from bu2td.verification.likeness import Expectation, Measured
from bu2td.verification.numbers import verify_numbers

__all__ = ["Beside", "Expectation", "LevelClaim", "Measured", "Report", "verify_graph", "verify_numbers"]
