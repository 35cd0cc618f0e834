"""A host as the command sees it: what it was asked for, what it says, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass

from ditplan.profiles.errors import Sentence
from ditplan.profiles.host_choice import ChosenHost
from ditplan.runtime.ranks.host_report import HostFacts
from ditplan.runtime.ranks.interface_choice import ChosenInterface
from ditplan.runtime.ranks.launchers import Launcher


@dataclass(frozen=True)
class Clock:
    """How far a host's clock is ahead of ours, and by how much that may be wrong: half the time
    that the answer took, since the host looked at its clock at some moment of it.
    """

    ahead_s: float
    within_s: float


@dataclass(frozen=True)
class HostView:
    """A host; None for what isn't known of it.

    `fault` is why it said nothing, or no more. `address` is where its ranks would listen.
    `unreached` are the hosts whose port can't be reached from it, each with the reason.
    """

    chosen: ChosenHost
    launcher: Launcher | None = None
    facts: HostFacts | None = None
    clock: Clock | None = None
    address: ChosenInterface | None = None
    unreached: Mapping[str, str] | None = None
    fault: Sentence | None = None

    @property
    def name(self) -> str:
        """What messages call it: its name, with the port where it has one."""
        host = self.chosen.host
        return host.name if host.port is None else f"{host.name}:{host.port}"
