"""Every classifier of the installed libraries, converted."""

from bu2td.zoo.sweeps import describe, finish, summarise, sweep
from bu2td.zoo.zoo import DEFAULT_LIBRARIES, TIMEOUT, Row, ZooModel, convert_built, convert_model, list_zoo, select

__all__ = [
    *("DEFAULT_LIBRARIES", "TIMEOUT", "Row", "ZooModel", "convert_built", "convert_model", "describe", "finish"),
    *("list_zoo", "select", "summarise", "sweep"),
]
