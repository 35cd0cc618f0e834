"""What engines call things: one table an engine, by which plans are exported and configurations
of users are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ditplan.profiles.configuration import Configuration

Kind = Literal["count", "counts", "rest", "number", "switch", "boolean", "text"]
"""What stands behind a flag: a whole number from 0 on, several, one or `auto` for all ranks that
are left, any number, nothing (in a file true or false), true or false (true where nothing stands),
words."""

Meaning = Literal[
    # of the mesh
    "dp", "cfg", "pipefusion", "ring", "ulysses", "gpus", "sequence", "cfg_pair",
    # of PipeFusion, and how ranks run their share
    "patches", "warmup_steps", "blocks_per_stage", "compile", "eager", "sharded", "uneven_heads",
    "kv_gather",
    # what isn't exported: other parallelisms, hosts, and what is beside the denoising loop
    "tensor", "stages_of_layers", "parallel_type", "hosts", "denoiser_gpus",
    "more_gpus", "aside",
    # of the call
    "model", "height", "width", "frames", "steps", "scale", "batch", "text_tokens", "negative",
]  # fmt: skip


@dataclass(frozen=True)
class Word:
    """A setting of an engine: what it means and its names, with underscores.

    The first name is the one that is written. `field` is its name in the engine's configuration
    file where that is another. A `sparse` one is left out where it is 1.
    """

    means: Meaning
    names: tuple[str, ...]
    kind: Kind = "count"
    field: str | None = None
    sparse: bool = False
    is_written: bool = True

    @property
    def in_file(self) -> str:
        """Its name in the engine's configuration file."""
        return self.field or self.names[0]


@dataclass(frozen=True)
class EngineWords:
    """The settings of an engine; its flags are written with dashes or with underscores, and read
    with either.
    """

    words: tuple[Word, ...]
    has_dashes: bool = True

    def has(self, meaning: Meaning) -> bool:
        """Whether the engine can say it."""
        return any(word.means == meaning and word.is_written for word in self.words)

    def find(self, name: str) -> Word | None:
        """What a flag means, by its name with underscores."""
        return next((word for word in self.words if name in word.names), None)

    def find_field(self, name: str) -> Word | None:
        """What a field of the engine's configuration file means."""
        return next((word for word in self.words if name == word.in_file), None)

    def flag(self, word: Word) -> str:
        """How a flag is typed."""
        name = word.names[0]
        return f"--{name.replace('_', '-') if self.has_dashes else name}"

    def gathers(self, one: Configuration) -> bool:
        """Whether a ring that gathers its keys first is said as such, in place of a ring."""
        mesh = one.mesh
        alone = mesh.ring > 1 and mesh.ulysses == 1
        return self.has("kv_gather") and one.ring == "gather" and alone

    def said(
        self, one: Configuration, *, has_uneven_heads: bool = False
    ) -> Iterator[tuple[Word, str | int | bool | tuple[int, ...]]]:
        """What the engine is to be told of a configuration, in the table's order."""
        for word in self.words:
            if not word.is_written:
                continue
            value = _value(word.means, one)
            if word.means == "kv_gather":
                value = one.mesh.ring if self.gathers(one) else None
            if word.means == "ring" and self.gathers(one):
                value = 1
            if word.means == "uneven_heads":
                value = "advanced_uaa" if has_uneven_heads else None
            if value is not None and not (word.sparse and value == 1):
                yield word, value


def _value(meaning: Meaning, one: Configuration) -> str | int | bool | tuple[int, ...] | None:
    """What a configuration says of a meaning; None where there is nothing to say."""
    mesh, part = one.mesh, one.pipefusion
    degrees = dict(zip(("dp", "cfg", "pipefusion", "ring", "ulysses"), mesh.degrees, strict=True))
    if meaning in degrees:
        return degrees[meaning]
    switches: dict[str, bool] = {
        "cfg_pair": mesh.cfg > 1,
        "compile": "compile" in one.mode,
        "eager": "compile" not in one.mode,
        "sharded": one.weights == "sharded",
    }
    if meaning in switches:
        return switches[meaning] or None
    if meaning in ("gpus", "sequence"):
        return mesh.size if meaning == "gpus" else mesh.sequence_parallel
    if part and meaning in ("patches", "warmup_steps", "blocks_per_stage"):
        value: int | tuple[int, ...] = getattr(part, meaning)
        return value
    return None


def _read(means: Meaning, *names: str, kind: Kind = "count", field: str | None = None) -> Word:
    """A setting that is read and never written."""
    return Word(means, names, kind, field, is_written=False)


CALL = (
    _read("model", "model", "model_path", kind="text"),
    _read("height", "height"),
    _read("width", "width"),
    _read("frames", "num_frames", "frames", "video_length"),
    _read("steps", "num_inference_steps", "steps", "infer_steps"),
    _read("scale", "true_cfg_scale", "cfg_scale", "guidance_scale", kind="number"),
    _read("batch", "batch_size", "num_images_per_prompt", "num_outputs_per_prompt"),
    _read("text_tokens", "max_sequence_length"),
    _read("negative", "negative_prompt", kind="text"),
)
"""What of a call is called the same by all; a setting of its own takes the place of these."""

