"""Stage 1, capture: a model -> its canonical torch.fx graph on the meta device.

`checks` says what is taken, `images` what it is traced for, `tracer` follows the forward, `canonical` writes its
graph in one way, and `trace` chooses between the graphs of train and eval mode.
"""

from bu2td.capture.trace import capture

__all__ = ["capture"]
