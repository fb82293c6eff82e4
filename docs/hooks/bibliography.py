"""A hook of mkdocs: `[@key]` becomes a link to a paper, and the page of references shows the bibliography.

The entries are those of `pcflax/references.bib`, which `pc.citation` prints.
"""

import os.path
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from pcflax.citations import bibliography

PAGE, PLACE = "references.md", "<!-- bibliography -->"
CITED = re.compile(r"\[@(\w+)\]")


def short(entry):
    """How a sentence names a paper: Rao & Ballard (1999)."""
    names = entry.surnames
    if not names:
        return f"{plain(entry.fields['title'])} ({entry.fields['year']})"
    several = "others" in entry.fields["author"] or len(names) > 3
    told = (
        f"{names[0]} et al."
        if several
        else " & ".join([", ".join(names[:-1]), names[-1]][len(names) < 2 :])
    )
    return f"{told} ({entry.fields['year']})"


def plain(text):
    """A field without the braces that keep BibTeX from changing its case."""
    return re.sub(r"[{}]", "", text)


def full(entry):
    """One line of the page of references, in Markdown."""
    fields = {name: plain(value) for name, value in entry.fields.items()}
    authors = [
        " ".join(reversed(name.split(", "))) for name in fields.get("author", "").split(" and ")
    ]
    authors = ["et al." if name == "others" else name for name in authors]
    parts = [
        f"{', '.join(authors)} ({fields['year']}). " if authors[0] else f"({fields['year']}). "
    ]
    parts.append(f"*{fields['title']}*.")
    where = next(
        (
            fields[name]
            for name in ("journal", "booktitle", "publisher", "institution")
            if name in fields
        ),
        "",
    )
    if where and "volume" in fields:
        where += f" {fields['volume']}" + (f"({fields['number']})" if "number" in fields else "")
    parts.append(f" {where}." if where else "")
    number = fields.get("eprint") or re.sub(r"^arXiv ", "", fields.get("note", ""))
    if re.fullmatch(r"\d{4}\.\d{4,5}", number):
        parts.append(f" [arXiv {number}](https://arxiv.org/abs/{number}).")
    elif "doi" in fields:
        parts.append(f" [doi {fields['doi']}](https://doi.org/{fields['doi']}).")
    elif "note" in fields:
        parts.append(f" {fields['note']}.")
    return f"[](){{#{entry.key}}}\n{''.join(parts)}\n{{.reference}}\n"


def on_files(files, config, **others):
    """Put the BibTeX file beside the page of references."""
    del others
    text = "\n\n".join(entry.bibtex for entry in bibliography().values())
    files.append(File.generated(config, "references.bib", content=f"{text}\n"))
    return files


def on_page_markdown(markdown, page, **others):
    """Replace the citations of a page, and the place of the bibliography."""
    del others

    def link(match):
        if match[1] not in bibliography():
            raise PluginError(
                f"{page.file.src_uri} cites {match[1]}, which pcflax/references.bib has not"
            )
        to = os.path.relpath(PAGE, os.path.dirname(page.file.src_uri))
        return f"[{short(bibliography()[match[1]])}]({to}#{match[1]})"

    entries = sorted(bibliography().values(), key=lambda e: (e.surnames or ["~"], e.fields["year"]))
    listed = "\n".join(full(entry) for entry in entries if entry.key != "pcflax")
    return CITED.sub(link, markdown).replace(PLACE, listed)
