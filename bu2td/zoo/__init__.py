"""Every CNN classifier of the installed libraries, converted."""

from bu2td.zoo.sweep import finish, summarise, sweep
from bu2td.zoo.zoo import Row, ZooModel, convert_model, list_zoo, select

__all__ = ["Row", "ZooModel", "convert_model", "finish", "list_zoo", "select", "summarise", "sweep"]
