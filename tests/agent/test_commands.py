"""Commands: done once, answered as often as asked, and over when their time is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import commands
from evenfleet_agent.commands import MAX_REMEMBERED, Answer, Book, Do, Wait
from evenfleet_shared.messages import Command

MEASURE = Command(device="press-07", correlation_id="c-1", command="measure", variant="int8", ttl_s=60.0)
DONE = Answer(status="done", seqs=(7,))


def test_a_new_command_is_done() -> None:
    book, outcome = commands.take((), MEASURE, 100.0)

    assert outcome == Do()
    assert [entry.command for entry in book] == [MEASURE]


def test_a_copy_of_one_that_is_being_done_waits_for_its_answer() -> None:
    book, _ = commands.take((), MEASURE, 100.0)

    assert commands.take(book, replace(MEASURE, age_s=5.0), 105.0)[1] == Wait()


def test_a_copy_of_one_that_was_answered_gets_the_same_answer_until_it_would_have_expired() -> None:
    book, _ = commands.take((), MEASURE, 100.0)
    book = commands.answered(book, "c-1", DONE)

    assert commands.take(book, replace(MEASURE, age_s=59.0), 159.0)[1] == DONE
    # Afterwards no copy is fresh any more.
    assert commands.take(book, replace(MEASURE, age_s=60.0), 160.0)[1] == Answer(
        status="expired", detail="it was 60 s old when it was sent, its ttl_s is 60"
    )


def test_a_command_that_was_old_when_it_was_sent_is_not_done() -> None:
    book, outcome = commands.take((), replace(MEASURE, age_s=61.0), 100.0)

    assert isinstance(outcome, Answer)
    assert (outcome.status, book) == ("expired", ())


def test_time_counts_from_when_it_was_given_and_not_from_its_arrival() -> None:
    book, _ = commands.take((), replace(MEASURE, age_s=50.0), 100.0)

    assert commands.next_due_s(book) == 110.0
    assert commands.overdue(book, 109.9) == ()
    assert [command.correlation_id for command in commands.overdue(book, 110.0)] == ["c-1"]


def test_what_the_broker_says_is_left_of_it_holds_where_it_is_less() -> None:
    assert commands.next_due_s(commands.take((), MEASURE, 100.0, 5)[0]) == 105.0
    assert commands.next_due_s(commands.take((), MEASURE, 100.0, 500)[0]) == 160.0


def test_an_answered_command_is_never_overdue() -> None:
    book = commands.answered(commands.take((), MEASURE, 100.0)[0], "c-1", DONE)

    assert commands.overdue(book, 1e9) == ()
    assert commands.next_due_s(book) is None


def test_an_id_that_was_another_commands_is_refused() -> None:
    book, _ = commands.take((), MEASURE, 100.0)

    outcome = commands.take(book, replace(MEASURE, variant=None), 101.0)[1]

    assert isinstance(outcome, Answer)
    assert (outcome.status, "another command's" in outcome.detail) == ("refused", True)


def test_with_no_room_left_a_command_is_refused_and_none_is_forgotten() -> None:
    book: Book = ()
    for number in range(MAX_REMEMBERED):
        book, _ = commands.take(book, replace(MEASURE, correlation_id=f"c-{number}"), 100.0)

    full, outcome = commands.take(book, replace(MEASURE, correlation_id="one-more"), 101.0)
    assert isinstance(outcome, Answer)
    assert (outcome.status, full) == ("refused", book)

    # Room is made by answers whose time is over, not by commands that are being done.
    book = commands.answered(book, "c-3", DONE)
    assert commands.take(book, replace(MEASURE, correlation_id="one-more"), 160.0)[1] == Do()
    assert len(commands.take(book, replace(MEASURE, correlation_id="one-more"), 160.0)[0]) == MAX_REMEMBERED


def test_of_answers_with_a_result_the_last_two_keep_it() -> None:
    book: Book = ()
    for number in range(3):
        layers = replace(MEASURE, correlation_id=f"c-{number}", command="layers")
        book, _ = commands.take(book, layers, 100.0)
        book = commands.answered(book, f"c-{number}", Answer(status="done", result={"number": number}))

    found = [
        commands.take(book, replace(MEASURE, correlation_id=f"c-{number}", command="layers"), 101.0)[1]
        for number in range(3)
    ]
    assert found == [Answer(status="failed", detail=commands.LET_GO)] + [
        Answer(status="done", result={"number": number}) for number in (1, 2)
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "answer"]), st.integers(0, 5), st.floats(0.0, 30.0), st.floats(0.0, 90.0)),
        max_size=60,
    )
)
def test_nothing_is_done_twice_while_copies_of_it_may_come(steps: list[tuple[str, int, float, float]]) -> None:
    book: Book = ()
    now_s = 0.0
    first_s: dict[str, float] = {}
    for what, number, passed_s, age_s in steps:
        now_s += passed_s
        name = f"c-{number}"
        if what == "answer":
            book = commands.answered(book, name, DONE)
            continue
        # A sender's copies grow older with time, whatever the device's clock says.
        given_s = first_s.get(name, now_s - age_s)
        book, outcome = commands.take(book, replace(MEASURE, correlation_id=name, age_s=now_s - given_s), now_s)
        if outcome == Do():
            assert name not in first_s
            first_s[name] = given_s
        assert len(book) <= MAX_REMEMBERED
