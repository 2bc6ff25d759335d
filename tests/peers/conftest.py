"""Modules here that are no tests are collected for their doctests, which needs what they import."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["residuals.py"]
