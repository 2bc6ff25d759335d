"""What a process takes that is like a worker's but without Ray, so that what Ray adds to a worker can be told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

#: Runs in the child, which finds modules where this process does, and has imported what a worker has.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import distributed; "
    "from checkpointing.process_memory import measure_baseline; print(measure_baseline(*json.loads(sys.argv[2])))"
)


def measure_plain(*how: Any) -> int:
    """Returns the resident bytes, before its first array, of a process with our libraries alone, which is started for it.

    Args:
        *how: See `checkpointing.process_memory.measure_baseline`.

    Raises:
        RuntimeError: The process failed; its last words are in the message.
    """
    # As Ray tells its workers: threads of BLAS that nobody uses would count.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"what a process takes without Ray could not be measured: {last}")
    return int(done.stdout)
