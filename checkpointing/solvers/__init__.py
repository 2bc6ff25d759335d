"""Solvers: schedules for abstract chains, each in a file of its own with its source, and bounds that no schedule passes.

They know bytes and times alone; `stages` makes such a chain of the costs of a model, and a schedule for the model of one for the chain;
`nested` finds what its stages may keep.
"""
