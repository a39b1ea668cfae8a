"""Receptive fields, and their oracle: a copy of a network whose gradient fills the theoretical field."""
