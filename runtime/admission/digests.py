"""Digests of what a call is given, equal on two ranks only if every bit of it is.

Tensors of a plan on CPUs are hashed by BLAKE2. Those of a plan on GPUs are hashed where they lie,
and nothing but the hashes is read back: 32-bit words in rows of `ROW`, each row times fixed
pseudo-random 64-bit numbers, summed modulo 2^64 (the multilinear hash of Carter and Wegman: two
different rows agree with a chance of 2^-32), then BLAKE2 over the rows' sums in their order. So
places count as well as values, and a GPU does it in four kernels. There it is the same hash for
tensors in the host's memory: one rank may have on its GPU what another one has offloaded.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import torch

from ditplan.runtime.admission.channel import DIGEST_BYTES
from ditplan.runtime.admission.readback import Readback
from ditplan.runtime.weights.pieces import flat_bytes

ROW = 4096
"""Words that are summed to one number."""

CHUNK = 4096
"""Rows that are hashed at once: of what isn't larger, the products take 128 MiB for a while."""

Leaf = str | torch.Tensor
NO_MATTER = {"output_type", "return_dict"}
"""Arguments of a pipeline's call by which ranks may differ: what is made of the same latents."""

LEFT_OVER = frozenset(
    {
        *("this_order", "timestep_list", "this_predictor_order", "this_corrector_order"),
        *("sample", "cur_sample", "dt", "last_noise", "sigma_data", "_init_size"),
    }
)
"""What diffusers' schedulers still have of the call before when the next one has set its timesteps:
each is written before it is read, so ranks may differ in it."""


def leaves_of(name: str, value: Any) -> Iterator[tuple[str, Leaf]]:
    """The tensors, and all else as text, in an argument, by name. Functions are left out, and of
    objects that aren't data only the class counts.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not str(key).startswith("_"):
                yield from leaves_of(f"{name}[{key!r}]", value[key])
    elif isinstance(value, list | tuple):
        yield name, f"{len(value)} of them"
        for number, one in enumerate(value):
            yield from leaves_of(f"{name}[{number}]", one)
    else:
        for leaf in _leaves_of_one(value):
            yield name, leaf


def _leaves_of_one(value: Any) -> Iterator[Leaf]:
    if type(value) in (str, bool, int, float, type(None)):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}"
        yield value
    elif isinstance(value, torch.Generator):
        yield "a generator"
        yield value.get_state()
    elif isinstance(value, str | bytes | int | float | complex | Enum | torch.dtype | None):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, set | frozenset):
        yield str(sorted(map(repr, value)))
    elif isinstance(value, np.ndarray | np.generic):
        yield f"{value.dtype} {value.shape} "
        yield hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()
    elif hasattr(value, "tobytes") and hasattr(value, "size"):
        # a picture of PIL's
        yield f"{value.size} {hashlib.blake2b(value.tobytes()).hexdigest()}"
    elif not callable(value):
        yield f"a {type(value).__qualname__}"


def arguments_of(given: Mapping[str, Any]) -> Iterator[tuple[str, Leaf]]:
    """The leaves of a call's arguments that must be the same on all ranks."""
    for name in sorted(given):
        if name not in NO_MATTER and not name.startswith("callback"):
            yield from leaves_of(name, given[name])


def state_of(scheduler: Any) -> Iterator[tuple[str, Leaf]]:
    """The leaves of a scheduler: its class, its config, its timesteps and all else that matters."""
    yield "scheduler", type(scheduler).__name__
    for name, value in sorted(vars(scheduler).items()):
        if name in LEFT_OVER:
            continue
        found = "config" if name == "_internal_dict" else name
        yield from leaves_of(f"scheduler.{found}", value)


