"""How long tasks hold the loop: each step between two awaits, timed by the thread's CPU clock.

CPU time, so that a busy machine does not count against the code; garbage collection and waiting
for the interpreter lock of our own threads are part of it or left out, as the system counts them.
"""

from __future__ import annotations

from collections import defaultdict
from time import thread_time_ns

import trio
from trio.lowlevel import Task


class StretchMeter(trio.abc.Instrument):
    """A trio instrument. `steps_ms` gives the lengths of all steps of a task by its name."""

    def __init__(self) -> None:
        self._started = 0
        self._steps: defaultdict[str, list[int]] = defaultdict(list)

    def before_task_step(self, task: Task) -> None:
        self._started = thread_time_ns()

    def after_task_step(self, task: Task) -> None:
        self._steps[task.name].append(thread_time_ns() - self._started)

    def clear(self) -> None:
        self._steps.clear()

    def steps_ms(self, name: str) -> list[float]:
        """Return every step, ascending, of the tasks whose name ends with `name`."""
        found = [
            step for task, steps in self._steps.items() if task.endswith(name) for step in steps
        ]
        return [step / 1e6 for step in sorted(found)]

    def longest_ms(self, name: str) -> float:
        """Return the longest step, 0.0 when there was none."""
        steps = self.steps_ms(name)
        return steps[-1] if steps else 0.0
