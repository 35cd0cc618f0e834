"""Backends as plug-ins: how they are found, what is said of broken ones, and ours."""

import importlib
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from ditplan.backends import Capabilities
from ditplan.cli import app
from ditplan.exporting.export import LAUNCHERS, export
from ditplan.planner.search.pricing import price_one
from ditplan.planner.task import Task
from ditplan.profiles.backends import (
    GROUP,
    OWN,
    BrokenBackend,
    LoadedBackend,
    find_backend,
    installed,
)
from ditplan.profiles.backends import LAUNCHERS as RESERVED
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.configuration import Configuration, PipeFusion, TaylorSeer
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh, placement_of
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from tests.unit.json_page import documented

ROOT = Path(__file__).parents[2]
SD3 = find_model("sd3")
GOOD = """
from ditplan.backends import Backend, Capabilities, CostConstants, Exported, Prepared

CAN = Capabilities(
    name="{name}",
    axes=("cfg",),
    modes=("eager",),
    cpu_modes=(),
    families=("sd3",),
    runs="elsewhere",
)

class Plugin:
    def capabilities(self): return CAN
    def costs(self): return CostConstants()
    def why_unsupported(self, configuration, model, workload):
        if workload.steps > 99: return "more than 99 steps; use 99 or fewer"
        return CAN.why_unsupported(configuration, model)
    def prepare(self, pipeline, plan, context): raise NotImplementedError
    def emit(self, plan, file): return Exported("{name}", f"start {{file}}\\n", ())

PLUGIN = Plugin()
"""
BROKEN = {
    "import error": ("import no_such_engine", "ModuleNotFoundError: No module named"),
    "engine that exits": ("import sys\nsys.exit('no GPU')", "SystemExit: no GPU"),
    "no such object": ("X = 1", "has no attribute 'PLUGIN'"),
    "class": (GOOD.replace("PLUGIN = Plugin()", "PLUGIN = Plugin"), "it names the class Plugin"),
    "no method": (GOOD.replace("def emit", "def emits"), "it has no method emit()"),
    "other arguments": (GOOD.replace("emit(self, plan, file)", "emit(self, plan)"), "emit(plan, "),
    "no capabilities": (
        GOOD.replace("return CAN\n", "return {{}}\n"),
        "capabilities() gives a dict",
    ),
    "unknown axis": (GOOD.replace('("cfg",)', '("tp",)'), "'tp' is none of dp, cfg"),
    "other name": (GOOD.replace('name="{name}"', 'name="x"'), "its capabilities are called 'x'"),
    "no costs": (GOOD.replace("return CostConstants()", "return 1.0"), "costs() gives a float"),
    "a mode without costs": (
        GOOD.replace("CostConstants()", "CostConstants(modes={{}})"),
        "costs() has nothing for mode eager",
    ),
}


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a distribution with one module, whose entry points are those given."""

    def install(distribution: str, text: str, *names: str) -> None:
        module = f"module_of_{distribution}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{distribution.replace('-', '_')}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: 2.0\n")
        points = "".join(f"{name} = {module}:PLUGIN\n" for name in names)
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
        importlib.invalidate_caches()
        installed.cache_clear()
        find_backend.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.startswith("module_of_")]:
        del sys.modules[name]
    installed.cache_clear()
    find_backend.cache_clear()


def shown(*arguments: str) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None, done.output
    return done.output


def refused(name: str) -> str:
    """What is said of a backend that can't be used."""
    with pytest.raises(InputError) as caught:
        find_backend(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def planned(mesh: Mesh, backend: str, **parts: Any) -> ExecutionPlan:
    plan = bare_plan(PlannedModel.of_spec(SD3), SD3.defaults, mesh, **parts)
    return plan.model_copy(update={"backend": backend})


def test_ours_are_entry_points_of_this_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][GROUP] == OWN


def test_a_plug_in_is_found_by_its_entry_point_and_priced_by_its_costs(plug_in: Any) -> None:
    plug_in("third-party", GOOD.format(name="third"), "third")
    backend = find_backend("third")
    assert (backend.name, backend.origin) == ("third", "third-party 2.0")
    task = Task(SD3, SD3.defaults, find_cluster("2xh100-nvlink"), backend=backend)
    assert price_one(task, Mesh(cfg=2), "eager").prediction.latency_s > 0
    with pytest.raises(InputError, match="third can't run ulysses2: it has cfg"):
        price_one(task, Mesh(ulysses=2), "eager")


def test_what_a_plug_in_alone_refuses_is_refused_in_its_words(plug_in: Any) -> None:
    plug_in("third-party", GOOD.format(name="third"), "third")
    command = ["simulate", "--model", "sd3", "--cluster", "2xh100-nvlink", "--backend", "third"]
    assert "backend third" in shown(*command, "--cfg", "2")
    done = CliRunner().invoke(app, [*command, "--steps", "100"])
    assert "more than 99 steps; use 99 or fewer" in str(done.exception)
    done = CliRunner().invoke(app, ["tune", *command[1:], "--steps", "100"])
    assert "more than 99 steps" in str(done.exception)
    done = CliRunner().invoke(app, [*command[:2], "flux-dev", *command[3:]])
    assert "third doesn't run flux-dev: it has the families sd3" in str(done.exception)


