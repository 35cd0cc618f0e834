"""What hosts are, and what is wrong with them, before ranks are started: all are asked at once, in
under `LONGEST_S`, however many there are and whatever they do.
"""

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from ditplan.profiles.errors import ClusterError, InputError, Sentence
from ditplan.profiles.host_choice import ChosenHost, HostChoice
from ditplan.runtime.ranks.environment import carried
from ditplan.runtime.ranks.host_differences import problems_of
from ditplan.runtime.ranks.host_probes import own_code, within
from ditplan.runtime.ranks.host_report import FACTS
from ditplan.runtime.ranks.host_view import HostView
from ditplan.runtime.ranks.interface_choice import (
    HostNetwork,
    addresses_to_reach,
    choose_interfaces,
)
from ditplan.runtime.ranks.launchers import launcher_of
from ditplan.runtime.ranks.left_set import left_set
from ditplan.runtime.ranks.open_port import PROOF_BYTES, Target
from ditplan.runtime.ranks.reachability import addresses_of
from ditplan.runtime.ranks.remedies import Problem, problem
from ditplan.runtime.ranks.report_link import ReportLink, SilentHostError

LONGEST_S = 15.0
FACTS_S = 9.5
"""To get to a host, and for it to say what it is."""

SAYING_S = 1.0
"""Of that, for what a host found to get here."""

WAYS_S = 4.5
"""To find the way to the others, and to try it."""

NAMES_S = 3.0
CLOCK_ANSWERS = 3

