"""Settings and helpers that several test modules share."""

import contextlib
import functools
import gc
import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all of the tests' time goes into compiling thousands of small programs, each run once or twice. Less
# optimised ones differ by rounding alone. Child processes inherit both settings.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
FLAGS = "--xla_cpu_parallel_codegen_split_count=1"  # one part: the programs are small
if version("jax").startswith("0.10."):  # later ones have these emitters alone, and no such flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small, and the cores busy

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

# A parent may have set them to be ignored, which pcflax leaves as it is; the tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(number, handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK_TO_COMPILE = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")  # and slow to run
sys.path.insert(0, str(ROOT))

from tests.references import numpy_pc as reference

# An array that is broadcast to another's rank can hide a missing axis of the batch, and one that is promoted
# to another's dtype a cast that nobody wrote. Set once: under another setting a program is compiled anew.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    """Offer the run for another pair of versions, which has to meet every function and not every number."""
    parser.addoption(
        "--one-of-each",
        action="store_true",
        help="run each test with its first parameters alone, and none of those in tests/same_lines.txt, but "
        "all of those marked `whole`",
    )


def pytest_collection_modifyitems(config, items):
    """Leave out the further parameters of a test, and tests of the same lines, where that is asked."""
    if config.getoption("--one-of-each"):
        listed = ROOT / "tests" / "same_lines.txt"
        seen, kept, left = set(listed.read_text().split()) if listed.exists() else set(), [], []
        for item in items:
            name = item.nodeid.partition("[")[0]
            further = name in seen and item.get_closest_marker("whole") is None
            (left if further else kept).append(item)
            seen.add(name)
        items[:] = kept
        config.hook.pytest_deselected(items=left)


def pytest_configure(config):
    """Keep compiled programs for the other worker and for the next run; `--cache-clear` forgets them."""
    if not hasattr(config, "cache"):
        return
    folder = config.cache.mkdir("jax")
    if not hasattr(config, "workerinput") and _size_of(folder) > 2**30:
        shutil.rmtree(folder)  # programs of sources that have changed since
    jax.config.update("jax_compilation_cache_dir", str(folder))  # not in the environment: children
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # that are killed write none
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# jax makes a context of MLIR for each program, which takes a tenth of the tests' time. It has no public name:
# where this one is gone, the tests take longer.
with contextlib.suppress(ImportError, AttributeError):
    from jax._src.interpreters import mlir

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def pytest_collection_finish():
    """Collect garbage seldom, and hardly ever look at what was imported: a tenth of the tests' time else."""
    # not gc.freeze(): hypothesis looks for what refers to its own objects
    gc.set_threshold(50_000, 20, 20)


def _size_of(folder):
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def kill_once_saved(arguments, folders):
    """Start Python with these arguments, and kill it with -9 when each folder has a sealed checkpoint."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        start_new_session=True,  # a group of processes that is killed as one
    )
    try:
        begin = time.monotonic()
        while not all(list(folder.glob("*.sha256")) for folder in folders):
            assert process.poll() is None
            assert time.monotonic() - begin < 240
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def double():
    """64-bit floats for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@contextlib.contextmanager
def default_promotion():
    """Promotion as jax has it by default, in every thread."""
    names = {"jax_numpy_rank_promotion": "allow", "jax_numpy_dtype_promotion": "standard"}
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(autouse=True)
def promotion(request):
    """Promotion by default for a test that is marked so, with the reason."""
    marker = request.node.get_closest_marker("promotes")
    assert marker is None or marker.args, "@pytest.mark.promotes takes a reason"
    with contextlib.nullcontext() if marker is None else default_promotion():
        yield


@contextlib.contextmanager
def fully_optimized():
    """Fully optimised programs, where a test computes for longer than it compiles."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def optimized():
    """Fully optimised programs for one test."""
    with fully_optimized():
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs before there are too many: each maps memory, and Linux gives 65,530 maps."""
    yield
    with contextlib.suppress(NameError, AttributeError):
        mlir.make_ir_context.cache_clear()  # constants of programs are kept in it
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir():
    """A folder of prepared TFDS sets, or a skip with the reason."""
    folder = os.environ.get("PCFLAX_TEST_DATA")
    if not folder or not pathlib.Path(folder, "mnist").is_dir():
        pytest.skip("no prepared MNIST; set PCFLAX_TEST_DATA to a folder of prepared TFDS sets")
    return pathlib.Path(folder)


def in_double(network):
    """The network with its floats in the default float: in `double` 64 bits, as NumPy's are."""

    def widened(leaf):
        return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    nnx.update(network, jax.tree.map(widened, nnx.state(network)))
    return network


