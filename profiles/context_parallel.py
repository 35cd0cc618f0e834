"""What diffusers' context parallelism can split: its own rules, for planner and runtime (0.42.1,
`hooks/context_parallel.py` and `models/attention_dispatch.py`).
"""

from collections.abc import Mapping
from math import prod


def is_uneven(heads: int, lengths: Mapping[str, int], ring: int, ulysses: int) -> bool:
    """Whether heads or sequences don't divide, so that it takes diffusers' modes for any size
    (`ulysses_anything`, `ring_anything`).
    """
    ranks = ring * ulysses
    return heads % ulysses > 0 or any(length % ranks for length in lengths.values())


def why_not_split(heads: int, lengths: Mapping[str, int], ring: int, ulysses: int) -> str | None:
    """Why it can't split `heads` and sequences of so many tokens by name; None if it can."""
    ranks = ring * ulysses
    for name, length in lengths.items():
        if length < ranks:
            return (
                f"{length} {name} tokens can't be shared out to {ranks} ranks; use at most {length}"
            )
    if not is_uneven(heads, lengths, ring, ulysses):
        return None
    if ring > 1 and ulysses > 1:
        sizes = {"heads by ulysses": (heads, ulysses)}
        sizes |= {f"{name} tokens by ring x ulysses": (n, ranks) for name, n in lengths.items()}
        what, (size, degree) = next(one for one in sizes.items() if one[1][0] % one[1][1])
        return (
            f"ring{ring} x ulysses{ulysses} divides {what} equally alone, and {size} isn't "
            f"divisible by {degree}; use ring or ulysses alone, or sizes that divide"
        )
    padded = -heads % ulysses
    if padded and padded >= (heads + padded) // ulysses:
        return (
            f"ulysses{ulysses} pads {heads} heads by {padded}, which must be less than the "
            f"{(heads + padded) // ulysses} of a rank; use another ulysses degree"
        )
    return None


def masks_go_wrong(lengths: Mapping[str, int], ring: int, ulysses: int) -> bool:
    """Whether a mask of keys would leave out others than it says.

    A ring masks every block of keys by this rank's own mask. `ulysses_anything` pads the masks of
    ranks with fewer keys at their ends and cuts what is too long off the last one: right only
    where nobody but the last rank that has any has fewer.
    """
    if ring > 1:
        return True
    shares = [tensor_split_sizes(length, ulysses) for length in lengths.values()]
    keys = [number for of_rank in zip(*shares, strict=True) if (number := sum(of_rank))]
    return any(number != keys[0] for number in keys[:-1])


def tensor_split_sizes(length: int, ranks: int) -> list[int]:
    """How `Tensor.tensor_split` shares tokens out."""
    return [length // ranks + (rank < length % ranks) for rank in range(ranks)]


def image_tokens(sizes: tuple[int, ...], patch: tuple[int, ...]) -> int:
    """The tokens of latents of some frames, rows and columns."""
    return prod(size // edge for size, edge in zip(sizes, patch, strict=True))
