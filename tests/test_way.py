"""How far a question travels: what one energy and one call of `network.infer` pass through."""

import pathlib
import sys

import jax.numpy as jnp
import pytest
from flax import nnx

import pcflax as pc

PACKAGE = str(pathlib.Path(pc.__file__).parent)


@pytest.fixture(scope="module")
def network():
    rngs = nnx.Rngs(0)
    first = pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs)
    return pc.PCNetwork([first, pc.PCDense(5, 2, rngs=rngs)])


def passed_through(function):
    """The functions of ours that a call enters, as (file, name); comprehensions are their function."""
    seen = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            seen.add((code.co_filename, code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return seen


def test_an_energy_passes_through_nine_files_and_twelve_functions(network):
    """Its reader follows this way; bare jax needs three lines."""
    x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
    problem = pc.inference.make_problem(pc.networks.split(network), pc.Evidence(x, y))
    seen = passed_through(lambda: problem.energies(problem.start))
    assert len({file for file, _ in seen}) <= 9, sorted(seen)
    assert len(seen) <= 12, sorted(seen)


def test_a_second_question_passes_through_little(network):
    """What is compiled already is parsed, called and stored, and no layer predicts in Python."""
    x, y = jnp.ones((4, 3)), jnp.ones((4, 2))

    def ask():
        network.infer(x, y, inference=pc.inference.GradientDescent(0.1, num_steps=3))

    ask()
    seen = passed_through(ask)
    assert not {name for _, name in seen if "predict" in name or "energies" in name}
    assert len({file for file, _ in seen}) <= 14, sorted({file for file, _ in seen})
