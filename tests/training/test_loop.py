"""The compiled loop: what a program holds of a step, and what it leaves out."""

import re

import pytest

import pcflax as pc
from pcflax.training import fitting
from tests.conftest import digits_trainer


@pytest.mark.parametrize(
    ("inference", "draws"),
    [
        (pc.inference.GradientDescent(0.1, num_steps=2), False),
        (pc.inference.Langevin(0.1, temperature=0.1, burn_in=2), True),
    ],
    ids=["descent", "langevin"],
)
def test_a_program_draws_numbers_only_where_its_algorithm_does(monkeypatch, inference, draws):
    """Each step makes keys for whatever may want them; no loop reads those that nothing wants."""
    texts, real = [], fitting.learn_batches

    def read(*arguments, **options):
        texts.append(real.lower(*arguments, **options).as_text())
        return real(*arguments, **options)

    monkeypatch.setattr(fitting, "learn_batches", read)
    trainer = digits_trainer(learning=pc.learning.PredictiveCoding(inference))
    trainer.fit(pc.data.load("digits", batch_size=32), num_steps=2)
    assert len(texts) == 1
    assert bool(re.search("threefry|random_bits|rng_bit", texts[0])) == draws
