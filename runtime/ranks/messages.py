"""What command and ranks say to each other: who reads it needs no torch."""

import traceback
from dataclasses import dataclass
from typing import Literal

from ditplan.profiles.errors import InputError

LEAVE_S = 5.0
"""How long a rank may take to leave the process group."""

GOODBYE = b""
"""The last task."""

RANK_IS_GONE = "another rank of the plan is gone"
"""How the error of a rank begins that only says that another has ended."""

Saying = Literal["heartbeat", "warning", "done", "failed"]


@dataclass(frozen=True)
class Raised:
    """An exception in a rank: its last line, its message and its traceback."""

    summary: str
    message: str
    traceback: str
    is_input_error: bool

    @classmethod
    def from_exception(cls, error: BaseException, caught_in: str) -> "Raised":
        """Describes an exception that was just caught, leaving out the frames of the file that
        caught it.
        """
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == caught_in:
            trace = trace.tb_next
        return cls(
            summary="".join(traceback.format_exception_only(error)).strip(),
            message=str(error),
            traceback="".join(traceback.format_exception(type(error), error, trace)),
            is_input_error=isinstance(error, InputError),
        )
