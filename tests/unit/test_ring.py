"""Ring attention with all ranks as threads of one process: what is computed, and what overlaps."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.sequence.kernels import attend_with_lse
from ditplan.runtime.sequence.ring import (
    BidirectionalTransfer,
    KeysAndValues,
    RingBuffers,
    RingTransfer,
    ring_attention,
)

TIMEOUT_S = 60.0
MOST_RANKS = 5
TRANSFERS = [RingTransfer, BidirectionalTransfer]


@dataclass
class Operation:
    """In place of torch's `P2POp`; `group` is the number of the rank that it is of."""

    call: Callable[..., Any]
    tensor: torch.Tensor
    peer: int
    group: Any


@dataclass
class Network:
    """Between threads: what is sent arrives when it is waited for; until then memory holds NaN."""

    sent: dict[tuple[int, int], "Queue[torch.Tensor]"] = field(
        default_factory=lambda: {
            (source, target): Queue() for source, target in product(range(MOST_RANKS), repeat=2)
        }
    )
    in_flight: Counter[int] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)

    def batch(self, operations: list[Operation]) -> list["Receiving"]:
        """In place of torch's `batch_isend_irecv`."""
        for one in operations:
            if one.call is dist.isend:
                self.sent[one.group, one.peer].put(one.tensor.clone())
        receiving = [Receiving(self, one) for one in operations if one.call is dist.irecv]
        for receive in receiving:
            receive.operation.tensor.fill_(torch.nan)
        self.batches[operations[0].group] += 1
        self.in_flight[operations[0].group] += len(receiving)
        return receiving


@dataclass
class Receiving:
    """A tensor that is on its way."""

    network: Network
    operation: Operation

    def wait(self) -> None:
        """Writes it to where it was wanted."""
        of = self.operation
        of.tensor.copy_(self.network.sent[of.peer, of.group].get(timeout=TIMEOUT_S))
        self.network.in_flight[of.group] -= 1


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(dist, "P2POp", Operation)
    monkeypatch.setattr(dist, "batch_isend_irecv", made.batch)
    return made


@dataclass(frozen=True)
class Case:
    """What the ranks of a ring hold: their queries, keys and values, and others that each has."""

    queries: tuple[torch.Tensor, ...]
    blocks: tuple[KeysAndValues, ...]
    stale: KeysAndValues

    def expected(self, rank: int, with_stale: bool) -> torch.Tensor:
        """Attention over all keys at once."""
        known = [*self.blocks, self.stale] if with_stale else self.blocks
        keys, values = (torch.cat([block[i] for block in known], 2) for i in (0, 1))
        return functional.scaled_dot_product_attention(self.queries[rank], keys, values)


def case_of(sizes: tuple[int, ...]) -> Case:
    """Ranks with so many tokens, two heads of width 8, and 3 stale keys."""
    generator = torch.Generator().manual_seed(len(sizes))

    def random(tokens: int) -> torch.Tensor:
        return torch.randn(1, 2, tokens, 8, generator=generator, dtype=torch.float64)

    return Case(
        tuple(random(size) for size in sizes),
        tuple((random(size), random(size)) for size in sizes),
        (random(3), random(3)),
    )


def run(
    case: Case,
    kind: type[RingTransfer],
    network: Network,
    keeps_all: bool,
    rank: int,
) -> tuple[torch.Tensor, KeysAndValues | None, list[int]]:
    """A rank's attention, what it gathered, and how many blocks were in flight at each attend."""
    ranks = tuple(range(len(case.blocks)))
    handle: Any = SimpleNamespace(process_group=rank)
    sizes = [keys.shape[2] for keys, _ in case.blocks]
    transfer = kind(AxisGroup(ranks, handle, rank), RingBuffers(), sizes, keeps_all=keeps_all)
    seen: list[int] = []

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(network.in_flight[rank])
        return attend_with_lse(query, key, value, None, "auto")

    blocks = [transfer.begin(*case.blocks[rank])]
    if keeps_all:
        blocks.insert(0, case.stale)
    out = ring_attention(case.queries[rank], blocks, transfer, attend)
    return out, transfer.gathered() if keeps_all else None, seen


@pytest.mark.parametrize("keeps_all", [False, True])
@pytest.mark.parametrize("kind", TRANSFERS)
@pytest.mark.parametrize("sizes", [(4, 3), (5, 1, 2), (2, 4, 3, 3), (1, 2, 3, 4, 5)], ids=len)
def test_every_rank_attends_to_all_blocks_and_something_is_in_flight_while_any_is_missing(
    network: Network, sizes: tuple[int, ...], kind: type[RingTransfer], keeps_all: bool
) -> None:
    case, ranks = case_of(sizes), len(sizes)
    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(partial(run, case, kind, network, keeps_all), range(ranks)))
    at_once, others = len(kind.directions), ranks - 1
    coming = [min(at_once, others - start) for start in range(0, others, at_once)]
    at_hand = [2 if keeps_all else 1, *coming]
    expected = [n for n, times in zip([*coming, 0], at_hand, strict=True) for _ in range(times)]
    for rank, (out, gathered, in_flight) in enumerate(found):
        torch.testing.assert_close(out, case.expected(rank, keeps_all), rtol=0, atol=1e-5)
        assert in_flight == expected
        assert network.batches[rank] == len(coming)
        assert (gathered is not None) == keeps_all
        for i, mine in enumerate(gathered or ()):
            assert torch.equal(mine, torch.cat([block[i] for block in case.blocks], 2))


def test_what_was_written_to_again_cannot_be_gathered() -> None:
    case = case_of((2,))
    handle: Any = SimpleNamespace(process_group=0)
    transfer = RingTransfer(AxisGroup((0,), handle, 0), RingBuffers(), [2])
    own = transfer.begin(*case.blocks[0])
    attend = partial(attend_with_lse, scale=None, kernel="auto")
    ring_attention(case.queries[0], [own], transfer, attend)
    with pytest.raises(ValueError, match="written to again"):
        transfer.gathered()
