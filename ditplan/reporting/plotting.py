"""plotly's part of a report: figures that it has checked, and its JavaScript."""

import base64
import gzip
from typing import Any

from ditplan.profiles.errors import InputError
from ditplan.reporting.figure import Figure


def require_plotly() -> None:
    """Refuses a report where plotly isn't installed.

    Raises:
        InputError: says how to get it.
    """
    try:
        import plotly  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "a report needs plotly, which isn't installed here: `pip install 'ditplan[report]'`"
        ) from None


def checked_json(figure: Figure) -> str:
    """A figure's data and layout as JSON that can stand within HTML.

    Raises:
        ValueError: plotly knows no such property.
    """
    import plotly.graph_objects as go
    from plotly.io import to_json

    checked = go.Figure({"data": figure.data, "layout": figure.layout})
    # plotly's own template has colours that suit light ground alone
    checked.layout.template = None
    text: Any = to_json(checked, validate=True, engine="json")
    return str(text).replace("</", "<\\/")


def compressed_script() -> str:
    """plotly.js, gzipped and in base64: a third of its size, which browsers unpack."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()
