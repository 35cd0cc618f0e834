"""What GPUs do without their multiprocessors: copies between memories, and flags in them."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

DEVICE_MEMORY = 2
"""CU_MEMORYTYPE_DEVICE of the CUDA driver API."""

PORTABLE_AND_MAPPED = 3
"""CU_MEMHOSTREGISTER_PORTABLE and CU_MEMHOSTREGISTER_DEVICEMAP of the same."""

AT_LEAST = 0
"""CU_STREAM_WAIT_VALUE_GEQ of the same."""


@dataclass(frozen=True)
class StridedRows:
    """Equally long rows in the memory of a GPU, `pitch` bytes from one to the next."""

    address: int
    pitch: int


class _Copy(ctypes.Structure):
    """CUDA_MEMCPY2D of the CUDA driver API."""

    _fields_ = (
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_memory", ctypes.c_int),
        ("source_host", ctypes.c_void_p),
        ("source_device", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("target_x", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_memory", ctypes.c_int),
        ("target_host", ctypes.c_void_p),
        ("target_device", ctypes.c_uint64),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


def copy_rows(
    source: StridedRows, target: StridedRows, width: int, count: int, stream: torch.cuda.Stream
) -> None:
    """Copies `count` rows of `width` bytes, in the order of a stream.

    torch copies such rows by a kernel, which would wait for the products that run meanwhile.

    Raises:
        RuntimeError: the driver refuses.
    """
    asked = _Copy(
        source_memory=DEVICE_MEMORY,
        source_device=source.address,
        source_pitch=source.pitch,
        target_memory=DEVICE_MEMORY,
        target_device=target.address,
        target_pitch=target.pitch,
        width=width,
        height=count,
    )
    _call("cuMemcpy2DAsync_v2", ctypes.byref(asked), ctypes.c_void_p(stream.cuda_stream))


def set_flag(address: int, value: int, stream: torch.cuda.Stream) -> None:
    """Writes 32 bits, of a peer's or pinned memory too, after all that is before it on a stream.

    Raises:
        RuntimeError: the driver refuses.
    """
    _call("cuStreamWriteValue32_v2", *_flag(address, value, stream), ctypes.c_uint(0))


def wait_for_flag(address: int, value: int, stream: torch.cuda.Stream) -> None:
    """Has what follows on a stream wait until 32 bits of this GPU's or pinned memory are `value` or
    more.

    Raises:
        RuntimeError: the driver refuses.
    """
    _call("cuStreamWaitValue32_v2", *_flag(address, value, stream), ctypes.c_uint(AT_LEAST))


def pin(address: int, size: int) -> int:
    """Lets copy engines reach memory of the host; gives its address for GPUs.

    Raises:
        RuntimeError: the driver refuses, as where too much is pinned.
    """
    _call(
        "cuMemHostRegister_v2",
        ctypes.c_void_p(address),
        ctypes.c_size_t(size),
        ctypes.c_uint(PORTABLE_AND_MAPPED),
    )
    found = ctypes.c_uint64()
    _call(
        "cuMemHostGetDevicePointer_v2",
        ctypes.byref(found),
        ctypes.c_void_p(address),
        ctypes.c_uint(0),
    )
    return found.value


def unpin(address: int) -> None:
    """Undoes `pin`.

    Raises:
        RuntimeError: the driver refuses.
    """
    _call("cuMemHostUnregister", ctypes.c_void_p(address))


def _flag(address: int, value: int, stream: torch.cuda.Stream) -> tuple[Any, ...]:
    on = ctypes.c_void_p(stream.cuda_stream)
    return on, ctypes.c_uint64(address), ctypes.c_uint32(value)


def _call(name: str, *arguments: Any) -> None:
    error = getattr(_driver(), name)(*arguments)
    if error:
        raise RuntimeError(f"{name.partition('_')[0]} failed with CUDA error {error}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
