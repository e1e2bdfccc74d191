"""Formulas of the pages, written as on GitHub in `$…$`, `$$…$$` and blocks of ```math, become MathML in the site.

`mkdocs.yml` loads this file as a hook. Browsers draw MathML by themselves: the site needs no script and no font.
"""

import re
from itertools import count

from latex2mathml.converter import convert

_FENCE = re.compile(r"^(```+|~~~+)([^\n]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_INLINE = re.compile(r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])")
_formulas: dict[str, str] = {}
_numbers = count()


def _kept(content: str) -> str:
    """A word that Markdown leaves alone, in the place of a formula or a piece of code."""
    word = f"FORMULA{next(_numbers)}END"
    _formulas[word] = content
    return word


def _block(text: str) -> str:
    formula = convert(text.strip(), display="block")
    return f"\n\n{_kept(f'<div class=math>{formula}</div>')}\n\n"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace formulas by words; code is left as it is."""
    code: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        if match.lastindex == 3 and match[2].strip() == "math":
            return _block(match[3])
        word = f"CODE{next(_numbers)}END"
        code[word] = match[0]
        return word

    text = _CODE.sub(hide, _FENCE.sub(hide, markdown))
    text = re.sub(r"\$\$(.+?)\$\$", lambda match: _block(match[1]), text, flags=re.DOTALL)
    text = _INLINE.sub(lambda match: _kept(convert(match[1])), text)
    for word in reversed(code):
        text = text.replace(word, code[word])
    return text


def on_page_content(content: str, **_: object) -> str:
    """Put the formulas in."""

    def formula(match: re.Match[str]) -> str:
        return _formulas.pop(match["word"])

    paragraph = re.compile(r"<p>(?P<word>FORMULA\d+END)</p>")
    content = paragraph.sub(formula, content)
    return re.sub(r"(?P<word>FORMULA\d+END)", formula, content)
