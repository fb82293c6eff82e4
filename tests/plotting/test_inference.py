"""The figures of inference: the numbers given are the numbers drawn, however many or odd they are."""

import io

import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image

import pcflax as pc
from pcflax.plotting import inference_figure, trajectory_figure
from pcflax.plotting.lines import depth_colors, evenly, text_width

pytestmark = pytest.mark.slow

# A feedforward start: the hidden energy is exactly zero there.
ENERGIES = {"hidden": np.array([0.0, 0.5, 0.7, 0.8]), "output": np.array([3.0, 2.0, 1.5, 1.4])}
RESIDUAL = np.array([0.8, 0.3, 0.1, 0.05])


def make_figure(energies=ENERGIES, residual=RESIDUAL, **options):
    return inference_figure(energies=energies, residual=residual, **options)


def curves(axis):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axis.lines}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def draw(figure):
    """Matplotlib warns when it draws, and warnings are errors here."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    file.seek(0)
    with Image.open(file) as image:
        image.verify()
        assert image.format == "PNG"


def many(count, num_points=21):
    """Energies that fall by a factor of ten a layer, as in a deep chain, with zeros before they start."""
    steps = np.arange(num_points)
    return {
        f"layer_{layer}": 10.0 ** (layer - count) * np.maximum(steps - (count - 1 - layer), 0)
        for layer in range(count)
    }


class TestInferenceFigure:
    def test_energies_and_residual_are_those_given(self):
        """A figure that drew other numbers than the trace's would be wrong in every paper."""
        left, right = make_figure().axes
        drawn = curves(left)
        assert list(drawn) == ["hidden", "output", "total"]
        for name, energy in ENERGIES.items():
            np.testing.assert_array_equal(drawn[name][0], [0, 1, 2, 3])
            np.testing.assert_array_equal(drawn[name][1], energy)
        np.testing.assert_allclose(drawn["total"][1], [3.0, 2.5, 2.2, 2.2])
        np.testing.assert_array_equal(curves(right)["residual"][0], [0, 1, 2, 3])
        np.testing.assert_array_equal(curves(right)["residual"][1], RESIDUAL)

    def test_total_is_black_and_dashed_and_layers_have_a_color_each(self):
        hidden, output, total = make_figure().axes[0].lines
        assert (total.get_color(), total.get_linestyle()) == ("black", "--")
        assert {hidden.get_linestyle(), output.get_linestyle()} == {"-"}
        assert tuple(hidden.get_color()) != tuple(output.get_color())

    def test_words(self):
        figure = make_figure(title="digits")
        left, right = figure.axes
        assert figure.get_suptitle() == "digits"
        assert left.get_xlabel() == right.get_xlabel() == "inference step"
        assert left.get_ylabel() == "energy an example (nats)"
        assert right.get_ylabel() == "residual, root mean square of dF/dz"
        assert legend(left) == ["hidden", "output", "total"]

    def test_one_layer_needs_no_total(self):
        assert list(curves(make_figure({"only": np.ones(4)}).axes[0])) == ["only"]

    @pytest.mark.parametrize("count", [10, 11, 64])
    def test_many_layers_have_a_color_bar_and_not_a_legend_of_all(self, count):
        figure = make_figure(many(count), np.ones(21))
        assert len(figure.axes[0].lines) == count + 1
        colors = [tuple(line.get_color()) for line in figure.axes[0].lines[:-1]]
        assert len(set(colors)) == count
        if count == 10:
            assert len(figure.axes) == 2
            assert legend(figure.axes[0]) == [*many(count), "total"]
        else:
            left, _, bar = figure.axes
            assert legend(left) == ["total"]
            names = [text.get_text() for text in bar.get_yticklabels()]
            assert (names[0], names[-1]) == ("layer_0", f"layer_{count - 1}")
            # layer l's band is centred on l, so that the bar's names stand at their own colour
            assert bar.get_ylim() == (-0.5, count - 0.5)
            assert bar.get_yticks()[-1] == count - 1
        draw(figure)

    def test_long_names_leave_room_for_the_curves(self):
        """Where they do not, matplotlib gives up the layout with a warning."""
        energies = {f"{'encoder/' * 12}block_{i}": np.ones(3) for i in range(11)}
        draw(make_figure(energies, np.ones(3)))
        draw(make_figure(dict(list(energies.items())[:3]), np.ones(3)))

    @pytest.mark.parametrize(
        ("hidden", "scale"),
        [
            ([0.5, 0.6], "log"),
            ([0.0, 0.6], "log"),
            ([0.0, 0.0], "log"),
            ([-0.5, 0.6], "linear"),
        ],
    )
    def test_scale_of_the_energy(self, hidden, scale):
        """Zero is where every hidden energy starts; below zero there is no logarithm."""
        figure = make_figure({"hidden": np.array(hidden), "output": np.ones(2)}, np.ones(2))
        assert [axis.get_yscale() for axis in figure.axes] == [scale, "log"]
        draw(figure)

    def test_an_equilibrium_without_energy_is_linear(self):
        figure = make_figure({"a": np.zeros(3), "b": np.zeros(3)}, np.zeros(3))
        assert [axis.get_yscale() for axis in figure.axes] == ["linear", "linear"]
        draw(figure)

    def test_a_zero_is_a_gap_and_not_a_cliff(self):
        """Clipped, the line would fall out of the figure at the step after the zero."""
        left = make_figure().axes[0]
        line = left.lines[0]
        points = line.get_transform().transform(np.column_stack([[0, 1], [0.0, 0.5]]))
        assert not np.isfinite(points[0, 1])
        assert np.isfinite(points[1]).all()

    def test_twelve_decades_at_most(self):
        tiny = make_figure({"a": np.array([1e-30, 1e-20]), "b": np.array([2.0, 1.0])}, np.ones(2))
        bottom, top = tiny.axes[0].get_ylim()
        assert bottom == pytest.approx(2e-12)
        assert top > 2.0
        enough = make_figure({"a": np.array([1e-9, 1e-8]), "b": np.array([2.0, 1.0])}, np.ones(2))
        assert enough.axes[0].get_ylim()[0] > 1e-11

    @pytest.mark.parametrize("num_points", [1, 2])
    def test_no_step_and_a_single_step_show_their_points(self, num_points):
        figure = make_figure(
            {name: energy[:num_points] for name, energy in ENERGIES.items()}, RESIDUAL[:num_points]
        )
        draw(figure)
        for axis in figure.axes:
            assert {line.get_marker() for line in axis.lines} == {"."}
            low, high = axis.get_xlim()
            ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
            assert ticks == list(range(num_points))

    def test_inference_that_diverged_is_seen_to_end_early(self):
        values = np.array([1.0, 10.0, np.inf, np.nan])
        figure = make_figure({"output": values}, values)
        draw(figure)
        for axis in figure.axes:
            assert axis.get_yscale() == "log"
            assert axis.get_xlim()[1] >= 3

    def test_arrays_of_any_library_and_precision_are_taken(self):
        import jax.numpy as jnp

        energies = {name: jnp.asarray(value, jnp.bfloat16) for name, value in ENERGIES.items()}
        figure = make_figure(energies, jnp.asarray(RESIDUAL))
        draw(figure)
        # three significant digits: bfloat16 keeps eight bits
        np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata()[:2], [3.0, 2.5], rtol=1e-2)

    def test_a_real_trace_of_digits(self, digits_result):
        names, result = digits_result
        energies = {name: value.mean(axis=1) for name, value in result.trace.energies.items()}
        figure = make_figure(energies, result.trace.residual.mean(axis=1))
        drawn = curves(figure.axes[0])
        assert list(drawn) == [*names, "total"]
        np.testing.assert_allclose(drawn["total"][1], result.trace.energy.mean(axis=1), rtol=1e-5)
        draw(figure)

    def test_figures_do_not_stay_in_pyplot(self):
        before = matplotlib.pyplot.get_fignums()
        make_figure()
        trajectory_figure({"only": np.ones((3, 2))})
        assert matplotlib.pyplot.get_fignums() == before

    def test_no_layers(self):
        with pytest.raises(ValueError, match=r"^expected the energies of at least one layer, got"):
            make_figure({})

    @pytest.mark.parametrize("shape", [(), (0,), (4, 64)])
    def test_energies_that_are_not_averaged(self, shape):
        with pytest.raises(
            ValueError,
            match=r"^expected the energy of layer 'a' to be \(num_steps \+ 1,\), got shape \("
            r".*average over the batch: values\.mean\(axis=1\)$",
        ):
            make_figure({"a": np.ones(shape)})

    def test_a_residual_that_is_not_averaged(self):
        with pytest.raises(ValueError, match=r"^expected the residual to be .*\(4, 64\); average"):
            make_figure(residual=np.ones((4, 64)))

    def test_energies_of_another_inference(self):
        with pytest.raises(
            ValueError,
            match=r"^expected the energy of layer 'a' at the same 4 steps as the others, start and "
            r"end included, got 3; give all of one inference$",
        ):
            make_figure({"a": np.ones(3)})


