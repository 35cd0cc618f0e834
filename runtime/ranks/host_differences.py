"""What is wrong with hosts that answer, each by itself and beside the others."""

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ditplan.profiles.errors import InputError, Setting
from ditplan.runtime.ranks.host_report import HostFacts
from ditplan.runtime.ranks.host_view import HostView
from ditplan.runtime.ranks.left_set import OWN, VISIBLE_DEVICES, slowing
from ditplan.runtime.ranks.remedies import Problem, Severity, problem
from ditplan.runtime.ranks.seating import Equipment, devices_of

LEAST_DISK_BYTES = 1 << 30
FREE_SHARE = 0.9
"""Of a GPU's memory, that nobody else uses."""

CLOCK_S = 1.0
"""By which clocks may differ: which rank failed first is told by them."""

SLOW = 2.0
"""By how many times a processor is slower that stands out: more than clocks that go up and down."""

SLOW_GPU = 1.2
"""As `SLOW`, between GPUs of one name while they do the same."""

SAME: tuple[tuple[str, str, Severity, str], ...] = (
    ("python", "Python", "cluster", "what ranks send each other is read by one Python alone"),
    ("ditplan", "ditplan", "cluster", "commands and ranks must be the same code"),
    ("torch", "torch", "cluster", "process groups need one version"),
    ("nccl", "NCCL", "cluster", "it refuses to talk to another version"),
    ("diffusers", "diffusers", "cluster", "ranks would compute different models"),
    ("transformers", "transformers", "warning", "text encoders may differ"),
    ("flash-attn", "flash-attn", "warning", "attention is as fast as the slowest, and rounds both"),
    ("driver", "the NVIDIA driver", "warning", "one may lack what another has"),
    ("machine", "the processor's kind", "cluster", "ranks must compute alike"),
)
"""What hosts must have in common, by its name in `value_of`: what it is called, how bad it is where
they differ, and why."""

LATE = {
    "versions": "its packages aren't known",
    "gpus": "NVML doesn't answer, so its GPUs aren't known; try `nvidia-smi` there",
    "disk": "its folder for temporary files doesn't answer; a network folder may hang",
    "names": "its name servers don't answer; look at /etc/resolv.conf there",
}


def problems_of(views: Sequence[HostView], here: Mapping[str, str]) -> list[Problem]:
    """All that is wrong with the hosts. `here` is what this machine has of what each of them must
    have as well: the command and its ranks talk to each other.
    """
    found = [Problem(view.name, "cluster", view.fault) for view in views if view.fault is not None]
    known = [(view, view.facts) for view in views if view.facts is not None]
    for view, facts in known:
        found += _of_disk(view, facts)
        found += _of_gpus(view, facts)
        found += _of_clock(view)
        late = (LATE[name] for name in facts.late if name in LATE)
        found += [problem(view.name, "warning", f"{what}: no answer in time") for what in late]
    found += _of_versions(known, here)
    found += _of_missing_gpus(known)
    found += _of_product(known)
    found += _of_gpu_products(known)
    found += _of_environment(known)
    found += _of_names(known)
    found += _of_one_machine(known)
    found += _of_ports(views)
    return found


Known = Sequence[tuple[HostView, HostFacts]]


def value_of(facts: HostFacts, name: str) -> str | None:
    """A version or the like, as it is compared; None where it isn't known."""
    match name:
        case "driver":
            return facts.driver
        case "machine":
            return facts.machine
    if facts.versions is None:
        return None
    return facts.versions.get(name) or "none"


def names_of(views: Sequence[str]) -> str:
    """Names for a message; of many, the first ones and how many more."""
    shown = ", ".join(views[:4])
    return f"{shown} and {len(views) - 4} more" if len(views) > 4 else shown


def _of_versions(known: Known, here: Mapping[str, str]) -> Iterator[Problem]:
    for name, called, severity, why in SAME:
        values = {view.name: value for view, facts in known if (value := value_of(facts, name))}
        if not values:
            continue
        # else most hosts are right, and the first one where as many have another
        right = here.get(name) or Counter(values.values()).most_common(1)[0][0]
        having = [host for host, value in values.items() if value == right]
        those = having[0] if having else "this machine"
        for wrong in dict.fromkeys(value for value in values.values() if value != right):
            hosts = [host for host, value in values.items() if value == wrong]
            yield problem(
                names_of(hosts),
                severity,
                f"{called} is {wrong}, and {right} on {those}: {why}; install the same everywhere",
            )


