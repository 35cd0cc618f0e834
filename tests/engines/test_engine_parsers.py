"""What `export` writes, read by the engines' own parsers and classes: `make engines-test`."""

import ast
import shlex
from importlib.metadata import PathDistribution
from itertools import product
from pathlib import Path

import pytest
import yaml

from ditplan.exporting.export import export
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.catalog import cluster_names, find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from tests.engines.source_parser import StrictParser, parser_of

ENGINES = Path(__file__).parents[2] / ".engines"
SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "xdit": ("xfuser/config/args.py", ("add_cli_args",)),
    "sglang": ("sglang/multimodal_gen/runtime/server_args/*.py", ()),
    "vllm-omni": ("vllm_omni/entrypoints/cli/serve.py", ()),
}
VERSIONS = {"cache_dit": "1.5.3", "sglang": "0.5.23", "vllm_omni": "0.30.0", "xfuser": "0.7.0"}
VLLM_OWN = ("--enforce-eager",)
"""Flags of vLLM itself, whose parser isn't among these wheels."""
MODELS = ("sd3", "flux-dev", "qwen-image", "pixart-sigma", "wan2.1-1.3b")
LEAST_PLANS = 40

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def plans() -> list[ExecutionPlan]:
    """The best plans of models on clusters, and of each legal mesh that servers have."""
    found = []
    for model, cluster in product(MODELS, cluster_names()):
        spec = find_model(model)
        found.append(search(Task(spec, spec.defaults, find_cluster(cluster))).to_plan())
        passes = spec.defaults.passes
        for cfg, ring, ulysses in product(range(1, passes + 1), (1, 2), (1, 2, 4)):
            mesh = Mesh(cfg=cfg, ring=ring, ulysses=ulysses)
            planned = PlannedModel.of_spec(spec)
            found.append(bare_plan(planned, spec.defaults, mesh, mode="compile"))
    return found


def parser_for(to: str) -> StrictParser:
    """The parser of an engine."""
    pattern, functions = SOURCES[to]
    return parser_of(sorted(ENGINES.glob(pattern)), functions)


def words_of(text: str) -> list[str]:
    """The flags of an exported command, as a shell would hand them on."""
    command = text.split("set -euo pipefail")[1].replace("\\\n", " ").replace('"$@"', "")
    words = shlex.split(command)
    return words[next(n for n, word in enumerate(words) if word.startswith("--")) :]


def flags_of(to: str, text: str) -> list[str]:
    """Those that are for the engine, not for what starts it."""
    words = words_of(text)
    if to == "xdit":
        words = words[words.index("--model") :]
    return [word for word in words if word not in VLLM_OWN]


@pytest.mark.parametrize("name", VERSIONS)
def test_the_versions_are_those_that_exports_name(name: str) -> None:
    (info,) = ENGINES.glob(f"{name}-*.dist-info")
    assert PathDistribution(info).version == VERSIONS[name]


@pytest.mark.parametrize("to", SOURCES)
def test_engines_read_every_exported_plan(to: str, plans: list[ExecutionPlan]) -> None:
    parser, read = parser_for(to), 0
    for plan in plans:
        try:
            text = export(plan, to, "plan.json").text
        except InputError:
            continue
        found = vars(parser.parse_args(flags_of(to, text)))
        read += 1
        ulysses, ring = (found.get(f"{axis}_degree") for axis in ("ulysses", "ring"))
        # vLLM-Omni's flags have a short name, too, by which the parser knows them
        gather = found.get("kv_gather_degree") or found.get("allgather_degree") or 1
        degrees = (ulysses or found.get("usp"), int(ring or found["ring"]) * int(gather))
        assert degrees == (plan.mesh.ulysses, plan.mesh.ring)
        if to != "xdit":
            assert found["num_gpus"] == plan.mesh.size
    assert read >= LEAST_PLANS


@pytest.mark.parametrize("to", SOURCES)
def test_a_flag_that_an_engine_does_not_have_is_noticed(to: str) -> None:
    with pytest.raises(ValueError, match="unrecognized arguments: --no-such-flag"):
        parser_for(to).parse_args(["--no-such-flag", "1"])


@pytest.mark.parametrize(
    ("to", "file", "owner"),
    [
        ("sglang-config", "sglang/multimodal_gen/runtime/server_args/server_args.py", "ServerArgs"),
        ("vllm-omni-deploy", "vllm_omni/config/stage_config.py", "StageDeployConfig"),
    ],
)
def test_servers_have_the_fields_of_exported_files(to: str, file: str, owner: str) -> None:
    spec = find_model("wan2.1-14b")
    mesh = Mesh(cfg=2, ring=2, ulysses=2)
    plan = bare_plan(PlannedModel.of_spec(spec), spec.defaults, mesh, weights="sharded")
    read = yaml.safe_load(export(plan, to, "plan.json").text)
    fields = read["stages"][0] if "stages" in read else read
    classes = ast.walk(ast.parse((ENGINES / file).read_text()))
    found = next(one for one in classes if isinstance(one, ast.ClassDef) and one.name == owner)
    known = {ast.unparse(line.target) for line in found.body if isinstance(line, ast.AnnAssign)}
    assert fields.keys() <= known
    assert fields["ulysses_degree"] == fields["ring_degree"] == 2


def test_cache_dit_has_the_fields_that_exports_set(plans: list[ExecutionPlan]) -> None:
    tree = ast.parse((ENGINES / "cache_dit/distributed/config.py").read_text())
    config = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "ParallelismConfig"
    )
    fields = {
        line.target.id
        for line in config.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    read = 0
    for plan in plans:
        if plan.mesh.cfg > 1 or plan.mesh.pipefusion > 1 or plan.mesh.size == 1:
            continue
        try:
            text = export(plan, "cache-dit", "plan.json").text
        except InputError:
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        made = [call for call in calls if ast.unparse(call.func).endswith("ParallelismConfig")]
        assert {word.arg for word in made[0].keywords} <= fields
        read += 1
    assert read >= LEAST_PLANS
