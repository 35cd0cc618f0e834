"""The ranks' store means what torch's own HashStore means."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import (  # type: ignore[attr-defined]
    DistStoreError,
    HashStore,
    PrefixStore,
    Store,
)

from ditplan.runtime.ranks.frames import Frame, Kind, Line
from ditplan.runtime.ranks.relayed_store import RelayedStore
from ditplan.runtime.ranks.store_server import StoreServer

SOON = timedelta(seconds=0.01)
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["", "1", "22", "x"])
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), KEYS, VALUES),
    st.tuples(st.just("add"), KEYS, st.integers(-3, 3)),
    st.tuples(st.just("append"), KEYS, VALUES),
    st.tuples(st.just("compare_set"), KEYS, VALUES, VALUES),
    st.tuples(st.just("check"), st.lists(KEYS, min_size=1)),
    st.tuples(st.just("delete_key"), KEYS),
    st.tuples(st.just("num_keys")),
    st.tuples(st.just("multi_set"), st.just(["a", "c"]), st.tuples(VALUES, VALUES).map(list)),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("multi_get"), st.lists(KEYS, min_size=1)),
)


@contextmanager
def relayed(ranks: int, timeout: timedelta) -> Iterator[list[RelayedStore]]:
    """The stores of some ranks, all relayed to one server."""
    server, lock = StoreServer(), threading.Lock()
    pairs = [socket.socketpair() for _ in range(ranks)]
    lines = [Line(theirs) for _, theirs in pairs]
    stores = [RelayedStore(Line(ours), rank, timeout) for rank, (ours, _) in enumerate(pairs)]

    def relay(rank: int) -> None:
        for frame in lines[rank].frames():
            # who has stopped waiting may be gone
            with lock, suppress(BrokenPipeError):
                for asker, answer in server.answers(frame.rank, frame.payload):
                    lines[asker].send(Frame(Kind.ANSWER, asker, answer))

    def hear(rank: int) -> None:
        for frame in Line(pairs[rank][0]).frames():
            stores[rank].take(frame.payload)

    threads = [
        threading.Thread(target=work, args=(rank,))
        for rank in range(ranks)
        for work in (relay, hear)
    ]
    for thread in threads:
        thread.start()
    try:
        yield stores
    finally:
        for ours, theirs in pairs:
            ours.shutdown(socket.SHUT_RDWR)
            theirs.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for ours, theirs in pairs:
            ours.close()
            theirs.close()


def outcome(store: Store, operation: str, *arguments: Any) -> object:
    """What an operation gives, or what kind of error it raises."""
    if operation in ("get", "multi_get"):
        keys = [arguments[0]] if operation == "get" else arguments[0]
        try:
            store.wait(keys, SOON)
        except DistStoreError:
            return "times out"
    try:
        return getattr(store, operation)(*arguments)
    except ValueError:
        return "is no number"


@settings(max_examples=50)
@given(st.lists(OPERATIONS, max_size=12))
def test_any_sequence_of_operations_has_the_outcomes_of_a_hash_store(
    operations: list[tuple[Any, ...]],
) -> None:
    with relayed(1, timedelta(seconds=60)) as (store,):
        theirs = HashStore()
        for name, *arguments in operations:
            if name == "check" and len(set(arguments[0])) < len(arguments[0]):
                continue
            assert outcome(store, name, *arguments) == outcome(theirs, name, *arguments), name


def test_who_waits_is_answered_when_another_rank_has_set_the_last_key() -> None:
    with relayed(3, timedelta(seconds=60)) as stores:
        found: list[list[bytes]] = []
        waiting = threading.Thread(target=lambda: found.append(stores[0].multi_get(["a", "b"])))
        waiting.start()
        stores[1].set("a", "1")
        assert stores[1].add("n", 2) + stores[2].add("n", 3) == 7
        assert found == []
        stores[2].set("b", b"\x00\xff")
        waiting.join(60)
        assert found == [[b"1", b"\x00\xff"]]
        assert stores[0].check(["a", "b"])


def test_a_key_that_nobody_sets_is_waited_for_as_long_as_was_said_and_named() -> None:
    with relayed(1, SOON) as (store,):
        with pytest.raises(DistStoreError, match="never set"):
            store.get("never set")
        with pytest.raises(DistStoreError, match="neither"):
            store.wait(["neither"], SOON)
        store.set("never set", "late")
        assert store.get("never set") == b"late"


def test_torch_reaches_it_through_its_own_prefixes() -> None:
    with relayed(2, timedelta(seconds=60)) as stores:
        first, second = (cast(Any, PrefixStore("group", store)) for store in stores)
        first.set("k", "v")
        assert second.get("k") == b"v"
        assert second.multi_get(["k"]) == [b"v"]
        assert first.add("n", 1) + second.add("n", 1) == 3
        assert second.compare_set("k", "v", "w") == b"w"
        assert stores[0].check(["group/k"])
        assert not first.check(["absent"])
        assert first.num_keys() == stores[1].num_keys() == 2
        assert first.delete_key("k")
        first.append("k", "x")
        second.append("k", "y")
        assert first.get("k") == b"xy"
        assert first.has_extended_api()
