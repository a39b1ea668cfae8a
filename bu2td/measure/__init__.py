"""What a network costs: multiply-accumulates, and the memory of a training step."""

from bu2td.measure.cost import measure_cost, total
from bu2td.measure.memory import TrainingMemory, training_memory

__all__ = ["TrainingMemory", "measure_cost", "total", "training_memory"]
