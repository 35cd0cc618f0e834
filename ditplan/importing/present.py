"""The configuration that an engine makes of its settings: what isn't said is what the engine itself
would choose, and what it accepts and can't run is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from ditplan.exporting.engine_words import EngineWords
from ditplan.exporting.engines import SGLANG, VLLM_OMNI, XDIT, Engine
from ditplan.exporting.scripts import CACHE_DIT, DIFFUSERS
from ditplan.importing.understood import Understood
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode


@dataclass(frozen=True)
class Surroundings:
    """What a configuration is read for: how many ranks a launcher starts, None where nothing says
    so, and whether the model makes two passes a step by default, None where no model is known.
    """

    ranks: int | None = None
    guides: bool | None = None


@dataclass(frozen=True)
class Present:
    """What somebody runs: PipeFusion's settings are None without stages or where the engine is left
    to choose them. `gathers` says that keys and values are gathered where the mesh has a ring.
    """

    mesh: Mesh
    mode: Mode = "eager"
    patches: int | None = None
    warmup_steps: int | None = None
    blocks_per_stage: tuple[int, ...] | None = None
    is_sharded: bool = False
    gathers: bool = False
    notes: tuple[str, ...] = field(default=())


RING_AND_ULYSSES: tuple[Literal["ring", "ulysses"], ...] = ("ring", "ulysses")
Rules = Callable[[Understood, Surroundings], Present]


@dataclass(frozen=True)
class ReadEngine:
    """An engine whose configurations are read, and what it makes of its settings.

    `compiles` says whether it does so unless told otherwise, `has_flags` whether its degrees are
    flags of a command, `has_replicas` whether its data parallelism answers other requests.
    """

    engine: Engine
    rules: Rules
    compiles: bool = False
    has_flags: bool = True
    has_replicas: bool = False

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.engine.name

    @property
    def words(self) -> EngineWords:
        """What it calls its settings."""
        return self.engine.words


def _require_product(name: str, mesh: Mesh, ranks: int | None, idle: str) -> None:
    """Refuses degrees whose product isn't the number of ranks; `idle` says what becomes of those
    that are left over.
    """
    if ranks is not None and mesh.size != ranks:
        why = idle if mesh.size < ranks else "too few, and it fails when they start"
        raise InputError(
            f"{name}: the degrees make {mesh} = {mesh.size} ranks, and {ranks} are started: {why}; "
            f"let the degrees multiply to {ranks}"
        )


def _refuse_tensor(name: str, said: Understood) -> None:
    """Refuses parallelisms that have no price here."""
    for meaning, called in (("tensor", "tensor"), ("stages_of_layers", "pipeline")):
        degree = said.count(meaning)  # type: ignore[arg-type]
        if degree and degree > 1:
            place = said.places[meaning]  # type: ignore[index]
            raise InputError(
                f"{name}: {place} {degree}: {called} parallelism isn't priced here, so this can't "
                "be compared; see what is best without it: `ditplan tune`"
            )


def _xdit(said: Understood, around: Surroundings) -> Present:
    """dp x cfg x ring x ulysses x stages are the ranks; patches are as many as stages."""
    stages = said.counted("pipefusion")
    mesh = Mesh(
        dp=said.counted("dp"),
        cfg=2 if said.values.get("cfg_pair") else 1,
        pipefusion=stages,
        ring=said.counted("ring"),
        ulysses=said.counted("ulysses"),
    )
    beside = said.count("more_gpus") or 0
    ranks = said.count("denoiser_gpus") or None
    if around.ranks is not None:
        if beside >= around.ranks:
            raise InputError(
                f"xDiT: {said.place('more_gpus')} {beside} leaves none of {around.ranks} ranks to "
                "the transformer; use fewer"
            )
        ranks = around.ranks - beside
    _require_product("xDiT", mesh, ranks, "xDiT refuses that when it starts")
    blocks = said.values.get("blocks_per_stage")
    notes = [f"{beside} GPUs for the VAE alone aren't priced"] if beside else []
    warmup = said.count("warmup_steps")
    if stages == 1:
        return Present(mesh, notes=tuple(notes))
    if isinstance(blocks, tuple):
        if len(blocks) != stages:
            raise InputError(
                f"xDiT: {said.place('blocks_per_stage')} names {len(blocks)} stages, there are "
                f"{stages}; xDiT refuses that; name {stages}"
            )
        if 0 in blocks:
            raise InputError(
                f"xDiT: {said.place('blocks_per_stage')} gives a stage no block; xDiT accepts that "
                "and its GPU has nothing to do; give each stage one or more"
            )
    if warmup == 0:
        notes.append("no warm-up step: priced with one, from which a stage has keys to start with")
        warmup = 1
    return Present(
        mesh,
        patches=said.count("patches") or stages,
        warmup_steps=1 if warmup is None else warmup,
        blocks_per_stage=blocks if isinstance(blocks, tuple) else None,
        notes=tuple(notes),
    )


def _sglang(said: Understood, around: Surroundings) -> Present:
    """As its `ServerArgs._adjust_parallelism` has it (0.5.23)."""
    gpus, dp = said.counted("gpus"), said.counted("dp")
    cfg, why_cfg = _sglang_cfg(said, around, gpus, dp)
    notes = [why_cfg] if why_cfg else []
    sequence = said.count("sequence")
    if sequence is None:
        rest, left = divmod(gpus, dp * cfg)
        if left:
            raise InputError(
                f"SGLang: {gpus} GPUs can't be shared out to dp {dp} x cfg {cfg}, which "
                "it refuses; "
                "use degrees that divide them"
            )
        sequence = rest
    ring, ulysses = said.count("ring"), said.count("ulysses")
    gather = said.count("kv_gather")
    if ring is None and ulysses is None and gather is None and sequence != 1:
        if sequence == 2:
            gather = 2
            notes.append("no ulysses or ring degree: SGLang gathers keys and values of 2 ranks")
        else:
            ulysses = sequence
            notes.append(f"no ulysses or ring degree: SGLang takes ulysses {sequence}")
    gathered = (gather or 1) > 1
    if gathered and ((ring or 1) > 1 or (ulysses or 1) > 1):
        raise InputError(
            "SGLang: kv_gather_degree goes with neither ulysses nor ring; leave it out"
        )
    mesh = Mesh(dp=dp, cfg=cfg, ring=(gather if gathered else ring) or 1, ulysses=ulysses or 1)
    if mesh.sequence_parallel != sequence:
        raise InputError(
            f"SGLang: ring {mesh.ring} x ulysses {mesh.ulysses} is {mesh.sequence_parallel}, and "
            f"{sequence} GPUs share a sequence: SGLang refuses that; let them "
            f"multiply to {sequence}"
        )
    _require_product("SGLang", mesh, gpus, "SGLang accepts that, and the others do nothing")
    return Present(mesh, gathers=gathered, notes=tuple(notes))


def _sglang_cfg(
    said: Understood, around: Surroundings, gpus: int, dp: int
) -> tuple[int, str | None]:
    """The degree of CFG parallelism, and a note where SGLang chooses it."""
    degree, pair = said.count("cfg"), said.values.get("cfg_pair")
    if degree is not None:
        return degree, None
    if pair is not None:
        return (2 if pair else 1), None
    is_said = {"sequence", "ulysses", "ring"} & said.values.keys()
    if is_said or gpus < 2 or gpus % (2 * dp):
        return 1, None
    if around.guides is None:
        raise InputError(
            "SGLang splits guidance over 2 ranks by itself for models that use it, and which model "
            "this is isn't said; give `--model NAME`"
        )
    return (
        (2, "no cfg_parallel_size: SGLang takes 2 for this model") if around.guides else (1, None)
    )


def _vllm(said: Understood, around: Surroundings) -> Present:
    """The degrees are 1 unless said; data parallelism takes what GPUs are left."""
    gather = said.counted("kv_gather")
    ring, ulysses = said.counted("ring"), said.counted("ulysses")
    if gather > 1 and (ring > 1 or ulysses > 1):
        raise InputError("vLLM-Omni: allgather_degree goes with neither ulysses nor ring")
    mesh = Mesh(cfg=said.counted("cfg"), ring=gather if gather > 1 else ring, ulysses=ulysses)
    sequence = said.count("sequence")
    if sequence is not None and sequence != mesh.sequence_parallel:
        raise InputError(
            f"vLLM-Omni: {said.place('sequence')} {sequence} must be ulysses x ring = "
            f"{mesh.sequence_parallel}, or it is refused; give ulysses_degree {sequence}"
        )
    gpus, dp, notes = said.count("gpus"), said.count("dp"), []
    if dp is None and gpus is not None:
        dp, left = divmod(gpus, mesh.size)
        if left or not dp:
            raise InputError(
                f"vLLM-Omni: {mesh} takes {mesh.size} GPUs, which don't divide {gpus}; use degrees "
                "that do"
            )
        if dp > 1:
            notes.append(f"{gpus} GPUs, and {mesh.size} are split: vLLM-Omni makes {dp} replicas")
    mesh = mesh.model_copy(update={"dp": dp or 1})
    _require_product("vLLM-Omni", mesh, gpus, "vLLM-Omni refuses that")
    return Present(mesh, gathers=gather > 1, notes=tuple(notes))


def _with_the_rest(name: str, said: Understood, ranks: int | None) -> dict[str, int]:
    """The degrees of a ring and of ulysses, of which one may be what the other leaves."""
    counts = {axis: said.count(axis) for axis in RING_AND_ULYSSES}
    degrees: dict[str, int] = {
        axis: 1 if count is None else count for axis, count in counts.items()
    }
    left = [axis for axis in RING_AND_ULYSSES if degrees[axis] == 0]
    if not left:
        return degrees
    if ranks is None or len(left) > 1:
        raise InputError(
            f"{name}: {said.place(left[0])} is auto, all ranks that are left, and nothing says how "
            "many; give the command with its torchrun, or --gpus"
        )
    (other,) = (degrees[axis] for axis in RING_AND_ULYSSES if axis != left[0])
    return degrees | {left[0]: max(1, ranks // other)}


def _context_parallel(name: str) -> Rules:
    """Ring x ulysses of diffusers and cache-dit, which don't look at the number of ranks."""

    def rules(said: Understood, around: Surroundings) -> Present:
        degrees = _with_the_rest(name, said, around.ranks)
        if kind := said.values.get("parallel_type"):
            if kind not in ("ulysses", "ring", "usp"):
                raise InputError(
                    f"{name}: {said.place('parallel_type')} {kind} isn't priced here; ulysses, "
                    "ring and usp are"
                )
            if around.ranks is None:
                raise InputError(
                    f"{name}: {said.place('parallel_type')} {kind} takes all ranks, and nothing "
                    "says how many; give the command with its torchrun"
                )
            half = max(1, around.ranks // 2)
            split = {"ulysses": half, "ring": around.ranks // half}
            degrees |= split if kind == "usp" else {str(kind): around.ranks}
        mesh = Mesh(**degrees)
        accepted = f"{name} doesn't look, and the others do nothing or the same again"
        _require_product(name, mesh, around.ranks, accepted)
        return Present(mesh)

    return rules


ENGINES = {
    "xdit": ReadEngine(XDIT, _xdit),
    "diffusers": ReadEngine(DIFFUSERS, _context_parallel("diffusers"), has_flags=False),
    "sglang": ReadEngine(SGLANG, _sglang, has_replicas=True),
    "vllm-omni": ReadEngine(VLLM_OMNI, _vllm, compiles=True, has_replicas=True),
    "cache-dit": ReadEngine(CACHE_DIT, _context_parallel("cache-dit"), has_flags=False),
}


def present_of(engine: ReadEngine, said: Understood, around: Surroundings) -> Present:
    """What an engine makes of its settings.

    Raises:
        InputError: it refuses them, or accepts what it can't do; or they have no price here.
    """
    _refuse_tensor(engine.name, said)
    found = engine.rules(said, around)
    compiled = bool(said.values.get("compile", engine.compiles)) and not said.values.get("eager")
    return replace(
        found,
        mode="compile" if compiled else "eager",
        is_sharded=bool(said.values.get("sharded")),
        notes=(*said.notes, *found.notes),
    )
