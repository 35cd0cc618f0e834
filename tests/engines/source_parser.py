"""An engine's own argument parser, built from its source: importing one takes a GPU or
gigabytes.
"""

import argparse
import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

TYPES = {"int": int, "float": float, "str": str}


class StrictParser(argparse.ArgumentParser):
    """One that raises where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser_of(files: Iterable[Path], functions: Iterable[str] = ()) -> StrictParser:
    """A parser with the arguments that functions of these files add (all, where none is named).

    Of what an argument is given, the flags, action, type, nargs and choices count where they are
    written out; defaults don't.
    """
    parser, wanted = StrictParser(allow_abbrev=False), set(functions)
    seen: set[str] = set()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        scopes: list[ast.AST] = [tree]
        if wanted:
            scopes = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef) and node.name in wanted
            ]
        for call in (call for scope in scopes for call in _calls(scope)):
            words = [str(word.value) for word in call.args if isinstance(word, ast.Constant)]
            flags = [word for word in words if word.startswith("--")]
            if flags and not seen & {*flags}:
                seen |= {*flags}
                parser.add_argument(*flags, **_settings(call))
    return parser


def _calls(scope: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(scope):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            yield node


def _settings(call: ast.Call) -> dict[str, Any]:
    given = {word.arg: word.value for word in call.keywords if word.arg}
    action = given.get("action")
    if isinstance(action, ast.Constant) and str(action.value).startswith("store_"):
        return {"action": action.value}
    found: dict[str, Any] = {}
    kind = given.get("type")
    if isinstance(kind, ast.Name) and kind.id in TYPES:
        found["type"] = TYPES[kind.id]
    if action is not None:
        # an action of the engine's own, which takes true or false, or none at all
        found |= {"nargs": "?", "const": "true", "choices": ("true", "false")}
    for name in ("nargs", "choices"):
        if name in given and isinstance(given[name], ast.Constant | ast.List | ast.Tuple):
            found[name] = ast.literal_eval(given[name])
    return found
