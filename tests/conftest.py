"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run, and no time limit per example: machines are shared and noisy.
# HYPOTHESIS_PROFILE=random looks for new ones, ten times as many.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
