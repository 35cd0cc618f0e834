"""What the engines' own configuration classes accept: run from their source, since importing one
takes a GPU or gigabytes.
"""

import ast
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import typing_extensions
from diffusers import ContextParallelConfig
from pydantic import dataclasses, model_validator

ENGINES = Path(__file__).parents[2] / ".engines"


def names_of(path: str, wanted: Sequence[str], names: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and functions of a file by name, as Python makes them; `Class.method` is a method as
    a function. `names` are what they take from elsewhere.
    """
    tree = ast.parse((ENGINES / path).read_text(encoding="utf-8"))
    bodies = {"": tree.body}
    bodies |= {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {"logger": logging.getLogger(path), "os": os, "torch": torch, **names}
    found |= vars(typing_extensions)
    for name in wanted:
        owner, _, own = name.rpartition(".")
        (node,) = (one for one in bodies[owner] if getattr(one, "name", None) == own)
        exec(compile(ast.Module([node], []), path, "exec"), found)
    return found


def accept_xdit(
    *,
    warmup_steps: int = 1,
    cfg: bool = False,
    dp: int = 1,
    ulysses: int = 1,
    ring: int = 1,
    stages: int = 1,
    patches: int | None = None,
    division: list[int] | None = None,
    world: int,
) -> Any:
    """What `xFuserArgs.create_config` makes of its flags on so many ranks."""
    parts = ["Runtime", "DataParallel", "SequenceParallel", "TensorParallel", "FullyShard"]
    parts += ["VaeParallel", "PipeFusionParallel", "Parallel"]
    wanted = [f"{part}Config" for part in parts]
    names: dict[str, Any] = {
        "dataclass": dataclass,
        "HAS_LONG_CTX_ATTN": True,
        "DEFAULT_FP8_COMMS_SAFETY_FACTOR": 0.85,
        "check_packages": lambda: None,
    }
    own = names_of("xfuser/config/config.py", wanted, names)
    own["RuntimeConfig"](warmup_steps=warmup_steps)
    size = {"dit_parallel_size": world}
    return own["ParallelConfig"](
        dp_config=own["DataParallelConfig"](dp_degree=dp, use_cfg_parallel=cfg, **size),
        sp_config=own["SequenceParallelConfig"](ulysses_degree=ulysses, ring_degree=ring, **size),
        pp_config=own["PipeFusionParallelConfig"](
            pp_degree=stages, num_pipeline_patch=patches, attn_layer_num_for_pp=division, **size
        ),
        tp_config=own["TensorParallelConfig"](**size),
        fs_config=own["FullyShardConfig"](**size),
        vae_config=own["VaeParallelConfig"](),
        world_size=world,
        vae_parallel_size=0,
        **size,
    )


def accept_sglang(*, guided: bool = True, **flags: Any) -> Any:
    """What `ServerArgs` settles on for flags; a `guided` model uses guidance unless it's told."""
    path = "sglang/multimodal_gen/runtime/server_args/server_args.py"
    methods = ("_adjust_parallelism", "_validate_parallelism", "_validate_cfg_parallel")
    deployment = names_of(
        "sglang/multimodal_gen/configs/pipeline_configs/model_deployment_config.py",
        ("ModelDeploymentConfig",),
        {"dataclass": dataclass, "OffloadComponentName": str},
    )["ModelDeploymentConfig"]()
    names: dict[str, Any] = {
        "current_platform": SimpleNamespace(is_cpu=lambda: False),
        "RoleType": SimpleNamespace(MONOLITHIC="monolithic"),
    }
    own = names_of(path, [f"ServerArgs.{method}" for method in methods], names)
    unset = ["tp_size", "sp_degree", "ulysses_degree", "ring_degree", "kv_gather_degree"]
    unset += ["enable_cfg_parallel", "cfg_parallel_degree", "hsdp_shard_dim", "dist_init_addr"]
    settled = SimpleNamespace(**dict.fromkeys([*unset, "numa_node"]))
    vars(settled).update(num_gpus=1, dp_size=1, nnodes=1, node_rank=0, hsdp_replicate_dim=1)
    vars(settled).update(performance_mode="auto", disagg_role="monolithic", sp_split_auto=False)
    settled.pipeline_config = SimpleNamespace(get_model_deployment_config=lambda: deployment)
    settled._model_default_uses_cfg = lambda: guided
    vars(settled).update(flags)
    for method in methods:
        own[method](settled)
    return settled


def accept_vllm_omni(*, num_gpus: int, **flags: Any) -> Any:
    """What `DiffusionParallelConfig` makes of flags, for so many GPUs."""
    names = {
        "config": lambda made: made,
        "dataclass": dataclasses.dataclass,
        "model_validator": model_validator,
        "field": field,
    }
    wanted = ("DiffusionParallelConfig",)
    own = names_of("vllm_omni/diffusion/data.py", wanted, names)
    made = own["DiffusionParallelConfig"](**flags)
    made.resolve_data_parallel_size(num_gpus)
    return made


def accept_cache_dit(**fields: Any) -> Any:
    """What `ParallelismConfig` makes of its fields."""
    import dataclasses as standard

    backend = names_of(
        "cache_dit/distributed/backend.py",
        ("_check_diffusers_cp_support", "ParallelismBackend"),
        {"Enum": Enum},
    )["ParallelismBackend"]
    names = {"dataclasses": standard, "dist": torch.distributed, "ParallelismBackend": backend}
    own = names_of("cache_dit/distributed/config.py", ("ParallelismConfig",), names)
    return own["ParallelismConfig"](**fields)


def accept_diffusers(**fields: Any) -> Any:
    """diffusers' `ContextParallelConfig`."""
    made: Any = ContextParallelConfig
    return made(**fields)
