"""Plugins in processes of their own: the decision points of hooks/, answered from outside.

A package's way: extract -> manifest -> package -> registry (all of it behind catalog) -> order.
A process's way: process and boot -> generation -> session (over grpc/) -> proxy -> supervisor.
What a plugin hears: calls and codec out, verdicts in (session); the log by observers. What it may
ask: host_api, checked by grants and lineage, values in kv. host ties them together.
"""
