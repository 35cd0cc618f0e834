"""Configuration files of engines: YAML, of which JSON is a part, as settings in plain text."""

from collections.abc import Iterator
from typing import Any

import yaml

from ditplan.importing.written import Setting, Written
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.files import check_plain

LARGEST_BYTES = 256 * 1024
REMEDY = "give a configuration file of the engine, or its command line in quotes"
Node = str | list[Any] | dict[str, Any]
"""Plain data whose leaves are the text that was written."""


class _Loader(yaml.BaseLoader):
    """One that takes scalars as they are written, and neither aliases nor a key twice.

    An alias makes much of little, and of a key given twice one would be lost without a word.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _refusal("an alias (`*name`) isn't read; write out what it stands for", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise _refusal("a key must be a name", key.start_mark)
            if key.value in seen:
                named = one_line(repr(key.value), 60)
                raise _refusal(f"the key {named} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refusal(why: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=mark)


def parse_document(text: str, where: str) -> dict[str, Any]:
    """A file's fields.

    Raises:
        InputError: it isn't YAML, or no mapping; names the line.
    """
    try:
        # what a file holds is text, lists and dicts: this loader makes nothing else
        found = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{where}: {line}{one_line(str(error.problem), 120)}; {REMEDY}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: isn't YAML ({one_line(str(error), 120)}); {REMEDY}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply; {REMEDY}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: holds no fields (`name: value`); {REMEDY}")
    check_plain(found, where, "configuration", REMEDY)
    return found


def read_document(text: str, engine: str, where: str) -> Written:
    """The settings of an engine's configuration file.

    Raises:
        InputError: as `parse_document`, or it has not the engine's form; names the field.
    """
    fields = parse_document(text, where)
    if engine == "vllm-omni" and "stages" in fields:
        return Written(tuple(_of_stages(fields, where)))
    if engine == "cache-dit" and "parallelism_config" in fields:
        nested = _mapping(fields.pop("parallelism_config"), where, "parallelism_config")
        # its caches and precisions are beside what is priced
        others = {name: "" for name in fields}
        place = "parallelism_config."
        return Written((*_settings(nested, where, place), *_settings(others, where)))
    return Written(tuple(_settings(fields, where)))


def _of_stages(fields: dict[str, Any], where: str) -> Iterator[Setting]:
    """The stage of vLLM-Omni's deploy file that has a parallel setting, or the only one."""
    stages = fields.pop("stages")
    if not isinstance(stages, list) or not stages:
        raise InputError(f"{where}: field stages: must be a list of stages; {REMEDY}")
    merged = [_stage(stage, where, number) for number, stage in enumerate(stages)]
    parallel = [
        number
        for number, stage in enumerate(merged)
        if any("degree" in name or name == "cfg_parallel_size" for name in stage)
    ]
    if len(merged) > 1 and len(parallel) != 1:
        raise InputError(
            f"{where}: field stages: {len(parallel)} of {len(merged)} stages say how a diffusion "
            "model is split; leave one in the file, and give it here"
        )
    number = parallel[0] if parallel else 0
    yield from _settings({name: fields[name] for name in fields if name != "platforms"}, where)
    yield from _settings(merged[number], where, f"stages.{number}.")


def _stage(stage: Any, where: str, number: int) -> dict[str, Any]:
    """A stage's fields with those of `parallel_config` and `default_sampling_params` among them."""
    found = dict(_mapping(stage, where, f"stages.{number}"))
    for inner in ("runtime", "engine_args", "parallel_config", "default_sampling_params"):
        if inner in found:
            found |= _mapping(found.pop(inner), where, f"stages.{number}.{inner}")
    devices = found.pop("devices", None)
    if isinstance(devices, str) and devices.strip():
        found.setdefault("num_gpus", str(len(devices.split(","))))
    return found


def _mapping(value: Any, where: str, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: field {place}: must hold fields (`name: value`); {REMEDY}")
    return value


def _settings(fields: dict[str, Any], where: str, place: str = "") -> Iterator[Setting]:
    """A setting for each field that says something; lists of words are its values."""
    for name, value in fields.items():
        if isinstance(value, str) and value.lower() in ("null", "~", "none", ""):
            continue
        items = value if isinstance(value, list) else [value]
        values = tuple(one for one in items if isinstance(one, str))
        label = one_line(f"{where}: field {place}{name}", 120)
        yield Setting(name, values, label, is_flag=False)
