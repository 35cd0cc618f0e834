"""What a plan relies on of a model's modules is compared before each call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import nn

from ditplan.runtime.in_force import ModuleState
from tests.distributed.small_models import small_flux

Change = Callable[[Any], Any]


@pytest.fixture
def model() -> Any:
    """A small FLUX with an adapter."""
    made: Any = FluxTransformer2DModel.from_config(small_flux().config)
    targets = ["to_q", "to_k"]
    made.add_adapter(LoraConfig(r=4, target_modules=targets), adapter_name="one")
    made.cache_context("nothing")
    return made


def block(model: Any) -> Any:
    """Its first block."""
    return model.transformer_blocks[0]


def lora(model: Any) -> Any:
    """A layer with an adapter."""
    return block(model).attn.to_q


ALWAYS: dict[str, Change] = {
    "another module": lambda m: setattr(block(m).ff, "net", nn.ModuleList(block(m).ff.net[:])),
    "an adapter less": lambda m: m.delete_adapters(["one"]),
    "another class": lambda m: setattr(block(m), "__class__", type("Another", (nn.Module,), {})),
    "a forward": lambda m: setattr(block(m).norm1, "forward", lambda x: x),
    "a hook": lambda m: block(m).ff.register_forward_hook(lambda *_: None),
    "a hook before": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "offloading": lambda m: setattr(m, "_hf_hook", object()),
    "a cache": lambda m: setattr(m, "_cache_config", object()),
    "parallelism": lambda m: setattr(m, "_parallel_config", object()),
    "compiled": lambda m: m.compile(backend="eager"),
    "another buffer's owner": lambda m: block(m).add_module("more", nn.Linear(1, 1)),
}
OF_GRAPHS: dict[str, Change] = {
    "another parameter": lambda m: setattr(m.proj_out, "bias", nn.Parameter(m.proj_out.bias + 1)),
    "moved weights": lambda m: m.to(torch.float64).to(torch.float32),
    "an adapter's scale": lambda m: lora(m).scaling.update(one=0.25),
    "adapters switched off": lambda m: m.disable_adapters(),
    "an adapter merged": lambda m: lora(m).merged_adapters.append("one"),
    "evaluation in place of training": lambda m: m.eval(),
    "another processor": lambda m: setattr(
        block(m).attn, "processor", type(block(m).attn.processor)()
    ),
    "a processor's value": lambda m: setattr(block(m).attn.processor, "_attention_backend", "x"),
    "an attention's value": lambda m: setattr(block(m).attn, "heads", 3),
}
HARMLESS: dict[str, Change] = {
    "nothing": lambda _m: None,
    "values in place": lambda m: m.proj_out.weight.data.mul_(2),
    "a call's name": lambda m: m.cache_context("cond").__enter__(),
}


@pytest.mark.parametrize("change", ALWAYS)
@pytest.mark.parametrize("of_graphs", [False, True])
def test_a_change_of_modules_is_noticed(model: Any, change: str, of_graphs: bool) -> None:
    state = ModuleState(model, of_graphs)
    assert not state.has_changed()
    ALWAYS[change](model)
    assert state.has_changed()


@pytest.mark.parametrize("change", OF_GRAPHS)
def test_what_a_captured_graph_holds_is_watched_for_graphs(model: Any, change: str) -> None:
    state, of_graphs = ModuleState(model, of_graphs=False), ModuleState(model, of_graphs=True)
    OF_GRAPHS[change](model)
    assert of_graphs.has_changed()
    assert not state.has_changed()


@pytest.mark.parametrize("change", HARMLESS)
def test_what_graphs_read_anew_changes_nothing(model: Any, change: str) -> None:
    state = ModuleState(model, of_graphs=True)
    HARMLESS[change](model)
    assert not state.has_changed()


def test_weights_that_the_plan_itself_moved_are_no_change(model: Any) -> None:
    state = ModuleState(model, of_graphs=True)
    own, other = model.proj_out.weight, model.proj_out.bias
    own.data = own.data.clone()
    state.note_moved([own])
    assert not state.has_changed()
    other.data = other.data.clone()
    state.note_moved([own])
    assert state.has_changed()


def test_a_forward_that_a_class_is_given_is_noticed(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ModuleState(model, of_graphs=False)
    own = type(block(model)).forward
    monkeypatch.setattr(type(block(model)), "forward", lambda *args, **kwargs: own(*args, **kwargs))
    assert state.has_changed()
    monkeypatch.undo()
    assert not state.has_changed()
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: own(*args, **kwargs))
    assert state.has_changed()
