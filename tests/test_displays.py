"""What notebooks and prompts show of objects. Oracles: shapes as given, a parser of HTML, treescope."""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import pytest
import treescope
from flax import nnx

import pcflax as pc
from pcflax.networks.summary import Summary

X, Y = jnp.full((4, 3), 0.123), jnp.ones((4, 2))
NETWORK = pc.models.mlp(3, 5, 2, rngs=nnx.Rngs(0))
DESCENT = pc.inference.GradientDescent(0.1, num_steps=2)


@pytest.fixture(scope="module")
def result():
    return NETWORK.infer(X, Y, inference=DESCENT)


def test_a_question_shows_shapes_and_no_numbers():
    evidence = pc.Evidence(X, Y, {"hidden_1": pc.Clamp(jnp.ones((4, 5)))})
    shown = repr(evidence)
    for part in ("inputs=f32[4,3]", "targets=f32[4,2]", "'hidden_1': Clamp(value=f32[4,5]"):
        assert part in shown
    assert "0.123" not in shown
    traced = []
    jax.jit(lambda evidence: traced.append(repr(evidence)))(evidence)
    assert "f32[4,3]" in traced[0]


def test_an_answer_shows_shapes_and_no_numbers(result):
    shown = repr(result)
    for part in ("InferenceResult(", "'hidden_1': f32[4,5]", "residual=f32[4]", "status=i32[4]"):
        assert part in shown
    assert "Array(" not in shown


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated")  # treescope's own
def test_treescope_renders_networks_settings_and_answers(result):
    found = {
        "hidden_1": NETWORK,
        "num_steps": pc.learning.PredictiveCoding(DESCENT),
        "residual": result,
        "targets": pc.Evidence(X, Y),
        "1 rows": pc.History([{"step": 1, "eval/accuracy": 0.5}]),
    }
    for part, value in found.items():
        assert part in treescope.render_to_text(value)
        assert treescope.render_to_html(value)


def test_a_summary_in_a_notebook_is_its_tables(monkeypatch):
    """Rich writes nothing into a file there: it displays, and the table came twice and empty."""
    summary = Summary((), 7, 4, {})
    told = str(summary)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "7 parameters" in told
    assert summary._repr_html_() == f"<pre>{told}</pre>"


def test_a_history_is_a_table_of_steps():
    history = pc.History([{"step": 50, "a<b": 0.123456}, {"step": 50, "eval/c": 2}])
    history.append(100, {"a<b": float("nan")})
    table = ElementTree.fromstring(history._repr_html_())
    cells = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert cells == [["step", "a<b", "eval/c"], ["50", "0.1235", "2"], ["100", "nan", ""]]
    long = pc.History([{"step": step, "a": 1.0} for step in range(1, 101)])
    rows = list(ElementTree.fromstring(long._repr_html_()).iter("tr"))
    steps = [row[0].text for row in rows[1:]]
    assert steps == [*map(str, range(1, 11)), "...", *map(str, range(91, 101))]
    assert "step" in pc.History()._repr_html_()
