"""Frames arrive as they were sent, however the bytes are cut; what is no frame is refused."""

import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.runtime.ranks.frames import (
    GREETING,
    HEADER,
    MOST_PAYLOAD_BYTES,
    MOST_PREAMBLE_BYTES,
    NOBODY,
    Frame,
    FrameError,
    FrameReader,
    Kind,
    Line,
    Wire,
)

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(Kind), st.integers(0, NOBODY), st.binary(max_size=300))
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The bytes in pieces that end at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(FRAMES, st.lists(st.integers(0, 10_000)))
def test_frames_arrive_as_they_were_sent_however_their_bytes_are_cut(
    frames: list[Frame], places: list[int]
) -> None:
    reader = FrameReader()
    data = b"".join(frame.encoded() for frame in frames)
    arrived = [frame for piece in cut(data, places) for frame in reader.feed(piece)]
    assert arrived == frames


@given(FRAMES, st.binary(max_size=500), st.lists(st.integers(0, 10_000)))
def test_what_a_login_writes_before_the_greeting_is_no_frame(
    frames: list[Frame], preamble: bytes, places: list[int]
) -> None:
    if GREETING in preamble + GREETING[:-1]:
        return
    reader = FrameReader(after_greeting=True)
    data = preamble + GREETING + b"".join(frame.encoded() for frame in frames)
    arrived = [frame for piece in cut(data, places) for frame in reader.feed(piece)]
    assert arrived == frames
    assert reader.preamble == preamble


@given(st.binary(min_size=HEADER.size, max_size=200))
def test_bytes_of_no_known_kind_are_refused(data: bytes) -> None:
    reader = FrameReader()
    if data[0] in set(Kind):
        return
    with pytest.raises(FrameError):
        list(reader.feed(data))


@given(st.binary(max_size=200))
def test_nonsense_gives_frames_or_is_refused_and_never_breaks_the_reader(data: bytes) -> None:
    reader = FrameReader()
    try:
        arrived = list(reader.feed(data))
    except FrameError:
        return
    assert b"".join(frame.encoded() for frame in arrived) == data[: len(data) - reader.left]


def test_an_impossible_length_and_a_greeting_that_never_comes_are_refused() -> None:
    with pytest.raises(FrameError, match="no frame"):
        list(FrameReader().feed(HEADER.pack(Kind.BEAT, 0, MOST_PAYLOAD_BYTES + 1)))
    with pytest.raises(FrameError, match="no greeting"):
        list(FrameReader(after_greeting=True).feed(b"x" * (MOST_PREAMBLE_BYTES + 1)))


def test_a_wire_takes_more_than_a_pipe_holds_and_waits_for_nothing() -> None:
    (read, write), (other_read, other_write) = os.pipe(), os.pipe()
    here, there = Wire(other_read, write), Wire(read, other_write)
    sent = [Frame(Kind.TASK, 1, os.urandom(3_000_000)), Frame(Kind.BEAT, NOBODY)]
    for frame in sent:
        here.send(frame)
    assert here.has_unsent
    assert here.receive() == []
    arrived: list[Frame] = []
    while len(arrived) < len(sent):
        arrived += there.receive()
        here.flush()
    assert arrived == sent
    here.flush()
    assert here.receive() == []
    here.close()
    with pytest.raises(EOFError):
        there.receive()
    there.send(Frame(Kind.TASK, 1, bytes(3_000_000)))
    assert not there.has_unsent
    there.close()


def test_threads_that_speak_at_once_on_a_line_do_not_mix_their_frames() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        speaker, listener = Line(ours), Line(theirs)
        payloads = [bytes([number]) * 400_000 for number in range(4)]
        threads = [
            threading.Thread(target=speaker.send, args=(Frame(Kind.SAID, number, payload),))
            for number, payload in enumerate(payloads)
        ]
        for thread in threads:
            thread.start()
        arrived = {}
        for frame in listener.frames():
            arrived[frame.rank] = frame.payload
            if len(arrived) == len(payloads):
                break
        for thread in threads:
            thread.join()
        assert [arrived[number] for number in range(4)] == payloads