@pytest.fixture(scope="module")
def digits_result():
    import jax.numpy as jnp
    import optax
    from flax import nnx

    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [
            pc.PCDense(64, 30, activation=jnp.tanh, rngs=rngs),
            pc.PCDense(30, 20, activation=jnp.tanh, rngs=rngs),
            pc.PCDense(20, 10, rngs=rngs),
        ]
    )
    batch = next(iter(pc.data.load("digits", batch_size=32)))
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    result = network.infer(batch.inputs, batch.targets, inference=inference, trace=True)
    return network.names, result


class TestTrajectoryFigure:
    def test_activities_are_those_given(self):
        """Transposed, a line would be a step's units and not a unit's steps."""
        values = np.random.default_rng(0).normal(size=(6, 4))
        (axis,) = trajectory_figure({"hidden": values}).axes
        # drawn in the order of the activities at the start
        for line, unit in zip(axis.lines, np.argsort(values[0]), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), np.arange(6))
            np.testing.assert_array_equal(line.get_ydata(), values[:, unit])
        assert len({tuple(line.get_color()) for line in axis.lines}) == 4
        draw(axis.get_figure())

    def test_words(self):
        figure = trajectory_figure(
            {"a": np.ones((3, 30)), "b": np.ones((3, 20)), "c": np.ones((3, 1))}, title="one digit"
        )
        assert figure.get_suptitle() == "one digit"
        titles = [axis.get_title() for axis in figure.axes]
        assert titles == ["a: 20 of 30 units", "b: 20 units", "c: 1 unit"]
        assert {axis.get_xlabel() for axis in figure.axes} == {"inference step"}
        assert [axis.get_ylabel() for axis in figure.axes] == ["activity", "", ""]

    @pytest.mark.parametrize("units", [1, 7, 20, 500])
    def test_units_are_evenly_chosen(self, units):
        values = np.tile(np.arange(300.0), (3, 1))
        (axis,) = trajectory_figure({"hidden": values}, units=units).axes
        chosen = np.array([line.get_ydata()[0] for line in axis.lines])
        assert len(chosen) == min(units, 300)
        if units > 1:
            assert (chosen[0], chosen[-1]) == (0, 299)
            gaps = np.diff(chosen)
            assert gaps.max() - gaps.min() <= 1

    @pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7, 40])
    def test_at_most_six_layers_from_first_to_last(self, count):
        figure = trajectory_figure({f"layer_{i}": np.ones((3, 2)) for i in range(count)})
        names = [axis.get_title().split(":")[0] for axis in figure.axes]
        assert len(set(names)) == len(names) == min(count, 6)
        assert (names[0], names[-1]) == ("layer_0", f"layer_{count - 1}")
        numbers = [int(name.removeprefix("layer_")) for name in names]
        assert numbers == sorted(numbers)
        draw(figure)

    @pytest.mark.parametrize("num_points", [1, 2])
    def test_no_step_and_a_single_step_show_their_points(self, num_points):
        figure = trajectory_figure({"a": np.ones((num_points, 3)), "b": np.zeros((num_points, 1))})
        draw(figure)
        assert {line.get_marker() for axis in figure.axes for line in axis.lines} == {"."}

    def test_long_names_do_not_run_into_each_other(self):
        figure = trajectory_figure({f"{'encoder/' * 8}{i}": np.ones((3, 2)) for i in range(3)})
        draw(figure)
        boxes = [axis.title.get_window_extent() for axis in figure.axes]
        for left, right in zip(boxes[:-1], boxes[1:], strict=True):
            assert left.x1 < right.x0

    def test_activities_that_are_not_finite_are_left_out(self):
        draw(trajectory_figure({"a": np.array([[1.0, 2.0], [np.inf, np.nan]])}))

    def test_no_layers(self):
        with pytest.raises(
            ValueError, match=r"^expected the trajectories of at least one layer, got none$"
        ):
            trajectory_figure({})

    def test_no_units(self):
        with pytest.raises(
            ValueError, match=r"^expected units >= 1, got 0; it is the number of lines a panel$"
        ):
            trajectory_figure({"a": np.ones((3, 2))}, units=0)

    @pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 64, 5)])
    def test_trajectories_of_a_batch(self, shape):
        with pytest.raises(
            ValueError,
            match=r"^expected the trajectory of layer 'a' to be \(num_steps \+ 1, features\), got "
            r"shape .*; give one example, its features in one axis$",
        ):
            trajectory_figure({"a": np.ones(shape)})

    def test_trajectories_of_two_inferences(self):
        with pytest.raises(
            ValueError, match=r"^expected the trajectory of layer 'b' at the same 3 steps .* got 4;"
        ):
            trajectory_figure({"a": np.ones((3, 2)), "b": np.ones((4, 2))})


@pytest.mark.parametrize("at_most", [1, 2, 5, 6])
@pytest.mark.parametrize("count", range(1, 30))
def test_evenly_never_repeats(count, at_most):
    indices = evenly(count, at_most)
    assert len(indices) == min(count, at_most)
    assert indices[0] == 0
    assert (np.diff(indices) > 0).all()
    if at_most > 1:
        assert indices[-1] == count - 1


def test_every_depth_has_its_color_and_none_is_lost_on_white():
    colors = np.array([depth_colors(64)(number) for number in range(64)])
    assert len(np.unique(colors, axis=0)) == 64
    # relative luminance, ITU-R BT.709
    assert (colors[:, :3] @ [0.2126, 0.7152, 0.0722] < 0.85).all()


def test_text_width_is_about_what_matplotlib_draws():
    """Far too little, and long names squeeze the curves; a third is enough for a layout."""
    from matplotlib.figure import Figure

    name = "encoder/block_12/attention/projection"
    figure = Figure(dpi=100)
    text = figure.text(0, 0, name, fontsize="small")
    drawn = text.get_window_extent().width / 100
    assert text_width([name, "a"]) == pytest.approx(drawn, rel=0.33)
