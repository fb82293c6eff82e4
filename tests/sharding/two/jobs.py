"""What is done on one device, on eight, and in two processes of four: each a function of the mesh."""

import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import pcflax as pc
from pcflax.sharding import data, layers
from tests.sharding.eight.common import ADAM, digits, trainer

DESCENT = pc.inference.GradientDescent(0.1, num_steps=5)
# every kind of draw: masks, noise, and where inference begins in each step
SAMPLED = pc.learning.PredictiveCoding(pc.inference.Langevin(0.02, num_samples=3))
RULES = {
    "incremental": pc.learning.IncrementalPC(DESCENT),
    "nudged": pc.learning.Nudged(DESCENT),
    "error coordinates": pc.learning.PredictiveCoding(
        pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.02, num_steps=3))
    ),
}


def deep(folder, mesh, num_steps, *callbacks):
    """A stack with dropout, trained with Langevin noise, evaluated and saved."""
    made = trainer(
        SAMPLED,
        mesh,
        dropout=0.2,
        checkpoints=pc.Checkpoints(folder / "checkpoints", every=2, activities=True),
        callbacks=[pc.JSONLinesLogger(folder / "metrics.jsonl"), *callbacks],
    )
    if made.checkpoints.steps():
        made.restore()
    made.fit(digits(), num_steps=num_steps, log_every=1, eval_data=digits("test"), eval_every=2)
    return made


