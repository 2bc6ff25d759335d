"""One Ray for all tests of this folder, with room for more workers than cores."""

from collections.abc import Iterator

import pytest
import ray

from distributed.cluster import connect


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    started = connect(ray, None, cpus=8)
    assert started
    yield
    ray.shutdown()
