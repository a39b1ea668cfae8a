"""Attacks, branches, corruptions: what a classifier withstands."""
