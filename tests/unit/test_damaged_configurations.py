"""Texts that are no configuration are read, or refused in one line."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.importing.documents import read_document
from ditplan.importing.present import ENGINES, Surroundings, present_of
from ditplan.importing.python_script import read_python
from ditplan.importing.read import read_text_or_file
from ditplan.importing.shell_script import read_script
from ditplan.importing.understood import understand
from ditplan.profiles.errors import InputError

PIECES = st.sampled_from(
    ["torchrun", "--nproc_per_node", "=", "8", "--ulysses_degree", "--num-gpus", "-1", "\n", " ",
     "'", '"', "$X", "${Y:-2}", "$((A*2))", "x.py", "serve", "vllm", "--omni", "--usp", "--config",
     "stages:", "- a: 1", "parallelism_config:", "  ulysses_size: 2", "{", "}", "[", "]", ":", "#",
     "ContextParallelConfig(", "ulysses_degree=2", ")", "\\", "\x00", "é", "--", "-", "~", "&a",
     "*a", "999999999999999999999", "2024-99-99", "!!python/object:os.system"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=14), st.sampled_from(sorted(ENGINES)))
def test_damaged_texts_end_in_one_line(pieces: list[str], engine: str) -> None:
    folder = Path("/tmp")
    for text in ("".join(pieces), " ".join(pieces)):
        for name in ("", "f.yaml", "f.sh", "f.py"):
            _reads_or_says(text, engine, folder / name if name else None)


def _reads_or_says(text: str, engine: str, path: Path | None) -> None:
    """Reads a text, as a file if there is a path, or meets an error of one line."""
    try:
        if path is None:
            found = read_text_or_file(text, engine)
        elif path.suffix == ".yaml":
            found = read_document(text, engine, path.name)
        elif path.suffix == ".sh":
            found = read_script(text, path.name)
        else:
            found = read_python(text, engine, path.name)
        said = understand(found, ENGINES[engine].words)
        present_of(ENGINES[engine], said, Surroundings(found.ranks, guides=True))
    except InputError as error:
        assert "\n" not in str(error)
        assert str(error)
