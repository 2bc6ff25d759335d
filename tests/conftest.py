"""Settings that all tests share, and how `make test` spreads them over two processes (pytest-xdist)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

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

#: These start Ray or programs, or look at what all processes of the machine leave: one after the other, in one process.
ONE_AT_A_TIME = ("tests/distributed/", "tests/scripts/", "tests/docs/test_commands", "tests/test_limits")
#: Of them, those that do neither.
APART = tuple(
    f"tests/distributed/{name}.py"
    for name in (
        "test_callbacks",
        "test_combinations",
        "test_digits",
        "test_doctor",
        "test_run_state",
        "test_sharded_state",
        "test_snapshots",
        "collectives/test_cross_node",
        "collectives/test_gradients",
        "collectives/test_hierarchical",
        "collectives/test_shared_memory",
    )
)
#: In the id of a case of a long test: these may run apart from each other.
PART = "[part "


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """After all tests: no process of ours."""
    yield
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=10)
    assert [" ".join(process.cmdline()) for process in alive] == []


@pytest.fixture(scope="session")
def no_shared_file_is_left() -> Iterator[None]:
    """After the tests of this process, if one has asked for it: no shared memory that was not there before."""
    before = shared_files()
    yield
    assert not shared_files() - before


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):  # one of several processes, which would fight over the cores
        import numpy  # noqa: F401  (BLAS must be there before it is told)

        threadpool_limits(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # what takes longest in one process begins first
        items.sort(key=lambda item: not _one_at_a_time(item.nodeid))


def _one_at_a_time(nodeid: str) -> bool:
    return nodeid.startswith(ONE_AT_A_TIME) and not nodeid.startswith(APART)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file run in one process, since they share models and plans; see `ONE_AT_A_TIME` and `PART` for exceptions."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if PART in nodeid:
                return nodeid
            return "one at a time" if _one_at_a_time(nodeid) else nodeid.split("::")[0]

    config.option.loadscopereorder = False
    return Scheduling(config, log)
