"""What all tests share: how properties draw their examples.

By default each property draws the same examples in every run of one version of the sources, so that a red run means
that something changed. `TURNSTILE_EXPLORE=1 make test` draws new ones.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("exploring")
settings.load_profile("exploring" if os.environ.get("TURNSTILE_EXPLORE") else "repeatable")
