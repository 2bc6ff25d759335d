"""The planner behind budgets: a search over schedules of leaf steps.

`evaluation` says fast what a schedule costs, `moves` changes one by dropping or keeping a value, `units` has schedules to start from besides
policies, with plans of single stages by `frugal`, and `frontier` makes of all the fastest schedule known for every amount of memory.
"""
