"""PipeFusion by hand, on one device: loops over steps and patches around diffusers' transformers.

Independent of the runtime's patches, stages and stale keys. Latents are a sequence of tokens here,
cut before the scheduler sees them, and attention processors keep the keys.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch.nn import functional

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.splits import patch_bounds
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.loading import prompt_embeddings

Predict = Callable[[torch.Tensor, torch.Tensor, "Cut"], torch.Tensor]


@dataclass
class Cut:
    """Which of the image's tokens are computed, in which of a step's calls of the transformer."""

    tokens: int
    start: int = 0
    end: int = 0
    call: int = 0


class StaleAttention:
    """Attention of SD3 and FLUX that keeps all keys and renews those of the cut.

    Every patch brings all of the text, which is kept from the first one only: what other patches
    make of it goes nowhere.
    """

    # diffusers reads them
    _attention_backend = None
    _parallel_config = None

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Attends from the tokens given, text first, to all that are known."""

        def heads(projected: torch.Tensor, norm: Any = None) -> torch.Tensor:
            split: torch.Tensor = projected.unflatten(-1, (attn.heads, -1))
            if norm is not None:
                split = norm(split)
            return split

        query = heads(attn.to_q(hidden_states), attn.norm_q)
        key = heads(attn.to_k(hidden_states), attn.norm_k)
        value = heads(attn.to_v(hidden_states))
        text = encoder_hidden_states
        if text is not None:
            query = torch.cat([heads(attn.add_q_proj(text), attn.norm_added_q), query], 1)
            key = torch.cat([heads(attn.add_k_proj(text), attn.norm_added_k), key], 1)
            value = torch.cat([heads(attn.add_v_proj(text)), value], 1)
        if image_rotary_emb is not None:
            query, key = (
                cast(torch.Tensor, apply_rotary_emb(part, image_rotary_emb, sequence_dim=1))
                for part in (query, key)
            )
        keys, values = self._renewed(key, value)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        )
        output = attended.transpose(1, 2).flatten(2)
        if text is None:
            return output if getattr(attn, "pre_only", False) else attn.to_out[0](output)
        of_text, of_image = output[:, : text.shape[1]], output[:, text.shape[1] :]
        if not attn.context_pre_only:
            of_text = attn.to_add_out(of_text)
        return attn.to_out[0](of_image), of_text

    def _renewed(self, *fresh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens, (B, text + image, H, D), of which the cut is fresh."""
        cut = self._cut
        text = fresh[0].shape[1] - (cut.end - cut.start)
        if cut.call not in self._kept:
            assert (cut.start, cut.end) == (0, cut.tokens), "there are no keys to start from"
            self._kept[cut.call] = (fresh[0].clone(), fresh[1].clone())
        for whole, new in zip(self._kept[cut.call], fresh, strict=True):
            whole[:, text + cut.start : text + cut.end] = new[:, text:]
            if cut.start == 0:
                whole[:, :text] = new[:, :text]
        return self._kept[cut.call]


def by_hand(
    pipeline: Any, spec: ModelSpec, work: Workload, pipefusion: PipeFusion, **more: Any
) -> torch.Tensor:
    """What `rank_tasks.latents_of_call` should give; `more` are FLUX's true guidance."""
    device = torch.device("cpu")
    words = prompt_embeddings(spec, work, device, seed=1)
    channels = spec.config["in_channels"] // (4 if "Flux" in spec.transformer_class else 1)
    generator = torch.Generator().manual_seed(0)
    noise = pipeline.prepare_latents(
        work.batch, channels, work.height, work.width, torch.float32, device, generator
    )
    if "Flux" in spec.transformer_class:
        tokens, ids = noise
        words |= more
        return _flux(pipeline, words, tokens, ids, pipefusion, work.steps, spec.guidance_scale)
    run = _pixart if "PixArt" in spec.transformer_class else _sd3
    return run(pipeline, words, noise, pipefusion, work.steps, spec.guidance_scale)


def _sd3(
    pipeline: Any,
    words: dict[str, torch.Tensor],
    noise: torch.Tensor,
    pipefusion: PipeFusion,
    steps: int,
    scale: float,
) -> torch.Tensor:
    text, pooled = (
        torch.cat([words[f"negative_{name}"], words[name]])
        for name in ("prompt_embeds", "pooled_prompt_embeds")
    )

    def output(both: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = pipeline.transformer(both, text, pooled, time, return_dict=False)[0]
        return found

    return _of_squares(pipeline, output, noise, pipefusion, steps, scale, text)


def _pixart(
    pipeline: Any,
    words: dict[str, torch.Tensor],
    noise: torch.Tensor,
    pipefusion: PipeFusion,
    steps: int,
    scale: float,
) -> torch.Tensor:
    text, mask = (
        torch.cat([words[f"negative_{name}"], words[name]])
        for name in ("prompt_embeds", "prompt_attention_mask")
    )

    def output(both: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = pipeline.transformer(
            both,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=time,
            return_dict=False,
        )[0]
        return found[:, : both.shape[1]]

    return _of_squares(pipeline, output, noise, pipefusion, steps, scale, text[:, :0])


def _of_squares(
    pipeline: Any,
    output: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    pipefusion: PipeFusion,
    steps: int,
    scale: float,
    text: torch.Tensor,
) -> torch.Tensor:
    """Of models whose tokens are squares of latents; `text` goes with the first patch."""
    model, edge = pipeline.transformer, pipeline.transformer.config.patch_size
    rows, columns = noise.shape[2] // edge, noise.shape[3] // edge
    cut = Cut(rows * columns)

    def as_tokens(latents: torch.Tensor) -> torch.Tensor:
        parts = latents.unflatten(3, (columns, edge)).unflatten(2, (rows, edge))
        ordered: torch.Tensor = parts.permute(0, 2, 4, 1, 3, 5)
        return ordered.flatten(3).flatten(1, 2)

    def as_latents(tokens: torch.Tensor) -> torch.Tensor:
        parts = tokens.unflatten(2, (-1, edge, edge)).unflatten(1, (rows, columns))
        ordered: torch.Tensor = parts.permute(0, 3, 1, 4, 2, 5)
        return ordered.flatten(4).flatten(2, 3)

    def only_cut(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return out[:, cut.start : cut.end]

    def in_nothing(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        whole = out.new_full((len(out), cut.tokens, out.shape[2]), torch.nan)
        whole[:, cut.start : cut.end] = out
        return whole

    def predict(tokens: torch.Tensor, time: torch.Tensor, cut: Cut) -> torch.Tensor:
        both = torch.cat([as_latents(tokens)] * 2)
        found = output(both, time.expand(len(both)))
        negative, positive = as_tokens(found)[:, cut.start : cut.end].chunk(2)
        return negative + scale * (positive - negative)

    schedulers = [copy.deepcopy(pipeline.scheduler) for _ in range(pipefusion.patches)]
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    with ExitStack() as undo:
        undo.callback(model.pos_embed.register_forward_hook(only_cut).remove)
        undo.callback(model.proj_out.register_forward_hook(in_nothing).remove)
        tokens = as_tokens(noise)
        return as_latents(_denoised(model, predict, tokens, cut, schedulers, pipefusion, text))


def _flux(
    pipeline: Any,
    words: dict[str, Any],
    noise: torch.Tensor,
    ids: torch.Tensor,
    pipefusion: PipeFusion,
    steps: int,
    scale: float,
) -> torch.Tensor:
    model, cut, text = pipeline.transformer, Cut(noise.shape[1]), words["prompt_embeds"]

    def call(tokens: torch.Tensor, time: torch.Tensor, sign: str) -> torch.Tensor:
        output: torch.Tensor = model(
            hidden_states=tokens[:, cut.start : cut.end],
            encoder_hidden_states=words[f"{sign}prompt_embeds"],
            pooled_projections=words[f"{sign}pooled_prompt_embeds"],
            timestep=time.expand(len(text)) / 1000,
            guidance=torch.full([len(text)], scale),
            img_ids=ids[cut.start : cut.end],
            txt_ids=torch.zeros(text.shape[1], 3),
            return_dict=False,
        )[0]
        return output

    def predict(tokens: torch.Tensor, time: torch.Tensor, cut: Cut) -> torch.Tensor:
        cut.call = 0
        positive = call(tokens, time, "")
        if "true_cfg_scale" not in words:
            return positive
        cut.call = 1
        negative = call(tokens, time, "negative_")
        scale: float = words["true_cfg_scale"]
        return negative + scale * (positive - negative)

    schedulers = [copy.deepcopy(pipeline.scheduler) for _ in range(pipefusion.patches)]
    for scheduler in schedulers:
        sigmas = numpy.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(cut.tokens))
    return _denoised(model, predict, noise, cut, schedulers, pipefusion, text)


@torch.no_grad()
def _denoised(
    model: Any,
    predict: Predict,
    latents: torch.Tensor,
    cut: Cut,
    schedulers: list[Any],
    pipefusion: PipeFusion,
    text: torch.Tensor,
) -> torch.Tensor:
    """Warm-up steps on all tokens, then patch after patch; `predict` gives a cut's, guided."""
    latents = latents.clone()
    bounds = patch_bounds(cut.tokens, text.shape[1], pipefusion.patches)
    usual = model.attn_processors
    self_attentions = {
        f"{name}.processor"
        for name, module in model.named_modules()
        if not getattr(module, "is_cross_attention", False)
    }
    model.set_attn_processor(
        {
            name: StaleAttention(cut) if name in self_attentions else processor
            for name, processor in usual.items()
        }
    )
    for step, time in enumerate(schedulers[0].timesteps):
        warm = step < pipefusion.warmup_steps
        if warm:
            cut.start, cut.end = 0, cut.tokens
            whole = predict(latents, time, cut)
        for (start, end), scheduler in zip(bounds, schedulers, strict=True):
            cut.start, cut.end = start, end
            fresh = whole[:, start:end] if warm else predict(latents, time, cut)
            stepped = scheduler.step(fresh, time, latents[:, start:end].clone())
            latents[:, start:end] = stepped.prev_sample
    model.set_attn_processor(usual)
    return latents
