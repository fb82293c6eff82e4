"""A hook of mkdocs: LaTeX becomes MathML while the site is built, so that browsers draw it by themselves.

Neither a script nor a network is needed to read a formula. `$...$` and `$$...$$` are found by
`pymdownx.arithmatex`, which leaves code alone, on pages and in docstrings.
"""

import html
import re

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

FORMULA = re.compile(
    r'(?P<opened>\(?)<(?P<tag>span|div) class="arithmatex">'
    r"\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>(?P<closed>[).,:;]*)",
    flags=re.DOTALL,
)
CONVERTER = LatexToMathML(fancy_error=False)


def on_page_content(content, page, **others):
    """Replace the formulas of a page; marks beside one stay on its line."""
    del others  # the settings of the site and its files

    def drawn(match):
        tag, latex = match["tag"], html.unescape(match["latex"]).strip()
        try:
            mathml = CONVERTER.convert_with_local_state(latex, displaystyle=tag == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: no MathML for {latex!r}: {error}") from error
        return f'<{tag} class="formula">{match["opened"]}{mathml}{match["closed"]}</{tag}>'

    return FORMULA.sub(drawn, content)