def _of_disk(view: HostView, facts: HostFacts) -> Iterator[Problem]:
    free, folder = facts.disk_free_bytes, facts.disk_folder or "any temporary folder"
    if facts.disk_fault:
        yield problem(
            view.name,
            "cluster",
            f"nothing can be written to {folder}, where logs go: {facts.disk_fault}; "
            "make room there, or set TMPDIR to another folder",
        )
    elif free is not None and free < LEAST_DISK_BYTES:
        yield problem(
            view.name,
            "warning",
            f"{folder}, where logs and compiled kernels go, has {gib(free)} free; make "
            "room there, or set TMPDIR to another folder",
        )


def _of_gpus(view: HostView, facts: HostFacts) -> Iterator[Problem]:
    if not facts.gpus_in_all or facts.gpus is None:
        return
    there = len(facts.gpus)
    if _uses_gpus(facts):
        try:
            devices_of(view.chosen, view.name, Equipment(there, facts.cores), "cuda")
        except InputError as error:
            yield Problem("", "input", error.sentence)
    if there < facts.gpus_in_all:
        text = facts.environment.get(VISIBLE_DEVICES)
        words = f"{there} of its {facts.gpus_in_all} GPUs can be used, as {VISIBLE_DEVICES} is "
        yield problem(view.name, "warning", f"{words}{text!r} there; unset it to use all")
    for number, gpu in enumerate(facts.gpus):
        free, total = gpu.free_bytes, gpu.memory_bytes
        if free is not None and total and free < FREE_SHARE * total:
            words = f"{gib(free)} of {gib(total)} are free; end what else uses it"
            yield problem(view.name, "warning", f"GPU {number}: {words}")
        if gpu.throttled_by:
            words = f"it throttles ({', '.join(gpu.throttled_by)}); check power and cooling"
            yield problem(view.name, "warning", f"GPU {number}: {words}")


def _of_missing_gpus(known: Known) -> Iterator[Problem]:
    having = [view.name for view, facts in known if facts.gpus and _uses_gpus(facts)]
    for view, facts in known:
        if having and facts.gpus == ():
            why = f" ({facts.gpu_fault})" if facts.gpu_fault else ""
            words = f"it has no GPU that can be used{why}, and {having[0]} has; leave it out"
            yield problem(view.name, "cluster", words)


def _uses_gpus(facts: HostFacts) -> bool:
    """Whether ranks would run on GPUs: torch is no build for CPUs alone."""
    torch = (facts.versions or {}).get("torch")
    return torch is not None and not torch.endswith("+cpu")


def _of_clock(view: HostView) -> Iterator[Problem]:
    if view.clock is None or abs(view.clock.ahead_s) - view.clock.within_s < CLOCK_S:
        return
    ahead = view.clock.ahead_s
    yield problem(
        view.name,
        "warning",
        f"its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}: which rank failed "
        "first will be told wrongly; set it by NTP",
    )


def _of_product(known: Known) -> Iterator[Problem]:
    rates = {view.name: facts.product_rate for view, facts in known if facts.product_rate}
    if not rates:
        return
    fastest = max(rates, key=lambda name: rates[name])
    for name, rate in rates.items():
        if SLOW * rate < rates[fastest]:
            yield problem(
                name,
                "warning",
                f"its processor multiplies {rates[fastest] / rate:.1f} times slower than "
                f"{fastest}'s; check its power settings and cooling",
            )


def _of_gpu_products(known: Known) -> Iterator[Problem]:
    """GPUs that multiply slower than others of their name."""
    fastest: dict[str | None, tuple[float, str]] = {}
    found = []
    for view, facts in known:
        names = {gpu.uuid: gpu.name for gpu in facts.gpus or ()}
        for number, one in enumerate(facts.gpu_products or ()):
            name = names.get(one.uuid)
            found.append((view.name, number, name, one))
            best = fastest.get(name, (0.0, ""))
            fastest[name] = max(best, (one.flops_per_s, f"GPU {number} of {view.name}"))
    for host, number, name, one in found:
        rate, other = fastest[name]
        if one.flops_per_s * SLOW_GPU < rate:
            clock = f"{_shown(one.clock_mhz)} of {_shown(one.clock_max_mhz)} MHz"
            yield problem(
                host,
                "warning",
                f"GPU {number} multiplies at {tera(one.flops_per_s)}, its clock at {clock}, and "
                f"{other} at {tera(rate)}; check what else uses it, power and cooling",
            )


