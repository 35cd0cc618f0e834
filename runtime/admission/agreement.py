"""What ranks say when they aren't where the others are, or weren't given what the others were.

Each of these errors is made of what all ranks have told each other, so it is the same on all.
"""

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from ditplan.profiles.errors import ClusterError, InputError
from ditplan.runtime.admission.channel import Message, Point

MOST_NAMED = 3
SEED = "pass generator=torch.Generator('cpu').manual_seed(n) with the same n on every rank"
REMEDIES = (
    ("generator", SEED),
    ("latents", f"{SEED}, or the same latents"),
    ("transformer's hidden_states", f"{SEED}, and the same pictures, sizes and strength"),
    ("transformer's x", SEED),
    ("scheduler", "give the pipeline of every rank the same scheduler, config and steps"),
    ("weights", "load the same weights, with the same LoRA and its scale, on every rank"),
    ("plan", "load the same plan on every rank"),
)
"""What to do, by how the name of what differs begins."""


def disagreement(ranks: Sequence[int], found: Sequence[dict[str, bytes]]) -> InputError:
    """The error for what differs between ranks, of digests by name."""
    differing: dict[str, list[int]] = {}
    for name in dict.fromkeys(name for of_rank in found for name in of_rank):
        seen = [of_rank.get(name) for of_rank in found]
        usual = Counter(seen).most_common(1)[0][0]
        others = [rank for rank, one in zip(ranks, seen, strict=True) if one != usual]
        if others:
            differing[name] = others
    # what was given before what comes of it
    names = sorted(differing, key=lambda name: _is_made_of_others(name))
    told: dict[tuple[int, ...], list[str]] = {}
    for name in names[:MOST_NAMED]:
        told.setdefault(tuple(differing[name]), []).append(name)
    texts = [
        f"{_ranks(of)} {_for(of, 'differs in')} {', '.join(some)}" for of, some in told.items()
    ]
    if len(names) > MOST_NAMED:
        texts.append(f"{len(names) - MOST_NAMED} more differ")
    remedy = next(
        (text for start, text in REMEDIES if names[0].startswith(start)),
        f"give every rank the same {names[0].partition('[')[0]}",
    )
    return InputError(f"the ranks weren't given the same: {'; '.join(texts)}: {remedy}")


def _is_made_of_others(name: str) -> bool:
    return name.startswith(("generator", "latents", "scheduler", "transformer's"))


def out_of_step(ranks: Sequence[int], messages: Sequence[Message]) -> InputError:
    """The error for ranks that are at different places of their calls."""
    places: dict[str, list[int]] = {}
    for rank, message in zip(ranks, messages, strict=True):
        places.setdefault(_place(message), []).append(rank)
    told = ", ".join(f"{_ranks(of)} {_for(of, place)}" for place, of in places.items())
    return InputError(
        f"the ranks don't make the same call: {told}; give every rank the same arguments and "
        "scheduler, and interrupt a call on all of them or on none"
    )


def _place(message: Message) -> str:
    calls = f"after {message.calls} call{'s' * (message.calls != 1)} of the transformer"
    return {
        Point.BEGIN: "begins a call",
        Point.GIVEN: "calls the transformer for the first time",
        Point.STEP: f"makes call number {message.calls} of the transformer",
        Point.STRAY: "calls the transformer outside of the pipeline that has the plan",
        Point.END: f"has ended its call {calls}",
        Point.FAILED: f"has failed {calls}",
        Point.PLAN: "puts a plan in force",
    }[message.point]


def _for(ranks: Sequence[int], place: str) -> str:
    """The sentence, whose verb is that of one rank, for as many as there are."""
    verb, rest = place.split(" ", 1)
    plural = {"has": "have", "is": "are"}.get(verb, verb.removesuffix("s"))
    return place if len(ranks) == 1 else f"{plural} {rest}"


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


@dataclass(frozen=True)
class Report:
    """What one rank tells of a call that has failed on some: what was raised, if anything was.

    `is_echo` where that only says that another rank is gone, `broke` where this rank has broken
    transfers off, `inside` where the error left transfers of the transformer unfinished.
    """

    text: str = ""
    pickled: bytes = b""
    is_echo: bool = False
    broke: bool = False
    inside: bool = False
    calls: int = 0

    @classmethod
    def of(cls, error: BaseException, *, broke: bool, inside: bool, calls: int) -> "Report":
        """The report of what was raised here."""
        text = f"{type(error).__name__}: {error}"
        return cls(text, _pickled(error), is_of_transport(error), broke, inside, calls)

    def error(self, rank: int) -> BaseException:
        """What was raised, to be raised on other ranks too."""
        found: BaseException = (
            pickle.loads(self.pickled)
            if self.pickled
            else ClusterError(f"rank {rank} failed: {self.text}")
        )
        found.add_note(f"raised on rank {rank}; the call ends on every rank")
        return found


def _pickled(error: BaseException) -> bytes:
    """An error as bytes, empty where it can't be made again of them or must not be raised again."""
    if not isinstance(error, (Exception, KeyboardInterrupt)):
        return b""
    try:
        found = pickle.dumps(error)
        again = pickle.loads(found)
    except Exception:  # noqa: BLE001 (an exception's own class decides what this raises)
        return b""
    return found if type(again) is type(error) and str(again) == str(error) else b""


def is_of_transport(error: BaseException) -> bool:
    """Whether an error says no more than that another rank can't be reached."""
    return isinstance(error, dist.DistError | ClusterError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def origin(reports: Sequence[Report]) -> int:
    """Whose error counts: the first that isn't another's echo."""
    failed = [number for number, report in enumerate(reports) if report.text]
    return next((number for number in failed if not reports[number].is_echo), failed[0])


def is_dirty(reports: Sequence[Report]) -> bool:
    """Whether transfers were left unfinished: not where all ranks left them at the same place."""
    if any(report.broke for report in reports):
        return True
    alike = len({(report.text, report.calls) for report in reports}) == 1
    return not alike and any(report.inside for report in reports)


def raised_again(
    reports: Sequence[Report], ranks: Sequence[int], rank: int, mine: BaseException | None
) -> BaseException:
    """The error to raise on `rank`: its own if that is the one that counts, or the same."""
    counts = origin(reports)
    if mine is not None and reports[ranks.index(rank)].text == reports[counts].text:
        return mine
    return reports[counts].error(ranks[counts])
