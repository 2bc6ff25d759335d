"""PyTorch's side of the suite `policies`: the bytes that are counted are those that autograd and its checkpointing really hold."""

from __future__ import annotations

import gc
import importlib
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest

from checkpointing import StoreAll, costs_of, plan_run
from framework import AdamW, Spec
from framework.models import byte_gpt
from tests.scripts.helpers import ROOT

pytestmark = pytest.mark.peers


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports modules of the suite, as programs in scripts/ do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an import that is not ours
        pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def case(modules: Any) -> Any:
    """A byte GPT of three blocks."""
    spec = Spec.of((16,), np.uint8)
    return modules("engine_cases").Case("small", "small", partial(byte_gpt, "small", 3, 16, 2, 16), 4, spec, spec, 256)


def test_what_is_counted_at_the_end_of_the_forward_is_what_hooks_see(modules: Any, case: Any) -> None:
    pytorch = modules("policies_pytorch")
    twin = pytorch.Twin.of(case)
    saved = pytorch.Saved.of(twin)
    some = pytorch.configurations(twin.module)
    assert [each.kind for each in some] == ["store-all", "per-block"] + ["sequential"] * 5
    for each in some:
        segments = each.checkpointed(list(twin.module))
        assert sum(saved.outer(segments).values()) == sum(twin.outer_pieces(each).values()), str(each)
        assert saved.nbytes(segments) <= saved.nbytes([])


@pytest.mark.parametrize(("kind", "segments"), [("per-block", 1), ("sequential", 2), ("sequential", 3)])
def test_what_is_counted_of_a_segment_is_what_its_recomputation_holds(
    modules: Any, case: Any, kind: str, segments: int
) -> None:
    pytorch = modules("policies_pytorch")
    twin = pytorch.Twin.of(case)
    saved, how = pytorch.Saved.of(twin), pytorch.Configuration(kind, segments)
    own = {parameter.untyped_storage().data_ptr() for parameter in twin.module.parameters()}
    children, ranges, held = list(twin.module), how.checkpointed(list(twin.module)), {}

    def watched(child: int, forward: Any) -> Any:
        def run(x: Any) -> Any:
            try:
                return forward(x)
            finally:  # a recomputation ends by an exception, when the last tensor is there
                pieces = {
                    tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                    for frame in gc.get_objects()
                    if type(frame).__name__ == "_CheckpointFrame"
                    for tensors in frame.recomputed.values()
                    for tensor in tensors.values()
                }
                held[child] = sum(nbytes for place, nbytes in pieces.items() if place not in own)

        return run

    for segment in ranges:
        last = segment[-1]
        children[last].forward = watched(last, children[last].forward)
    module = pytorch._Configured(twin.module, how)
    modules("pytorch_models").mean_loss(module, twin.x, twin.targets).backward()
    for segment in ranges:
        again: dict[int, int] = {}
        for child in segment:
            again |= saved.children[child]
        assert held[segment[-1]] == sum(again.values()) > 0


def test_either_side_saves_as_much_where_all_is_stored(modules: Any, case: Any) -> None:
    pytorch, model = modules("policies_pytorch"), case.model()
    saved = pytorch.Saved.of(pytorch.Twin.of(case))
    specs = [Spec((case.batch, *spec.shape), spec.dtype) for spec in (case.inputs, case.targets)]
    costs = costs_of(model.chain, model.loss, *specs, AdamW())
    ours = modules("policies_plans").saved_nbytes(plan_run(costs, policy=StoreAll()).train[0])
    # Our loss needs nothing after it has run, and our tokens have one byte; the rest differs by rows of statistics.
    theirs = saved.nbytes([]) - sum(saved.loss.values()) - 7 * costs.batch.nbytes
    assert ours == pytest.approx(theirs, rel=0.02)


def test_both_sides_begin_with_the_same_loss(modules: Any, tmp_path: Any) -> None:
    policies, sides = modules("policies_cases"), modules("policies_sides")
    fresh = modules("measure").in_fresh_process
    case = policies.CASES["mlp-deep"]
    model, file = case.model(), tmp_path / "plan.json"
    specs = [Spec((case.batch, *spec.shape), spec.dtype) for spec in (case.inputs, case.targets)]
    plan_run(costs_of(model.chain, model.loss, *specs, AdamW()), policy=StoreAll()).train[0].save(file)
    ours = fresh(sides.ours_here, "mlp-deep", [str(file)], 1, None)
    some = [{"kind": "sequential", "segments": 3}, {"kind": "store-all", "segments": 1}]
    peer = fresh(sides.pytorch_here, "mlp-deep", some, 2)
    assert peer["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    first, second = peer["seconds"]
    assert len(first) == len(second) >= 2
    assert len(ours["pass_seconds"][0]) == len(ours["seconds"][0]) >= 1
