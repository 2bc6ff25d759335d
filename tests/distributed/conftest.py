"""One Ray for all tests of this folder, with room for more workers than cores."""

from collections.abc import Iterator

import pytest
import ray

from distributed.cluster import connect


@pytest.fixture(scope="session")
def ray_cluster(no_shared_file_is_left: None) -> Iterator[None]:
    started = connect(ray, None, cpus=8)
    assert started
    yield
    ray.shutdown()
