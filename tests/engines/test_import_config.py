"""What `import-config` makes of flags, against what the engines' own classes make of them: `make
engines-test`.
"""

from collections.abc import Mapping
from itertools import product

import pytest

from ditplan.importing.present import ENGINES, Present, Surroundings, present_of
from ditplan.importing.read import read_text_or_file
from ditplan.importing.understood import understand
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from tests.engines.source_classes import accept_sglang, accept_vllm_omni

LEAST_TAKEN = 20

pytestmark = pytest.mark.engines


def read(engine: str, flags: Mapping[str, int], *, guided: bool) -> Present:
    """What is read of an engine's flags."""
    words = (f"--{name.replace('_', '-')} {count}" for name, count in flags.items())
    said = understand(read_text_or_file(f"serve {' '.join(words)}", engine), ENGINES[engine].words)
    return present_of(ENGINES[engine], said, Surroundings(guides=guided))


def sglang_s(flags: Mapping[str, int], *, guided: bool) -> Mesh | None:
    """The mesh that SGLang makes of flags; None where it refuses them."""
    renamed = {"cfg_parallel_size": "cfg_parallel_degree"}
    fields = {renamed.get(name, name): count for name, count in flags.items()}
    try:
        own = accept_sglang(guided=guided, **fields)
    except ValueError:
        return None
    gathered = own.kv_gather_degree
    ring, ulysses = (gathered, 1) if gathered > 1 else (own.ring_degree, own.ulysses_degree)
    return Mesh(dp=own.dp_size, cfg=own.cfg_parallel_degree, ring=ring, ulysses=ulysses)


def vllm_omni_s(flags: Mapping[str, int]) -> Mesh | None:
    """The mesh that vLLM-Omni makes of flags; None where it refuses them."""
    try:
        own = accept_vllm_omni(**flags)
    except (ValueError, AssertionError):
        return None
    ring = max(own.ring_degree, own.allgather_degree)
    cfg, ulysses = own.cfg_parallel_size, own.ulysses_degree
    return Mesh(dp=own.data_parallel_size, cfg=cfg, ring=ring, ulysses=ulysses)


def combinations(counts: Mapping[str, tuple[int | None, ...]]) -> list[dict[str, int]]:
    """All flags of these values, those that are None left out."""
    found = product(*counts.values())
    return [
        {name: count for name, count in zip(counts, values, strict=True) if count is not None}
        for values in found
    ]


@pytest.mark.parametrize("guided", [True, False])
def test_sglang_s_flags_are_read_as_sglang_takes_them(*, guided: bool) -> None:
    degrees = {"num_gpus": (2, 4, 8), "sp_degree": (None, 4), "ulysses_degree": (None, 2, 4)}
    others = {"ring_degree": (None, 2), "dp_size": (None, 2), "cfg_parallel_size": (None, 2)}
    taken = 0
    for flags in combinations({**degrees, **others}):
        own = sglang_s(flags, guided=guided)
        try:
            found = read("sglang", flags, guided=guided)
        except InputError:
            # its class accepts what leaves GPUs without work, and what there are too few for
            assert own is None or own.size != flags["num_gpus"], flags
            continue
        assert found.mesh == own, flags
        taken += 1
    assert taken >= LEAST_TAKEN


def test_vllm_omni_s_flags_are_read_as_vllm_omni_takes_them() -> None:
    degrees = {"num_gpus": (4, 8), "ulysses_degree": (None, 2, 4), "ring_degree": (None, 2)}
    others = {
        "allgather_degree": (None, 2),
        "cfg_parallel_size": (None, 2),
        "sequence_parallel_size": (None, 4),
        "data_parallel_size": (None, 2),
    }
    taken = 0
    for flags in combinations({**degrees, **others}):
        own = vllm_omni_s(flags)
        try:
            found = read("vllm-omni", flags, guided=True)
        except InputError:
            assert own is None, flags
            continue
        assert found.mesh == own, flags
        taken += 1
    assert taken >= LEAST_TAKEN
