"""What the planner remembers changes no answer: in any order of questions, one cost model says what
a model that forgets everything says.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from ditplan.planner.cost.lower_bounds import LowerBounds
from ditplan.planner.cost_model import CostModel
from ditplan.planner.memo import Memo
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.placement import placements
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import axis_orders
from ditplan.profiles.workload import Workload
from tests.unit.planner_scenes import MODES, Draws, Scene, a_cpu, scenes

SCENES = scenes()

FAMILIES = 2
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
    """A cost model and its floors, and all that can be asked of them."""

    def __init__(self, scene: Scene) -> None:
        self.topology = Topology(scene.cluster)
        self.model = CostModel(self.topology, scene.spec, scene.profile)
        self._floors: dict[Workload, LowerBounds] = {}

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

    def placements(self, candidate: Configuration, _: Workload) -> list[object]:
        """Those that the topology tells apart."""
        return list(placements(candidate.mesh, self.topology))

    def least_s(self, candidate: Configuration, workload: Workload) -> float:
        """In the candidate's mode."""
        return self._floors_of(workload).least_s(_anywhere(candidate))

    def of_modes(self, candidate: Configuration, workload: Workload) -> float:
        """In all modes."""
        tried = [replace(_anywhere(candidate), mode=mode) for mode in MODES]
        return self._floors_of(workload).of_modes(tried)

    def of_settings(self, candidate: Configuration, workload: Workload) -> float:
        """With some numbers of patches."""
        patches = [2, 4] if candidate.pipefusion else []
        if not patches:
            return 0.0
        return self._floors_of(workload).of_settings(_anywhere(candidate), patches)

    def least_bytes(self, candidate: Configuration, workload: Workload) -> int:
        """On the largest device."""
        return self._floors_of(workload).least_bytes(_anywhere(candidate))

    def _floors_of(self, workload: Workload) -> LowerBounds:
        if workload not in self._floors:
            self._floors[workload] = self.model.floors(workload, MODES)
        return self._floors[workload]


QUESTIONS = (
    "price",
    "timeline",
    "balanced",
    "shared_by_speed",
    "attention_kernel",
    "memories",
    "ring_variant",
    "placements",
    "least_s",
    "of_modes",
    "of_settings",
    "least_bytes",
)


def _anywhere(candidate: Configuration) -> Configuration:
    """As floors take it: on any ranks."""
    return Configuration(candidate.mesh, (), candidate.mode, candidate.order, candidate.pipefusion)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_one_cost_model_says_what_a_forgetful_one_says(scene: Scene) -> None:
    draws = Draws(scene, seed=1)
    candidates = dict.fromkeys(one for _ in range(FAMILIES) for one in draws.family())
    asked = [
        (question, candidate, workload)
        for candidate in candidates
        for workload in scene.workloads
        if scene.is_legal(candidate, workload)
        for question in QUESTIONS
        if question != "timeline" or workload == scene.workloads[0]
    ]
    random.Random(1).shuffle(asked)
    remembering, forgetful = Asked(scene), dict[object, Asked]()
    for question, candidate, workload in asked:
        pair = candidate, workload
        answer = remembering.answer(question, *pair)
        with forgetting():
            oracle = forgetful.setdefault(pair, Asked(scene))
            assert oracle.answer(question, *pair) == answer, (question, pair)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_orders_of_axes_with_the_same_key_have_the_same_floors(scene: Scene) -> None:
    for candidate in Draws(scene, seed=2).family():
        asked, first = Asked(scene), dict[object, Configuration]()
        workload = scene.workloads[0]
        floors = asked.model.floors(workload, MODES)
        for order in axis_orders(candidate.mesh):
            one = replace(candidate, order=order)
            like = first.setdefault(floors.order_key(candidate.mesh, order), one)
            for question in ("least_s", "of_modes", "of_settings"):
                answer = asked.answer(question, like, workload)
                assert Asked(scene).answer(question, one, workload) == answer
