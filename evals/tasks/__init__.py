"""The tasks that ropescale adds to the harness, a folder for each family; `--include_path` takes this folder."""

from ropescale.evals.tasks.base import Group, Loss, Retrieval, Short, Task, register

__all__ = ["Group", "Loss", "Retrieval", "Short", "Task", "register"]
