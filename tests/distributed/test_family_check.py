"""The check of a family draft: what it forgets is named, a whole one passes on two ranks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ditplan.profiles.family import ModelFamily, SelfAttention, Split, family_of
from ditplan.runtime.family_check import check_family, main
from tests.distributed.family_models import TRANSFORMERS

SMALL = TRANSFORMERS | {
    "token-replace": TRANSFORMERS["hunyuan-video"] | {"image_condition_type": "token_replace"}
}


def draft(name: str, **changes: Any) -> tuple[ModelFamily, dict[str, Any]]:
    """A shipped family with changes, and a small config."""
    config = SMALL[name]
    return family_of(config["_class_name"]).model_copy(update=changes), config


def without(name: str, argument: str) -> tuple[Split, ...]:
    """A family's splits but for one."""
    splits = draft(name)[0].splits
    left = tuple(split for split in splits if split.name != argument)
    assert len(left) < len(splits)
    return left


def test_a_complete_family_passes_on_two_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TRANSFORMERS["auraflow"]), encoding="utf-8")
    assert main(["auraflow", str(file)]) == 0
    assert "2 ranks give what one device gives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "cogvideox",
            {"splits": without("cogvideox", "image_rotary_emb")},
            "splits: image_rotary_emb of transformer_blocks still runs along the whole image",
        ),
        (
            "auraflow",
            {"splits": without("auraflow", "encoder_hidden_states")},
            "splits: self-attention is over text, which none of them cuts",
        ),
        (
            "wan",
            {"blocks": ("block",)},
            "blocks: WanTransformer3DModel has no module block",
        ),
        (
            "wan",
            {"self_attentions": (SelfAttention(modules="blocks.*.attn", segments=("image",)),)},
            "self_attentions: no module matches blocks.*.attn",
        ),
        (
            "pixart",
            {"batched_inputs": ("hidden_states", "timestep", "text")},
            "batched_inputs: the forward of PixArtTransformer2DModel takes no text",
        ),
        (
            "pixart",
            {"batched_inputs": ("hidden_states", "timestep")},
            "batched_inputs: encoder_hidden_states has a batch dim and isn't among them",
        ),
        (
            "qwen-image",
            {"batched_inputs": ("hidden_states", "timestep"), "whole_inputs": ("img_shapes",)},
            "batched_inputs: img_shapes has a batch dim and isn't among them",
        ),
        (
            "wan",
            {"whole_inputs": ()},
            "whole_inputs: attention_kwargs of the forward is neither among them nor",
        ),
        (
            "flux2",
            {"refused_inputs": {}},
            "whole_inputs: kv_cache of the forward is neither among them nor among batched_inputs",
        ),
        (
            "qwen-image",
            {"block_arguments": ("image_rotary_emb",)},
            "block_arguments: temb of transformer_blocks (a tensor of 3 x 80) is neither among",
        ),
        (
            "token-replace",
            {"counts": ()},
            "block_arguments: num_tokens of transformer_blocks (63) is neither among them nor",
        ),
        (
            "token-replace",
            {"counts": (), "block_arguments": ("num_tokens",)},
            "counts: num_tokens of single_transformer_blocks goes by the number of tokens (63, 90)",
        ),
    ],
)
def test_what_a_draft_forgets_is_named(name: str, changes: dict[str, Any], said: str) -> None:
    found = check_family(*draft(name, **changes))
    assert any(sentence.startswith(said) for sentence in found), found


def test_an_unknown_family_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing", "config.json"]) == 2
    assert "there are auraflow, cogvideox" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; expected a small config of WanTransformer3DModel"),
        ('{"_class_name"', "is cut off .*; expected a small config of WanTransformer3DModel"),
        ('{"_class_name": "Other"}', "is of a Other, wan of WanTransformer3DModel"),
    ],
)
def test_a_wrong_config_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main(["wan", str(file)]) == 2
    assert re.search(said, capsys.readouterr().err)
