"""The program in docs/verdicts.md agrees with the rules it explains."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import msgspec

from evenfleet_collector.detect.betting import BetRule, BetState, BetWhy, JudgedWindow, rule, step, why
from evenfleet_collector.detect.fixed_set import FixedSetState, FixedSetWhy
from evenfleet_collector.detect.fixed_set import step as fixed_set_step
from evenfleet_collector.tolerance import Policy, log_a

PAGE = Path(__file__).parents[3] / "docs" / "verdicts.md"


def recompute(explained: BetWhy | FixedSetWhy) -> subprocess.CompletedProcess[bytes]:
    program = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) <= 30
    payload = msgspec.json.encode({"flag": 1, "why": explained})
    return subprocess.run([sys.executable, "-c", program], input=payload, capture_output=True, check=False, timeout=60)


def latency_rule() -> BetRule:
    policy = Policy(streams=1000)
    return rule(
        mu0=0.06,
        allowed_ratio=policy.latency.allowed_ratio,
        alpha=policy.latency.alpha,
        log_a=log_a(policy),
        min_windows=policy.min_windows,
        clear_windows=policy.clear_windows,
    )


def flagged_latency() -> BetWhy:
    by, state = latency_rule(), BetState()
    windows: list[JudgedWindow] = []
    stream = [(0, 90), (3, 100), (2, 80)] * 10 + [(20 + t % 7, 100 + t) for t in range(100)]
    for seq, (exceed, n) in enumerate(stream, 1):
        windows.append(JudgedWindow(incarnation=1, seq=seq, exceed=exceed, n=n))
        state, evidence = step(state, exceed, n, by)
        if evidence.flagged_now:
            return why(windows[-evidence.explained_by :], by)
    raise AssertionError("never flagged")


def test_program_confirms_a_latency_flag() -> None:
    ended = recompute(flagged_latency())

    assert ended.returncode == 0, ended.stderr
    assert b"a flag takes 15.996" in ended.stdout


def test_program_refuses_evidence_with_a_window_left_out() -> None:
    explained = flagged_latency()

    ended = recompute(dataclasses.replace(explained, windows=explained.windows[:-1]))

    assert ended.returncode == 1


def test_program_names_a_window_whose_sum_is_wrong() -> None:
    explained = flagged_latency()
    damaged = msgspec.to_builtins(explained)
    damaged["windows"][2]["exceed"] += 5

    ended = recompute(msgspec.convert(damaged, BetWhy))

    assert ended.returncode == 1
    assert f"window {explained.windows[2].seq} says".encode() in ended.stderr


def test_program_confirms_an_accuracy_flag_and_no_other() -> None:
    answers = {}
    for errors in (55, 56):
        state = FixedSetState()
        for hamming in (None, 0, 0, 0):
            state, explained = fixed_set_step(
                state,
                n=500,
                errors=errors,
                hamming=hamming,
                prediction_digest="ab" * 32,
                reference_errors=50,
                unstable=0,
                margin_ratio=0.01,
            )
        answers[explained.verdict] = recompute(explained).returncode

    assert answers == {"within": 1, "outside": 0}
