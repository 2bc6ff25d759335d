"""One Ray for all tests of this folder, with room for more workers than cores; and a look after each test at what it has left."""

from collections.abc import Iterator

import pytest
import ray

from distributed.cluster import connect
from tests.distributed.leftovers import left


@pytest.fixture(scope="session")
def ray_cluster(no_shared_file_is_left: None) -> Iterator[None]:
    started = connect(ray, None, cpus=8)
    assert started
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no worker, no shared memory in any process of its Ray, and nothing set aside there."""
    yield
    if "ray_cluster" in request.fixturenames:
        found = left()
        assert not found, f"the test left: {found}"
