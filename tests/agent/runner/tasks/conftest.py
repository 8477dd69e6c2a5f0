"""A pass over samples without a model: outputs, labels and reference as arrays, in batches of any size."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_agent.runner import tasks
from evenfleet_agent.runner.tasks.interface import Batch, Exam
from evenfleet_shared.manifest import Criteria, TensorSpec


@pytest.fixture(scope="session")
def scored():
    def run(task, outputs, labels=None, *, reference=None, batch=1, tensors=None, classes=None, **criteria):
        chosen = tasks.by_name(task)
        outputs = [
            np.asarray(output, dtype=np.float32) for output in (outputs if isinstance(outputs, list) else [outputs])
        ]
        n = len(outputs[0])
        exam = Exam(
            labels=None if labels is None else chosen.labels(np.asarray(labels), n),
            reference=None if reference is None else np.asarray(reference, dtype=np.float32),
            tensors=tensors
            or tuple(TensorSpec(name=f"y{i}", shape=(1, *o.shape[1:]), dtype="float32") for i, o in enumerate(outputs)),
            classes=classes,
            criteria=Criteria(**criteria),
        )
        if exam.labels is not None:
            why = chosen.why_not_scored(exam, [output[:1] for output in outputs])
            assert why is None, why
        scorer = chosen.scorer(exam)
        for start in range(0, n, batch):
            these = slice(start, start + batch)
            scorer.add(
                Batch(
                    samples=len(outputs[0][these]),
                    outputs=[output[these] for output in outputs],
                    labels=None if exam.labels is None else exam.labels[these],
                    reference=None if exam.reference is None else exam.reference[these],
                )
            )
        return scorer.result()

    return run
