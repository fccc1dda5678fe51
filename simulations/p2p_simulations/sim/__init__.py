"""Simulated nodes: the production cores, driven by other adapters, in a world that misbehaves."""
