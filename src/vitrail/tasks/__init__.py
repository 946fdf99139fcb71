"""Training tasks: one file each, which owns the backbone and everything trained with it."""

from vitrail.tasks.table import TASKS, TaskSpec
from vitrail.tasks.task import Task

__all__ = ["TASKS", "Task", "TaskSpec"]
