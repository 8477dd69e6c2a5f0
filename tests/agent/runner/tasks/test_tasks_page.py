"""docs/tasks.md says of every task and every criterion what it is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from evenfleet_agent.runner import tasks
from evenfleet_shared import messages
from evenfleet_shared.manifest import Criteria
from fakes.task_releases import CASES

PAGE = (Path(__file__).parents[4] / "docs/tasks.md").read_text(encoding="utf-8")


def test_every_task_of_the_protocol_is_there_and_no_other():
    assert sorted(task.name for task in tasks.TASKS) == sorted(get_args(messages.Task))


@pytest.mark.parametrize("task", CASES)
def test_page_has_each_task_with_its_metric_and_an_example(task):
    (row,) = re.findall(rf"^\| `{task}` \|.*$", PAGE, re.MULTILINE)
    metric = CASES[task].metric
    assert metric is None or f"`{metric}`" in row
    assert task == "classification" or f"--task {task}" in PAGE


@pytest.mark.parametrize("field", dataclasses.fields(Criteria), ids=lambda field: field.name)
def test_page_has_each_criterion_with_its_default(field):
    (row,) = re.findall(rf"^\| `{field.name}` \|.*$", PAGE, re.MULTILINE)
    assert not isinstance(field.default, float) or f"| {field.default} |" in row
