"""What a network costs: multiply-accumulates, memory and time of a training step; and whether it is trained."""

from bu2td.measure.cost import measure_cost, total
from bu2td.measure.memory import TrainingMemory, training_memory
from bu2td.measure.step import TrainingStep, training_step
from bu2td.measure.trained import signs_of_training

__all__ = [
    "TrainingMemory",
    "TrainingStep",
    "measure_cost",
    "signs_of_training",
    "total",
    "training_memory",
    "training_step",
]
