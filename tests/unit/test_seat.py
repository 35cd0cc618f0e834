"""What an agent tells of a rank's end."""

from pathlib import Path

import pytest

from ditplan.runtime.ranks.seat import out_of_memory_kills


@pytest.mark.parametrize(
    ("text", "kills"),
    [
        ("nr_free_pages 5\noom_kill 17\ndrop_pagecache 1\n", 17),
        ("nr_free_pages 5\ncompact_oom_kill 3\n", 0),
        ("", 0),
    ],
)
def test_the_kernel_s_count_of_processes_ended_for_lack_of_memory_is_read(
    tmp_path: Path, text: str, kills: int
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text(text)
    assert out_of_memory_kills(counters) == kills


def test_a_kernel_without_the_count_has_ended_none(tmp_path: Path) -> None:
    assert out_of_memory_kills(tmp_path / "vmstat") == 0
    assert out_of_memory_kills() >= 0
