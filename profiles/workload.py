"""What is asked of a model: picture size, steps, guidance, batch."""

from typing import Literal

from ditplan.profiles.bounds import Batch, Frames, Passes, Pixels, Steps, TextTokens, Tokens
from ditplan.profiles.record import FrozenModel

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class Workload(FrozenModel):
    """One kind of request.

    `passes` is how often the transformer sees a latent in each step: 1 without classifier-free
    guidance, 2 with, 3 for some models. `batch` counts pictures or videos, before guidance
    multiplies it.
    """

    height: Pixels
    width: Pixels
    frames: Frames = 1
    steps: Steps
    passes: Passes = 1
    text_tokens: TextTokens
    condition_tokens: Tokens = 0
    batch: Batch = 1
    dtype: Dtype = "bfloat16"

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number."""
        return DTYPE_BYTES[self.dtype]

    @property
    def guidance(self) -> bool:
        """Whether each step needs more than one pass, for classifier-free guidance."""
        return self.passes > 1

    def __str__(self) -> str:
        frames = f" x {self.frames} frames" if self.frames > 1 else ""
        # one pass a step says nothing of guidance: a model may take its scale as an input
        guided = ", guidance" if self.guidance else ""
        size = f"{self.width}x{self.height}{frames}"
        return f"{size}, {self.steps} steps{guided}, batch {self.batch}, {self.dtype}"
