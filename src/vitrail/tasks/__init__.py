"""What is learned: one file a task, which owns the backbone and all that learns with it."""

from vitrail.tasks.task import Task

__all__ = ["Task"]