def test_an_unknown_backend_is_told_which_are_installed(plug_in: Any) -> None:
    plug_in("third-party", GOOD.format(name="third"), "third")
    message = refused("thrid")
    assert all(name in message for name in (*OWN, "third"))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plug_in_is_named_in_a_line_and_the_others_work(plug_in: Any, fault: str) -> None:
    text, words = BROKEN[fault]
    plug_in("broken-party", text.format(name="broken"), "broken")
    message = refused("broken")
    assert "backend 'broken' (broken-party 2.0, module_of_broken_party:PLUGIN)" in message
    assert words in message
    found = installed().load_all()
    assert [one.name for one in found if isinstance(one, LoadedBackend)] == list(OWN)
    assert [one.why for one in found if isinstance(one, BrokenBackend)] == [message]
    assert f"broken: {message}" in shown("list", "backends")
    assert find_backend("native").name == "native"


def test_a_backend_is_not_called_as_a_launcher(plug_in: Any) -> None:
    plug_in("third-party", GOOD.format(name="slurm"), "slurm")
    assert "plans are exported to the launcher slurm by that name" in refused("slurm")
    assert tuple(LAUNCHERS) == RESERVED


def test_a_name_that_two_claim_is_nobodys_and_ours_stay_ours(plug_in: Any) -> None:
    plug_in("party-a", GOOD.format(name="twice"), "twice", "native")
    plug_in("party-b", GOOD.format(name="twice"), "twice")
    assert "'twice' is claimed by party-a 2.0 and party-b 2.0" in refused("twice")
    assert find_backend("native").origin == "ditplan"
    broken = [one for one in installed().load_all() if isinstance(one, BrokenBackend)]
    assert [(one.name, one.origin) for one in broken] == [
        ("native", "party-a 2.0"),
        ("twice", "party-a 2.0, party-b 2.0"),
    ]


def test_an_installed_ditplan_claims_its_names_once(plug_in: Any) -> None:
    plug_in("ditplan", "", *OWN)
    assert [one.name for one in installed().load_all()] == list(OWN)
    assert all(isinstance(one, LoadedBackend) for one in installed().load_all())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Two Words"),
        ("axes", ("cfg", "cfg")),
        ("approximate_axes", ("pipefusion",)),
        ("modes", ()),
        ("modes", ("fast",)),
        ("cpu_modes", ("compile",)),
        ("families", ("sdxl",)),
        ("staged_families", ("flux",)),
        ("runs", "here"),
        ("flags", ()),
    ],
)
def test_capabilities_that_are_not_legal_are_refused(field: str, value: object) -> None:
    fields: dict[str, Any] = {
        "name": "x",
        "axes": ("cfg",),
        "modes": ("eager",),
        "cpu_modes": ("eager",),
        "families": ("sd3",),
        "runs": "in ranks",
    }
    Capabilities(**fields)
    with pytest.raises(ValidationError, match=field):
        Capabilities(**fields | {field: value})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"mode": "graph"}, "has no mode graph; it has eager"),
        ({"weights": "sharded"}, "has no weights in pieces"),
        ({"step_cache": TaylorSeer(interval=2)}, "has no step caches"),
        ({"token_shares": (2, 1)}, "has no unequal shares of tokens"),
        (
            {
                "pipefusion": PipeFusion(
                    blocks_per_stage=(12, 12), patches=2, warmup_steps=1, schedule="folded"
                )
            },
            "has no folded schedule",
        ),
    ],
)
def test_what_is_not_claimed_is_refused(parts: dict[str, Any], words: str) -> None:
    bare = Capabilities(
        name="bare",
        axes=("ulysses",),
        modes=("eager",),
        cpu_modes=(),
        families=("sd3",),
        runs="never",
    )
    mesh = Mesh(ulysses=2)
    asked = Configuration(mesh, placement_of(mesh), **parts)
    assert words in (bare.why_unsupported(asked, SD3) or "")
    assert find_backend("native").why_unsupported(asked, SD3, SD3.defaults) is None


def test_list_backends_prints_what_is_documented() -> None:
    found = json.loads(shown("list", "backends", "--json"))
    assert found.keys() == documented("list backends")
    assert found["names"] == list(OWN)
    native = found["backends"][0]
    assert (native["origin"], native["runs"]) == ("ditplan", "in ranks")
    assert native["cpu_modes"] == ["eager", "compile"]


def test_a_dry_run_says_what_each_rank_would_run_and_runs_nothing(tmp_path: Path) -> None:
    stages = PipeFusion(blocks_per_stage=(10, 14), patches=2, warmup_steps=1)
    plan = planned(Mesh(cfg=2, pipefusion=2), "dry-run", pipefusion=stages)
    file = plan.save(tmp_path / "plan.json")
    command = ["run", "--plan", str(file), "--prompt", "x", "--out", str(tmp_path / "x.png")]
    said = shown(*command)
    assert "nothing runs" in said
    assert "rank 3: cfg 1, pipefusion 1, blocks 10, 11" in said
    assert "cfg among (0, 2), (1, 3)" in said
    found = json.loads(shown(*command, "--json"))
    assert (found["out"], found["latency_s"], found["ranks"]) == (None, None, 4)
    assert found["would_run"] + "\n" == export(plan, "dry-run", str(file)).text
    assert not (tmp_path / "x.png").exists()


def test_a_plan_of_a_backend_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    file = planned(Mesh(cfg=2), "gone").save(tmp_path / "plan.json")
    done = CliRunner().invoke(
        app, ["run", "--plan", str(file), "--prompt", "x", "--out", str(tmp_path / "x.png")]
    )
    assert "unknown backend 'gone'; there is native" in str(done.exception)


def test_a_plan_of_an_engine_is_not_run_here(tmp_path: Path) -> None:
    file = planned(Mesh(cfg=2), "xdit").save(tmp_path / "plan.json")
    done = CliRunner().invoke(
        app, ["run", "--plan", str(file), "--prompt", "x", "--out", str(tmp_path / "x.png")]
    )
    assert "plans of backend xdit are priced here and not run" in str(done.exception)
