"""An extension of griffe: examples in docstrings become code, where Markdown sees quotations."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)


class FenceExamples(griffe.Extension):
    """Puts every `>>>` block between fences."""

    def on_instance(self, *, obj, **others):
        """Change the docstring of an object that griffe has read."""
        del others  # where it was read, and by whom
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
