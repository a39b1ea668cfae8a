"""Every CNN classifier of the installed libraries, converted."""

from bu2td.zoo.sweeps import describe, finish, summarise, sweep
from bu2td.zoo.zoo import Row, ZooModel, convert_model, list_zoo, select

__all__ = ["Row", "ZooModel", "convert_model", "describe", "finish", "list_zoo", "select", "summarise", "sweep"]
