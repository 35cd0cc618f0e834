"""What the planner remembers changes no answer: in any order of questions, one cost model says what
a model that forgets everything says.
"""

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import ge
from typing import Any

import pytest

from ditplan.planner.cost.lower_bounds import LowerBounds
from ditplan.planner.cost.mixed_devices import RankLoads, rank_kinds_of
from ditplan.planner.cost.share import RankShard, RankShards, share_of
from ditplan.planner.cost_model import CostModel
from ditplan.planner.memo import Memo
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.candidate import Setting, groups_of
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import AXES, axis_orders
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from tests.unit.planner_scenes import MODES, Draws, Pair, Scene, a_cpu, scenes

SCENES = scenes()

Least = tuple[float, int]
"""Seconds and bytes."""

FAMILIES = 5
"""So many families of candidates are drawn for each scene."""


class Forgetful(Memo[Any, Any]):
    """Remembers nothing but what was put in last."""

    def __contains__(self, key: object) -> bool:
        return False

    def get(self, key: object, default: Any = None) -> Any:
        return default


@contextmanager
def forgetting() -> Iterator[None]:
    """Makes all that is built meanwhile forgetful, but for paths and traffic on a topology."""
    with pytest.MonkeyPatch.context() as patch:
        for module in REMEMBERING:
            patch.setattr(module, "Memo", Forgetful)
        yield


REMEMBERING = [
    module
    for name, module in sys.modules.items()
    if name.startswith("ditplan.planner.") and name != Topology.__module__
    if getattr(module, "Memo", None) is Memo and name != Memo.__module__
]


class Asked:
    """A cost model and its bounds, and all that can be asked of them."""

    def __init__(self, scene: Scene) -> None:
        self.topology = Topology(scene.cluster)
        self.model = CostModel(self.topology, scene.spec, scene.profile)
        self._bounds: dict[Workload, LowerBounds] = {}

    def answer(self, question: str, candidate: Configuration, workload: Workload) -> object:
        """What a method says of a candidate."""
        if hasattr(self, question):
            return getattr(self, question)(candidate, workload)
        return getattr(self.model, question)(candidate, workload)

    def memories(self, candidate: Configuration, workload: Workload) -> list[object]:
        """Of all stages, on a CPU too."""
        stages = range(candidate.mesh.pipefusion) if candidate.pipefusion else ()
        devices = (a_cpu(), *self.model.devices_of(candidate))
        return [
            self.model.memory(candidate, workload, device, stage)
            for device in devices
            for stage in (None, *stages)
        ]

    def ring_variant(self, candidate: Configuration, _: Workload) -> str:
        """How keys and values get about."""
        return self.model.ring_variant(candidate)

    def signatures(self, candidate: Configuration, _: Workload) -> list[object]:
        """By which the topology tells placements apart."""
        split = [axis for axis in AXES if getattr(candidate.mesh, axis) > 1]
        return [self.topology.signature(groups_of(candidate, (axis,))) for axis in split]

    def least(self, candidate: Configuration, workload: Workload) -> Least:
        """In the candidate's mode."""
        return self._least(candidate, workload, [(candidate.pipefusion, candidate.mode)])

    def least_of_modes(self, candidate: Configuration, workload: Workload) -> Least:
        """In all modes."""
        return self._least(candidate, workload, [(candidate.pipefusion, mode) for mode in MODES])

    def least_of_settings(self, candidate: Configuration, workload: Workload) -> Least:
        """With some numbers of patches."""
        part = candidate.pipefusion
        parts = [part.model_copy(update={"patches": n}) for n in (2, 4)] if part else [None]
        settings = [(one, mode) for one in parts for mode in MODES]
        return self._least(candidate, workload, settings)

    def _least(
        self, candidate: Configuration, workload: Workload, settings: Sequence[Setting]
    ) -> Least:
        if workload not in self._bounds:
            self._bounds[workload] = self.model.lower_bounds(workload)
        bounds, mesh = self._bounds[workload], candidate.mesh
        key = bounds.order_key(mesh, candidate.order)
        return bounds.least_s(mesh, key, settings), bounds.least_bytes(mesh, settings)


