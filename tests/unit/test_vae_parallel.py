"""What a plan says of ranks that decode together, and what that is priced at."""

from dataclasses import replace

import pytest

import ditplan
from ditplan.command.run import decoding_on
from ditplan.planner.cost.vae_decode import exchanges_s, largest_share
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from tests.distributed.small_models import plan_for, small_sd3, workload

SPEC = find_model("sd3")
WORK = SPEC.defaults
TOPOLOGY = Topology(find_cluster("8xa100-nvlink"))
FOUR = Configuration(Mesh(ulysses=4), (2, 0, 3, 1))


def test_a_plan_from_before_decodes_on_one_rank() -> None:
    plan = plan_for(small_sd3(), Mesh(ulysses=2), workload())
    text = plan.text()
    assert '"vae_parallel": 1' in text
    without = text.replace(',\n  "vae_parallel": 1', "")
    assert without != text
    assert ExecutionPlan.from_json(without, "older").configuration.vae_parallel == 1


def test_a_plan_decodes_on_its_own_ranks_at_most() -> None:
    plan = plan_for(small_sd3(), Mesh(ulysses=2), workload())
    assert plan.configured(vae_parallel=2).configuration.vae_parallel == 2
    with pytest.raises(ValueError, match="vae_parallel is 3, mesh ulysses2 has 2 ranks"):
        plan.configured(vae_parallel=3)
    assert decoding_on(plan, None) is plan
    with pytest.raises(InputError, match="the plan has 2; use that or less"):
        decoding_on(plan, 3)


def test_the_rank_that_keeps_the_picture_decodes_first_and_its_neighbours_next() -> None:
    assert FOUR.vae_ranks == (2, 3, 0, 1)


def test_configurations_that_decode_otherwise_have_other_names() -> None:
    together = replace(FOUR, vae_parallel=2)
    assert together != FOUR
    assert together.key != FOUR.key
    assert str(together) == f"{FOUR}, VAE over 2 ranks"


def test_more_ranks_have_fewer_rows_and_less_memory_each_and_decode_sooner() -> None:
    model = CostModel(TOPOLOGY, SPEC)
    large = WORK.model_copy(update={"height": 2048, "width": 2048})
    found = [model.price(replace(FOUR, vae_parallel=degree), large) for degree in (1, 2, 3, 4)]
    assert len({one.latency_s for one in found}) == 1
    ends = [one.end_to_end_s for one in found]
    assert ends == sorted(ends, reverse=True)
    device = model.devices_of(FOUR)[0]
    sizes = [
        model.memory(replace(FOUR, vae_parallel=degree), large, device).vae_bytes
        for degree in (1, 2, 3, 4)
    ]
    assert sizes[1] == pytest.approx(sizes[0] / 2)
    # 256 rows over 3: 86 of them
    assert sizes[2] == pytest.approx(sizes[0] * 86 / 256)


def test_ranks_that_talk_more_slowly_take_longer() -> None:
    slow = Topology(find_cluster("8xl20-pcie"))
    ranks = (0, 1, 2, 3)
    work, c = WORK, CostModel(TOPOLOGY, SPEC).constants
    assert exchanges_s(slow, SPEC, work, ranks, c) > exchanges_s(TOPOLOGY, SPEC, work, ranks, c) > 0
    assert exchanges_s(TOPOLOGY, SPEC, work, (0,), c) == 0


def test_fewer_rows_than_ranks_are_decoded_by_each() -> None:
    low = WORK.model_copy(update={"height": 16})
    assert largest_share(SPEC, low, 2) == 0.5
    assert largest_share(SPEC, low, 3) == 1.0


def test_simulate_and_plan_take_the_degree_and_refuse_what_cannot_be() -> None:
    one = ditplan.simulate("sd3", "8xa100-nvlink", gpus=2, ulysses=2, mode="eager")
    two = ditplan.simulate("sd3", "8xa100-nvlink", gpus=2, ulysses=2, mode="eager", vae_parallel=2)
    assert two.to_json()["vae_parallel"] == 2
    ends = [result.priced.prediction.end_to_end_s for result in (two, one)]
    assert ends == sorted(set(ends))
    with pytest.raises(InputError, match="there is 1 to decode"):
        ditplan.simulate("sd3", "8xa100-nvlink", gpus=1, vae_parallel=2)
    with pytest.raises(InputError, match="there are 2 to decode"):
        ditplan.plan("sd3", "8xa100-nvlink", gpus=2, vae_parallel=3)
    with pytest.raises(InputError, match="backend xdit decodes on one rank"):
        ditplan.plan("sd3", "8xa100-nvlink", gpus=2, vae_parallel=2, backend="xdit")
