"""Planning from Python: three lines make a plan, and wrong settings are refused by their names."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ditplan
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.errors import InputError

ON_PAPER: dict[str, Any] = {"model": "sd3", "cluster": "8xa100-nvlink", "mode": "graph", "gpus": 4}


def test_three_lines_make_a_plan(tmp_path: Path) -> None:
    result = ditplan.plan(model="sd3", cluster="8xa100-nvlink")
    table = result.table()
    result.plan.save(tmp_path / "plan.json")

    shown = Console(file=io.StringIO(), width=120)
    shown.print(table)
    assert isinstance(shown.file, io.StringIO)
    assert str(result.plan.mesh) in shown.file.getvalue()
    found = result.to_json()
    assert isinstance(found["best"], dict)
    assert result.plan.prediction is not None
    assert found["best"]["latency_s"] == result.plan.prediction.latency_s
    assert str(result).startswith(str(result.plan.mesh))
    assert ditplan.load(tmp_path / "plan.json") == result.plan


def test_a_cluster_may_be_a_record_and_settings_that_are_none_are_left_out() -> None:
    by_name = ditplan.plan(**ON_PAPER, height=None, cfg=None)
    by_record = ditplan.plan(**(ON_PAPER | {"cluster": find_cluster("8xa100-nvlink")}))
    assert by_name.plan == by_record.plan


def test_settings_pin_what_they_name() -> None:
    result = ditplan.plan(**ON_PAPER, cfg=1, ulysses=2, height=512, width=512, quality="exact")
    plan = result.plan
    assert (plan.mesh.cfg, plan.mesh.ulysses) == (1, 2)
    assert (plan.workload.height, plan.workload.width) == (512, 512)
    assert plan.quality.exact


def test_a_mix_makes_a_book(tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text('[{"weight": 3}, {"weight": 1, "height": 512}]')
    settings = {name: value for name, value in ON_PAPER.items() if name != "cluster"}
    result = ditplan.plan_book(cluster="8xa100-nvlink", workloads=tmp_path / "mix.json", **settings)
    result.plan.save(tmp_path / "book.json")
    assert [entry.weight for entry in ditplan.PlanBook.load(tmp_path / "book.json").entries] == [
        3,
        1,
    ]
    with pytest.raises(InputError, match="PlanBook"):
        ditplan.load(tmp_path / "book.json")


def test_one_configuration_is_priced_as_the_command_line_does(tmp_path: Path) -> None:
    result = ditplan.simulate("sd3", "8xa100-nvlink", cfg=2, ulysses=4, mode="eager")
    found = result.to_json()
    assert f"latency {found['latency_s']:.4g} s" in str(result)
    assert result.save_trace(tmp_path / "t.json").stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 1000}, "height=1000: sd3 needs a multiple of 16"),
        ({"height": 0}, "height=0: input should be greater than 0"),
        ({"gpus": 0}, "gpus=0: input should be greater"),
        ({"ulysses": -1}, "ulysses=-1: input should be"),
        ({"objective": "beauty"}, "objective='beauty': input should be 'latency'"),
        ({"objective": "gpus"}, "with max_latency_s=S"),
        ({"dtype": "int3"}, "dtype='int3': input should be 'float32'"),
        ({"max_latency_s": float("nan")}, "max_latency_s=nan: "),
        ({"gpus": 9}, "use gpus=8 or less"),
        ({"measure": 2}, "to measure one give hosts alone"),
    ],
)
def test_wrong_settings_are_refused_by_their_names(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        ditplan.plan(**(ON_PAPER | settings))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("sampler", "cluster", "objective", "words"),
    [
        ("tpe", "8xa100-nvlink", "latency", "on paper none"),
        ("tpe", None, "throughput", "makes latency best"),
        ("grid", None, "latency", "there are planner, tpe, gp, random, brute-force"),
    ],
)
def test_samplers_are_refused_where_they_have_no_say(
    sampler: Any, cluster: str | None, objective: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        ditplan.plan("sd3-tiny", cluster, sampler=sampler, objective=objective)


def test_a_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no setting 'heigth'; there are .*height"):
        ditplan.plan(**ON_PAPER, heigth=512)  # type: ignore[call-arg]


def test_what_the_package_offers_is_there_and_nothing_else() -> None:
    assert set(ditplan.__all__) <= set(dir(ditplan))
    assert all(getattr(ditplan, name) for name in ditplan.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        ditplan.tune  # noqa: B018
