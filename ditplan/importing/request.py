"""Which model a configuration is for, and with what workload: from its settings and from the user's
own options, which stand over them.
"""

from collections.abc import Mapping
from typing import Any

from ditplan.importing.understood import Understood
from ditplan.models import NamedModel, model_named
from ditplan.profiles.errors import InputError, Setting, one_line
from ditplan.profiles.family import family_of

XDIT_CALL = {"height": 1024, "width": 1024, "frames": 49, "steps": 20, "scale": 3.5}
"""What xDiT asks for of itself (0.7.0, `xFuserArgs`)."""


def model_of(said: Understood, asked: str | None) -> NamedModel:
    """The model that a user names, else the configuration's.

    Raises:
        InputError: neither names one that is known.
    """
    if asked is not None:
        return model_named(asked)
    written = said.values.get("model")
    # a variable of a script that is set when it runs
    if not isinstance(written, str) or not written.strip() or written.startswith("$"):
        raise InputError(
            "nothing says which model this is for: give ", Setting("model", "NAME"), ", such as sd3"
        )
    try:
        return model_named(written)
    except InputError:
        raise InputError(
            f"{said.place('model')}: {one_line(written, 80)} is neither a model that is known here "
            "nor a folder: give ",
            Setting("model", "NAME"),
            "; `ditplan list models` names them",
        ) from None


def workload_of(
    said: Understood, named: NamedModel, engine: str, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What is asked of the model, by the names of `WorkloadSettings`."""
    family, usual = family_of(named.spec.transformer_class), named.spec.defaults
    values: dict[str, Any] = dict(XDIT_CALL if engine == "xdit" else {})
    values |= {str(meaning): value for meaning, value in said.values.items()}
    found: dict[str, Any] = {
        name: values[name] for name in ("height", "width", "steps", "batch") if name in values
    }
    if "frames" in values and usual.frames > 1:
        found["frames"] = values["frames"]
    if "text_tokens" in values and family.text_length_argument:
        found["text_tokens"] = values["text_tokens"]
    scale = values.get("scale")
    if isinstance(scale, int | float) and family.guidance != "embedded":
        found["guidance"] = scale > 1
    return found | {name: value for name, value in asked.items() if value is not None}