QUESTIONS = (
    "price",
    "timeline",
    "balanced",
    "shared_by_speed",
    "attention_kernel",
    "memories",
    "ring_variant",
    "signatures",
    "least",
    "least_of_modes",
    "least_of_settings",
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_one_cost_model_says_what_a_forgetful_one_says(scene: Scene) -> None:
    draws, chance = Draws(scene, seed=1), random.Random(1)
    families = [draws.family() for _ in range(FAMILIES)]
    turns = [(first, pair) for first, changed in families for pair in changed]
    if scene.rare:
        turns.append(((scene.rare, scene.workloads[0]), (scene.rare, scene.workloads[1])))
    chance.shuffle(turns)
    remembering, known = Asked(scene), dict[object, object]()
    forgetful: dict[Pair, Asked] = {}
    for pairs in turns:
        # right after the first of its family, for what is only remembered that long
        for question in chance.sample(QUESTIONS, len(QUESTIONS)):
            for pair in pairs:
                answer = remembering.answer(question, *pair)
                if (question, pair) not in known:
                    with forgetting():
                        oracle = forgetful.get(pair) or forgetful.setdefault(pair, Asked(scene))
                        known[question, pair] = oracle.answer(question, *pair)
                assert known[question, pair] == answer, (question, pair)


def test_which_stage_is_fullest_is_found_anew_for_all_that_decides_it() -> None:
    scene = SCENES[0]
    remembering = Asked(scene)
    with forgetting():
        forgetful = Asked(scene)
        pairs = [pair for pair in Draws(scene, seed=4).staged(600) if scene.is_legal(*pair)]
        sizes = [forgetful.memories(*pair) for pair in pairs]
    assert [remembering.memories(*pair) for pair in pairs] == sizes


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_orders_of_axes_with_the_same_key_have_the_same_bounds(scene: Scene) -> None:
    draws = Draws(scene, seed=2)
    for (candidate, workload), _ in (draws.family() for _ in range(FAMILIES)):
        asked, first = Asked(scene), dict[object, Configuration]()
        bounds = asked.model.lower_bounds(workload)
        for order in axis_orders(candidate.mesh):
            one = replace(candidate, order=order)
            like = first.setdefault(bounds.order_key(candidate.mesh, order), one)
            for question in ("least", "least_of_modes", "least_of_settings"):
                answer = asked.answer(question, like, workload)
                assert Asked(scene).answer(question, one, workload) == answer


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_no_rank_has_more_to_do_than_one_of_those_that_stand_for_it(scene: Scene) -> None:
    draws, devices = Draws(scene, seed=3), scene.cluster.devices
    loads_of = RankLoads(RankShards(scene.spec), {one.name: one for one in devices})
    for _, pairs in (draws.family() for _ in range(2 * FAMILIES)):
        for candidate, workload in pairs:
            size = candidate.mesh.sequence_parallel
            placed = [devices[rank] for rank in candidate.placement]
            groups = [placed[first : first + size] for first in range(0, len(placed), size)]
            kinds = rank_kinds_of(candidate, groups)
            standing = loads_of.of(candidate, workload, kinds)
            for place, device in itertools.chain(*map(enumerate, groups)):
                shares = candidate.token_shares
                own = share_of(
                    candidate.mesh, scene.spec, workload, shares, place if shares else None
                )
                alike = [load.share for load in standing if load.device.name == device.name]
                assert any(
                    all(map(ge, _to_do(share, scene.spec), _to_do(own, scene.spec)))
                    for share in alike
                ), (candidate, place)


def _to_do(share: RankShard, spec: ModelSpec) -> tuple[int, ...]:
    """A rank's tokens, the queries of its ulysses group, and its heads."""
    heads = [share.heads(attention) for run in spec.blocks for attention in run.attentions]
    return (*share.tokens.values(), *share.queries.values(), *heads)
