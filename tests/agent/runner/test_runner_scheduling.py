from __future__ import annotations

from pathlib import Path

import pytest

from evenfleet_agent.runner import scheduling


def test_waiting_for_a_processor_is_the_second_number(tmp_path: Path) -> None:
    file = tmp_path / "schedstat"
    file.write_text("622555 97995000 2\n")
    assert scheduling.waited_ms(file) == 97.995


@pytest.mark.parametrize("text", ["", "1\n", "1 x 2\n"])
def test_a_kernel_that_does_not_tell_is_none_and_not_zero(tmp_path: Path, text: str) -> None:
    file = tmp_path / "schedstat"
    file.write_text(text)
    assert scheduling.waited_ms(file) is None
    assert scheduling.waited_ms(tmp_path / "absent") is None
