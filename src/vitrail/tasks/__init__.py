"""What is learned: one file a task, which owns the backbone and all that learns with it."""

from vitrail.tasks.table import TASKS, TaskSpec
from vitrail.tasks.task import Task

__all__ = ["TASKS", "Task", "TaskSpec"]