def small(rule=None, mesh=None, **options):
    """Two layers, which compile fast."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        {
            "hidden": pc.PCDense(64, 12, activation=jnp.tanh, param_dtype=jnp.float64, rngs=rngs),
            "output": pc.PCDense(12, 10, param_dtype=jnp.float64, rngs=rngs),
        }
    )
    rule = rule or pc.learning.PredictiveCoding(DESCENT)
    return pc.Trainer(network, ADAM, learning=rule, mesh=mesh, progress=False, **options)


def parameters(made):
    """By path, as this process reads them."""
    tree = nnx.as_pure(nnx.state(made.network, nnx.Param))["layers"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def rules(mesh):
    """The parameters that each rule ends with."""
    found = {}
    for name, rule in RULES.items():
        made = small(rule, mesh)
        made.fit(digits(), num_steps=3)
        found |= {f"{name}/{path}": array for path, array in parameters(made).items()}
    return found


def questions(mesh):
    """Answers of a network that has learned a little."""
    made = small(mesh=mesh)
    made.fit(digits(), num_steps=2)
    network, random = made.network, np.random.default_rng(0)
    found = {f"evaluate/{k}": np.asarray(v) for k, v in made.evaluate(digits("test")).items()}
    found["predict/digits"] = made.predict(digits("test"))
    for rows in (8, 7):  # which divide among the devices, or do not
        x, y = random.normal(size=(rows, 64)), np.eye(10)[:rows]
        result = network.infer(x, y, inference=DESCENT, trace=True)
        found |= {
            f"predict/{rows}": made.predict(x),
            f"network.predict/{rows}": np.asarray(network.predict(x)),
            f"infer/{rows}": np.asarray(result.energy),
            f"infer/{rows}/hidden": np.asarray(result.activities["hidden"]),
            f"infer/{rows}/residual": np.asarray(result.trace.residual),
            f"kept/{rows}": np.asarray(network.layers["hidden"].activity[...]),
            f"energies/{rows}": np.asarray(network.energies(x)["hidden"]),
        }
        gradients = jax.tree.leaves(network.parameter_gradients(x))
        found |= {f"gradient/{rows}/{i}": np.asarray(g) for i, g in enumerate(gradients)}
    return found


class Source:
    """Examples that tell which of them were read."""

    def __init__(self, broken=None):
        random = np.random.default_rng(0)
        self.images = random.integers(0, 255, size=(160, 8, 8, 1)).astype(np.uint8)
        self.labels = random.integers(0, 10, size=160)
        self.broken, self.read = broken, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read.append(int(index))
        if self.broken and index in self.broken:
            raise OSError(f"no file {index}")
        return self.images[index], self.labels[index]


def stream(source, **options):
    return pc.data.StreamDataset(
        source,
        decoder=pc.data.Decoder(scale=1 / 255, flatten=True, num_classes=10),
        batch_size=16,
        num_threads=1,
        **options,
    )


def streamed(mesh):
    """Parameters after two epochs of augmented examples that are streamed; which ones were read."""
    source = Source()
    made = small(mesh=mesh)
    made.fit(stream(source, augment=pc.data.Crop(1), seed=3), num_steps=20, log_every=20)
    measured = made.evaluate(stream(Source(), name="test"))
    return {
        **parameters(made),
        "predict": made.predict(stream(Source(), name="test")),
        "evaluate": np.asarray([measured["accuracy"], measured["energy"]]),
    }, source.read


# In two processes alone.


class Fails(pc.Callback):
    """An error in the second process, and nowhere else."""

    def on_log(self, trainer, step, metrics):
        if jax.process_index() == 1:
            raise ValueError("this one's own fault")


class Signals(pc.Callback):
    """SIGTERM to one process after some step."""

    def __init__(self, process, step):
        self.process, self.step = process, step

    def on_log(self, trainer, step, metrics):
        if (jax.process_index(), step) == (self.process, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


class Killed(pc.Callback):
    """The end of this process once the checkpoint of step 2 is there."""

    def on_log(self, trainer, step, metrics):
        if step == 3:
            trainer.checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)


class Slow(pc.Callback):
    """One process whose steps take longer, by its clock."""

    def on_progress(self, trainer, step):
        time.sleep(0.02 * jax.process_index())


def told(call):
    """The error of a call, in words."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def failures(folder):
    """What each process is told where something fails in one of them."""
    train = digits()

    def fit(*callbacks, on=train, **options):
        small(mesh=data(), callbacks=callbacks, **options).fit(on, num_steps=2, log_every=1)

    own = folder / f"of-{jax.process_index()}"
    own.mkdir()
    (folder / "taken" / "2").mkdir(parents=True, exist_ok=True)
    return {
        "callback": told(lambda: fit(Fails())),
        "source": told(lambda: fit(on=stream(Source(broken=[25]), shuffle=False))),
        "no mesh": told(small),
        "a part": told(lambda: small(mesh=data(2))),
        "folders": told(lambda: fit(checkpoints=pc.Checkpoints(own))),
        "replicate": told(lambda: pc.experiments.replicate(small)),
        "taken": told(lambda: fit(checkpoints=pc.Checkpoints(folder / "taken", every=2))),
        "no checkpoint": told(small(mesh=data(), checkpoints=pc.Checkpoints(folder / "n")).restore),
    }


def stopped(folder, process):
    """Train until a signal to this process; returns the exit code and the step."""
    made = small(
        mesh=data(),
        checkpoints=pc.Checkpoints(folder / "checkpoints", every=100),
        callbacks=[Signals(process, step=3), Slow()],
    )
    try:
        made.fit(digits(), num_steps=100, log_every=1)
    except SystemExit as error:
        return error.code, made.step
    return 0, made.step


def both(folder):
    """All of it, in each of two processes."""
    me = jax.process_index()
    deep(folder / "deep", data(2) | layers(4), 4)
    np.savez(folder / f"rules-{me}.npz", **rules(data()))
    np.savez(folder / f"questions-{me}.npz", **questions(data()))
    arrays, read = streamed(data())
    np.savez(folder / f"streamed-{me}.npz", **arrays)
    found = {"read": read, "failures": failures(folder), "stopped": stopped(folder / "term", 1)}
    (folder / f"found-{me}.json").write_text(json.dumps(found))
    while not (folder / "eight" / "killed").exists():
        time.sleep(0.05)
    deep(folder / "eight", data(2) | layers(4), 6)
    raise SystemExit(stopped(folder / "again", 0)[0])
