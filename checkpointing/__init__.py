"""What to keep and what to recompute: plans, policies, the simulator and the executor."""

from checkpointing.bounds import Bounds
from checkpointing.budgets import parse_budget
from checkpointing.costs import Costs, costs_of
from checkpointing.curvature import gauss_newton_vp, hvp, jvp
from checkpointing.curve import CurvePoint, memory_time_curve
from checkpointing.engine import Engine, predict, run_plans, value_and_grad
from checkpointing.executor import Executor
from checkpointing.explanation import Explanation, explain
from checkpointing.offload import OffloadError
from checkpointing.operations import PlanError
from checkpointing.plan import Plan
from checkpointing.policies import (
    Budget,
    EveryK,
    Mixed,
    Offload,
    Policy,
    RecomputeAll,
    Revolve,
    Selective,
    SqrtN,
    StoreAll,
    parse_policy,
)
from checkpointing.report.summary import Summary, summary
from checkpointing.runs import InfeasibleBudget, RunPlans, plan_run

__all__ = [
    "Bounds",
    "Budget",
    "Costs",
    "CurvePoint",
    "Engine",
    "EveryK",
    "Executor",
    "Explanation",
    "InfeasibleBudget",
    "Mixed",
    "Offload",
    "OffloadError",
    "Plan",
    "PlanError",
    "Policy",
    "RecomputeAll",
    "Revolve",
    "RunPlans",
    "Selective",
    "SqrtN",
    "StoreAll",
    "Summary",
    "costs_of",
    "explain",
    "gauss_newton_vp",
    "hvp",
    "jvp",
    "memory_time_curve",
    "parse_budget",
    "parse_policy",
    "plan_run",
    "predict",
    "run_plans",
    "summary",
    "value_and_grad",
]
