"""Which rank sits on which device of which host: ranks follow the hosts' order, host by host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.host_choice import ChosenHost


@dataclass(frozen=True)
class Equipment:
    """What a host says it has for ranks: GPUs that CUDA may see, and cores."""

    gpus: int
    cores: int


def kind_of_devices(hosts: Mapping[str, Equipment]) -> DeviceKind:
    """What ranks run on: GPUs where all hosts have some, CPUs where none has.

    Raises:
        InputError: some have, and some haven't.
    """
    without = [name for name, host in hosts.items() if host.gpus == 0]
    if not without:
        return "cuda"
    if len(without) < len(hosts):
        other = next(name for name in hosts if name not in without)
        raise InputError(
            f"{other} has GPUs and {without[0]} has none that CUDA may see; leave out "
            "hosts of one kind by ",
            Setting("exclude"),
        )
    return "cpu"


def devices_of(
    chosen: ChosenHost, name: str, equipment: Equipment, kind: DeviceKind
) -> tuple[str, ...]:
    """The devices of a host that take part, such as `cuda:0`: the chosen ones, else as many as it
    has slots, else all. CPU ranks share the cores, so that any number of them finds room.

    Raises:
        InputError: more slots than GPUs, or a chosen one that there isn't.
    """
    slots, gpus = chosen.host.slots, equipment.gpus
    if kind == "cpu":
        return ("cpu",) * (equipment.cores if slots is None else slots)
    numbers = chosen.devices
    if numbers is None:
        if slots is not None and slots > gpus:
            raise InputError(
                f"{name}: slots={slots} are more than the {gpus} GPUs that CUDA may see there; "
                f"give at most {gpus}"
            )
        numbers = tuple(range(gpus if slots is None else slots))
    missing = [number for number in numbers if number >= gpus]
    if missing:
        raise InputError(
            f"{name}: has no GPU {missing[0]}; those that CUDA may see there are 0 to {gpus - 1}"
        )
    return tuple(f"cuda:{number}" for number in numbers)


def seated(devices: Mapping[str, Sequence[str]], ranks: int) -> dict[str, dict[int, str]]:
    """By host, its ranks and the device of each; hosts to which no rank comes have none.

    Raises:
        InputError: fewer than one rank, or more than there are devices.
    """
    if ranks < 1:
        raise InputError(f"{ranks} ranks can't be started; at least 1 is needed")
    room = sum(map(len, devices.values()))
    if ranks > room:
        there = ", ".join(f"{name} slots={len(own)}" for name, own in devices.items())
        raise InputError(
            f"{ranks} ranks don't fit the {room} slots of the hosts ({there}); give more slots"
        )
    found: dict[str, dict[int, str]] = {}
    first = 0
    for name, own in devices.items():
        taken = own[: ranks - first]
        found[name] = dict(enumerate(taken, start=first))
        first += len(taken)
    return found
