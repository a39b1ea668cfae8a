"""What a network costs: multiply-accumulates, and the memory of a training step; and whether it is trained."""

from bu2td.measure.cost import measure_cost, total
from bu2td.measure.memory import TrainingMemory, training_memory
from bu2td.measure.trained import signs_of_training

__all__ = ["TrainingMemory", "measure_cost", "signs_of_training", "total", "training_memory"]
