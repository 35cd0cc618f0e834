"""The parts of the tiny Stable Diffusion 3: tokenizers, models, and how they go together.

The classes are those of the real pipeline; only the sizes and the vocabulary are small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import scenes
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SHIFT = 3.0
"""Shift of the noise levels, in training as in sampling."""
WIDTH = 160
HEADS = 5
BLOCKS = 8
LATENT_CHANNELS = 8
CLIP_TOKENS = 77
T5_TOKENS = 256
"""Both as the pipeline asks for by default, so that a plain `pipe(prompt)` works."""

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass
class Parts:
    """The trainable models of the pipeline."""

    vae: AutoencoderKL
    transformer: SD3Transformer2DModel
    clip_1: CLIPTextModelWithProjection
    clip_2: CLIPTextModelWithProjection
    t5: T5EncoderModel

    def flow_models(self) -> list[nn.Module]:
        """What the second phase trains: all but the VAE."""
        return [self.transformer, self.clip_1, self.clip_2, self.t5]

    def everything(self) -> list[nn.Module]:
        """All models."""
        return [self.vae, *self.flow_models()]


def words() -> list[str]:
    """Every word of the captions, sorted."""
    return sorted({word for caption in scenes.training_captions() for word in caption.split()})


def _merges(vocabulary: Iterable[str]) -> list[tuple[str, str]]:
    """Byte pair merges, in order, that turn each word of `vocabulary` into one token."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in spelled for pair in pairwise(parts))
        if not pairs:
            return merges
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((left, right))
        for parts in spelled:
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == (left, right):
                    parts[place : place + 2] = [left + right]
                place += 1


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of the captions.

    The end token, which also pads, has the largest id, so that every way in which CLIP
    looks for the end of a prompt finds the first one.
    """
    merges = _merges(words())
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [START, *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [left + right for left, right in merges]
    tokens = [*dict.fromkeys(tokens), END]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        model_max_length=CLIP_TOKENS,
    )
    for word in words():
        if len(tokenizer(word).input_ids) != 3:
            raise RuntimeError(f"the CLIP tokenizer splits {word!r}")
    return tokenizer


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one token for each word of the captions."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0)]
    vocabulary += [(f"\u2581{word}", -1.0) for word in words()]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=T5_TOKENS)


def _build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=scenes.PICTURE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _build_transformer(pooled: int) -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(
        sample_size=scenes.PICTURE_SIZE // 4,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=pooled,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # Starting with every block switched off trains faster and more steadily.
    off = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        off += [block.norm1.linear, block.norm1_context.linear]
    for layer in off:
        nn.init.zeros_(layer.weight)
    return model


def _build_clip(tokenizer: CLIPTokenizer, width: int, act: str) -> CLIPTextModelWithProjection:
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=width // 32,
            max_position_embeddings=CLIP_TOKENS,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # The pipeline takes hidden states before the last normalisation; CLIP's own start (0.02)
    # would leave them far smaller than those of the T5 encoder.
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    return model


def _build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=WIDTH,
            num_layers=2,
            num_heads=HEADS,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def build(seed: int) -> Parts:
    """New models, not yet trained, on the CPU in float32."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return Parts(
        vae=_build_vae(),
        transformer=_build_transformer(pooled=64 + 96),
        clip_1=_build_clip(clip, 64, "quick_gelu"),
        clip_2=_build_clip(clip, 96, "gelu"),
        t5=_build_t5(t5),
    )


def pipeline_of(parts: Parts) -> StableDiffusion3Pipeline:
    """The pipeline made of `parts` (shared, not copied)."""
    return StableDiffusion3Pipeline(
        transformer=parts.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT),
        vae=parts.vae,
        text_encoder=parts.clip_1,
        tokenizer=clip_tokenizer(),
        text_encoder_2=parts.clip_2,
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=parts.t5,
        tokenizer_3=t5_tokenizer(),
    )


@dataclass
class Tokens:
    """Token ids of a list of captions: `clip` (captions, 77), `t5` (captions, 256)."""

    clip: Tensor
    t5: Tensor

    def of(self, rows: Tensor) -> Tokens:
        """The tokens of the captions with these indices."""
        return Tokens(self.clip[rows], self.t5[rows])


def tokenize(captions: Sequence[str], device: torch.device) -> Tokens:
    """Token ids as the pipeline's own tokenizing gives them (both CLIPs share a vocabulary)."""

    def ids(tokenizer: CLIPTokenizer | T5Tokenizer, length: int) -> Tensor:
        made = tokenizer(
            list(captions),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        return made.input_ids.to(device)

    return Tokens(ids(clip_tokenizer(), CLIP_TOKENS), ids(t5_tokenizer(), T5_TOKENS))


def encode(parts: Parts, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """What `StableDiffusion3Pipeline.encode_prompt` gives, from token ids.

    Returns the text states of shape (captions, 77 + 256, 160) and the pooled ones of shape
    (captions, 160).
    """
    states, pooled = [], []
    for clip in (parts.clip_1, parts.clip_2):
        made = clip(tokens.clip, output_hidden_states=True)
        states.append(made.hidden_states[-2])
        pooled.append(made.text_embeds)
    clip_states = torch.cat(states, dim=-1)
    t5_states = parts.t5(tokens.t5)[0]
    clip_states = nn.functional.pad(clip_states, (0, t5_states.shape[-1] - clip_states.shape[-1]))
    joined = torch.cat([clip_states.to(t5_states.dtype), t5_states], dim=-2)
    return joined, torch.cat(pooled, dim=-1)


@torch.no_grad()
def check_encoding(parts: Parts) -> float:
    """The largest difference between `encode` and the pipeline; RuntimeError above 1e-5."""
    captions = ["", *scenes.training_captions()[:2], *scenes.held_out_captions()[:2]]
    device = parts.transformer.device
    ours = encode(parts, tokenize(captions, device))
    states, no_states, pooled, no_pooled = pipeline_of(parts).encode_prompt(
        prompt=captions, prompt_2=None, prompt_3=None, device=device
    )
    empty = len(captions)
    pairs = [
        (ours[0], states),
        (ours[1], pooled),
        (ours[0][:1].expand(empty, -1, -1), no_states),
        (ours[1][:1].expand(empty, -1), no_pooled),
    ]
    difference = max(float((mine - theirs).abs().max()) for mine, theirs in pairs)
    if difference > 1e-5:
        raise RuntimeError(f"text encoding differs from the pipeline's by {difference}")
    return difference
