"""Faults from outside on real processes: system calls that fail, signals, limits, clocks, networks. What is judged is what clients see.

Faults inside the engine are tests/simulation's; of the disk under SQLite, tests/stores'; parts that die, tests/integration's.
"""
