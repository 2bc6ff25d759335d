"""Starting Ray on this machine, or joining a cluster that runs already."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PROBE_SECONDS = 5.0
#: Of Ray's object store, in /dev/shm: no gradients and no data pass there.
OBJECT_STORE_NBYTES = 100 * 2**20


class ClusterError(RuntimeError):
    """Ray cannot be reached, or cannot place the workers."""


def connect(ray: Any, address: str | None, cpus: int) -> bool:
    """Starts or joins Ray.

    Args:
        ray: The module.
        address: HOST:PORT of a running cluster or "auto"; None starts Ray on this machine.
        cpus: CPUs that the workers ask for.

    Returns:
        Whether it was done here, so that `ray.shutdown` is due in the end.

    Raises:
        ClusterError: Nothing answers at the address, or this process is connected to another cluster.
    """
    if address not in (None, "auto"):
        probe(str(address))
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise ClusterError(f"this process is already connected to the Ray cluster at {here}, not to {address}")
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # More workers than cores are allowed on one machine, so the cores are not the limit.
        cpus = max(cpus, os.cpu_count() or 1)
        options |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_NBYTES,
        }
    try:
        with _own_sigterm():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"cannot start or join Ray (address {address}): {error}") from error
    return True


def probe(address: str) -> None:
    """Checks that something listens there: ray.init itself may wait for minutes.

    Raises:
        ClusterError: Nothing does, or it is no address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ClusterError(
            f"{address!r} is no address of a Ray cluster; write HOST:PORT (as printed by ray start) or auto"
        )
    try:
        socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nothing answers at {address} within {_PROBE_SECONDS:.0f} s ({error}); is the Ray head running there, and its "
            "port open?"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the program's own handler of SIGTERM, which ray.init would replace.

    It does so first of all, and its own ends the program in the middle of the start, leaving half of Ray behind.
    """
    from ray._private import utils

    before = signal.getsignal(signal.SIGTERM)
    replaces = getattr(utils, "set_sigterm_handler", None)
    if replaces is not None:
        utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        if replaces is not None:
            utils.set_sigterm_handler = replaces
        if callable(before):
            signal.signal(signal.SIGTERM, before)