Link = ReportLink | None
Addresses = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Preflight:
    """The hosts in their order, and what is wrong with them, what is fatal first."""

    hosts: tuple[HostView, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """3 where the cluster can't work, 2 where what was given doesn't fit it, else 0."""
        severities = {found.severity for found in self.problems}
        if "cluster" in severities:
            return ClusterError.exit_code
        return InputError.exit_code if "input" in severities else 0

    def require(self) -> None:
        """Refuses hosts that ranks can't be started on.

        Raises:
            ClusterError: a line for all that is fatal, with the host and the remedy.
            InputError: what was given doesn't fit the hosts; the first such thing.
        """
        fatal = [found for found in self.problems if found.is_fatal]
        if self.exit_code == ClusterError.exit_code:
            first, *others = (found.sentence for found in fatal)
            raise ClusterError(first, *(part for one in others for part in ("\n", one)))
        if fatal:
            raise InputError(fatal[0].sentence)


def preflight(
    hosts: Sequence[ChosenHost], environment: Mapping[str, str], interface: str | None = None
) -> Preflight:
    """Asks all hosts what they are, and tries whether they reach each other.

    `environment` is that of the programs by which hosts are reached; `interface` is the one that is
    to be used on each host.
    """
    problems: list[Problem] = []
    with (
        ThreadPoolExecutor(max_workers=len(hosts) + 1) as threads,
        _opened(hosts, environment, threads) as (views, links),
    ):
        names = {chosen.host.name for chosen in hosts}
        led_to = threads.submit(_addresses_of, names)
        talk = _Talk(threads, links, time.monotonic() + FACTS_S)
        views = _with_facts(talk, views, left_set(carried(environment)))
        if len(hosts) > 1:
            talk = _Talk(threads, links, time.monotonic() + WAYS_S)
            views, found = _with_addresses(talk, views, led_to.result(), interface)
            problems += found
            views, found = _with_ports_tried(talk, views)
            problems += found
    problems += problems_of(views, own_code())
    problems.sort(key=lambda found: not found.is_fatal)
    return Preflight(tuple(views), tuple(problems))


def require_usable(
    choice: HostChoice, environment: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Looks at hosts before ranks are started on them, where there are others than this machine;
    `say` is told what to be warned of.

    Raises:
        InputError: what was asked for doesn't fit the hosts. ClusterError: they can't be used.
    """
    if all(launcher_of(one.host, environment) == "direct" for one in choice.hosts):
        return
    found = preflight(choice.hosts, environment, choice.interface)
    for one in found.problems:
        if not one.is_fatal:
            say(f"warning: {one}")
    found.require()


@contextmanager
def _opened(
    hosts: Sequence[ChosenHost], environment: Mapping[str, str], threads: ThreadPoolExecutor
) -> Iterator[tuple[list[HostView], list[Link]]]:
    """The hosts' ends of conversations, begun; they end with the block."""
    views: list[HostView] = []
    links: list[Link] = []
    with ExitStack() as ends:
        # an interrupt ends what was started so far, all at once
        ends.callback(lambda: list(threads.map(_close, links)))
        for chosen in hosts:
            try:
                link = ReportLink(chosen.host, environment)
            except SilentHostError as error:
                views.append(HostView(chosen, fault=error.why))
                links.append(None)
            else:
                views.append(HostView(chosen, link.launcher))
                links.append(link)
        yield views, links


def _close(link: Link) -> None:
    if link is not None:
        link.close()


@dataclass(frozen=True)
class _Talk:
    """Asks hosts at once, until a moment of the monotonic clock."""

    threads: ThreadPoolExecutor
    links: Sequence[Link]
    deadline: float

    def ask(
        self,
        views: Sequence[HostView],
        question: Callable[[ReportLink, HostView, float], HostView | None],
    ) -> list[HostView]:
        """The hosts as a question about each leaves them; those that don't answer have a fault."""

        def ask_one(view: HostView, link: Link) -> HostView:
            if link is None or view.fault is not None:
                return view
            try:
                return question(link, view, self.deadline - time.monotonic()) or view
            except SilentHostError as error:
                return replace(view, fault=error.why)

        return list(self.threads.map(ask_one, views, self.links))


def _with_facts(talk: _Talk, views: Sequence[HostView], given: Mapping[str, str]) -> list[HostView]:
    """What hosts say of themselves; ranks are `given` variables of this machine's as well."""
    names = list(dict.fromkeys(view.chosen.host.name for view in views))

    def ask(link: ReportLink, view: HostView, limit_s: float) -> HostView:
        began = time.monotonic()
        clock = link.clock(limit_s, CLOCK_ANSWERS)
        others = [name for name in names if name != view.chosen.host.name]
        left_s = limit_s - (time.monotonic() - began)
        said = link.ask(left_s, "facts", names=others, within_s=max(0.0, left_s - SAYING_S))
        try:
            facts = FACTS.validate_python(said)
        except ValidationError:
            words = "what it says can't be read: its ditplan is another one; install the same there"
            return replace(view, clock=clock, fault=Sentence(words))
        return replace(
            view, clock=clock, facts=replace(facts, environment={**facts.environment, **given})
        )

    return talk.ask(views, ask)


def _with_addresses(
    talk: _Talk, views: Sequence[HostView], led_to: Addresses, interface: str | None
) -> tuple[list[HostView], list[Problem]]:
    """Where the ranks of each host would listen."""
    networks = _networks(views, led_to)
    asked = list(addresses_to_reach(list(networks.values())))

    def ask(link: ReportLink, view: HostView, limit_s: float) -> None:
        routes = link.ask(limit_s, "routes", addresses=asked)
        networks[view.name] = replace(networks[view.name], routes=routes)

    found = talk.ask(views, ask)
    usable = [view.name for view in found if view.fault is None]
    if len(usable) < 2:
        return found, []
    try:
        choice = choose_interfaces([networks[name] for name in usable], interface)
    except InputError as error:
        return found, [Problem("", "input", error.sentence)]
    except ClusterError as error:
        return found, [problem("", "cluster", str(error))]
    chosen = dict(zip(usable, choice.interfaces, strict=True))
    warnings = [problem("", "warning", warning) for warning in choice.warnings]
    return [replace(view, address=chosen.get(view.name)) for view in found], warnings


def _addresses_of(names: Collection[str]) -> Addresses:
    """To which addresses names lead from here."""
    return within(NAMES_S, {name: partial(addresses_of, name, NAMES_S) for name in names})


def _networks(views: Sequence[HostView], led_to: Addresses) -> dict[str, HostNetwork]:
    """What is known of the networks of the hosts that answer."""
    networks = {}
    for view in views:
        if view.facts is None or view.fault is not None:
            continue
        # the address of the server stands behind that of the client and its port
        by_ssh = (view.facts.ssh_connection or "").split()[2:3]
        networks[view.name] = HostNetwork(
            view.name,
            view.facts.namespace,
            view.facts.interfaces,
            reached_at=frozenset(by_ssh) | led_to.get(view.chosen.host.name, frozenset()),
        )
    return networks


def _with_ports_tried(
    talk: _Talk, views: Sequence[HostView]
) -> tuple[list[HostView], list[Problem]]:
    """Which hosts' ports can be reached from which: each opens one at its address, all others try
    it.
    """
    targets: dict[str, Target] = {}
    problems: list[Problem] = []

    def open_port(link: ReportLink, view: HostView, limit_s: float) -> None:
        if view.address is None:
            return
        greeting, reply = (secrets.token_hex(PROOF_BYTES // 2) for _ in range(2))
        at = view.address.address
        port: Any = link.ask(limit_s, "listen", address=at, greeting=greeting, reply=reply)
        if isinstance(port, int):
            targets[view.name] = Target(view.name, at, port, greeting, reply)
        else:
            words = f"no port can be opened at {at} ({view.address.name}): {port}; free some"
            problems.append(problem(view.name, "cluster", words))

    def reach(link: ReportLink, view: HostView, limit_s: float) -> HostView:
        others = [asdict(target) for name, target in targets.items() if name != view.name]
        faults = link.ask(limit_s, "reach", targets=others)
        return replace(view, unreached={name: why for name, why in faults.items() if why})

    found = talk.ask(views, open_port)
    return talk.ask(found, reach), problems
