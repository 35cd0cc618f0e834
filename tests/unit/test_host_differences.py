"""What is wrong with hosts that answer: each planted fault is found, named and weighed."""

from dataclasses import replace
from typing import Any

import pytest

from ditplan.profiles.errors import Sentence
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost
from ditplan.runtime.ranks.host_differences import problems_of
from ditplan.runtime.ranks.host_view import Clock, HostView
from tests.unit.host_factories import HERE, VERSIONS, a_gpu, a_product, a_view


def lines_of(*views: HostView, here: dict[str, str] = HERE) -> list[tuple[str, str]]:
    """How bad each problem is, and its line."""
    return [(found.severity, str(found)) for found in problems_of(views, here)]


def test_nothing_is_said_of_hosts_that_are_alike() -> None:
    assert lines_of(a_view("n1", slots=2), a_view("n2"), a_view("n3")) == []


# facts of n2 beside n1 and n3, which are right; how bad it is, and words of its line
PLANTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "torch": (
        {"versions": VERSIONS | {"torch": "2.11.0+cu130"}},
        "cluster",
        "n2: torch is 2.11.0+cu130, and 2.13.0+cu130 on n1: process groups need one version; "
        "install the same everywhere",
    ),
    "our sources": (
        {"versions": VERSIONS | {"ditplan": "ba9876543210"}},
        "cluster",
        "n2: ditplan is ba9876543210, and 0123456789ab on n1",
    ),
    "NCCL": ({"versions": VERSIONS | {"nccl": "2.27.1"}}, "cluster", "n2: NCCL is 2.27.1"),
    "Python": ({"versions": VERSIONS | {"python": "3.12"}}, "cluster", "n2: Python is 3.12"),
    "diffusers": (
        {"versions": VERSIONS | {"diffusers": "0.40.0"}},
        "cluster",
        "n2: diffusers is 0.40.0",
    ),
    "flash-attn": (
        {"versions": VERSIONS | {"flash-attn": "2.8.3"}},
        "warning",
        "n2: flash-attn is 2.8.3, and none on n1",
    ),
    "driver": ({"driver": "535.1"}, "warning", "n2: the NVIDIA driver is 535.1"),
    "processor": ({"machine": "aarch64"}, "cluster", "n2: the processor's kind is aarch64"),
    "full disk": (
        {"disk_fault": "No space left on device", "disk_free_bytes": 0},
        "cluster",
        "n2: nothing can be written to /tmp, where logs go: No space left on device; make room",
    ),
    "little room": ({"disk_free_bytes": 1 << 20}, "warning", "has 0.000977 GiB free"),
    "no GPU": (
        {"gpus": (), "gpus_in_all": 0, "gpu_fault": "NVML: Driver Not Loaded"},
        "cluster",
        "n2: it has no GPU that can be used (NVML: Driver Not Loaded), and n1 has; leave it out",
    ),
    "hidden GPUs": (
        {"gpus": (a_gpu(1),), "environment": {"CUDA_VISIBLE_DEVICES": "1"}},
        "warning",
        "n2: 1 of its 2 GPUs can be used, as CUDA_VISIBLE_DEVICES is '1' there; unset it",
    ),
    "used GPU": (
        {"gpus": (a_gpu(0), a_gpu(1, free_bytes=8 << 30))},
        "warning",
        "n2: GPU 1: 8 GiB of 80 GiB are free; end what else uses it",
    ),
    "hot GPU": (
        {"gpus": (a_gpu(0, throttled_by=("power brake",)), a_gpu(1))},
        "warning",
        "n2: GPU 0: it throttles (power brake)",
    ),
    "slow GPU": (
        {"gpu_products": (a_product(0), a_product(1, 4e14, 990))},
        "warning",
        "n2: GPU 1 multiplies at 400 TFLOP/s, its clock at 990 of 1980 MHz, and GPU 1 of n3 at "
        "700 TFLOP/s",
    ),
    "slow processor": (
        {"product_rate": 2e7},
        "warning",
        "n2: its processor multiplies 2.5 times slower than n1's",
    ),
    "left set": (
        {"environment": {"NCCL_P2P_DISABLE": "1"}},
        "warning",
        "n2: NCCL_P2P_DISABLE=1 is left set: GPUs talk through host memory",
    ),
    "interface left set": (
        {"environment": {"NCCL_SOCKET_IFNAME": "eth1"}},
        "warning",
        "n2: NCCL_SOCKET_IFNAME is set and not used; the interface is chosen by routes, or by "
        "interface=NAME",
    ),
    "unlike settings": (
        {"environment": {"NCCL_ALGO": "Tree"}},
        "warning",
        "NCCL_ALGO differs: not set on n1, n3, 'Tree' on n2; set it alike everywhere",
    ),
    "unknown names": (
        {"names": {"n1": (), "n3": ("10.0.0.3",)}},
        "warning",
        "names of hosts that lead nowhere: n1 (on n2); ditplan goes by addresses",
    ),
    "Debian's loopback name": (
        {"names": {"n1": ("127.0.1.1",)}},
        "warning",
        "names of hosts that lead back to where they are asked for: n1 (on n2)",
    ),
    "NVML that hangs": (
        {"gpus": None, "gpus_in_all": None, "driver": None, "late": ("gpus",)},
        "warning",
        "n2: NVML doesn't answer, so its GPUs aren't known",
    ),
    "one machine": (
        {"namespace": "n1 net:[1]"},
        "input",
        "n1, n2: these are one machine, and ranks would share its GPUs; name it once",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found_and_named(case: str) -> None:
    facts, severity, words = PLANTED[case]
    found = lines_of(a_view("n1"), a_view("n2", **facts), a_view("n3"))
    assert [(how_bad, words in line) for how_bad, line in found if words in line] == [
        (severity, True)
    ], found
    # what follows from the same cause may stand beside it; nothing is said of the others
    assert all("n2" in line for _, line in found)


def test_most_hosts_are_right() -> None:
    wrong: dict[str, Any] = {"versions": VERSIONS | {"torch": "2.11.0"}}
    found = lines_of(a_view("n1", **wrong), a_view("n2"), a_view("n3"))
    assert [line.partition(":")[0] for _, line in found] == ["n1"]


def test_the_command_is_right_where_hosts_must_be_like_it() -> None:
    here = HERE | {"ditplan": "555555555555"}
    [(severity, line)] = lines_of(a_view("n1"), a_view("n2"), here=here)
    assert severity == "cluster"
    assert line.startswith("n1, n2: ditplan is 0123456789ab, and 555555555555 on this machine")


def test_a_clock_is_warned_of_only_if_it_is_surely_off() -> None:
    view = a_view("n1")
    assert lines_of(replace(view, clock=Clock(1.5, 0.6))) == []
    [(severity, line)] = lines_of(replace(view, clock=Clock(-40.0, 0.6)))
    assert (severity, line.partition(";")[0]) == (
        "warning",
        "n1: its clock is 40.0 s behind: which rank failed first will be told wrongly",
    )


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (ChosenHost(Host("n1", slots=3)), "n1: slots=3 are more than the 2 GPUs"),
        (ChosenHost(Host("n1", slots=1), (4,)), "n1: has no GPU 4"),
    ],
)
def test_more_than_a_host_has_is_refused(chosen: ChosenHost, words: str) -> None:
    view = replace(a_view("n1"), chosen=chosen)
    [(severity, line)] = lines_of(view)
    assert severity == "input"
    assert words in line


