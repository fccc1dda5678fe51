"""Hypothesis for this lane: nothing here depends on how fast a machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")
