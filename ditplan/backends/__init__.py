"""What a backend is made of, for whoever writes one; beside it lie ours."""

from ditplan.profiles.backend import Backend, Exported, Prepared
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.cost_constants import CostConstants, ModeConstants

__all__ = ["Backend", "Capabilities", "CostConstants", "Exported", "ModeConstants", "Prepared"]
