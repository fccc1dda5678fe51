"""The composition root: wires the pure cores to their adapters, in one nursery.

`agent.py` is the place to start reading. This file imports nothing, so that a command-line verb that only
asks a running agent stays fast.
"""
