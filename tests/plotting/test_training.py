"""The training figure: the numbers given are the numbers drawn."""

import io

import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image

from pcflax.plotting import training_figure
from pcflax.plotting.training import as_images

ACCURACY = {"eval": ([10, 20, 30], [0.2, 0.5, 0.9]), "train": ([15, 30], [0.3, 0.8])}
ENERGY = {"eval": ([10, 20, 30], [3.0, 2.0, 1.0])}
INFERENCE = {"hidden": np.array([0.0, 0.5, 0.7, 0.8]), "output": np.array([3.0, 2.0, 1.5, 1.4])}


def make_figure(**changes):
    options = {"accuracy": ACCURACY, "energy": ENERGY, "inference": INFERENCE, "weights": None}
    return training_figure(**{**options, **changes})


def curves(axis):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axis.lines}


def test_curves_are_those_given():
    """A figure that drew other numbers than the run's would be wrong in every paper."""
    axes = make_figure().axes
    for axis, given in ((axes[0], ACCURACY), (axes[1], ENERGY)):
        drawn = curves(axis)
        assert drawn.keys() == given.keys()
        for name, (steps, values) in given.items():
            np.testing.assert_array_equal(drawn[name][0], steps)
            np.testing.assert_array_equal(drawn[name][1], values)
            assert name in [text.get_text() for text in axis.get_legend().get_texts()]


def test_inference_shows_each_layer_and_their_sum():
    drawn = curves(make_figure().axes[2])
    np.testing.assert_array_equal(drawn["hidden"][1], INFERENCE["hidden"])
    np.testing.assert_array_equal(drawn["total"][0], [0, 1, 2, 3])
    np.testing.assert_allclose(drawn["total"][1], [3.0, 2.5, 2.2, 2.2])


def test_one_layer_needs_no_sum():
    assert list(curves(make_figure(inference={"only": np.ones(3)}).axes[2])) == ["only"]


def test_it_can_be_drawn_without_anything_measured():
    figure = make_figure(accuracy={}, energy={}, inference={}, weights=None, title="empty")
    figure.savefig(io.BytesIO(), format="png")
    assert [len(axis.lines) for axis in figure.axes] == [0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(64, 30), (12, 5), (7, 3), (4, 1), (75, 2)])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_weights_of_any_shape_make_a_png(shape, scale):
    weights = scale * np.random.default_rng(0).normal(size=shape)
    file = io.BytesIO()
    make_figure(weights=weights, title="run").savefig(file, format="png", dpi=40)
    file.seek(0)
    with Image.open(file) as image:
        image.verify()
        assert image.format == "PNG"


def test_figures_do_not_stay_in_pyplot():
    before = matplotlib.pyplot.get_fignums()
    make_figure()
    assert matplotlib.pyplot.get_fignums() == before


class TestAsImages:
    def test_a_column_of_the_kernel_is_one_units_image(self):
        """Transposed, every receptive field would be a mixture of all units'."""
        kernel = np.arange(9 * 2, dtype=float).reshape(9, 2)
        images = as_images(kernel)
        assert images.shape == (2, 3, 3, 1)
        for unit in range(2):
            np.testing.assert_array_equal(images[unit, :, :, 0].ravel(), kernel[:, unit])

    def test_three_squares_are_a_color_image_with_channels_last(self):
        kernel = np.arange(12 * 5, dtype=float).reshape(12, 5)
        images = as_images(kernel)
        assert images.shape == (5, 2, 2, 3)
        np.testing.assert_array_equal(images[4].ravel(), kernel[:, 4])

    @pytest.mark.parametrize("shape", [(7, 3), (3, 3, 1, 8), (5,)])
    def test_what_is_no_square_is_no_image(self, shape):
        assert as_images(np.zeros(shape)) is None
