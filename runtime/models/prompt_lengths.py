"""Prompts counted by a model's own tokenizer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ditplan.profiles.errors import InputError
from ditplan.profiles.files import path_text
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.models.loading import refusing_damage
from ditplan.runtime.models.saved_parts import load_tokenizers


def tokens_of(spec: ModelSpec, folder: Path, prompts: Sequence[str]) -> list[int]:
    """How many tokens each prompt has, without those that a template adds.

    Raises:
        InputError: the folder has no tokenizer that can be loaded.
    """
    tokenizer = load_tokenizers(folder, partial(refusing_damage, spec, folder)).get("tokenizer")
    if tokenizer is None:
        raise InputError(f"{path_text(folder)}: no tokenizer in it to count prompts with")
    counted = tokenizer(list(prompts), add_special_tokens=False)
    return [len(tokens) for tokens in counted["input_ids"]]
