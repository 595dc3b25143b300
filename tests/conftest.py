"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# how long an example takes depends on what else the machine is doing
settings.register_profile("mosaicsim", deadline=None)
settings.load_profile("mosaicsim")
