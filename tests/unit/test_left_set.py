"""What is left set in an environment and changes what ranks do."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.runtime.ranks.left_set import environment_warnings, left_set, visible_gpus
from tests.unit.host_factories import a_gpu

GPUS = tuple(a_gpu(number) for number in range(4))


@pytest.mark.parametrize(("value", "warned"), [("1", True), ("0", False), ("", False)])
@pytest.mark.parametrize("name", ["NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"])
def test_switches_that_slow_nccl_down_are_warned_of(name: str, value: str, warned: bool) -> None:
    warnings = environment_warnings({name: value, "HOME": "/root"})
    assert [name in warning for warning in warnings] == [True] * warned


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12)))
def test_nothing_else_of_an_environment_leaves_the_host(environment: dict[str, str]) -> None:
    mine = {"NCCL_ALGO": "Ring", "CUDA_VISIBLE_DEVICES": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    found = left_set({"AWS_SECRET_KEY": "s3cret", **environment, **mine})
    assert {name: found[name] for name in mine} == mine
    assert all(name in mine or name.startswith(("NCCL_", "GLOO_")) for name in found)


def test_what_changes_nothing_is_not_told() -> None:
    assert (
        left_set({"NCCL_VERSION": "2.28.3-1", "NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "x"}) == {}
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 , 3", [1, 3]),
        ("0,9,1", [0]),
        ("-1", []),
        ("0,-1,1", [0]),
        ("GPU-2,GPU-0", [2, 0]),
        ("GPU-", []),
        ("1,1", []),
        ("none", []),
    ],
)
def test_visible_gpus_are_those_that_cuda_leaves(text: str | None, left: list[int]) -> None:
    environment = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert [gpu.index for gpu in visible_gpus(GPUS, environment)] == left


def test_gpus_without_a_number_of_their_own_are_counted_by_their_place() -> None:
    nameless = tuple(dataclasses.replace(gpu, index=None) for gpu in GPUS)
    assert visible_gpus(nameless, {"CUDA_VISIBLE_DEVICES": "3"}) == (nameless[3],)
