"""Who can choose the plans that are run, without anything that takes long to import."""

from typing import Literal

SamplerName = Literal["planner", "tpe", "gp", "random", "brute-force"]
