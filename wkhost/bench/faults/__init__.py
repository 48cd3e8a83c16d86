"""Faults on purpose, under load, and what became of every message: `wkhost bench faults`.

guard.py the moderation plugin with switches for its faults · traffic.py users and messages ·
truth.py what is stored against what was told · site.py the server, its plugins and processes ·
cases.py, doors.py, impostor.py the faults · measure.py all of them in turn.
"""
