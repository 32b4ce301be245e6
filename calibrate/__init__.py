"""Microbenchmarks: raw times of what the engine runs on the machine at hand. They know no theory.

One ``bench_*.py`` per record of a profile; each checks an answer before it times, and keeps every iteration. ``suite.py`` goes
through the cases of all of them, pass by pass, appends one JSON line per case, and goes on where it was interrupted.
"""
