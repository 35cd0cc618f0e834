"""What all tests share: however busy the machine is, no test depends on it."""

import os

from hypothesis import HealthCheck, settings

# Where `CI` is set, Hypothesis' own profile for it is the parent: the same draws every time, so
# that a change never fails for what it didn't touch. Elsewhere, draws are new ones every time.
settings.register_profile("ditplan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ditplan")

# Threads of one operation wait for each other by spinning: where one of them has lost its core to
# another program, an operation takes up to twenty times as long. Here, before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
