"""Several wires that are listened to together, by one thread that waits for none of them."""

import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass

from ditplan.runtime.ranks.frames import Frame, Wire

BEAT_S = 1.0
"""How often command, agent and rank starter say that they are there."""

SILENCE_S = 15.0
"""Who has said nothing for so long is taken for gone."""

GRACE_S = 2.0
"""So much longer a rank starter waits for its agent: the command shall see first who is silent."""

OWN_STOP_S = 1.0
"""A turn that took so much longer than it should: this process was stopped itself."""


@dataclass(frozen=True)
class _Ears:
    wire: Wire
    take: Callable[[Frame], None]
    lose: Callable[[str], None]


class Exchange:
    """Reads and writes what can be read and written, turn by turn."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._ears: dict[Wire, _Ears] = {}
        self._turned_at = time.monotonic()

    def add(self, wire: Wire, take: Callable[[Frame], None], lose: Callable[[str], None]) -> None:
        """Listens to a wire: `take` gets its frames, `lose` why no more come; it is closed then."""
        self._ears[wire] = _Ears(wire, take, lose)
        self._selector.register(wire.incoming, selectors.EVENT_READ, self._ears[wire])

    def watch(self, descriptor: int) -> None:
        """Ends a turn when there is something to be read, and reads it away."""
        self._selector.register(descriptor, selectors.EVENT_READ, descriptor)

    def drop(self, wire: Wire) -> None:
        """Listens to a wire no more, and closes it."""
        if self._ears.pop(wire, None) is not None:
            for descriptor in wire.descriptors:
                if descriptor in self._selector.get_map():
                    self._selector.unregister(descriptor)
            wire.close()

    def turn(self, timeout_s: float) -> None:
        """Reads and writes once; waits so long at most for somebody to say something."""
        for wire in self._ears:
            self._want_to_write(wire)
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.data, int):
                _read_away(key.data)
            elif key.data.wire in self._ears:
                self._serve(key.data, key.fd)
        now = time.monotonic()
        if now - self._turned_at > timeout_s + OWN_STOP_S:
            # what was said meanwhile is still to be read
            for wire in self._ears:
                wire.heard_at = now
        self._turned_at = now

    def close(self) -> None:
        """Closes all wires."""
        for wire in list(self._ears):
            self.drop(wire)
        self._selector.close()

    def _serve(self, ears: _Ears, descriptor: int) -> None:
        if descriptor != ears.wire.incoming:
            ears.wire.flush()
            return
        try:
            frames = ears.wire.receive()
        except (EOFError, OSError) as error:
            self.drop(ears.wire)
            ears.lose(str(error))
            return
        for frame in frames:
            ears.take(frame)

    def _want_to_write(self, wire: Wire) -> None:
        is_registered = wire.outgoing in self._selector.get_map()
        if wire.has_unsent and not is_registered:
            self._selector.register(wire.outgoing, selectors.EVENT_WRITE, self._ears[wire])
        elif is_registered and not wire.has_unsent:
            self._selector.unregister(wire.outgoing)


def _read_away(descriptor: int) -> None:
    os.read(descriptor, 1 << 16)
