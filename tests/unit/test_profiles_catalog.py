"""What is shipped, and names that are nearly right."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.planner.task import workload_for
from ditplan.profiles import catalog, family
from ditplan.profiles.backends import backend_names, find_backend
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import AXES
from tests.unit.factories import a_cluster, a_model_spec


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of one model with weights, one without, and two clusters."""
    models, clusters = tmp_path / "models", tmp_path / "clusters"
    (models / "small").mkdir(parents=True)
    (models / "small/model_index.json").write_text("{}")
    clusters.mkdir()
    for name in ("small", "flux-dev"):
        a_model_spec().model_copy(update={"name": name}).save(models / f"{name}.json")
    for name in ("8xa100-nvlink", "2xh100-nvlink"):
        a_cluster().model_copy(update={"name": name}).save(clusters / f"{name}.json")
    monkeypatch.setattr(catalog, "MODELS", models)
    monkeypatch.setattr(catalog, "CLUSTERS", clusters)
    return tmp_path


def test_models_and_clusters_are_found_in_any_case(shipped: Path) -> None:
    assert catalog.model_names() == ["flux-dev", "small"]
    assert catalog.find_model("Flux-Dev").name == "flux-dev"
    assert catalog.find_cluster("8xA100-NVLink").name == "8xa100-nvlink"


@pytest.mark.parametrize(
    ("given_name", "nearest"), [("flux_dev", "flux-dev"), ("smal", "small"), ("FLUX", "flux-dev")]
)
def test_an_unknown_model_is_told_the_nearest(shipped: Path, given_name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {nearest}. Known: flux-dev, small"):
        catalog.find_model(given_name)


def test_a_name_like_no_other_gets_the_whole_list(shipped: Path) -> None:
    with pytest.raises(InputError, match="unknown model 'zzz': Known: flux-dev, small"):
        catalog.find_model("zzz")


def test_an_unknown_cluster_is_told_the_nearest(shipped: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 8xa100-nvlink. Known: 2xh100-nvlink, 8x"):
        catalog.find_cluster("8xa100")


def test_a_cluster_comes_from_a_file_as_well(shipped: Path) -> None:
    path = a_cluster().save(shipped / "mine.json")
    assert catalog.find_cluster(str(path)) == a_cluster()
    with pytest.raises(InputError, match=r"none.json: no such file; expected a cluster profile"):
        catalog.find_cluster(str(shipped / "none.json"))


def test_a_folder_named_like_a_cluster_does_not_hide_it(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shipped)
    (shipped / "8xa100-nvlink").mkdir()
    assert catalog.find_cluster("8xa100-nvlink").name == "8xa100-nvlink"


def test_weights_are_found_only_where_they_are_shipped(shipped: Path) -> None:
    assert catalog.shipped_weights("small") == shipped / "models/small"
    assert catalog.shipped_weights("flux-dev") is None


def test_every_shipped_model_and_cluster_loads_under_its_own_name() -> None:
    for name in catalog.model_names():
        spec = catalog.find_model(name)
        assert spec.name == name
        assert family.family_of(spec.transformer_class).name == spec.family
    for name in catalog.cluster_names():
        assert catalog.find_cluster(name).name == name


def test_every_shipped_family_is_found_by_its_class() -> None:
    families = family.load_families()
    assert {"FluxTransformer2DModel", "SD3Transformer2DModel"} <= set(families)
    assert all(family.family_of(name) == known for name, known in families.items())
    assert sorted(known.name for known in families.values()) == list(family.family_names())


def test_an_unknown_transformer_class_is_told_which_there_are() -> None:
    with pytest.raises(InputError, match=r"UNet2DModel: no family .* sana, sd3, wan"):
        family.family_of("UNet2DModel")


@pytest.mark.parametrize("guidance", [True, False])
def test_guidance_is_not_asked_of_a_model_that_has_it_as_an_input(guidance: bool) -> None:
    flux, sd3 = catalog.find_model("flux-dev"), catalog.find_model("sd3")
    assert workload_for(flux, "cuda").passes == 1
    assert workload_for(sd3, "cuda", guidance=guidance).guidance == guidance
    asked = f"guidance={guidance}"
    with pytest.raises(InputError, match=f"{asked}: flux-dev makes one pass a step"):
        workload_for(flux, "cuda", guidance=guidance)


def test_backends_name_only_axes_of_the_mesh() -> None:
    for name in backend_names():
        backend = find_backend(name)
        assert backend.name == backend.capabilities.name == name
        assert set(backend.capabilities.axes) <= set(AXES)
    with pytest.raises(InputError, match=r"unknown backend 'nativ'; there is .*native"):
        find_backend("nativ")


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 64), st.integers(0, 9))
def test_image_tokens_count_whole_squares_and_begun_frames(
    height: int, width: int, frames: int, more: int
) -> None:
    spec = a_model_spec()
    shape = spec.defaults.model_copy(
        update={"height": height, "width": width, "frames": frames, "condition_tokens": more}
    )
    squares = len(range(15, height, 16)) * len(range(15, width, 16))
    assert spec.image_tokens(shape) == squares * len(range(0, frames, 4)) + more


def test_sizes_of_a_model_sum_over_its_blocks() -> None:
    spec = a_model_spec()
    assert spec.transformer_parameters == 100 + 3 * 1000 + 500
    assert spec.block_count == 4
    assert spec.heads == 5
    assert spec.width == 640
