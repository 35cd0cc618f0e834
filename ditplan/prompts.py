"""How long the texts are that a plan will serve."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ditplan.models import NamedModel
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.family import family_of
from ditplan.profiles.files import path_text, read_text
from ditplan.settings import PlanSettings


def text_lengths(named: NamedModel, settings: PlanSettings) -> Mapping[int, float]:
    """How often texts of so many tokens come, by a file of prompts; empty without one.

    Raises:
        InputError: a file that can't be read or has no prompt, a model whose texts are all of one
            length, or no tokenizer to count with.
    """
    given = settings.get("prompt_file")
    if given is None:
        return {}
    path, spec = Path(given), named.spec
    asked = Setting("prompt_file", path_text(path))
    if settings.get("text_tokens") is not None:
        raise InputError(asked, " says how long texts are; leave out ", Setting("text_tokens"))
    template = family_of(spec.transformer_class).template_tokens
    if not template:
        raise InputError(asked, f": all texts of {spec.name} are made equally long; leave it out")
    lines = read_text(path, "prompts, one a line").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{path_text(path)}: no prompt in it; write one a line")
    own = settings.get("weights")
    weights = named.weights if own is None else Path(own)
    if weights is None:
        raise InputError(
            asked,
            f" is counted by the tokenizer of {spec.name}; give its folder: ",
            Setting("weights", "DIR"),
            ", or say how long the longest text is: ",
            Setting("text_tokens", "N"),
        )
    # it brings torch and transformers
    from ditplan.runtime.models.prompt_lengths import tokens_of

    return Counter(tokens + template for tokens in tokens_of(spec, weights, prompts))


def longest_text(lengths: Mapping[int, float]) -> dict[str, int]:
    """The setting of a workload that has room for texts of these lengths; none without any."""
    return {"text_tokens": max(lengths)} if lengths else {}
