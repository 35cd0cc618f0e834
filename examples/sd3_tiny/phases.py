"""The two phases of training: first the VAE, then the transformer with its text encoders."""

from __future__ import annotations

import csv
import math
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import scenes
import torch
from checker import shows
from parts import SHIFT, Parts, Tokens, encode, tokenize
from torch import Tensor, nn

LOG_EVERY = 50
SINGLES = 0.1
"""Share of training pictures that show one thing."""
KL_WEIGHT = 1e-4
EMA_DECAY = 0.999


@dataclass
class Setup:
    """How to train, for both phases."""

    device: torch.device
    bf16: bool
    compiled: bool
    batch: int
    vae_batch: int
    pool: int
    rate: float
    vae_rate: float
    dropout: float

    def precision(self) -> AbstractContextManager[object]:
        """Autocast to bfloat16, or nothing."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


class Curve:
    """Losses written to a CSV file as they come, and the last of each phase."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["phase", "step", "seconds", "loss", "rate"])
        self._said = 0.0
        self.last: dict[str, float] = {}
        self.steps: dict[str, int] = {}

    def add(self, phase: str, step: int, seconds: float, loss: float, rate: float) -> None:
        """Write one row; RuntimeError if the loss is no longer a number."""
        self._rows.writerow([phase, step, f"{seconds:.2f}", f"{loss:.6f}", f"{rate:.3e}"])
        self._file.flush()
        self.last[phase], self.steps[phase] = loss, step
        if time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            print(f"{phase} step {step} at {seconds:.0f} s: loss {loss:.5f}", flush=True)
        if not math.isfinite(loss):
            raise RuntimeError(f"{phase} loss is {loss} at step {step}")


class Artist:
    """Draws random training pictures on the device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        captions = scenes.training_captions()
        self._codes = scenes.encode(captions).to(device)
        self._singles = len(scenes.things())
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def pictures(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures (count, 3, 128, 128) from -1 to 1, and the indices of their captions."""

        def number(low: int, high: int) -> Tensor:
            return torch.randint(
                low, high, (count,), device=self._device, generator=self._generator
            )

        chance = torch.rand(count, device=self._device, generator=self._generator)
        pair, single = number(self._singles, len(self._codes)), number(0, self._singles)
        rows = torch.where(chance < SINGLES, single, pair)
        return scenes.draw(self._codes[rows], self._generator) * 2 - 1, rows


def _optimizer(models: list[nn.Module], device: torch.device) -> torch.optim.AdamW:
    weights = [p for model in models for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
        lr=torch.tensor(0.0, device=device),
        fused=device.type == "cuda",
        capturable=device.type == "cuda",
    )


