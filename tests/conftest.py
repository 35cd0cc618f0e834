"""How property tests draw: however busy the machine is, time decides nothing."""

from hypothesis import HealthCheck, settings

# Where `CI` is set, Hypothesis' own profile for it is the parent: the same draws every time, so
# that a change never fails for what it didn't touch. Elsewhere, draws are new ones every time.
settings.register_profile("ditplan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ditplan")
