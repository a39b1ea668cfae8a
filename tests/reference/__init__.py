"""Top-down networks written by hand, the yardstick for what the compiler emits.

Nothing in this package may import the compiler: the two must be able to disagree.
"""
