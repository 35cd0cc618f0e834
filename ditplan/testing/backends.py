"""Tests that any backend passes: derive a class from `BackendTests`, and pytest runs them.

    from ditplan.testing.backends import BackendTests

    class TestMine(BackendTests):
        name = "mine"

They hold a backend to what it claims, on small random models of the families that it names; those
that run plans start ranks of this machine. They need pytest: `pip install ditplan[testing]`.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import pytest

from ditplan.planner.search.pricing import price_one
from ditplan.planner.task import Task
from ditplan.profiles.backend import Exported
from ditplan.profiles.backends import LoadedBackend, find_backend
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.configuration import TaylorSeer
from ditplan.profiles.errors import LONGEST_MESSAGE, ClusterError, InputError
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import Mode
from ditplan.profiles.workload import Dtype
from ditplan.runtime.ranks.pool import RankError, RankPool
from ditplan.testing.cases import (
    Case,
    accepted,
    cases_of,
    families_of,
    meshes_of,
    models_of,
    unclaimed,
)
from ditplan.testing.on_ranks import Outcome, call_that_fails, outcome_of

EXACT = 1e-4
"""How far latents in float32 may be from one device's, in shares of the largest."""

PRICED_ON = "8xh100-nvlink"
MOST_RANKS = 4
PROBE = """
import sys
from ditplan.profiles.backends import find_backend
find_backend(sys.argv[1])
print(*sorted({"torch", "diffusers", "transformers"} & set(sys.modules)))
"""

Pools = Callable[[int], RankPool]


def one_sentence(text: object) -> str:
    """What a backend says, if it can be shown to a user in a line."""
    assert isinstance(text, str), f"a sentence was expected, this is {text!r}"
    assert text.strip(), "a refusal says why"
    assert "\n" not in text, f"a refusal is one line: {text!r}"
    assert len(text) <= LONGEST_MESSAGE, f"at most {LONGEST_MESSAGE} characters: {text!r}"
    return text