def test_gpus_of_another_name_are_not_compared() -> None:
    small = a_gpu(0, name="NVIDIA L4")
    other = a_view("n2", gpus=(small,), gpus_in_all=1, gpu_products=(a_product(0, 6e13),))
    assert lines_of(a_view("n1"), other) == []


def test_ranks_on_cpus_may_be_more_than_gpus() -> None:
    on_cpus = VERSIONS | {"torch": "2.13.0+cpu"}
    assert lines_of(a_view("n1", slots=3, versions=on_cpus)) == []


def test_devices_of_one_machine_may_be_shared_out_by_number() -> None:
    halves = [ChosenHost(Host(name, slots=1), (n,)) for n, name in enumerate(("n1", "n2"))]
    views = [replace(a_view("n1"), chosen=chosen) for chosen in halves]
    [(severity, line)] = lines_of(*views)
    assert (severity, line) == (
        "warning",
        "n1, n2: these are one machine: what is between them is no network",
    )


def test_a_port_that_others_cannot_reach_is_named_with_who_they_are() -> None:
    silent = {"n1": "no answer within 3 s"}
    views = [a_view("n1"), *(replace(a_view(name), unreached=silent) for name in ("n2", "n3"))]
    [(severity, line)] = lines_of(*views)
    assert severity == "cluster"
    assert line.startswith(
        "n1: a port that it opens at 10.0.0.1 (eth0) can't be reached from n2, n3: no answer"
    )


def test_a_host_that_said_nothing_is_named_with_the_reason() -> None:
    lost = HostView(ChosenHost(Host("n2")), "ssh", fault=Sentence("no answer"))
    assert lines_of(a_view("n1"), lost) == [("cluster", "n2: no answer")]


def test_what_is_unknown_differs_from_nothing() -> None:
    unknown = a_view("n2", versions=None, gpus=None, gpus_in_all=None, driver=None)
    assert lines_of(a_view("n1"), unknown, a_view("n3")) == []


def test_of_many_hosts_the_first_ones_are_named() -> None:
    wrong: dict[str, Any] = {"versions": VERSIONS | {"torch": "2.11.0"}}
    views = [a_view(f"n{number}") for number in range(40)]
    views += [a_view(f"m{number}", **wrong) for number in range(30)]
    [(_, line)] = lines_of(*views)
    assert line.startswith("m0, m1, m2, m3 and 26 more: torch is 2.11.0")