class Chain:
    """One chain twice: as a pcflax network and as its NumPy reference, with equal parameters.

    Widths are unequal, biases are not zero and nothing is symmetric, so that a transpose, a sign or a
    forgotten bias shows.
    """

    def __init__(
        self,
        widths=(3, 5, 4, 2),
        activation="tanh",
        activation_first=False,
        output="gaussian",
        precision=1.0,
        batch=7,
        root=False,
        seed=0,
    ):
        random = np.random.RandomState(seed)
        function = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "identity": None}[activation]
        output_energy = {
            "gaussian": pc.energies.Gaussian(precision),
            "categorical": pc.energies.Categorical(),
            "bernoulli": pc.energies.Bernoulli(),
        }[output]
        self.reference, layers = [], []
        if root:
            layers.append(pc.PCRoot(widths[0], energy=pc.energies.Gaussian(0.7)))
            self.reference.append(reference.ReferenceRoot(np.zeros(widths[0]), precision=0.7))
        for number, (below, above) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            last = number == len(widths) - 2
            kernel = random.normal(size=(below, above)) / np.sqrt(below)
            bias = random.normal(size=above) / 2
            layer = pc.PCDense(
                below,
                above,
                activation=function if activation_first or not last else None,
                activation_first=activation_first,
                energy=output_energy if last else pc.energies.Gaussian(1.0 + number / 2),
                rngs=nnx.Rngs(0),
            )
            layer.linear.kernel.set_value(jnp.asarray(kernel))
            layer.linear.bias.set_value(jnp.asarray(bias))
            layers.append(layer)
            self.reference.append(
                reference.ReferenceLayer(
                    kernel,
                    bias,
                    activation=activation if activation_first or not last else "identity",
                    activation_first=activation_first,
                    energy=output if last else "gaussian",
                    precision=precision if last else 1.0 + number / 2,
                )
            )
        self.network = pc.PCNetwork(layers)
        self.inputs = random.normal(size=(batch, widths[0]))
        self.targets = random.normal(size=(batch, widths[-1]))
        if output != "gaussian":
            self.targets = np.eye(widths[-1])[random.randint(widths[-1], size=batch)]
        self.random = random

    def free(self, *, root_free=False, output_free=False):
        """Which layers' activities are free, for the reference."""
        flags = [True] * len(self.reference)
        if isinstance(self.reference[0], reference.ReferenceRoot):
            flags[0] = root_free
        flags[-1] = output_free
        return flags


def gradient_arrays(state):
    """(kernel, bias) gradients of a chain of dense layers, as NumPy arrays."""
    return [
        (np.asarray(layer["linear"]["kernel"][...]), np.asarray(layer["linear"]["bias"][...]))
        for layer in state["layers"].values()
    ]


def infer_traced(chain, inference, **options):
    """What inference returns inside of compiled code, where numbers that are not finite raise nothing."""

    @jax.jit
    def infer(x, y):
        return chain.network.infer(x, y, inference=inference, **options)

    return infer(chain.inputs, chain.targets)


def digits_trainer(folder=None, *, widths=(64, 20, 10), seed=0, num_steps=4, **options):
    """A small Trainer on digits; `folder` for checkpoints."""
    rngs = nnx.Rngs(seed)
    layers = [
        pc.PCDense(below, above, activation=jnp.tanh if above != widths[-1] else None, rngs=rngs)
        for below, above in zip(widths[:-1], widths[1:], strict=True)
    ]
    keep = options.pop("keep", {})
    return pc.Trainer(
        pc.PCNetwork(layers),
        options.pop("optimizer", optax.adam(1e-2)),
        learning=options.pop(
            "learning",
            pc.learning.PredictiveCoding(
                pc.inference.GradientDescent(optax.sgd(0.05), num_steps=num_steps)
            ),
        ),
        checkpoints=None if folder is None else pc.Checkpoints(folder, **keep),
        seed=seed,
        progress=False,
        **options,
    )


@jax.jit
def compiled_gradients(rule, network, evidence, **options):
    """What `rule.gradients` returns, by one program: operation by operation it takes a hundred and more."""
    return rule.gradients(network, evidence, **options)


@jax.jit
def energies_at_start(network, inputs, targets):
    """Energies of examples by layer where inference starts, by one program; the network stays as it is."""
    network.init_activities(inputs, targets=targets)
    return network.energies(inputs)


def parameters_of(network):
    """All parameters as NumPy arrays."""
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(network, nnx.Param)))
    ]
