"""The data sets that come with scikit-learn, by name."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys

import numpy as np

from framework.data.examples import Examples

#: Names, and the functions of sklearn.datasets that load them.
BUNDLED = {
    "digits": "load_digits",
    "iris": "load_iris",
    "wine": "load_wine",
    "breast-cancer": "load_breast_cancer",
    "diabetes": "load_diabetes",
}
#: What the process says that reads a set. scikit-learn and SciPy would take some 100 MB of this one, which has a budget.
_READ = """
import io, sys
import numpy as np
from sklearn import datasets
found = getattr(datasets, sys.argv[1])()
arrays = {"x": getattr(found, "images", found.data), "y": found.target, "columns": np.array(found.feature_names, str)}
names = np.asarray(getattr(found, "target_names", ()))
if names.dtype.kind in "OSU":
    arrays["y"] = names.astype(str)[found.target]
written = io.BytesIO()
np.savez(written, **arrays)
sys.stdout.buffer.write(written.getvalue())
"""


def read_bundled(name: str) -> Examples:
    """Reads a set that comes with scikit-learn, which needs no network.

    Args:
        name: One of `BUNDLED`.

    Raises:
        ValueError: scikit-learn is not installed, or does not have the set.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError(
            f"the data set {name!r} comes with scikit-learn, which is not installed; install it with: pip install scikit-learn "
            "(it is Retape's extra datasets)"
        )
    done = subprocess.run([sys.executable, "-c", _READ, BUNDLED[name]], capture_output=True, check=False)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"scikit-learn cannot load the data set {name!r}: {last}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as file:
        x, y, columns = (file[array] for array in ("x", "y", "columns"))
    return Examples(name, x, y, tuple(columns.tolist()) if x.ndim == 2 else (), "the target")
