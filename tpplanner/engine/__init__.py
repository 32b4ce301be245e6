"""A minimal inference engine: real weights, continuous batching, a sequential and an overlapped loop.

The driver process schedules, prepares inputs and processes outputs; it imports no torch. One worker process per rank runs
forward and sampling. Needs the extra ``[engine]``.
"""
