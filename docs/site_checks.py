"""Checks of the built site. `mkdocs.yml` loads this file as a hook; mkdocs itself checks links and anchors.

A page that would ask another host for a script, a style, a font or a picture, or that is too large, ends the build.
"""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

_LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"' >]+", re.IGNORECASE)
_LINKED = re.compile(r"<link\b[^>]*>", re.IGNORECASE)
_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+")
_MOST = 3_000_000  # bytes of a page with the pictures that are part of it


def on_post_page(output: str, page: object, **_: object) -> str:
    """Refuse a page that loads from elsewhere."""
    found = _LOADED.findall(output) + _STYLE.findall(output)
    for link in _LINKED.findall(output):
        asks = re.search(r"rel=[\"']?(stylesheet|preload|preconnect|prefetch|icon)", link)
        if asks and re.search(r"href=[\"']?(?:https?:)?//", link):
            found.append(link)
    if found:
        raise PluginError(f"{page} asks another host: {found[0]}")
    if len(output.encode()) > _MOST:
        raise PluginError(f"{page} has {len(output.encode()):,} bytes; at most {_MOST:,}")
    return output


def on_post_build(config: dict[str, object], **_: object) -> None:
    """The same of the style sheets."""
    for path in Path(str(config["site_dir"])).rglob("*.css"):
        if found := _STYLE.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.name} asks another host: {found[0]}")
