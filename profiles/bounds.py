"""Between which bounds numbers lie, so that none that was given costs what nobody has.

The bounds are far from what is used and near to what can be computed: every product of such
numbers is finite, and nothing that is listed once for each of them fills the memory.
"""

from typing import Annotated

from pydantic import Field

MOST_PIXELS = 2**20
MOST_FRAMES = 100_000
MOST_STEPS = 100_000
MOST_PASSES = 16
MOST_BATCH = 65_536
MOST_TOKENS = 2**40
MOST_TEXT_TOKENS = 65_536
"""Of a prompt: models read some hundreds."""

MOST_RANKS = 65_536
MOST_SLOTS = 4096
"""Of one host."""

MOST_BLOCKS = 1024
"""Of one kind in a row: the largest transformers have some sixty."""

MOST_PATCHES = 2**20
MOST_OPERATIONS = 10**6
"""Of one block's forward."""

MOST_ORDER = 16
"""Of a step cache's extrapolation."""

MOST_PARAMETERS = 10**14
MOST_FLOPS = 1e18
"""For one token, or one sample without its tokens."""

LEAST_SECONDS = 1e-9
MOST_SECONDS = 1e6
"""Of what is measured."""

Pixels = Annotated[int, Field(gt=0, le=MOST_PIXELS)]
Frames = Annotated[int, Field(gt=0, le=MOST_FRAMES)]
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS)]
Passes = Annotated[int, Field(gt=0, le=MOST_PASSES)]
Batch = Annotated[int, Field(gt=0, le=MOST_BATCH)]
Tokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
TextTokens = Annotated[int, Field(ge=0, le=MOST_TEXT_TOKENS)]
TextSize = Annotated[int, Field(gt=0, le=MOST_TEXT_TOKENS)]
Degree = Annotated[int, Field(gt=0, le=MOST_RANKS)]
Slots = Annotated[int, Field(gt=0, le=MOST_SLOTS)]
DeviceNumber = Annotated[int, Field(ge=0, lt=MOST_SLOTS)]
RankNumber = Annotated[int, Field(ge=0, lt=MOST_RANKS)]
Blocks = Annotated[int, Field(gt=0, le=MOST_BLOCKS)]
Patches = Annotated[int, Field(gt=0, le=MOST_PATCHES)]
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Heads, or numbers of a head."""

Parameters = Annotated[int, Field(ge=0, le=MOST_PARAMETERS)]
Flops = Annotated[float, Field(ge=0, le=MOST_FLOPS)]
MeasuredSeconds = Annotated[float, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]
Weight = Annotated[float, Field(gt=0, le=1e9)]
"""Of a workload in a mix."""

MemoryBytes = Annotated[int, Field(ge=10**6, le=10**15)]
FlopsPerSecond = Annotated[float, Field(ge=1e8, le=1e18)]
MemoryBytesPerSecond = Annotated[float, Field(ge=1e7, le=1e15)]
LinkBytesPerSecond = Annotated[float, Field(ge=1e6, le=1e13)]
"""A tenth of the slowest Ethernet in use, and ten times what the fastest link has."""

LinkSeconds = Annotated[float, Field(ge=0, le=10)]
MessageBytes = Annotated[int, Field(gt=0, le=10**15)]

UNITS = {
    "flops_per_s": "FLOP/s",
    "bytes_per_s": "bytes/s",
    "bytes": "bytes",
    "_s": "seconds",
    "flops": "FLOP",
    "height": "pixels",
    "width": "pixels",
}
"""What a number is counted in, by the end of its field's name."""


def unit_of(field: str) -> str:
    """The unit of a field by its name, such as `bytes/s`; nothing where it is a mere number."""
    return next((unit for end, unit in UNITS.items() if field.endswith(end)), "")