def _run(
    phase: str,
    loss_of: Callable[[], Tensor],
    models: list[nn.Module],
    setup: Setup,
    rate: float,
    end: float,
    curve: Curve,
    inside: Callable[[], None] = lambda: None,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Train until the clock (`time.monotonic`) reads `end`; at least one step.

    The learning rate warms up over steps and then falls as a cosine of the time used, so it
    ends near zero however fast the machine is. `inside` belongs to each step, on the device
    alone; `between` is called every `LOG_EVERY` steps.
    """
    optimizer = _optimizer(models, setup.device)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.zeros((), device=setup.device)

    def take_step() -> None:
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        inside()
        total.add_(loss.detach())

    step_once = _captured(take_step) if setup.compiled else take_step
    total.zero_()
    began, step, summed = time.monotonic(), 0, 0
    while step == 0 or time.monotonic() < end:
        used = (time.monotonic() - began) / max(end - began, 1e-6)
        fall = 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))
        now = rate * min(1.0, (step + 1) / 300) * max(fall, 0.005)
        for group in optimizer.param_groups:
            group["lr"].fill_(now)
        step_once()
        step, summed = step + 1, summed + 1
        if step % LOG_EVERY == 0 or time.monotonic() >= end:
            mean = float(total) / summed
            curve.add(phase, step, time.monotonic() - began, mean, now)
            total.zero_()
            summed = 0
            between()


def _captured(take_step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph: this small model's steps take the CPU longer than the GPU.

    The learning rate is zero while the graph is made. A step that can't be captured is
    returned as it is.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            take_step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            take_step()
    except RuntimeError as error:
        print(f"no CUDA graph: {str(error)[:500]}", flush=True)
        torch.cuda.synchronize()
        return take_step
    return graph.replay


def train_vae(parts: Parts, setup: Setup, artist: Artist, end: float, curve: Curve) -> None:
    """First phase: the VAE learns to give pictures back; then its latents are measured.

    Sets `scaling_factor` and `shift_factor` so that (latents - shift) * scale has mean 0
    and variance 1 over pictures, as the pipeline undoes it.
    """
    vae = parts.vae.train()

    def loss_of() -> Tensor:
        pictures, _ = artist.pictures(setup.vae_batch)
        with setup.precision():
            spread = vae.encode(pictures).latent_dist
            made = vae.decode(spread.sample()).sample
        wrong = made.float() - pictures
        mean, log_variance = spread.mean.float(), spread.logvar.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return wrong.abs().mean() + wrong.square().mean() + KL_WEIGHT * kl

    _run("vae", loss_of, [vae], setup, setup.vae_rate, end, curve)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        parts_of = [vae.encode(artist.pictures(256)[0]).latent_dist.sample() for _ in range(4)]
        latents = torch.cat(parts_of).float()
    vae.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std())
    )


@torch.no_grad()
def vae_score(parts: Parts, device: torch.device, count: int) -> float:
    """Share of pictures that the checker still accepts after encoding and decoding."""
    captions = (scenes.held_out_captions() + scenes.training_captions())[::7][:count]
    codes = scenes.encode(captions).to(device)
    generator = torch.Generator(device).manual_seed(99)
    right = 0
    for start in range(0, len(captions), 50):
        pictures = scenes.draw(codes[start : start + 50], generator) * 2 - 1
        made = parts.vae.decode(parts.vae.encode(pictures).latent_dist.mode()).sample
        shown = scenes.to_bytes(made.float() / 2 + 0.5).numpy()
        right += sum(
            shows(one, caption)
            for one, caption in zip(shown, captions[start : start + 50], strict=True)
        )
    return right / len(captions)


class Pool:
    """Encoded training pictures, kept on the device: means and spreads of their latents.

    Encoding a picture costs more than a look into the pool, so pictures are used several
    times, with new latent noise each time, and a part of the pool is drawn anew as training
    goes on.
    """

    def __init__(self, parts: Parts, setup: Setup, artist: Artist, seconds: float) -> None:
        self._vae, self._setup, self._artist = parts.vae, setup, artist
        config = parts.vae.config
        self._scale, self._shift = config.scaling_factor, config.shift_factor
        chunk = min(512, setup.pool)
        made, limit = [], time.monotonic() + seconds
        for _ in range(math.ceil(setup.pool / chunk)):
            made.append(self._encode(chunk))
            if len(made) % 8 == 0:
                if setup.device.type == "cuda":
                    torch.cuda.synchronize()
                if time.monotonic() > limit:
                    break
        means, spreads, rows = zip(*made, strict=True)
        self._means, self._spreads = torch.cat(means), torch.cat(spreads)
        self._rows, self._next, self._chunk = torch.cat(rows), 0, chunk

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def _encode(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        pictures, rows = self._artist.pictures(count)
        with self._setup.precision():
            spread = self._vae.encode(pictures).latent_dist
        mean = (spread.mean.float() - self._shift) * self._scale
        return mean.half(), (spread.std.float() * self._scale).half(), rows

    def refresh(self) -> None:
        """Draw the oldest part anew."""
        place = slice(self._next, self._next + self._chunk)
        self._means[place], self._spreads[place], self._rows[place] = self._encode(self._chunk)
        self._next = (self._next + self._chunk) % len(self)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Normalised latents (count, channels, 32, 32) and the indices of their captions."""
        picked = torch.randint(len(self), (count,), device=self._rows.device)
        mean, spread = self._means[picked].float(), self._spreads[picked].float()
        return mean + spread * torch.randn_like(mean), self._rows[picked]


class Average:
    """A running average of weights, which draws better than the weights themselves."""

    def __init__(self, models: list[nn.Module]) -> None:
        self._models = models
        self._live = [p for model in models for p in model.parameters()]
        self._kept = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move a little towards the weights."""
        torch._foreach_lerp_(self._kept, [p.detach() for p in self._live], 1 - EMA_DECAY)

    @torch.no_grad()
    def put(self) -> None:
        """Give the models the averaged weights."""
        torch._foreach_copy_([p.detach() for p in self._live], self._kept)


def flow_loss(parts: Parts, setup: Setup, latents: Tensor, tokens: Tokens) -> Tensor:
    """Squared error of the predicted velocity (noise - latents) at random noise levels."""
    noise = torch.randn_like(latents)
    level = torch.sigmoid(torch.randn(len(latents), device=latents.device))
    level = SHIFT * level / (1 + (SHIFT - 1) * level)
    share = level[:, None, None, None]
    with setup.precision():
        states, pooled = encode(parts, tokens)
        velocity = parts.transformer(
            hidden_states=(1 - share) * latents + share * noise,
            timestep=level * 1000,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
    return (velocity.float() - (noise - latents)).square().mean()


def _compile(parts: Parts, loss_of: Callable[[], Tensor]) -> bool:
    """Compile each transformer block, and try one step; run uncompiled if that fails."""
    for block in parts.transformer.transformer_blocks:
        block.compile()
    try:
        loss_of().backward()
        worked = True
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        print(f"not compiled: {type(error).__name__}: {str(error)[:500]}", flush=True)
        torch.compiler.set_stance("force_eager")
        worked = False
    for model in parts.flow_models():
        model.zero_grad(set_to_none=True)
    return worked


def train_flow(parts: Parts, setup: Setup, pool: Pool, end: float, curve: Curve) -> bool:
    """Second phase: transformer and text encoders by flow matching; whether it compiled.

    Leaves the averaged weights in the models. A share of the captions is replaced by the
    empty one, which guidance compares with.
    """
    captions = [*scenes.training_captions(), ""]
    tokens, empty = tokenize(captions, setup.device), len(captions) - 1

    def loss_of() -> Tensor:
        latents, rows = pool.sample(setup.batch)
        dropped = torch.rand(len(rows), device=rows.device) < setup.dropout
        return flow_loss(parts, setup, latents, tokens.of(rows.masked_fill(dropped, empty)))

    models = parts.flow_models()
    for model in models:
        model.train()
    began = time.monotonic()
    compiled = setup.compiled and _compile(parts, loss_of)
    print(f"first step after {time.monotonic() - began:.0f} s, compiled: {compiled}", flush=True)
    average = Average(models)
    _run("flow", loss_of, models, setup, setup.rate, end, curve, average.update, pool.refresh)
    average.put()
    for model in models:
        model.eval()
    return compiled
