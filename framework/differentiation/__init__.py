"""Derivatives of plain NumPy code: JVPs, VJPs, and what is built from them."""

from framework.differentiation import rules
from framework.differentiation.applications import (
    Eigenpair,
    Sensitivity,
    Solved,
    conjugate_gradients,
    lanczos,
    largest_eigenvalue,
    newton_cg_step,
    propagate_covariance,
    sensitivity,
)
from framework.differentiation.checks import WrongDerivative, check_grads
from framework.differentiation.custom import custom_rule, stop_gradient
from framework.differentiation.explain import Operation, trace_operations
from framework.differentiation.forward import jvp
from framework.differentiation.linearization import linearize
from framework.differentiation.reverse import grad, value_and_grad, vjp
from framework.differentiation.tracing import DifferentiationError
from framework.differentiation.transforms import (
    gauss_newton_vp,
    hessian,
    hvp,
    jacobian,
    jacobian_operator,
    jacobian_plan,
)

__all__ = [
    "DifferentiationError",
    "Eigenpair",
    "Operation",
    "Sensitivity",
    "Solved",
    "WrongDerivative",
    "check_grads",
    "conjugate_gradients",
    "custom_rule",
    "gauss_newton_vp",
    "grad",
    "hessian",
    "hvp",
    "jacobian",
    "jacobian_operator",
    "jacobian_plan",
    "jvp",
    "lanczos",
    "largest_eigenvalue",
    "linearize",
    "newton_cg_step",
    "propagate_covariance",
    "rules",
    "sensitivity",
    "stop_gradient",
    "trace_operations",
    "value_and_grad",
    "vjp",
]
