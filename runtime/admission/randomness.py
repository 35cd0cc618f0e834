"""The noise of calls that are given no generator: one rank's, on all ranks."""

import hashlib

import torch

from ditplan.runtime.admission.channel import DIGEST_BYTES


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