class BackendTests:
    """What every backend passes; `name` is that of its entry point.

    `device` is what plans run on. Ranks may take `timeout_s` seconds for a task.
    """

    name: str
    device: DeviceKind = "cpu"
    timeout_s: float = 300.0

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Tests are made for each family and axis that the backend claims."""
        can = cls.backend().capabilities
        runs = can.runs == "in ranks" and bool(can.modes_on(cls.device))
        if "axis" in metafunc.fixturenames:
            metafunc.parametrize("axis", can.axes)
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", families_of(can))
        if "running_family" in metafunc.fixturenames:
            metafunc.parametrize("running_family", families_of(can) if runs else ())
        if "ranks" in metafunc.fixturenames:
            metafunc.parametrize("ranks", (2, 3) if runs else ())

    @classmethod
    def backend(cls) -> LoadedBackend:
        """The backend that is tested."""
        return find_backend(cls.name)

    @pytest.fixture(scope="class")
    @classmethod
    def pools(cls) -> Iterator[Pools]:
        """Ranks by their number, started when they are first asked for, and anew once ended."""
        started: dict[int, RankPool] = {}

        def pool(ranks: int) -> RankPool:
            if ranks not in started or not started[ranks].is_open:
                started[ranks] = RankPool(None, ranks, cls.device, start_timeout_s=600)
            return started[ranks]

        yield pool
        for one in started.values():
            one.close()

    def outcomes(self, pool: RankPool, case: Case) -> list[Outcome]:
        """What each rank finds of a case."""
        plan = case.plan(self.name)
        return pool.run(outcome_of, case.spec, plan, timeout_s=self.timeout_s)

    def require_exact(self, pool: RankPool, case: Case) -> None:
        """Every rank of a plan has one device's latents, and all are as they were afterwards."""
        found = self.outcomes(pool, case)
        what = f"{case.spec.name}, {case.configuration}"
        for rank, outcome in enumerate(found):
            assert not outcome.refusal, f"{what} was accepted and then refused: {outcome.refusal}"
            assert not outcome.left, f"{what}: after closing, on rank {rank}: {outcome.left}"
            if rank in case.configuration.placement:
                assert outcome.distance is not None
                assert outcome.distance <= EXACT, f"{what}: rank {rank} is off"
                if case.configuration.mesh.size > 1 and case.configuration.mode == "eager":
                    # what only looks like a backend would be exact, too
                    assert outcome.work is not None
                    assert outcome.work < 1, f"{what}: rank {rank} does all of it"
            else:
                assert outcome.distance is None

    # what it says of itself

    def test_it_is_found_without_torch_or_the_engine(self) -> None:
        """The planner asks it on machines that have neither."""
        done = subprocess.run(
            [sys.executable, "-c", PROBE, self.name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [], "its module imports these"

    def test_its_capabilities_and_costs_are_data(self) -> None:
        """They are the same whenever they are asked for, and can be written down."""
        backend = self.backend()
        assert backend.plugin.capabilities() == backend.capabilities
        assert backend.plugin.costs() == backend.costs
        text = backend.capabilities.model_dump_json()
        assert Capabilities.model_validate_json(text) == backend.capabilities

    def test_an_axis_that_is_claimed_is_accepted(self, axis: str) -> None:
        """Of some model, by two, three or four ranks."""
        backend = self.backend()
        asked = [
            case
            for family in families_of(backend.capabilities)
            for degree in (2, 3, 4)
            for case in cases_of(backend, family, Mesh(**{axis: degree}))
        ]
        assert asked, f"no model of its families can be split by {axis}"
        said = [case.why_unsupported(backend, dtype) for case in asked for dtype in get_args(Dtype)]
        assert None in said, f"it claims {axis} and accepts it nowhere: {said[0]}"

    def test_a_mode_that_is_claimed_is_accepted(self) -> None:
        """On one device, of some model."""
        backend = self.backend()
        for mode in backend.capabilities.modes:
            found = [
                accepted(backend, family, Mesh(), mode)
                for family in families_of(backend.capabilities)
            ]
            assert any(found), f"it claims mode {mode} and accepts it nowhere"

    def test_what_is_not_claimed_is_refused_in_a_sentence(self) -> None:
        """Other families, axes, modes, and what else a plan may have."""
        backend = self.backend()
        for case in unclaimed(backend):
            why = case.why_unsupported(backend)
            assert why is not None, f"{case.spec.name}, {case.configuration} isn't claimed"
            one_sentence(why)

    def test_refusals_are_sentences(self, family: str) -> None:
        """Whatever is asked for."""
        backend = self.backend()
        for ranks in range(1, MOST_RANKS + 1):
            for mesh in meshes_of(AXES, ranks):
                for mode in backend.capabilities.modes:
                    for case in cases_of(backend, family, mesh, mode):
                        if (why := case.why_unsupported(backend)) is not None:
                            one_sentence(why)

    def test_what_is_accepted_has_a_price(self, axis: str) -> None:
        """Of each mode, on a recorded cluster."""
        backend, cluster = self.backend(), find_cluster(PRICED_ON)
        for case in self._split(axis):
            task = Task(case.spec, case.workload, cluster, backend=backend)
            for mode in backend.capabilities.modes:
                if accepted(backend, case.spec.family, case.configuration.mesh, mode):
                    found = price_one(task, case.configuration.mesh, mode)
                    assert 0 < found.prediction.latency_s < math.inf

    def test_plans_are_emitted_or_refused_in_a_sentence(self, axis: str) -> None:
        """The same text for the same plan."""
        backend = self.backend()
        for case in self._split(axis):
            plan = case.plan(self.name)
            try:
                found = backend.plugin.emit(plan, "plan.json")
            except InputError as error:
                one_sentence(str(error))
                continue
            assert isinstance(found, Exported)
            assert found.to == self.name
            assert found.text.strip()
            assert all(map(one_sentence, found.not_expressed)) or not found.not_expressed
            assert found == backend.plugin.emit(plan, "plan.json")

    def _split(self, axis: str) -> list[Case]:
        """A case for each family that the backend splits by two along an axis."""
        backend = self.backend()
        found = (
            accepted(backend, family, Mesh(**{axis: 2}))
            for family in families_of(backend.capabilities)
        )
        return [case for case in found if case is not None]

    # what it does in ranks

    def test_plans_equal_one_device_and_leave_nothing(
        self, pools: Pools, running_family: str, ranks: int
    ) -> None:
        """All meshes of two and three ranks that it accepts; of fewer where there are none."""
        backend, found = self.backend(), list[Case]()
        for size in range(ranks, 0, -1):
            for mesh in meshes_of(backend.capabilities.axes, size):
                if (case := accepted(backend, running_family, mesh)) is not None:
                    found.append(case)
            if found:
                break
        assert found, f"it claims {running_family} and accepts nothing of it on {ranks} ranks"
        for case in found:
            self.require_exact(pools(ranks), case)

    def test_other_modes_and_claims_equal_one_device(self, pools: Pools, ranks: int) -> None:
        """Each of them once, of the first model that has it."""
        backend = self.backend()
        for case in self._claims(backend, ranks):
            self.require_exact(pools(ranks), case)

    def _claims(self, backend: LoadedBackend, ranks: int) -> Iterator[Case]:
        can = backend.capabilities
        wanted: list[tuple[Mode, dict[str, Any], Sequence[str]]] = [
            (mode, {}, can.exact_axes) for mode in can.modes_on(self.device) if mode != "eager"
        ]
        sequence = [axis for axis in ("ulysses", "ring") if axis in can.axes]
        if can.shards_weights:
            wanted.append(("eager", {"weights": "sharded"}, can.exact_axes))
        if can.balances and sequence:
            shares = tuple(range(1, ranks + 1))
            wanted.append(("eager", {"token_shares": shares}, sequence))
        for mode, parts, axes in wanted:
            cases = (
                accepted(backend, family, mesh, mode, **parts)
                for family in families_of(can)
                for axis in axes
                for mesh in meshes_of((axis,), ranks)
            )
            case = next((one for one in cases if one is not None), None)
            if case is not None:
                yield case

    def test_step_caches_are_accepted_where_they_are_claimed(self) -> None:
        """Of some model, on one device."""
        backend = self.backend()
        if backend.capabilities.caches_steps:
            cache = TaylorSeer(interval=2)
            assert any(
                accepted(backend, family, Mesh(), step_cache=cache)
                for family in families_of(backend.capabilities)
            )

    def test_ranks_sit_where_the_plan_says(self, pools: Pools, ranks: int) -> None:
        """In another order than their own, with one left out where there are three; or it is
        refused in a sentence.
        """
        backend, placement = self.backend(), (ranks - 1, 0)
        for axis in backend.capabilities.exact_axes:
            for family in families_of(backend.capabilities)[:1]:
                for case in cases_of(backend, family, Mesh(**{axis: 2})):
                    placed = case.changed(placement=placement)
                    if why := placed.why_unsupported(backend):
                        one_sentence(why)
                    else:
                        self.require_exact(pools(ranks), placed)

    def test_a_refused_plan_leaves_the_pipeline_as_it_was(self, pools: Pools, ranks: int) -> None:
        """One of more ranks than there are, of another model, and one that isn't claimed."""
        backend = self.backend()
        cases = (case for axis in backend.capabilities.axes for case in self._split(axis))
        usual = next(cases, None)
        if usual is None:
            pytest.skip("it splits nothing here")
        family = usual.spec.family
        can, usual_mesh = backend.capabilities, usual.configuration.mesh
        axis = next(axis for axis in AXES if getattr(usual_mesh, axis) > 1)
        many = ranks + 1
        large = usual.changed(mesh=Mesh(**{axis: many}), placement=tuple(range(many)))
        other = next(spec for spec, _ in models_of(family) if spec != usual.spec)
        modes = [mode for mode in get_args(Mode) if mode not in can.modes_on(self.device)]
        beyond = [case for case in unclaimed(backend) if case.spec.family == family]
        for spec, case in [
            (usual.spec, large),
            (other, usual),
            *((usual.spec, usual.changed(mode=mode)) for mode in modes),
            *((case.spec, case) for case in beyond),
        ]:
            plan = case.plan(self.name)
            found = pools(ranks).run(outcome_of, spec, plan, timeout_s=self.timeout_s)
            for outcome in found:
                one_sentence(outcome.refusal)
                assert outcome.left == ()

    @pytest.mark.parametrize("is_killed", [False, True], ids=["raises", "killed"])
    def test_a_rank_that_fails_ends_the_job(
        self, pools: Pools, ranks: int, is_killed: bool
    ) -> None:
        """With exit code 3, naming the rank, and the traceback of one that raised."""
        backend = self.backend()
        cases = (
            accepted(backend, family, mesh)
            for size in (ranks, ranks - 1)
            for mesh in meshes_of(backend.capabilities.exact_axes, size)
            for family in families_of(backend.capabilities)
        )
        case = next(one for one in cases if one is not None)
        plan = case.plan(self.name)
        with pytest.raises(RankError) as caught:
            pools(ranks).run(
                call_that_fails, case.spec, plan, 1, is_killed, timeout_s=self.timeout_s
            )
        assert caught.value.exit_code == ClusterError.exit_code == 3
        said = str(caught.value)
        # the others may say that they miss it
        assert 1 in caught.value.ranks, said
        assert "rank 1" in said
        if not is_killed:
            assert "made to fail" in said
            assert "Traceback" in said
