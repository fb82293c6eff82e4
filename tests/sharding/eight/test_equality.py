"""Training on eight devices ends as on one, up to the order of sums."""

import numpy as np
import pytest

import pcflax as pc
from tests.sharding.eight.common import PLACEMENTS, arrays_of, difference, digits, trainer

# as many steps as an error takes from the output to the first layer, and some more
DESCENT = pc.inference.GradientDescent(0.1, num_steps=12)
# what draws at random must draw the same on any number of devices
SAMPLER = pc.inference.Langevin(0.02, num_samples=3)
RULES = {
    "PredictiveCoding": (pc.learning.PredictiveCoding(SAMPLER), 0.2),
    "IncrementalPC": (pc.learning.IncrementalPC(DESCENT), 0.0),
    "Nudged": (pc.learning.Nudged(DESCENT), 0.0),
    "ErrorCoordinates": (
        pc.learning.PredictiveCoding(
            # stable: rounding would grow else
            pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.02, num_steps=3))
        ),
        0.0,
    ),
    "tolerance": (
        pc.learning.PredictiveCoding(
            pc.inference.GradientDescent(0.1, tolerance=1e-2, max_steps=20)
        ),
        0.0,
    ),
}
STEPS = 4


def trained(name, placement=None, num_steps=STEPS, **options):
    rule, dropout = RULES[name]
    made = trainer(
        rule, None if placement is None else PLACEMENTS[placement], dropout=dropout, **options
    )
    made.fit(digits(), num_steps=num_steps, log_every=1)
    return made


ON_ONE = {}


def on_one(name):
    if name not in ON_ONE:
        ON_ONE[name] = trained(name)
    return ON_ONE[name]


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        *(("PredictiveCoding", placement) for placement in PLACEMENTS),
        ("IncrementalPC", "all"),
        ("Nudged", "data, layers"),
        ("ErrorCoordinates", "data, layers"),
        ("ErrorCoordinates", "layers, features"),
        ("tolerance", "data"),
    ],
)
def test_eight_devices_end_as_one(name, placement):
    """Otherwise a result would depend on how many devices somebody has."""
    one, many = on_one(name), trained(name, placement)
    assert difference(arrays_of(one), arrays_of(many)) < 1e-12
    for key in one.history.names():
        column = one.history[key]
        np.testing.assert_allclose(many.history[key], column, rtol=1e-11, atol=1e-12, err_msg=key)
