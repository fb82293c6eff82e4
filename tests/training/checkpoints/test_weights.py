"""Weights in files and from plain Flax. Oracles: safetensors' own NumPy reader; Flax's own forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

NAMES = {"layers.0": "hidden_1.linear", "layers.2": "output.linear"}


def mlp(seed=0, *widths, **options):
    return pc.models.mlp(*(widths or (3, 5, 2)), rngs=nnx.Rngs(seed), **options)


def sequential(seed):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(nnx.Linear(3, 5, rngs=rngs), jnp.tanh, nnx.Linear(5, 2, rngs=rngs))


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "mlp.safetensors"
    pc.save_weights(mlp(), path)
    return path


def kernels(network):
    return jax.tree.map(np.array, pc.networks.split(network).parameters)


class TestFiles:
    def test_another_reader_finds_the_arrays_by_path(self, file):
        from safetensors.numpy import load_file

        found, parameters = load_file(file), kernels(mlp())
        assert set(found) == {f"{n}.linear.{k}" for n in parameters for k in ("kernel", "bias")}
        for path, array in found.items():
            layer, _, kind = path.split(".")
            np.testing.assert_array_equal(array, parameters[layer]["linear"][kind])

    def test_a_file_of_another_writer_loads(self, tmp_path, x):
        safetensors = pytest.importorskip("safetensors.numpy")
        plain = sequential(3)
        path = tmp_path / "plain.safetensors"
        flat = nnx.to_flat_state(nnx.state(plain))
        safetensors.save_file({".".join(map(str, k)): np.asarray(v[...]) for k, v in flat}, path)
        network = mlp()
        pc.load_weights(network, path, rename=NAMES)
        np.testing.assert_array_equal(network.predict(x), plain(x))

    def test_bfloat16_comes_back_bit_by_bit(self, tmp_path):
        pytest.importorskip("safetensors")

        old, new = (
            pc.PCNetwork([pc.PCDense(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(seed))])
            for seed in (0, 1)
        )
        pc.save_weights(old, tmp_path / "w")
        pc.load_weights(new, tmp_path / "w")
        jax.tree.map(np.testing.assert_array_equal, kernels(old), kernels(new))

    def test_what_computes_something_else_is_refused_unless_partial(self, file):
        network = mlp(1, activation=jax.nn.relu)
        before = kernels(network)
        with pytest.raises(pc.CheckpointError, match="saved with activation tanh.*has relu"):
            pc.load_weights(network, file)
        jax.tree.map(np.testing.assert_array_equal, kernels(network), before)
        pc.load_weights(network, file, partial=True)
        jax.tree.map(np.testing.assert_array_equal, kernels(network), kernels(mlp()))

    def test_what_does_not_fit_is_refused_unless_partial(self, file):
        network = mlp(1, 3, 5, 7)
        before = kernels(network)
        with pytest.raises(pc.CheckpointError, match=r"'output.linear.bias' is float32\[2\], not"):
            pc.load_weights(network, file)
        jax.tree.map(np.testing.assert_array_equal, kernels(network), before)
        report = pc.load_weights(network, file, partial=True)
        assert report.loaded == ("hidden_1.linear.bias", "hidden_1.linear.kernel")
        assert set(report.skipped) == {"output.linear.bias", "output.linear.kernel"}

    def test_what_is_no_such_file(self, tmp_path, file):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            pc.load_weights(mlp(), tmp_path / "none")
        whole = file.read_bytes()
        for content in (b"not this", whole[:-8]):
            file.write_bytes(content)
            with pytest.raises(pc.CheckpointError, match="is no safetensors file, or damaged"):
                pc.load_weights(mlp(), file)

    def test_dropout_is_no_matter_of_weights(self, file):
        network = mlp(1)
        network.layer("hidden_1").noise = nnx.Dropout(0.5, rngs=nnx.Rngs(3))
        assert len(pc.load_weights(network, file).loaded) == 4


class TestPlainFlax:
    def test_from_a_sequential_of_the_same_shapes(self, x):
        plain, network = sequential(3), mlp()
        pc.load_weights(network, nnx.state(plain, nnx.Param), rename=NAMES)
        np.testing.assert_array_equal(network.predict(x), plain(x))

    def test_to_a_sequential_of_the_same_shapes(self, x):
        plain, network = sequential(3), mlp()
        parameters = pc.networks.split(network).parameters
        nnx.update(plain.layers[0], parameters["hidden_1"]["linear"])
        nnx.update(plain.layers[2], parameters["output"]["linear"])
        np.testing.assert_array_equal(plain(x), network.predict(x))

    def test_arrays_of_numpy_by_path(self):
        arrays = {
            "hidden_1.linear.kernel": np.full((3, 5), 2, np.float32),
            "more.kernel": np.zeros(1, np.float32),
        }
        network = mlp()
        with pytest.raises(pc.CheckpointError, match="it lacks 'hidden_1.linear.bias'"):
            pc.load_weights(network, arrays)
        report = pc.load_weights(network, arrays, partial=True)
        assert (report.loaded, report.unused) == (("hidden_1.linear.kernel",), ("more.kernel",))
        assert (kernels(network)["hidden_1"]["linear"]["kernel"] == 2).all()


class TestRenaming:
    def test_a_new_name_goes_before_an_old_one(self):
        """hidden_1 goes to hidden_2, whose own array gives way and is told as unused."""
        old, new = mlp(0, 4, 4, 4, 2), mlp(1, 4, 4, 4, 2)
        source = kernels(old)
        report = pc.load_weights(new, source, rename={"hidden_1": "hidden_2"}, partial=True)
        found = kernels(new)["hidden_2"]["linear"]["kernel"]
        np.testing.assert_array_equal(found, source["hidden_1"]["linear"]["kernel"])
        assert set(report.unused) == {"hidden_2.linear.bias", "hidden_2.linear.kernel"}
        assert set(report.missing) == {"hidden_1.linear.bias", "hidden_1.linear.kernel"}

    def test_two_arrays_do_not_share_a_place(self):
        rename = {"hidden_1": "output", "hidden_2": "output"}
        with pytest.raises(ValueError, match="rename brings both 'hidden_1.linear.bias' and 'hid"):
            pc.load_weights(mlp(0, 4, 4, 4, 4), kernels(mlp(1, 4, 4, 4, 4)), rename=rename)

    def test_a_place_that_is_not_there(self):
        with pytest.raises(ValueError, match="'output.linea', which the network does not have"):
            pc.load_weights(mlp(), nnx.state(sequential(0)), rename={"layers.2": "output.linea"})
