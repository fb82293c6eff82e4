"""A hook of mkdocs: LaTeX becomes MathML while the site is built, so that browsers draw it by themselves.

Neither a script nor a network is needed to read a formula. `$...$` and `$$...$$` are found by
`pymdownx.arithmatex`, which leaves code alone, on pages and in docstrings.
"""

import html
import re

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
CONVERTER = LatexToMathML(fancy_error=False)


def on_page_content(content, page, **others):
    """Replace the formulas of a page."""
    del others  # the settings of the site and its files

    def drawn(match):
        tag, latex = match[1], html.unescape(match[2]).strip()
        try:
            mathml = CONVERTER.convert_with_local_state(latex, displaystyle=tag == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: no MathML for {latex!r}: {error}") from error
        return f'<{tag} class="formula">{mathml}</{tag}>'

    return FORMULA.sub(drawn, content)