XDIT_WORDS = EngineWords(
    (
        Word("dp", ("data_parallel_degree",)),
        Word("ulysses", ("ulysses_degree",)),
        Word("ring", ("ring_degree",)),
        Word("pipefusion", ("pipefusion_parallel_degree",)),
        Word("cfg_pair", ("use_cfg_parallel",), "switch"),
        Word("patches", ("num_pipeline_patch",)),
        Word("warmup_steps", ("warmup_steps",)),
        Word("blocks_per_stage", ("attn_layer_num_for_pp",), "counts"),
        Word("compile", ("use_torch_compile",), "switch"),
        Word("sharded", ("shard_dit", "use_fsdp"), "switch"),
        _read("tensor", "tensor_parallel_degree"),
        _read("denoiser_gpus", "dit_parallel_size"),
        _read("more_gpus", "vae_parallel_size"),
        _read("aside", "text_encoder_tp_degree"),
        _read("aside", "use_parallel_vae", "shard_t5_encoder", kind="switch"),
        *CALL,
    ),
    has_dashes=False,
)
SGLANG_WORDS = EngineWords(
    (
        Word("gpus", ("num_gpus",)),
        # a sequence of two ranks would be a gather of keys and values if it weren't said
        Word("sequence", ("sp_degree",)),
        Word("ulysses", ("ulysses_degree",)),
        Word("ring", ("ring_degree",)),
        Word("dp", ("dp_size", "data_parallel_size")),
        Word("cfg", ("cfg_parallel_size",), field="cfg_parallel_degree"),
        Word("compile", ("enable_torch_compile",), "boolean"),
        Word("sharded", ("use_fsdp_inference",), "boolean"),
        _read("cfg_pair", "enable_cfg_parallel", kind="boolean"),
        Word("kv_gather", ("kv_gather_degree",)),
        _read("tensor", "tp_size"),
        _read("hosts", "nnodes"),
        _read("aside", "node_rank", "encoder_tp", "denoiser_tp", "decoder_sp"),
        _read("aside", "encoder_parallel", "gpu_ids", "base_gpu_id", kind="text"),
        *CALL,
    )
)
VLLM_WORDS = EngineWords(
    (
        Word("gpus", ("num_gpus",)),
        Word("ulysses", ("ulysses_degree", "usp")),
        Word("ring", ("ring_degree", "ring")),
        Word("cfg", ("cfg_parallel_size",)),
        Word("dp", ("data_parallel_size", "dp"), sparse=True),
        Word("eager", ("enforce_eager",), "switch"),
        Word("sharded", ("use_hsdp",), "switch"),
        Word("uneven_heads", ("ulysses_mode",), "text"),
        _read("sequence", "sequence_parallel_size"),
        Word("kv_gather", ("allgather_degree",)),
        _read("tensor", "tensor_parallel_size", "tp"),
        _read("stages_of_layers", "pipeline_parallel_size", "pp"),
        _read("aside", "vae_patch_parallel_size", "text_encoder_tp_size", "hsdp_shard_size"),
        _read("aside", "vae_parallel_mode", "hsdp_replicate_size", kind="text"),
        _read("aside", "ulysses_a2a_permute", "enable_expert_parallel", kind="switch"),
        *CALL,
    )
)
DIFFUSERS_WORDS = EngineWords(
    (
        Word("ring", ("ring_degree",), sparse=True),
        Word("ulysses", ("ulysses_degree",), sparse=True),
        _read("compile", "compile", kind="switch"),
        _read("uneven_heads", "ulysses_anything", kind="boolean"),
        _read("aside", "ring_anything", "convert_to_fp32", kind="boolean"),
        _read("aside", "rotate_method", kind="text"),
        *CALL,
    ),
    has_dashes=False,
)
CACHE_DIT_WORDS = EngineWords(
    (
        Word("ring", ("ring_size", "ring"), "rest", sparse=True),
        Word("ulysses", ("ulysses_size", "ulysses"), "rest", sparse=True),
        _read("tensor", "tp_size", "tp"),
        _read("parallel_type", "parallel_type", "parallel", kind="text"),
        _read("compile", "compile", kind="switch"),
        _read("uneven_heads", "ulysses_anything", "uaa", kind="boolean"),
        _read("aside", "ulysses_float8", "ulysses_async", "ufp8", "uaqkv", kind="boolean"),
        _read("aside", "ring_rotate_method", "rotate", kind="text"),
        _read("aside", "ring_no_convert_to_fp32", "ring_no_fp32", "no_fp32", kind="switch"),
        _read("aside", "parallel_vae", "parallel_text_encoder", "parallel_text", kind="switch"),
        _read("aside", "parallel_controlnet", kind="switch"),
        _read("aside", "backend", "extra_parallel_modules", "extra_parallel_kwargs", kind="text"),
        _read("aside", "parallel_kwargs", kind="text"),
        *CALL,
    )
)
