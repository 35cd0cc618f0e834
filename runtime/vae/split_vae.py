"""A VAE's decoder and encoder over several ranks, without a change to its class.

Each rank runs the decoder on some rows of the latent, and all put their rows together. Where the
VAE cuts a picture into tiles, as the user can have it do, ranks have whole tiles each.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ditplan.profiles.capabilities import SPLIT_VAES
from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.family import pixels_per_latent
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.takeover import inner_forward, replace_forward
from ditplan.runtime.vae.layers import split_layers
from ditplan.runtime.vae.rows import Rows
from ditplan.runtime.vae.tiles import SharedTiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class VaeGroups:
    """`everyone` are the ranks that want the picture, the first `degree` of them compute it.

    `computing` is their group; None on the others.
    """

    everyone: AxisGroup
    computing: AxisGroup | None
    degree: int

    @classmethod
    def of(cls, context: RankContext, ranks: tuple[int, ...], degree: int) -> "VaeGroups | None":
        """Those of so many of the given ranks; every rank of the world asks.

        None on ranks that aren't given.
        """
        everyone = context.groups.handle(ranks)
        computing = context.groups.handle(ranks[:degree])
        if everyone is None:
            return None
        index = ranks.index(context.rank)
        inner = AxisGroup(ranks[:degree], computing, index) if computing else None
        return cls(AxisGroup(ranks, everyone, index), inner, degree)

    def given_all(self, part: torch.Tensor | None, owner: int, like: torch.Tensor) -> torch.Tensor:
        """What the `owner`-th rank has, on all ranks; `like` is on the right device."""
        header = torch.zeros(7, dtype=torch.int64, device=like.device)
        root, group = self.everyone.ranks[owner], self.everyone.group
        if part is not None and self.everyone.index == owner:
            facts = [DTYPES.index(part.dtype), part.ndim, *part.shape]
            header[: len(facts)] = torch.tensor(facts)
            part = part.contiguous()
        dist.broadcast(header, root, group=group)
        dtype, ndim, *shape = header.tolist()
        if part is None or self.everyone.index != owner:
            part = like.new_empty(shape[:ndim], dtype=DTYPES[dtype])
        dist.broadcast(part, root, group=group)
        return part


def apply_vae(
    vae: Any, groups: VaeGroups, undo: ExitStack, is_shared: Callable[[], bool] = lambda: True
) -> None:
    """Has the ranks of `groups` share a VAE's work; closing `undo` takes that away again.

    Each of them makes the same calls while `is_shared` says that they all do, and gets the whole
    picture or latent. A call at another time is made by the rank that makes it alone.

    Raises:
        InputError: the VAE is of a class whose layers aren't known.
    """
    require_splittable(type(vae).__name__)
    tiles = SharedTiles(groups.everyone, groups.degree, groups.given_all, is_shared)
    for name in ("decoder", "encoder"):
        part: nn.Module | None = getattr(vae, name, None)
        if part is not None:
            unit = 1 if name == "decoder" else _pixels_per_unit(vae)
            _SplitPart(part, groups, unit, tiles, is_shared).apply(undo)
    tiles.apply(vae, undo)


def require_splittable(name: str) -> None:
    """Refuses classes of VAEs whose layers aren't known.

    Raises:
        InputError: names those that are.
    """
    if name not in SPLIT_VAES:
        raise InputError(
            f"a VAE of class {name} can't be split over ranks, only {', '.join(SPLIT_VAES)}; "
            "use vae_parallel 1"
        )


def _pixels_per_unit(vae: Any) -> int:
    """Rows that an encoder makes one of; patches are cut before it."""
    patch = vae.config.get("patch_size") if type(vae).__name__ == "AutoencoderKLWan" else None
    return pixels_per_latent(vae.config) // (patch or 1)


class _SplitPart:
    """An encoder or decoder: `unit` rows of its input at least go together."""

    def __init__(
        self,
        part: nn.Module,
        groups: VaeGroups,
        unit: int,
        tiles: SharedTiles,
        is_shared: Callable[[], bool],
    ) -> None:
        self._part, self._groups, self._unit, self._tiles = part, groups, unit, tiles
        self._is_shared = is_shared
        self._rows = Rows(groups.computing) if groups.computing else None
        self._reach = 1

    def apply(self, undo: ExitStack) -> None:
        """Takes its forward over; closing `undo` gives it back."""
        # ranks that compute nothing go by the same reach, so that all decide alike
        rows = self._rows or Rows(self._groups.everyone)
        self._reach = split_layers(self._part, rows, undo)
        whole = inner_forward(self._part)

        gives_cache = type(self._part).__name__.startswith("CogVideoX")

        def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            def computed(part: torch.Tensor) -> Any:
                return whole(part, *args, **kwargs)

            if self._tiles.are_cut:
                result = self._tiles.of_call(self._part, computed, sample, kwargs)
            elif self._stays_whole(sample):
                return computed(sample)
            else:
                result = self._split(computed, sample)
            return result if gives_cache else result[0]

        replace_forward(self._part, forward, undo)

    def _stays_whole(self, sample: torch.Tensor) -> bool:
        """Whether each rank computes all rows: where others make no such call, where gradients are
        wanted, or there are too few.
        """
        if not self._is_shared() or (torch.is_grad_enabled() and sample.requires_grad):
            return True
        height, degree = sample.shape[-2], self._groups.degree
        units, left = divmod(height, self._unit)
        if units // degree >= self._reach and not left:
            return False
        warnings.warn(
            f"a VAE's {height} rows can't be split over {degree} ranks in multiples of "
            f"{self._unit}, {self._reach * self._unit} each at least: each computes all of them",
            PlanWarning,
            stacklevel=2,
        )
        return True

    def _split(
        self, computed: Callable[[torch.Tensor], Any], sample: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """All rows that the part gives, and what this rank keeps of these frames for the next."""
        picture, kept = None, {}
        if self._rows is not None:
            with self._rows.splitting(sample.shape[-2] // self._unit) as own:
                start, end = own.start * self._unit, own.stop * self._unit
                output = computed(sample[..., start:end, :].contiguous())
                mine, kept = output if isinstance(output, tuple) else (output, {})
                picture = self._rows.gathered(mine)
        if picture is None or self._groups.degree < self._groups.everyone.size:
            picture = self._groups.given_all(picture, 0, sample)
        return picture, kept
