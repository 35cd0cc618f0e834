"""The noise of calls that are given no generator: one rank's, on all ranks."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ditplan.runtime.admission.channel import DIGEST_BYTES, Channel


class RandomState:
    """State of the generators that are used where none is given."""

    def __init__(self, device: torch.device, cpu: torch.Tensor, there: torch.Tensor | None) -> None:
        self._device, self._cpu, self._there = device, cpu, there

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """As it is."""
        there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), there)

    def digest(self) -> bytes:
        """The same for the same state."""
        found = hashlib.blake2b(self._cpu.numpy().tobytes(), digest_size=DIGEST_BYTES)
        if self._there is not None:
            found.update(self._there.numpy().tobytes())
        return found.digest()

    def with_state_of(self, other: "RandomState") -> "RandomState":
        """Another rank's state, for this rank's device."""
        return RandomState(self._device, other._cpu, other._there)

    def restore(self) -> None:
        """Makes it so again."""
        torch.set_rng_state(self._cpu)
        if self._there is not None:
            torch.cuda.set_rng_state(self._there, self._device)


class CommonNoise:
    """The first rank's state on all ranks, for calls; sent again only where a state has changed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._first: RandomState | None = None
        self._digests: list[bytes] = []

    def forget(self) -> None:
        """Has the state be sent with the next call."""
        self._digests = []

    @contextmanager
    def of_first_rank(self, mine: RandomState, digests: Sequence[bytes]) -> Iterator[None]:
        """Within it this rank draws from the first one's state, whose digest is the first; then it
        has its own again.
        """
        if len(set(digests)) == 1:
            yield
            return
        is_first = self._channel.rank == self._channel.ranks[0]
        if self._first is None or self._digests != digests:
            self._first = self._channel.exchange_objects(mine if is_first else None)[0]
            self._digests = list(digests)
        mine.with_state_of(self._first).restore()
        try:
            yield
        finally:
            if not is_first:
                mine.restore()
