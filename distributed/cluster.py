"""Starting Ray on this machine, or joining a cluster that runs already."""

from __future__ import annotations

import json
import os
import signal
import site
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from distributed.sources import collect

_PROBE_SECONDS = 5.0
#: The folder with the packages.
_ROOT = os.path.realpath(Path(__file__).parents[1])
#: Of Ray's object store, in /dev/shm: no gradients and no data pass there.
OBJECT_STORE_NBYTES = 100 * 2**20
#: What Ray's processes on this machine need not do for one run, so that its cores are the workers': keep statistics of their own events, tell
#: what tasks there were (for the dashboard, which is not started), and look ten times a second whether to collect garbage. And what they do at once:
#: the processes that become workers import the code while the rest of Ray is still starting, and are not ended again before the run asks for them,
#: which Ray does after a second.
_SETTINGS_ALONE = {
    "RAY_preload_python_modules": "distributed.worker_actor",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
}
#: Methods that end processes of Ray's which would have nothing to do: one prints what workers print, one asks clouds for more nodes.
_IDLE = ("kill_log_monitor", "kill_monitor")
#: What a client of HTTP/2 says first, and an empty frame of settings: Ray's head answers with such a frame.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS, _HEADER = 4, 9
#: Ray tells a submitted job of its own runtime environment here.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class ClusterError(RuntimeError):
    """Ray cannot be reached, or cannot place the workers."""


def connect(ray: Any, address: str | None, cpus: int, own: Sequence[str] = (), threads: int = 1) -> bool:
    """Starts or joins Ray. A cluster that is joined is sent the code (see `distributed.sources`), unless a submitted job brings its own.

    Args:
        ray: The module.
        address: HOST:PORT of a running cluster or "auto"; None starts Ray on this machine.
        cpus: CPUs that the workers ask for.
        own: A person's own modules that go along with the code, by their outermost names.
        threads: Of matrix products in each worker.

    Returns:
        Whether it was done here, so that `ray.shutdown` is due in the end.

    Raises:
        ClusterError: Nothing answers at the address, or no Ray, or it wants a token, or this process is connected to another cluster, or
            a person's own modules are too large to be sent.
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
        # More workers than cores are allowed on one machine, so the cores are not the limit.
        cpus = max(cpus, os.cpu_count() or 1)
        options |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_NBYTES,
        }
    if address not in (None, "auto"):
        _require_token(ray, str(address))
    failures: tuple[type[Exception], ...] = (ConnectionError, RuntimeError, ValueError, *_token_errors(ray))
    try:
        alone = nullcontext() if address is not None else _with_settings(_settings_alone(threads), _search_path())
        with _own_sigterm(), alone, _shipped(address, own) as environment:
            ray.init(**options, runtime_env=environment)
    except failures as error:
        if _wants_token(ray, error):
            raise ClusterError(_told_token(str(address))) from error
        raise ClusterError(f"cannot start or join Ray (address {address}): {error}") from error
    if address is None:
        _end_idle_processes()
    return True


def _settings_alone(threads: int) -> dict[str, str]:
    """What Ray on this machine is told, unless a person has told it otherwise.

    It would tell a worker its threads when it becomes one, which for BLAS is too late where the code is there before.
    """
    return {**_SETTINGS_ALONE, "OMP_NUM_THREADS": str(threads)}


def _search_path() -> dict[str, str]:
    """Where Ray's processes find this code, and no other package of the same name, before they are told this process's search path."""
    if _ROOT in map(os.path.realpath, site.getsitepackages()):
        return {}
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([_ROOT, before] if before else [_ROOT])}


@contextmanager
def _with_settings(settings: Mapping[str, str], always: Mapping[str, str] | None = None) -> Iterator[None]:
    """Sets variables of the environment for what is started inside alone: a cluster that is joined later has its own.

    Args:
        settings: Set unless they are set already.
        always: Set in any case.
    """
    new = {name: value for name, value in settings.items() if name not in os.environ} | dict(always or {})
    old = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_idle_processes() -> None:
    """Ends what Ray has started on this machine and this run has no use for: together they take 0.5 % of each of two cores."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    for name in _IDLE:
        end = getattr(node, name, None)
        if end is not None:
            end(check_alive=False)


