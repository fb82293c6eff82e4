"""Figures of images: what stands where, read back from the axes."""

import numpy as np
import pytest

import pcflax as pc


def test_every_image_stands_in_its_place_with_its_title():
    images = np.random.default_rng(0).uniform(size=(5, 6))
    figure = pc.plotting.image_figure(images, columns=3, shape=(2, 3), titles="abcde", title="all")
    assert [axis.get_title() for axis in figure.axes] == list("abcde")
    for axis, image in zip(figure.axes, images, strict=True):
        np.testing.assert_allclose(axis.images[0].get_array(), image.reshape(2, 3), rtol=1e-6)
        assert axis.images[0].get_clim() == (0, 1)
    tops = [round(axis.get_position().y0, 3) for axis in figure.axes]
    assert len(set(tops[:3])) == len(set(tops[3:])) == 1
    assert tops[0] > tops[3]
    assert figure.get_suptitle() == "all"


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 5), (2, 4, 5, 1), (2, 4, 5, 3)])
def test_images_come_in_these_shapes(shape, tmp_path):
    figure = pc.plotting.image_figure(np.full(shape, 2.0))
    assert len(figure.axes) == 2
    assert figure.axes[0].images[0].get_array().max() == 1  # what is brighter than white is white
    figure.savefig(tmp_path / "images.png")
    assert (tmp_path / "images.png").stat().st_size > 500


@pytest.mark.parametrize("shape", [(2, 15), (0, 16), (16,), (2, 4, 5, 2)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="expected images of"):
        pc.plotting.image_figure(np.zeros(shape))


@pytest.mark.parametrize("titles", ["a", "abc"])
def test_titles_are_one_an_image(titles):
    with pytest.raises(ValueError, match=f"expected 2 titles, one an image, got {len(titles)}"):
        pc.plotting.image_figure(np.zeros((2, 16)), titles=titles)
