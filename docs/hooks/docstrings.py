"""An extension of griffe: docstrings as pages want them, while the code keeps plain text.

Examples become blocks of code, where Markdown sees quotations. The points that an algorithm answers in one
order ("Fixed point:", "Rate:", ...) begin in bold, each a paragraph of its own. Papers become links.
"""

import re

import griffe

from pcflax.citations import cited

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)
POINTS = (
    *("Minimizes", "Samples", "Fixed point", "Rate, cost a step, failures", "Rate"),
    *("Cost a step", "Cost", "Fails", "Source", "Sources"),
)
POINT = re.compile(rf"^\n*({'|'.join(POINTS)}):(?= )", flags=re.MULTILINE)
SOURCE = re.compile(r"^\*\*Sources?:\*\* .*?(?=\n\s*\n|\Z)", flags=re.DOTALL | re.MULTILINE)


def linked(match):
    """A paragraph of sources, whose papers are links into the page of references."""
    text = match[0]
    for one in reversed(cited(text)):
        if one.key:
            text = f"{text[: one.start]}[{text[one.start : one.end]}][{one.key}]{text[one.end :]}"
    return text


def for_pages(text):
    """The docstring that a page shows."""
    text = EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
    text = POINT.sub(r"\n**\1:**", text).lstrip("\n")
    return SOURCE.sub(linked, text)


class Docstrings(griffe.Extension):
    """Changes every docstring that griffe has read."""

    def on_object(self, *, obj, **others):
        """Change the docstring of one object."""
        del others  # where it was read, and by whom
        if obj.docstring:
            obj.docstring.value = for_pages(obj.docstring.value)
