"""Calls that suspend themselves until they are resumed."""

import threading
import traceback
from collections.abc import Iterator

import pytest
import torch

from ditplan.runtime.pipefusion.call_thread import CallThread, Stopped

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Every test must end the threads that it has begun."""
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_a_call_and_its_caller_take_turns_and_hand_each_other_values() -> None:
    events: list[str] = []

    def call(thread: CallThread) -> str:
        events.append("begins")
        first = thread.suspend("asks for one")
        events.append(f"got {first}")
        second = thread.suspend("asks for two")
        events.append(f"got {second}")
        return "result"

    thread = CallThread(call, CPU)
    assert events == []
    for given, asked in ((None, "asks for one"), (1, "asks for two"), (2, "result")):
        events.append(f"resumes with {given}")
        assert thread.resume(given) == asked
        assert thread.finished == (asked == "result")
    assert events == [
        "resumes with None",
        "begins",
        "resumes with 1",
        "got 1",
        "resumes with 2",
        "got 2",
    ]
    thread.stop()


def test_several_calls_are_resumed_in_any_order() -> None:
    def call(thread: CallThread) -> int:
        total = 0
        while (given := thread.suspend(total)) is not None:
            total += given
        return total

    threads = [CallThread(call, CPU) for _ in range(3)]
    assert [thread.resume() for thread in threads] == [0, 0, 0]
    assert [threads[i].resume(n) for i, n in ((2, 5), (0, 1), (2, 6), (1, 2))] == [5, 1, 11, 2]
    assert [thread.resume(None) for thread in threads] == [1, 2, 11]
    assert all(thread.finished for thread in threads)
    for thread in threads:
        thread.stop()


@pytest.mark.parametrize("suspends", [False, True])
def test_what_a_call_raises_is_raised_where_it_is_resumed_with_its_traceback(
    suspends: bool,
) -> None:
    def raises_deep_inside() -> None:
        raise KeyError("no such block")

    def call(thread: CallThread) -> None:
        if suspends:
            thread.suspend("asked")
        raises_deep_inside()

    thread = CallThread(call, CPU)
    if suspends:
        assert thread.resume() == "asked"
    with pytest.raises(KeyError, match="no such block") as caught:
        thread.resume()
    assert "raises_deep_inside" in "".join(traceback.format_exception(caught.value))
    assert thread.finished
    thread.stop()


def test_stop_ends_a_suspended_call_as_nothing_catches_it_and_cleans_up() -> None:
    seen: list[str] = []

    def call(thread: CallThread) -> None:
        try:
            thread.suspend("asked")
        except Exception:  # noqa: BLE001 (what is stopped must get past the broadest)
            seen.append("caught")
        except Stopped:
            seen.append("stopped")
            raise
        finally:
            seen.append("cleaned up")

    thread = CallThread(call, CPU)
    thread.resume()
    thread.stop()
    assert seen == ["stopped", "cleaned up"]
    assert thread.finished


def test_stop_ends_a_call_that_was_never_resumed_without_beginning_it() -> None:
    begun: list[CallThread] = []
    thread = CallThread(begun.append, CPU)
    thread.stop()
    thread.stop()
    assert not begun
    assert thread.finished


def modes() -> tuple[bool, bool, bool, torch.dtype]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad(),
        torch.enable_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autocast("cpu", torch.float16),
    ],
    ids=["no_grad", "enable_grad", "inference_mode", "autocast bfloat16", "autocast float16"],
)
def test_a_call_has_the_modes_of_who_made_it_and_keeps_them(
    mode: torch.no_grad | torch.enable_grad | torch.inference_mode | torch.autocast,
) -> None:
    def call(thread: CallThread) -> tuple[bool, bool, bool, torch.dtype]:
        thread.suspend(modes())
        return modes()

    with mode:
        expected = modes()
        thread = CallThread(call, CPU)
    assert thread.resume() == expected
    assert thread.resume() == expected


def test_modes_that_a_call_enters_are_not_those_of_its_caller() -> None:
    def call(thread: CallThread) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            thread.suspend(modes())

    before = modes()
    thread = CallThread(call, CPU)
    assert thread.resume() != before
    assert modes() == before
    thread.stop()
    assert modes() == before
