"""Reads the tables of a run, compares the networks, and writes the report."""
