"""The rules that a model and a workload set for meshes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Schedule
from ditplan.profiles.errors import Sentence, Setting
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

CFG_REASON = "cfg > passes"

Degrees = NDArray[np.int64]
"""Degrees of meshes: one mesh in each row, in the order of `AXES`."""


@dataclass(frozen=True)
class Violation:
    """Why a mesh is not legal: a short reason to count by and a sentence that says what would
    be right.
    """

    reason: str
    sentence: str


@dataclass(frozen=True)
class Rule:
    """The most that a product of a mesh's degrees may be; with a `sentence`, degrees that may not
    be split together (or at all, if it is one).

    `places` are those of the degrees in `AXES`.
    """

    reason: str
    what: str
    places: tuple[int, ...]
    limit: int
    things: str = ""
    sentence: str = ""

    def broken_by(self, degrees: Degrees) -> NDArray[np.bool_]:
        """Which meshes' degrees are too large."""
        split = degrees[:, self.places]
        broken: NDArray[np.bool_] = split.prod(axis=1) > self.limit
        return np.all(split > 1, axis=1) if self.sentence else broken

    def violation(self, mesh: Mesh, spec: ModelSpec) -> Violation:
        """What to say of a mesh that breaks the rule."""
        if self.sentence:
            return Violation(self.reason, self.sentence)
        degree = math.prod(mesh.degrees[place] for place in self.places)
        return Violation(
            self.reason,
            f"{self.what} is {degree}, but {spec.name} has {self.limit} {self.things}: "
            f"use at most {self.limit}",
        )


def schedule_of(spec: ModelSpec, capabilities: Capabilities) -> Schedule:
    """PipeFusion's schedule for a model: folded where a block needs what its mirror returned."""
    has_skips = family_of(spec.transformer_class).long_skips is not None
    return "folded" if has_skips and capabilities.folds_skips else "linear"


def first_broken(rules: Sequence[Rule], degrees: Degrees) -> NDArray[np.int64]:
    """The number of the first rule that each mesh breaks, that of all rules where it breaks
    none.
    """
    found = np.full(len(degrees), len(rules))
    for number, rule in reversed(list(enumerate(rules))):
        found[rule.broken_by(degrees)] = number
    return found


def rules_of(spec: ModelSpec, workload: Workload, capabilities: Capabilities) -> tuple[Rule, ...]:
    """What a model, a workload and a backend demand of any mesh, in the order in which it is
    said.
    """
    family, image = family_of(spec.transformer_class), spec.image_tokens(workload)
    dp, cfg, pipefusion, ring, ulysses = range(len(AXES))
    rules = []
    no_stages = family.no_pipefusion if capabilities.staged_families is None else None
    if no_stages:
        why = f"{spec.name} can't run with pipefusion: {no_stages}; leave it at 1"
        rules.append(Rule("no stages for this model", "", (pipefusion,), 1, sentence=why))
    for place, what in ((pipefusion, "stages"), (ring, "ring"), (ulysses, "ulysses")):
        if not_here := capabilities.why_not_split(spec, AXES[place]):
            rules.append(Rule(f"no {what} for this model", "", (place,), 1, sentence=not_here))
    if family.guidance == "calls":
        why = (
            f"{spec.name} makes a call for each pass, which can't be split over cfg together with "
            "pipefusion; leave one of them at 1"
        )
        rules.append(Rule("cfg with pipefusion", "", (cfg, pipefusion), 1, sentence=why))
    sequence, both = "ring x ulysses", (ring, ulysses)
    image_limit = (
        (workload.height // spec.pixels_per_token, "rows of image tokens")
        if spec.is_linear
        else (image, "image tokens")
    )
    stage_limit = (spec.block_count, "blocks")
    if schedule_of(spec, capabilities) == "folded":
        stage_limit = (math.ceil(spec.block_count / 2), "blocks with mirrors")
    rules += [
        Rule("dp > pictures", "dp", (dp,), workload.batch, "pictures a batch"),
        Rule(CFG_REASON, "cfg", (cfg,), workload.passes, "passes a step"),
        Rule("ulysses > heads", "ulysses", (ulysses,), spec.heads, "attention heads"),
        Rule("pipefusion > blocks", "pipefusion", (pipefusion,), *stage_limit),
        Rule("ranks > image tokens", sequence, both, *image_limit),
    ]
    if text := spec.text_tokens(workload):
        rules.append(Rule("ranks > text tokens", sequence, both, text, "text tokens"))
    return tuple(rules)


def violation(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    capabilities: Capabilities,
    *,
    approximate: bool = False,
) -> Violation | None:
    """The first rule that a mesh breaks, whatever the number of GPUs.

    Axes that give another result than one device are against the rules unless `approximate`.
    """
    for axis, degree in zip(AXES, mesh.degrees, strict=True):
        if why := capabilities.why_no_degree(axis, degree):
            return Violation(f"{axis} not in {capabilities.name}", why)
        if degree > 1 and axis in capabilities.approximate_axes and not approximate:
            return Violation(
                f"{axis} not exact",
                Sentence(
                    f"{axis}{degree} gives another result than one device, and only exact plans "
                    "are allowed: use ",
                    Setting("quality", "safe"),
                    f", or leave {axis} at 1",
                ),
            )
    rules = rules_of(spec, workload, capabilities)
    (number,) = first_broken(rules, np.array([mesh.degrees]))
    return rules[number].violation(mesh, spec) if number < len(rules) else None


def degrees_within(gpus: int, axes: Sequence[str], pins: Mapping[str, int]) -> Degrees:
    """The degrees of all meshes of at most so many GPUs over some axes.

    Pinned axes keep their degree, all others are 1.
    """
    degrees = np.array([[pins.get(axis, 1) for axis in AXES]])
    room = gpus // degrees.prod(axis=1)
    degrees, room = degrees[room > 0], room[room > 0]
    for axis in axes:
        if axis in pins:
            continue
        # each mesh so far once for each degree that it has room for
        first = np.repeat(np.cumsum(room) - room, room)
        degrees, room = np.repeat(degrees, room, axis=0), np.repeat(room, room)
        degree = np.arange(len(room)) - first + 1
        degrees[:, AXES.index(axis)] = degree
        room //= degree
    return degrees
