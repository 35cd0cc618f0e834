"""A Python script of diffusers or cache-dit: its calls, read from its syntax; nothing is run."""

import ast
from collections.abc import Iterator

from ditplan.importing.written import Setting, Written
from ditplan.profiles.errors import InputError

PARALLEL = {"diffusers": "ContextParallelConfig", "cache-dit": "ParallelismConfig"}
CALL = (
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "max_sequence_length",
    "negative_prompt",
)
"""What of a pipeline's call is priced."""

COMPILING = (("compile", "torch"), ("compile", "transformer"))
"""Methods that compile, and whose they are."""


def read_python(text: str, engine: str, where: str) -> Written:
    """The degrees, the model and the call of a script.

    Raises:
        InputError: it isn't Python, its numbers aren't written out, or nothing in it is parallel.
    """
    if engine not in PARALLEL:
        raise InputError(
            f"{where}: scripts are read of {' and '.join(PARALLEL)} alone; give the command line "
            "that starts it, in quotes"
        )
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f"line {line}: " if line else ""
        raise InputError(f"{where}: {place}this isn't Python; give a script of {engine}") from None
    settings = [setting for call in calls for setting in _said_by(call, PARALLEL[engine], where)]
    if not any(setting.name in CALL or "_" in setting.name for setting in settings):
        raise InputError(
            f"{where}: neither {PARALLEL[engine]}(...) nor a pipeline's call stands in it; give "
            "the script that makes it"
        )
    return Written(tuple(settings))


def _said_by(call: ast.Call, parallel: str, where: str) -> Iterator[Setting]:
    """What a call says of the configuration, the model or the workload."""
    name = _name_of(call)
    place = f"{where}: line {call.lineno}"
    if name == parallel:
        for word in call.keywords:
            yield Setting(word.arg or "**", _values(word.value), place, False)
    elif name == "from_pretrained" and call.args and isinstance(call.args[0], ast.Constant):
        if _owner_of(call).endswith("Pipeline"):
            yield Setting("model", (str(call.args[0].value),), place, False)
    elif name == "compile_repeated_blocks" or (name, _owner_of(call)) in COMPILING:
        yield Setting("compile", (), place, False)
    elif any(word.arg == "prompt" or word.arg == "prompt_embeds" for word in call.keywords):
        for word in call.keywords:
            if word.arg in CALL and isinstance(word.value, ast.Constant):
                value = str(word.value.value)
                if value != "None":
                    yield Setting(word.arg, (value,), place, False)


def _values(value: ast.expr) -> tuple[str, ...]:
    if isinstance(value, ast.Constant):
        return () if value.value is None else (str(value.value),)
    return ("an expression",)


def _owner_of(call: ast.Call) -> str:
    """The last name in front of a method's."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(owner, ast.Attribute):
        return owner.attr
    return owner.id if isinstance(owner, ast.Name) else ""


def _name_of(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""
