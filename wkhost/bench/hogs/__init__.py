"""A plugin that takes all it can get, beside a good one: `wkhost bench hogs`.

kinds.py the hogs · measure.py the pairs of windows with and without one.
"""
