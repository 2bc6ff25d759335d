"""Derivatives of plain NumPy code: JVPs, VJPs, and what is built from them."""

from framework.differentiation import rules
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
    "Operation",
    "WrongDerivative",
    "check_grads",
    "custom_rule",
    "gauss_newton_vp",
    "grad",
    "hessian",
    "hvp",
    "jacobian",
    "jacobian_operator",
    "jacobian_plan",
    "jvp",
    "linearize",
    "rules",
    "stop_gradient",
    "trace_operations",
    "value_and_grad",
    "vjp",
]
