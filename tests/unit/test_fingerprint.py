"""Where a plan holds: each thing that is otherwise is named, and what that means."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import SD3Transformer2DModel

from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.evidence import chosen_line, evidence_of, interval_of, signature_of
from ditplan.profiles.fingerprint import Fingerprint, RankFacts, RankSpeed, SelfTest, config_changes
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel
from ditplan.runtime.models.inspection import config_digest, plain_config, usual_config
from tests.unit.factories import a_plan

SOFTWARE = {"torch": "2.13.0", "nccl": "2.28.9", "diffusers": "0.42.1", "driver": "580.1"}
GB = 10**9
HERE = RankFacts("A100", 80 * GB, SOFTWARE, RankSpeed(launch_s=5e-6, block_s=1e-3), 1e-4)
FACTS = (HERE,) * 4


def plan_made_here(**changes: Any) -> ExecutionPlan:
    """The example plan, made where `FACTS` were found."""
    fingerprint = a_plan().fingerprint.as_found(FACTS, ("nvlink",))
    return a_plan().model_copy(update={"fingerprint": fingerprint} | changes)


def other(rank: int, **changes: Any) -> tuple[RankFacts, ...]:
    """What is found where one rank is otherwise."""
    return tuple(
        dataclasses.replace(one, **changes) if number == rank else one
        for number, one in enumerate(FACTS)
    )


def test_a_plan_is_taken_where_it_was_made() -> None:
    plan = plan_made_here()
    assert plan.fingerprint.memory_bytes == (80 * GB,) * 4
    assert plan.require_place(FACTS, "nvlink") == ()


OTHERWISE: dict[str, tuple[tuple[RankFacts, ...], str, str]] = {
    "device": (other(2, device="L40"), "nvlink", "made for A100 on rank 2, there is L40"),
    "memory": (other(1, memory_bytes=40 * GB), "nvlink", "rank 1 has 40 GB .* with 80 GB: .* fit"),
    "links": (FACTS, "pcie", "for devices linked by nvlink, these are linked by pcie"),
    "torch": (
        other(3, software=SOFTWARE | {"torch": "2.11.0"}),
        "nvlink",
        "made with torch 2.13.0, rank 3 has 2.11.0: its kernels",
    ),
    "a library that is gone": (
        other(0, software={"torch": "2.13.0", "diffusers": "0.42.1", "driver": "580.1"}),
        "nvlink",
        "made with nccl 2.28.9, rank 0 has none: exchanges",
    ),
    "launch rate": (
        other(1, speed=RankSpeed(launch_s=9e-6, block_s=1e-3)),
        "nvlink",
        "takes rank 1 9 us, 1.8 times as long .*: its host is slower",
    ),
    "block": (
        other(0, speed=RankSpeed(launch_s=5e-6, block_s=1.8e-3)),
        "nvlink",
        "takes rank 0 1.8 ms, 1.8 times .*: its device is throttled",
    ),
    "collective": (
        other(3, collective_s=9e-4),
        "nvlink",
        "collective takes 0.9 ms, 9 times .*: the links are of another class",
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_is_otherwise_is_refused_with_what_it_means(case: str) -> None:
    facts, link, words = OTHERWISE[case]
    with pytest.raises(InputError, match=words) as refused:
        plan_made_here().require_place(facts, link)
    assert "ditplan run" in str(refused.value)


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_plan_that_warns_says_the_same_and_runs(case: str) -> None:
    facts, link, _ = OTHERWISE[case]
    plan = plan_made_here(on_mismatch="warn")
    assert len(plan.require_place(facts, link)) == 1


def test_what_is_otherwise_besides_is_named_too() -> None:
    found = other(2, device="L40", software=SOFTWARE | {"diffusers": "0.43.0"})
    with pytest.raises(InputError, match=r"there is L40 \(also diffusers 0\.43\.0\); run"):
        plan_made_here().require_place(found, "nvlink")


def test_versions_are_only_warned_of_where_a_plan_was_never_run() -> None:
    found = other(0, software=SOFTWARE | {"torch": "2.14.0"})
    (warned,) = plan_made_here(measurement=None).require_place(found, "nvlink")
    assert "torch 2.14.0" in warned.name


def test_noise_of_the_self_test_and_a_faster_machine_are_no_mismatch() -> None:
    noisy = RankSpeed(launch_s=7e-6, block_s=1e-9)
    assert plan_made_here().require_place(other(1, speed=noisy), "nvlink") == ()


def test_a_plan_from_before_there_was_a_self_test_is_taken() -> None:
    old = Fingerprint(cluster="x", devices=("A100",) * 4, link_kinds=(), software={})
    assert old.mismatches(FACTS, "nvlink") == ()


def test_facts_without_a_self_test_make_a_fingerprint_without_one() -> None:
    untimed = tuple(dataclasses.replace(one, speed=None, collective_s=None) for one in FACTS)
    found = a_plan().fingerprint.as_found(untimed, ("memory",))
    assert (found.self_test, found.memory_bytes) == (None, ())
    timed = a_plan().fingerprint.as_found(other(2, collective_s=3e-4), ("nvlink",))
    speeds = tuple(one.speed for one in FACTS if one.speed)
    assert timed.self_test == SelfTest(ranks=speeds, collective_s=3e-4)


TINY = find_model("sd3-tiny")
USUAL = usual_config(SD3Transformer2DModel)


def for_tiny(config: dict[str, Any] | None, digest: str = TINY.config_hash) -> ExecutionPlan:
    """A plan that knows this config of its model."""
    model = PlannedModel.of("sd3-tiny", "P", "SD3Transformer2DModel", digest, config)
    return a_plan().model_copy(update={"model": model})


def test_what_a_class_takes_for_a_config_without_a_key_is_known() -> None:
    made = SD3Transformer2DModel.from_config(TINY.config)
    assert {key: USUAL[key] for key in ("dual_attention_layers", "qk_norm")} == {
        "dual_attention_layers": [],
        "qk_norm": None,
    }
    assert plain_config(made.config).keys() <= USUAL.keys()


@pytest.mark.parametrize("recorded", [TINY.config, None])
def test_a_key_that_a_newer_diffusers_adds_makes_no_plan_foreign(
    recorded: dict[str, Any] | None,
) -> None:
    newer, usual = TINY.config | {"gate": "tanh"}, USUAL | {"gate": "tanh"}
    for_tiny(recorded).require_model("SD3Transformer2DModel", config_digest(newer), newer, usual)
    with pytest.raises(InputError, match="gate is 'sigmoid', the plan knows none; load"):
        other_gate = newer | {"gate": "sigmoid"}
        for_tiny(recorded).require_model(
            "SD3Transformer2DModel", config_digest(other_gate), other_gate, usual
        )


def test_another_architecture_is_refused_by_the_key_that_differs() -> None:
    deeper = TINY.config | {"num_layers": 99}
    layers = TINY.config["num_layers"]
    with pytest.raises(InputError, match=f"num_layers is 99, the plan has {layers}; load"):
        for_tiny(TINY.config).require_model(
            "SD3Transformer2DModel", config_digest(deeper), deeper, USUAL
        )
    with pytest.raises(InputError, match="with config beef, this"):
        for_tiny(None, "beef").require_model("SD3Transformer2DModel", "c0ffee", deeper, USUAL)


def test_a_key_that_is_gone_is_a_change() -> None:
    assert config_changes({"a": 1, "b": 2}, {"a": 1}, {}) == ("b is missing, the plan has 2",)


def test_a_saved_plan_is_signed_and_one_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = a_plan().save(tmp_path / "plan.json")
    saved = json.loads(path.read_text())
    assert saved["signature"] == signature_of(a_plan())
    assert ExecutionPlan.load(path) == a_plan()
    saved["workload"]["steps"] += 1
    with pytest.raises(InputError, match="were changed by hand"):
        ExecutionPlan.from_json(json.dumps(saved), "plan.json")
    saved["workload"]["steps"] -= 1
    saved["on_mismatch"] = "warn"
    assert ExecutionPlan.from_json(json.dumps(saved), "plan.json").on_mismatch == "warn"


def test_the_log_line_says_what_was_chosen_why_what_lost_and_the_evidence() -> None:
    line = chosen_line(a_plan())
    assert "plan cfg2 x ulysses2, eager" in line
    assert "measured 1.4 s on 4 x A100, predicted 1.5 s (computed)" in line
    assert "second best ulysses4, eager (more bytes to exchange)" in line
    assert evidence_of(a_plan()) in line
    assert "\n" not in line


def test_evidence_is_another_when_anything_was_measured_anew() -> None:
    measurement = a_plan().measurement
    assert measurement is not None
    again = measurement.model_copy(update={"latency_s": 1.5})
    changed = a_plan().model_copy(update={"measurement": again})
    assert evidence_of(changed) != evidence_of(a_plan())
    assert signature_of(changed) == signature_of(a_plan())


def test_a_signature_is_of_what_a_plan_is_for_not_of_what_runs() -> None:
    other_mesh = Configuration(Mesh(ring=4), (0, 1, 2, 3))
    changed = a_plan().model_copy(update={"configuration": other_mesh})
    assert signature_of(changed) == signature_of(a_plan())


def test_a_measured_plan_holds_within_a_tenth_of_its_runs() -> None:
    assert interval_of(a_plan()) == pytest.approx((1.4 / 1.1, 1.5 * 1.1))
    assert interval_of(a_plan().model_copy(update={"measurement": None})) == (1.25, 2.0)
