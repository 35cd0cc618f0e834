"""Trains the tiny Stable Diffusion 3 from nothing, saves it, and counts what it draws rightly.

    python examples/sd3_tiny/train.py --out DIR

Every phase ends by the clock, so a run takes about as long as asked for on any machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from evaluate import count_right, generate, load, save_grid, table, why_wrong
from parts import Parts, build, check_encoding, pipeline_of
from phases import Artist, Curve, Pool, Setup, train_flow, train_vae, vae_score
from scenes import held_out_captions, training_captions

GUIDANCES = (3.0, 4.5, 6.0)
CHOOSING = 96
"""Held-out captions that guidance is chosen on; the reported ones are others."""

Row = tuple[str, float, int, int]


@dataclass
class Scores:
    """Results of the evaluation."""

    guidance: float = 4.5
    rows: list[Row] = field(default_factory=list)


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    cuda = torch.cuda.is_available()
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--start", type=Path, help="a trained folder to go on from")
    parser.add_argument("--minutes-vae", type=float, default=1.3)
    parser.add_argument("--minutes", type=float, default=5.7, help="transformer, text encoders")
    parser.add_argument("--total", type=float, default=500, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=75, help="of these, for evaluation")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--vae-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.12, help="of captions")
    parser.add_argument("--pool", type=int, default=131072, help="encoded pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=cuda)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    parser.add_argument("--vae-check", type=int, default=500, help="reconstructions to check")
    parser.add_argument("--log", type=Path, help="loss curve; default OUT/curve.csv")
    parser.add_argument("--eval", type=int, default=200, help="held-out captions to draw")
    parser.add_argument("--eval-batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="of sampling, in evaluation")
    return parser.parse_args()


def take_over(parts: Parts, folder: Path) -> None:
    """Give `parts` the weights and latent statistics of a saved pipeline."""
    trained = load(folder, "cpu")
    models = (trained.vae, trained.transformer, trained.text_encoder)
    models += (trained.text_encoder_2, trained.text_encoder_3)
    order = (parts.vae, parts.transformer, parts.clip_1, parts.clip_2, parts.t5)
    for mine, theirs in zip(order, models, strict=True):
        mine.load_state_dict(theirs.state_dict())
    parts.vae.register_to_config(
        scaling_factor=trained.vae.config.scaling_factor,
        shift_factor=trained.vae.config.shift_factor,
    )


def save(parts: Parts, out: Path) -> None:
    """Write the pipeline to `out`, weights in float16."""
    # Trained models may carry compiled code, so clean ones are saved in their place.
    fresh = build(0)
    for mine, trained in zip(fresh.everything(), parts.everything(), strict=True):
        mine.load_state_dict(trained.state_dict())
        mine.half()
    fresh.vae.register_to_config(
        scaling_factor=parts.vae.config.scaling_factor, shift_factor=parts.vae.config.shift_factor
    )
    pipeline_of(fresh).save_pretrained(out, safe_serialization=True)
    # Loading without a dtype gives the other models float32, and the text encoders what their
    # configuration names.
    for path in out.glob("text_encoder*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2))


def evaluate(options: argparse.Namespace, until: float) -> Scores:
    """Draw held-out captions with the saved pipeline and count the right pictures.

    The reported counts with the chosen guidance and with none always come; the others only
    while there is time.
    """
    scores = Scores()
    pipe = load(options.out, options.device)
    held_out = held_out_captions()
    chosen_on = held_out[options.eval :][: min(CHOOSING, options.eval)]
    reported = held_out[: options.eval]
    trained_on = training_captions()[:: max(len(training_captions()) // options.eval, 1)]

    def score(name: str, guidance: float, captions: tuple[str, ...]) -> int:
        pictures = generate(pipe, captions, guidance, options.steps, options.eval_batch)
        right = count_right(pictures, captions)
        scores.rows.append((name, guidance, right, len(captions)))
        if guidance == scores.guidance and name == "held-out":
            for line in why_wrong(pictures, captions)[:12]:
                say(f"wrong: {line}")
            if len(captions) >= 16:
                save_grid(pictures, captions, options.out / "samples.png")
        return right

    if chosen_on:
        found = {guidance: score("choosing", guidance, chosen_on) for guidance in GUIDANCES}
        scores.guidance = max(GUIDANCES, key=lambda guidance: found[guidance])
    score("held-out", scores.guidance, reported)
    score("held-out", 1.0, reported)
    if time.monotonic() < until:
        score("training", scores.guidance, trained_on[: options.eval])
    for guidance in GUIDANCES:
        if guidance != scores.guidance and time.monotonic() < until:
            score("held-out", guidance, reported)
    return scores


def record(options: argparse.Namespace, parts: Parts, facts: dict[str, object]) -> None:
    """Write `training.json` beside the pipeline."""
    cuda = options.device.startswith("cuda")
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    known = {
        "seed": options.seed,
        "hardware": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        "parameters": {
            name: sum(weight.numel() for weight in model.parameters())
            for name, model in vars(parts).items()
        },
        "bytes": sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file()),
        "settings": settings,
    }
    text = json.dumps(known | facts, indent=2) + "\n"
    (options.out / "training.json").write_text(text)


def main() -> None:
    """Train, save, evaluate."""
    began = time.monotonic()
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    last = began + options.total - options.reserve
    device = torch.device(options.device)
    parts = build(options.seed)
    if options.start:
        take_over(parts, options.start)
    for model in parts.everything():
        model.to(device).eval()
    say(f"text encoding differs from the pipeline's by {check_encoding(parts):.1e}")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    setup = Setup(
        device=device, bf16=options.bf16, compiled=options.compile, batch=options.batch,
        vae_batch=options.vae_batch, pool=options.pool, rate=options.rate,
        vae_rate=options.vae_rate, dropout=options.dropout,
    )  # fmt: skip
    artist = Artist(device, options.seed)
    curve = Curve(options.log or options.out / "curve.csv")
    if options.start:
        parts.vae.requires_grad_(False)
    else:
        vae_end = min(time.monotonic() + 60 * options.minutes_vae, last)
        train_vae(parts, setup, artist, vae_end, curve)
    vae_right = vae_score(parts, device, options.vae_check)
    say(f"VAE: {vae_right:.1%} of {options.vae_check} reconstructions pass (99% wanted)")
    start = time.monotonic()
    end = min(start + 60 * options.minutes, last)
    pool = Pool(parts, setup, artist, seconds=25)
    say(f"pool: {len(pool)} pictures in {time.monotonic() - start:.0f} s")
    compiled = train_flow(parts, setup, pool, end, curve)
    save(parts, options.out)
    before = options.start and json.loads((options.start / "training.json").read_text())
    facts: dict[str, object] = {
        "went_on_from": before,
        "compiled": compiled,
        "steps": curve.steps,
        "final_losses": curve.last,
        "training_minutes": (time.monotonic() - began) / 60,
        "vae_reconstructions_right": vae_right,
    }
    record(options, parts, facts)
    del pool
    torch.set_float32_matmul_precision("highest")
    if options.eval > 0:
        scores = evaluate(options, began + options.total - 15)
        names = ("captions", "guidance", "right", "of")
        facts["guidance"] = scores.guidance
        facts["scores"] = [dict(zip(names, row, strict=True)) for row in scores.rows]
        facts["total_minutes"] = (time.monotonic() - began) / 60
        record(options, parts, facts)
        say(f"recommended guidance {scores.guidance}; {time.monotonic() - began:.0f} s in all")
        say(table(scores.rows))


if __name__ == "__main__":
    main()
