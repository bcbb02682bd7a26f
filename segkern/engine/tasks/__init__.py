"""The tasks that networks are trained for, found by name or by network."""

from __future__ import annotations

from segkern.engine.tasks.base import Task
from segkern.engine.tasks.instance import InstanceTask
from segkern.engine.tasks.panoptic import PanopticTask
from segkern.engine.tasks.semantic import SemanticTask
from segkern.models import get_entry

TASKS: dict[str, Task] = {
    task.name: task for task in (SemanticTask(), InstanceTask(), PanopticTask())
}


def task_of(model: str) -> Task:
    """The task of a registered network; ValueError if there is none of that name."""
    return TASKS[get_entry(model).task]
