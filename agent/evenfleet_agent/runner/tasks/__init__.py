"""What is right about a model's answers: one task per file, one type (`interface.Task`), one visible tuple.

A task says which labels it takes, when a sample is right, what its headline metric is called, and which decisions its
digest is made over; `docs/tasks.md` has all of it for users. A new task is a file here, a line in `TASKS`, and its name
in `messages.Task`.

* A pass is scored as it goes: nothing is kept of a batch but a few numbers per sample.
* Every sample is right or wrong. One whose outputs are no numbers is wrong, whatever the task.
* Labels and outputs that do not go together are a `DataError`, never an exception of numpy's.
"""

from __future__ import annotations

from typing import Final

from evenfleet_agent.runner.tasks.agreement import AGREEMENT
from evenfleet_agent.runner.tasks.classification import CLASSIFICATION
from evenfleet_agent.runner.tasks.detection import DETECTION
from evenfleet_agent.runner.tasks.embedding import EMBEDDING
from evenfleet_agent.runner.tasks.interface import Task
from evenfleet_agent.runner.tasks.multi_label import MULTI_LABEL
from evenfleet_agent.runner.tasks.regression import REGRESSION
from evenfleet_agent.runner.tasks.segmentation import SEGMENTATION
from evenfleet_shared.messages import Task as TaskName

TASKS: Final[tuple[Task, ...]] = (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    DETECTION,
    SEGMENTATION,
    EMBEDDING,
    AGREEMENT,
)


def by_name(name: TaskName) -> Task:
    """Return the task called `name`.

    >>> by_name("detection").threshold
    'score_threshold'
    """
    return next(task for task in TASKS if task.name == name)
