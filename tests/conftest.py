"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# Fixed examples, so that a run fails or passes the same way everywhere; time never decides a test.
settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")
