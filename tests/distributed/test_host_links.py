"""The file in memory by which GPUs of one host send to each other; the link itself needs GPUs."""

import mmap
import os
from pathlib import Path

import torch.distributed as dist

from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.transport.host_link import PAGE, ROOM, shared_file


def written_by_the_second(context: RankContext) -> tuple[bytes, int, bool]:
    """What the first of two ranks reads after the other has written; the file's memory; whether
    it is gone at the end.
    """
    group = context.groups.group((0, 1))
    if group is None:
        return b"shared", 0, True
    file = shared_file(group, source=1)
    mapped = mmap.mmap(file, PAGE, offset=3 * PAGE)
    if context.rank == 1:
        mapped[:6] = b"shared"
    dist.barrier(group)
    read, held = mapped[:6], os.fstat(file).st_blocks * 512
    assert os.fstat(file).st_size == ROOM
    dist.barrier(group)
    mapped.close()
    os.close(file)
    return read, held, not Path(f"/proc/{os.getpid()}/fd/{file}").exists()


def test_ranks_of_a_host_share_a_file_that_has_only_the_memory_that_was_written(
    ranks: RankPool,
) -> None:
    for read, held, is_gone in ranks.run(written_by_the_second, timeout_s=600):
        assert read == b"shared"
        assert held <= 3 * PAGE
        assert is_gone


def refusal_of_another_file(context: RankContext) -> str:
    """What ranks are told when the path that the source gives leads to another file."""
    group = context.groups.group((0, 1))
    if group is None:
        return "another process's file"
    own = os.getpid
    # as on a host of the same name, where this number is another process's
    os.getpid = os.getppid if context.rank == 0 else own
    try:
        os.close(shared_file(group, source=0))
    except OSError as error:
        return str(error)
    finally:
        os.getpid = own
    return "opened"


def test_a_file_of_another_process_is_refused_on_both_ends(ranks: RankPool) -> None:
    found = ranks.run(refusal_of_another_file, timeout_s=600)
    assert found[0] == found[1]
    assert "opened" not in found
