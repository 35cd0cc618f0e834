"""Copies between memories of GPUs by their copy engines, which leave the multiprocessors alone."""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch

DEVICE_MEMORY = 2


@dataclass(frozen=True)
class Rows:
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
    source: Rows, target: Rows, width: int, count: int, stream: torch.cuda.Stream
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
    error = _driver().cuMemcpy2DAsync_v2(ctypes.byref(asked), ctypes.c_void_p(stream.cuda_stream))
    if error:
        raise RuntimeError(f"cuMemcpy2DAsync failed with CUDA error {error}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
