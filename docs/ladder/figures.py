"""Figures on the pages of the ladder. `mkdocs.yml` loads this file as a hook, after which the pages can import it."""

import base64
import io
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure


def on_startup(**_: object) -> None:
    """Called by mkdocs, which takes back what a hook does to `sys.path` while it is loaded."""
    sys.path.append(str(Path(__file__).parent))
    torch.set_num_threads(1)  # small matrices: a second thread only waits for the first


def as_html(figure: Figure, description: str) -> str:
    """The figure as a picture that is part of the page; `description` is for those who do not see it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg")
    data = base64.b64encode(drawn.getvalue()).decode()
    return f'<p><img alt="{description}" src="data:image/svg+xml;base64,{data}"></p>'
