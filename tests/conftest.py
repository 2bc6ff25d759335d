"""Settings that all tests share."""

from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.shared_files import shared_files

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


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """After all tests: no process of ours, and no shared memory that was not there before."""
    before = shared_files()
    yield
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=10)
    assert [" ".join(process.cmdline()) for process in alive] == []
    assert not shared_files() - before
