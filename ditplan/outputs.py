"""What a command writes: checked before any work is done for it, and written."""

import os
from collections.abc import Sequence
from pathlib import Path

from ditplan.profiles.book import PlanBook
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.files import path_text
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import Record, replacing
from ditplan.profiles.workload import Workload

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".png", ".webp")
"""Kinds of picture that can be animated."""


def require_folder(out: Path) -> None:
    """Refuses a file that can't be written.

    Raises:
        InputError: its folder doesn't exist or can't be written to, it is no regular file, or has a
            name that no file can have.
    """
    folder, name = out.absolute().parent, path_text(out)
    # unlike pathlib's, os.path's answer for a name that no file can have is no
    if not os.path.isdir(folder):
        parent = path_text(out.parent)
        raise InputError(f"{name}: the folder {parent} doesn't exist; make it first")
    if os.path.isdir(out):
        raise InputError(f"{name}: this is a folder; name a file in it")
    if os.path.exists(out) and not os.path.isfile(out):
        raise InputError(f"{name}: this is no regular file; name one that is, or a new one")
    try:
        os.lstat(out)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{name}: can't be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{out}: the folder {out.parent} can't be written to; name another")


def save_files(files: Sequence[bytes], out: Path) -> None:
    """Saves what files of a batch hold as `out`, `out-1`, ...: each whole or not at all.

    Raises:
        InputError: the folder has gone, or can't be written to.
    """
    for number, content in enumerate(files):
        path = out if number == 0 else out.with_stem(f"{out.stem}-{number}")
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def require_picture(out: Path, workload: Workload) -> None:
    """Refuses a file of a kind that can't hold what a workload makes.

    Raises:
        InputError: says which kinds can.
    """
    require_folder(out)
    kind = out.suffix.lower()
    if workload.frames > 1 and kind not in VIDEOS:
        raise InputError(
            f"{out}: the plan makes a video of {workload.frames} frames, which a {kind or 'file'} "
            "can't hold; name a .webp or .png (both are animated)"
        )
    if kind not in PICTURES:
        raise InputError(f"{out}: can't write pictures of this kind; name a .png, .jpg or .webp")


def measured_plans(out: Path) -> tuple[ExecutionPlan, ...]:
    """The plans with measurements that lie at a path; none if nothing else does."""
    kinds: tuple[type[Record], ...] = (ExecutionPlan, PlanBook)
    for kind in kinds:
        try:
            found: Record | None = kind.load(out) if out.is_file() else None
        except InputError:
            continue
        plans = [found] if isinstance(found, ExecutionPlan) else []
        if isinstance(found, PlanBook):
            plans = [entry.plan for entry in found.entries]
        return tuple(plan for plan in plans if plan.measurement)
    return ()


def refuse_to_replace(
    out: Path, spec: ModelSpec, workload: Workload | None, *, is_measured: bool
) -> None:
    """Refuses to replace what was measured by a plan on paper, or by one for another model or
    workload; a workload that is None isn't compared.

    Raises:
        InputError: says what is there, and how to replace it all the same.
    """
    for plan in measured_plans(out):
        name, measured = plan.model.name, plan.measurement
        assert measured is not None
        why = ""
        if plan.model.transformers[0].config_hash != spec.config_hash:
            why = f"is for another model, {name}"
        elif workload is not None and plan.workload != workload:
            why = f"is for another workload, {plan.workload}"
        elif not is_measured:
            why = "was measured, and this one is on paper"
        if why:
            raise InputError(
                f"{out}: the plan there {why} ({measured.latency_s:.4g} s on {measured.devices}); "
                "name another file, or replace it with ",
                Setting("force"),
            )
