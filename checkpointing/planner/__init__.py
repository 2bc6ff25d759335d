"""The planner behind budgets: a search over schedules of leaf steps.

`evaluation` says fast what a schedule costs, `moves` changes one by dropping or keeping a value, and `frontier` makes of both the
fastest schedule known for every amount of memory.
"""
