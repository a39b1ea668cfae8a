"""Stage 1, capture: a model -> its canonical torch.fx graph on the meta device."""

from bu2td.capture.trace import capture

__all__ = ["capture"]
