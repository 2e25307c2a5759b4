"""What the HTML reports share: where templates lie, the style, pictures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_environment(folder: Path) -> Environment:
    """Make the environment of the templates in a report's folder; `report_style.css` can be included as well.

    It escapes text and refuses undefined names.
    """
    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def embed_png(path: Path) -> str:
    """Return a PNG file as the text of a data URL."""
    return base64.b64encode(path.read_bytes()).decode("ascii")