def _shown(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _of_environment(known: Known) -> Iterator[Problem]:
    effects: dict[tuple[str, str], list[str]] = {}
    for view, facts in known:
        for setting, effect in slowing(facts.environment).items():
            effects.setdefault((setting, effect), []).append(view.name)
    for (setting, effect), hosts in effects.items():
        yield problem(names_of(hosts), "warning", f"{setting} is left set: {effect}; unset it")
    names = dict.fromkeys(name for _, facts in known for name in facts.environment)
    for name in names:
        if name in OWN:
            hosts = [view.name for view, facts in known if name in facts.environment]
            words = f"{name} is set and not used; the interface is chosen by routes, or by "
            yield problem(names_of(hosts), "warning", words, Setting("interface", "NAME"))
            continue
        values = {view.name: facts.environment.get(name) for view, facts in known}
        if name == VISIBLE_DEVICES or len({*values.values()}) < 2:
            continue
        said = {
            value: names_of([host for host, own in values.items() if own == value])
            for value in values.values()
        }
        shown = ", ".join(
            f"{'not set' if value is None else repr(value)} on {hosts}"
            for value, hosts in said.items()
        )
        yield problem("", "warning", f"{name} differs: {shown}; set it alike everywhere")


def _of_names(known: Known) -> Iterator[Problem]:
    """Ranks go by addresses; jobs of others, such as torchrun's, go by names."""
    namespaces = {view.chosen.host.name: facts.namespace for view, facts in known}
    lost: dict[str, list[str]] = {}
    looped: dict[str, list[str]] = {}
    for view, facts in known:
        for name, addresses in (facts.names or {}).items():
            if namespaces.get(name) in (None, facts.namespace):
                continue
            if not addresses:
                lost.setdefault(name, []).append(view.name)
            elif all(map(_is_loopback, addresses)):
                looped.setdefault(name, []).append(view.name)
    for found, what in ((lost, "lead nowhere"), (looped, "lead back to where they are asked for")):
        if found:
            said = [f"{name} (on {names_of(hosts)})" for name, hosts in found.items()]
            yield problem(
                "",
                "warning",
                f"names of hosts that {what}: {names_of(said)}; ditplan goes by addresses, but "
                "jobs under torchrun need them: put them into /etc/hosts everywhere",
            )


def _of_one_machine(known: Known) -> Iterator[Problem]:
    machines: dict[str, list[tuple[HostView, HostFacts]]] = {}
    for view, facts in known:
        machines.setdefault(facts.namespace, []).append((view, facts))
    for same in machines.values():
        if len(same) < 2:
            continue
        names = names_of([view.name for view, _ in same])
        if any(
            facts.gpus and _uses_gpus(facts) and not view.chosen.devices for view, facts in same
        ):
            words = "these are one machine, and ranks would share its GPUs; name it once"
            yield problem(names, "input", words)
        else:
            words = "these are one machine: what is between them is no network"
            yield problem(names, "warning", words)


def _of_ports(views: Sequence[HostView]) -> Iterator[Problem]:
    failed: dict[tuple[str, str], list[str]] = {}
    for view in views:
        for name, why in (view.unreached or {}).items():
            failed.setdefault((name, why), []).append(view.name)
    addresses = {view.name: view.address for view in views}
    for (name, why), sources in failed.items():
        at = addresses[name]
        where = f"{at.address} ({at.name})" if at else "its address"
        yield problem(
            name,
            "cluster",
            f"a port that it opens at {where} can't be reached from {names_of(sources)}: {why}; "
            "let the hosts' firewalls pass all ports between them, or choose another network by ",
            Setting("interface", "NAME"),
        )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def gib(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.3g} GiB"


def tera(rate: float) -> str:
    """FLOP/s for people."""
    return f"{rate / 1e12:.3g} TFLOP/s"
