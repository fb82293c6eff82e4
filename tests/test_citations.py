"""Every source that a docstring names is in the bibliography, and `pc.citation` finds it."""

import inspect
import pathlib
import re

import pytest

import pcflax as pc
from pcflax import citations
from tests.conftest import ROOT

TEXT = (ROOT / "pcflax/references.bib").read_text()
ENTRIES = citations.bibliography()
SOURCES = [
    (path.relative_to(ROOT).as_posix(), source)
    for path in sorted((ROOT / "pcflax").rglob("*.py"))
    if path.name != "citations.py"
    for source in citations._SOURCE.findall(path.read_text())
]


def keys(bibtex):
    return re.findall(r"^@\w+\{(\w+),$", bibtex, flags=re.MULTILINE)


def test_every_entry_is_read_and_stands_once_in_order():
    found = re.findall(r"^ *@ *\w+ *\{ *(\w+)", TEXT, flags=re.MULTILINE)
    assert found == list(ENTRIES) == sorted(set(found))
    for entry in ENTRIES.values():
        assert entry.bibtex in TEXT
        assert entry.bibtex.count("{") == entry.bibtex.count("}")
        assert {"title", "year"} <= set(entry.fields), entry.key
        lines = entry.bibtex.splitlines()[1:-1]
        assert len(lines) == len(entry.fields), entry.key  # no field is lost
        assert {"author", "note"} & set(entry.fields), entry.key


@pytest.mark.parametrize(("file", "source"), SOURCES, ids=[file for file, _ in SOURCES])
def test_a_source_of_a_docstring_is_in_the_bibliography(file, source):
    found = citations.cited(source)
    missing = [source[one.start : one.end] for one in found if one.key is None]
    assert missing == [], f"{file} cites what pcflax/references.bib has not, or has twice"
    years = set(re.findall(r"\((?:19|20)\d\d\)", source))
    seen = {
        f"({year})" for one in found for year in re.findall(r"\d{4}", source[one.start : one.end])
    }
    assert years <= seen, f"{file} cites in a form that is not understood"


def test_every_entry_is_cited_somewhere():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    used = {one.key for _, source in SOURCES for one in citations.cited(source)}
    used |= set(re.findall(r"\[@(\w+)\]", pages))
    assert set(ENTRIES) - used == {"pcflax"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Rao & Ballard (1999)", "raoballard1999"),
        ("O'Donoghue & Candès (2015); see", "donoghuecandes2015"),
        ("Dowson & Landau's (1982)", "dowson1982"),
        ("(Radford et al., 2019)", "radford2019"),
        ("Innocenti et al. (2024), arXiv 2412.03676", "innocenti2024jpc"),
        ("Innocenti et al. (2024), arXiv 2408.11979", "innocenti2024"),
        ("energies, arXiv 2412.03676; there", "innocenti2024jpc"),
        ("ICLR, openreview kE5jJUHl9i", "metapcn2026"),
        ("Whittington &\n    Bogacz (2017)", "whittingtonbogacz2017"),
        ("Innocenti et al. (2024)", None),  # there are two
        ("Ballard (1999)", None),  # not the first author
        ("Rao & Bogacz (1999)", None),
        ("Rao & Ballard (1998)", None),
    ],
)
def test_a_paper_is_found_by_surname_and_year_or_by_number(text, key):
    (found,) = citations.cited(text)
    assert found.key == key


def test_a_number_belongs_to_the_clause_it_stands_in():
    found = citations.cited("Huber (1964); Jacot et al. (2018), a kernel, arXiv 1806.07572")
    assert [one.key for one in found] == ["huber1964", "jacot2018"]


def test_what_a_rule_is_made_of_is_cited_too():
    errors = pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.1))
    rule = pc.learning.Nudged(errors, beta=0.5)
    assert keys(pc.citation(rule)) == [
        *("pinchetti2024", "scellierbengio2017", "laborieux2021"),
        "goemaere2025",
        *("raoballard1999", "whittingtonbogacz2017", "song2024"),
        "pcflax",
    ]
    sequence = pc.inference.Sequence(errors, pc.inference.NewtonCG())
    rule = pc.learning.PredictiveCoding(sequence, pc.initializers.ClassAverage())
    assert {"goemaere2025", "nocedalwright2006", "pinchetti2026"} <= set(keys(pc.citation(rule)))


def test_several_things_are_cited_once_each():
    found = keys(pc.citation(pc.learning.ZIL, pc.learning.ZIL(), pc.energies.KL(), pc.models.vgg10))
    assert found == ["song2020", "pinchetti2022", "kerjan2026", "pcflax"]


def test_a_subclass_without_a_source_has_its_bases():
    class Mine(pc.energies.Gaussian):
        """My own."""

    assert keys(pc.citation(Mine())) == ["whittingtonbogacz2017", "pcflax"]


def test_what_names_no_source_is_refused():
    with pytest.raises(
        TypeError, match="citation expected something whose docstring names a source"
    ):
        pc.citation(3)


def test_pcflax_is_cited_as_its_own_file_says():
    cff = (ROOT / "CITATION.cff").read_text()
    plain = re.sub(r"[{}]", "", ENTRIES["pcflax"].fields["title"])
    assert f'title: "{plain}"' in cff
    assert f"license: {ENTRIES['pcflax'].fields['license']}" in cff


def test_every_rule_and_algorithm_can_be_cited():
    """Those that only schedule, chain or wrap others have none of their own."""
    for folder in (pc.learning, pc.inference, pc.energies, pc.parameterizations):
        for name, value in vars(folder).items():
            source = inspect.isclass(value) and re.search(r"^ *Source: ", value.__doc__ or "", re.M)
            if source:
                assert keys(pc.citation(value))[-1] == "pcflax", name


def test_the_bibliography_is_in_the_package():
    assert pathlib.Path(pc.__file__).parent.joinpath("references.bib").is_file()
