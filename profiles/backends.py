"""What each runtime can run: data, since the planner must know it and imports no runtime."""

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import Mode
from ditplan.profiles.record import Noun


class Backend(Noun):
    """A runtime: the mesh axes it can use (all other degrees stay 1) and its execution modes."""

    name: str
    axes: tuple[str, ...]
    modes: tuple[Mode, ...]


BACKENDS = {"native": Backend(name="native", axes=("cfg", "ring", "ulysses"), modes=("eager",))}


def find_backend(name: str) -> Backend:
    """A backend by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}; there is {', '.join(BACKENDS)}")
    return BACKENDS[name]