def _token_errors(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises about tokens; nothing, where it is so old that it knows none."""
    found = getattr(ray.exceptions, "AuthenticationError", None)
    return () if found is None else (found,)


def _wants_token(ray: Any, error: BaseException) -> bool:
    """Whether a head takes only who has its token. Where this process was told of none, Ray says so as the words of a cause alone."""
    return isinstance(error, _token_errors(ray)) or "AuthenticationError" in str(error.__cause__)


def _require_token(ray: Any, address: str) -> None:
    """Raises at once where the head does not take this process's token; `ray.init` would ask for 20 seconds, with a warning each."""
    if os.environ.get("RAY_AUTH_MODE") == "token" and _token_place() is None:
        raise ClusterError(_told_token(address))  # Ray's client would end the process
    # What Ray's own programs ask a head by; all that is public begins with ray.init.
    client = getattr(getattr(ray, "_raylet", None), "GcsClient", None)
    if client is None:
        return
    try:
        client(address=address)
    except _token_errors(ray) as error:
        raise ClusterError(_told_token(address)) from error
    except ray.exceptions.RayError:
        return  # ray.init says what else is wrong


def _token_place() -> str | None:
    """Where Ray takes this process's token from, in its order; None where it has none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return str(path) if path.read_text().strip() else None
    except OSError:
        return None


def _told_token(address: str) -> str:
    """Says what is wrong with the token of this process for a head that wants one."""
    place = _token_place()
    if os.environ.get("RAY_AUTH_MODE") == "token" and place is not None:
        return (
            f"the Ray cluster at {address} does not take the token that is in {place}; put the cluster's own there, which its nodes have "
            "in ~/.ray/auth_token or where their RAY_AUTH_TOKEN_PATH says"
        )
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    lack = f"; {named} has none" if named and place is None else ""
    return (
        f"the Ray cluster at {address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that has the "
        f"cluster's (or put it into ~/.ray/auth_token){lack}"
    )


@contextmanager
def _shipped(address: str | None, own: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Yields the runtime environment by which a cluster gets the code; None where it has it, or a job brings it."""
    job = json.loads(os.environ.get(_JOB, "{}")).get("runtime_env") or {}
    if address is None or {"working_dir", "py_modules"} & {*job}:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="retape-") as folder:
        collect(Path(folder), own)
        yield {"working_dir": folder}


def probe(address: str) -> None:
    """Checks that a Ray head listens there: ray.init itself may wait for minutes.

    Raises:
        ClusterError: None does, or it is no address.
    """
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address} is for Ray's client, which gives no shared memory; write HOST:PORT as ray start prints it, with no ray:// and "
            "usually port 6379, on a machine that has joined the cluster (ray start --address HOST:PORT --num-cpus 0)"
        )
    if not colon or not host or not port.isdecimal():
        raise ClusterError(
            f"{address!r} is no address of a Ray cluster; write HOST:PORT (as printed by ray start) or auto"
        )
    try:
        with socket.create_connection((host, int(port)), _PROBE_SECONDS) as connection:
            is_ray = os.environ.get("RAY_USE_TLS") == "1" or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nothing answers at {address} within {_PROBE_SECONDS:.0f} s ({error}); is the Ray head running there, and its "
            "port open?"
        ) from error
    if not is_ray:
        raise ClusterError(
            f"what answers at {address} is no Ray head; its port is what ray start prints, usually 6379, and neither that of the dashboard "
            "(8265) nor of Ray's client (10001)"
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side speaks HTTP/2, as Ray's head does and neither its dashboard nor most others do."""
    try:
        connection.sendall(_HELLO)
        answer = b""
        while len(answer) < _HEADER and (more := connection.recv(_HEADER - len(answer))):
            answer += more
    except OSError:  # it is silent, or closes
        return False
    return len(answer) == _HEADER and answer[3] == _SETTINGS


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