class Digesting:
    """Digests of leaves by the hash that ranks on such a device have in common; those of tensors
    on GPUs may be on their way.
    """

    def __init__(self, leaves: Sequence[tuple[str, Leaf]], device: torch.device) -> None:
        self._leaves = leaves
        tensors = [leaf for _, leaf in leaves if isinstance(leaf, torch.Tensor)]
        self._hashing: HashesByRows | list[bytes] = (
            list(map(hash_of, tensors)) if device.type == "cpu" else HashesByRows(tensors)
        )

    def of_text(self) -> dict[str, bytes]:
        """A digest for each name of all but the tensors' values; their types and shapes count."""
        return self._digests(None)

    def digests(self) -> dict[str, bytes]:
        """A digest for each name; waits for devices that are still at it."""
        found = self._hashing
        return self._digests(found if isinstance(found, list) else found.hashes())

    def _digests(self, hashes: list[bytes] | None) -> dict[str, bytes]:
        coming = None if hashes is None else iter(hashes)
        found: dict[str, Any] = {}
        for name, leaf in self._leaves:
            kept = found.get(name)
            if kept is None:
                kept = found[name] = hashlib.blake2b(digest_size=DIGEST_BYTES)
            if isinstance(leaf, str):
                kept.update(leaf.encode() + b"\0")
            elif coming is not None:
                kept.update(next(coming))
        return {name: kept.digest() for name, kept in found.items()}


def digests_of(leaves: Sequence[tuple[str, Leaf]], device: torch.device) -> dict[str, bytes]:
    """A digest for each name, by the hash that ranks on such a device have in common."""
    return Digesting(leaves, device).digests()


def digest_of(digests: Mapping[str, bytes]) -> bytes:
    """One for all of them."""
    kept = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, digest in digests.items():
        kept.update(name.encode() + b"\0" + digest)
    return kept.digest()


def hash_of(tensor: torch.Tensor) -> bytes:
    """A hash of a tensor's bytes, which are read in the host's memory."""
    return hashlib.blake2b(flat_bytes(tensor).cpu().numpy().data).digest()


class HashesByRows:
    """Hashes of tensors' bytes, made where they lie, with one copy from each device."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        words = [_words_of(tensor) for tensor in tensors]
        by_device: dict[torch.device, list[int]] = {}
        for number, one in enumerate(words):
            by_device.setdefault(one.device, []).append(number)
        self._rows = [-(-one.numel() // ROW) for one in words]
        self._numbers = list(by_device.values())
        self._coming = Readback(
            [
                _sums_of_rows(
                    [words[number] for number in numbers], [self._rows[one] for one in numbers]
                )
                for numbers in self._numbers
            ]
        )

    def hashes(self) -> list[bytes]:
        """One of each tensor, in their order."""
        found = [b""] * len(self._rows)
        for numbers, sums in zip(self._numbers, self._coming.tensors(), strict=True):
            start = 0
            for number in numbers:
                end = start + self._rows[number]
                found[number] = hashlib.blake2b(sums[start:end].numpy().tobytes()).digest()
                start = end
        return found


def _words_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes as 32-bit words, the last one filled up with zeros."""
    flat = flat_bytes(tensor)
    if missing := -flat.numel() % 4:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    if flat.storage_offset() % 4:
        flat = flat.clone()
    return flat.view(torch.int32)


def _sums_of_rows(words: Sequence[torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
    """The hash of each row of all of them, in their order: int64, where they lie."""
    device = words[0].device
    weights = _weights(device)
    pieces: list[torch.Tensor] = []
    for one, count in zip(words, rows, strict=True):
        pieces.append(one)
        if missing := count * ROW - one.numel():
            pieces.append(_zeros(device)[:missing])
    # one that is large is hashed apart: no copy of it is made
    sums: list[torch.Tensor] = []
    batch: list[torch.Tensor] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.numel()
        if size >= CHUNK * ROW and size % ROW == 0:
            sums += _sums(torch.cat(batch) if len(batch) > 1 else piece, weights)
            batch, size = [], 0
    if size:
        sums += _sums(torch.cat(batch), weights)
    return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.int64)


def _sums(words: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    return [(part * weights).sum(1) for part in words.view(-1, ROW).split(CHUNK)]


@cache
def _weights(device: torch.device) -> torch.Tensor:
    made = torch.randint(
        -(2**62), 2**62, (ROW,), generator=torch.Generator().manual_seed(20), dtype=torch.int64
    )
    return (2 * made + 1).to(device)


@cache
def _zeros(device: torch.device) -> torch.Tensor:
    return torch.zeros(ROW, dtype=torch.int32, device=device)
