"""ngc-learn, driven by its own components, wires and processes, a whole step jitted.

The job itself: with e_l = z_l - mu_l and F = 1/2 sum_l ||e_l||^2 of an example,

    tau dz_l/dt = -e_l + (e_{l+1} phi'(a_{l+1})) K_{l+1}^T,   a_l = z_{l-1} K_l + b_l, mu_l = phi(a_l),
    dF/dK_l = -1/B z_{l-1}^T (e_l phi'(a_l)),                 phi' = 1 in the last layer,

by T Euler steps with dt/tau = activity_step_size. z_l are `RateCell`s, K_l `HebbianSynapse`s (whose factor
e_l is weighted by 1/B: the mean, not the sum over the batch), their transposes `StaticSynapse`s, e_l
`GaussianErrorCell`s; a second one a layer, its `modulator` wired to the slope, is e_l phi'(a_l).

Departures from the library's own discriminative predictive coding network (ngc-museum, "pc_discrim").
(1) There a cell's activation acts on what it sends, mu_l = phi(z_{l-1}) K_l + b_l, and `RateCell` applies
phi'(z_l) to what it receives, as the "residual" model needs it. That is another energy than the "mlp"
model's, which needs the slope phi'(a_l) of a prediction. No noiseless component outputs that;
`SlopedRateCell` adds it, and is the only component here that is not the library's.
(2) There Python calls a process for each of the T steps, and the start is drawn through copies of the
synapses. Here `process.run` and `process.scan`, given a state, return the next one inside one jitted, donated
call a batch (`Tuned`: for K batches), the start comes from the synapses themselves, and K_1, whose input
is clamped, is applied once a batch.
(3) `HebbianSynapse.evolve` has a constant rate and no decoupled weight decay, so its `calc_update` gives the
gradient and the library's Adam is called with the iteration's rate. Next file to read: `bare_scan.py`.
"""

import itertools
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ngclearn import Compartment, Context, MethodProcess, compilable
from ngclearn.components import GaussianErrorCell, HebbianSynapse, RateCell, StaticSynapse
from ngclearn.utils.optim import get_opt_step_fn
from ngcsimlib.global_state import stateManager

from . import Job, Parameters, Unsupported

State = dict[str, Any]  # the value of every compartment, by its `root`
CONTEXT_NUMBERS = itertools.count()  # a context's name belongs to one model for good
PURE: dict[str, Any] = {"store_state": False, "store_results": False}


class SlopedRateCell(RateCell):
    """A stateless RateCell, z = j + j_td and zF = phi(z), that also outputs its slope phi'(z)."""

    def __init__(self, name: str, n_units: int, **options: Any) -> None:
        super().__init__(name, n_units, tau_m=0.0, **options)
        self.slope = Compartment(jnp.zeros((self.batch_size, n_units)))

    @compilable
    def advance_state(self) -> None:
        """The library turns this source into a pure function of the state."""
        z = self.j.get() + self.j_td.get()
        self.z.set(z)
        self.zF.set(self.fx(z))
        self.slope.set(self.dfx(z))


def make_process(name: str, *components: Any, method: str = "advance_state") -> MethodProcess:
    """A process that calls this method of the components in order."""
    process = MethodProcess(name)
    for component in components:
        process.then(getattr(component, method))
    return process


class Contender:
    """Wires the model once; then a state goes into its compiled processes and comes out, every batch."""

    tuned = False
    name = f"ngc-learn {metadata.version('ngclearn')} (whole step jitted)"
    packages = ("ngclearn", "ngcsimlib", "jax", "jaxlib")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Make and wire the components in a context, which compiles them, and take its state."""
        if job.model == "vgg5":
            raise Unsupported("ngc-learn has convolutional synapses but no max-pooling component.")
        self.job, self.residual, self.iteration = job, job.model == "residual", 0
        with Context(f"pcn{next(CONTEXT_NUMBERS)}") as context:
            self.synapses = [
                self.make_synapse(index, layer) for index, layer in enumerate(parameters, 1)
            ]
            self.wire()
        own = {k: v for k, v in stateManager.state.items() if k.startswith(context.path + ":")}
        self.state: State = jax.tree.map(jnp.array, own)
        self.learned: State = {  # what a batch hands on to the next
            compartment.root: self.state.pop(compartment.root)
            for synapse in self.synapses
            for compartment in (synapse.weights, synapse.biases, synapse.opt_params)
        }
        self.compiled_train = jax.jit(self.train, donate_argnums=1)
        self.compiled_infer = jax.jit(self.infer_all)
        self.compiled_predict = jax.jit(self.predict_all)

    def make_synapse(self, index: int, layer: dict[str, np.ndarray]) -> HebbianSynapse:
        """K_l and b_l with the initial values given; `sign_value` makes Hebb's rule descend."""
        bias, multiplier = layer.get("bias"), self.job.multipliers[index - 1]
        return HebbianSynapse(
            f"W{index}",
            shape=layer["kernel"].shape,
            weight_init=lambda *_: jnp.array(layer["kernel"]),
            bias_init=None if bias is None else lambda shape, _: jnp.array(bias).reshape(shape),
            w_bound=0.0,
            sign_value=-1.0,
            optim_type="adam",
            g_conduct_factor=multiplier,
            pre_wght=multiplier,
            post_wght=1 / self.job.batch_size,
            batch_size=self.job.batch_size,
        )

    def wire(self) -> None:
        """Cells and feedback synapses, the wires between them, and the processes."""
        job, residual, size = self.job, self.residual, {"batch_size": self.job.batch_size}
        hidden = list(enumerate(job.widths[1:-1], 1))
        phi, tau = job.activation, 1 / job.activity_step_size
        send = phi if residual else "identity"
        cells = [RateCell(f"z{i}", n, tau_m=tau, act_fx=send, **size) for i, n in hidden]
        predictions = [SlopedRateCell(f"p{i}", n, act_fx=phi, **size) for i, n in hidden]
        errors = [GaussianErrorCell(f"e{i}", n, **size) for i, n in enumerate(job.widths[1:], 1)]
        sloped = [] if residual else [GaussianErrorCell(f"d{i}", n, **size) for i, n in hidden]
        sums = [RateCell(f"s{i}", n, tau_m=0.0, **size) for i, n in hidden[:-1] if residual]
        posts = errors if residual else [*sloped, errors[-1]]
        self.back = [  # K_l^T of layers 2 to L
            StaticSynapse(
                f"E{index + 1}",
                shape=(job.widths[index + 1], width),
                weight_init=lambda shape, _: jnp.zeros(shape),
                g_conduct_factor=job.multipliers[index],
                **size,
            )
            for index, width in hidden
        ]
        for index, (cell, prediction) in enumerate(zip(cells, predictions, strict=True)):
            self.synapses[index].outputs >> prediction.j
            if residual and index:  # the skip up, and below the same one down
                cells[index - 1].z >> prediction.j_td
            for error in [errors[index]] if residual else [errors[index], sloped[index]]:
                (prediction.z if residual else prediction.zF) >> error.mu
                cell.z >> error.target
            if not residual:
                prediction.slope >> sloped[index].modulator
            if index < len(sums):
                errors[index].dtarget >> sums[index].j
                errors[index + 1].dmu >> sums[index].j_td
                sums[index].z >> cell.j_td
            else:
                errors[index].dtarget >> cell.j_td
            cell.zF >> self.synapses[index + 1].inputs
            posts[index + 1].dmu >> self.back[index].inputs
            self.back[index].outputs >> cell.j
        self.synapses[-1].outputs >> errors[-1].mu
        for synapse, post in zip(self.synapses, posts, strict=True):
            synapse.inputs >> synapse.pre
            post.dmu >> synapse.post

        layers = [*zip(self.synapses, predictions, strict=False), self.synapses[-1:]]
        self.layers = [make_process(f"layer{i}", *parts) for i, parts in enumerate(layers, 1)]
        measure = [*itertools.chain(*layers[1:]), *errors, *sloped]
        self.measure = make_process("measure", *measure)
        self.advance = make_process("advance", *self.back, *sums, *cells, *measure)
        self.learn = make_process("learn", *self.synapses, method="calc_update")
        self.cells, self.predictions, self.target = cells, predictions, errors[-1].target.root

    def feedforward(self, state: State, inputs: jax.Array) -> State:
        """Clamp the input and start every hidden activity at the prediction from the one below."""
        state = state | {self.synapses[0].inputs.root: inputs}
        for layer, prediction, cell in zip(self.layers, self.predictions, self.cells, strict=False):
            state, _ = layer.run(state=state, update=False)
            start = state[prediction.z.root if self.residual else prediction.zF.root]
            state |= {cell.z.root: start, cell.zF.root: state[prediction.zF.root]}
        return state

    def infer(self, state: State, inputs: jax.Array, targets: jax.Array) -> State:
        """T Euler steps from the feedforward start; errors are those of the last activities."""
        for back, synapse in zip(self.back, self.synapses[1:], strict=True):
            state = state | {back.weights.root: state[synapse.weights.root].T}
        state = self.feedforward(state, inputs) | {self.target: targets}
        state, _ = self.measure.run(state=state, update=False, dt=1.0)
        rows = jnp.array(self.advance.pack_rows(self.job.num_inference_steps, dt=1.0))
        return self.advance.scan(rows, current_state=state, **PURE)[0]

    def train(self, state: State, learned: State, *batches: jax.Array) -> State:
        """What K batches learn: inputs, targets and learning rates, (K, ...) each."""

        def step(learned: State, batch: tuple) -> tuple[State, None]:
            inputs, targets, rate = batch
            after, _ = self.learn.run(
                state=self.infer(state | learned, inputs, targets), update=False
            )
            new = dict(learned)
            for synapse in self.synapses:
                pairs = [(synapse.weights, synapse.dWeights), (synapse.biases, synapse.dBiases)]
                keys, gradients = zip(*(pairs[:1] if self.residual else pairs), strict=True)
                old, moments = [learned[key.root] for key in keys], synapse.opt_params.root
                new[moments], stepped = get_opt_step_fn("adam", eta=rate)(
                    learned[moments], old, [after[gradient.root] for gradient in gradients]
                )
                for key, value, before in zip(keys, stepped, old, strict=True):
                    new[key.root] = value - rate * self.job.weight_decay * before
            return new, None

        return jax.lax.scan(step, learned, batches)[0]

    def infer_all(self, state: State, *batches: jax.Array) -> list[jax.Array]:
        """Hidden activities of K batches, each (K, batch, width)."""

        def step(batch: tuple) -> list[jax.Array]:
            after = self.infer(state, *batch)
            return [after[cell.z.root] for cell in self.cells]

        return jax.lax.map(step, batches)

    def predict_all(self, state: State, batches: jax.Array) -> jax.Array:
        """Outputs (K, batch, classes) of inputs (K, batch, features)."""

        def step(inputs: jax.Array) -> jax.Array:
            after, _ = self.layers[-1].run(state=self.feedforward(state, inputs), update=False)
            return after[self.synapses[-1].outputs.root]

        return jax.lax.map(step, batches)

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order; compiles per K."""
        self.job.check_batches(inputs, targets)
        if not self.job.learns:
            size = len(inputs) if self.tuned else 1
            for k in range(0, len(inputs), size):
                some = inputs[k : k + size], targets[k : k + size]
                found = self.compiled_infer(self.state | self.learned, *some)
            jax.block_until_ready(found)
            return
        numbers = range(self.iteration, self.iteration + len(inputs))
        rates = np.array([self.job.learning_rate_at(number) for number in numbers], np.float32)
        size = len(inputs) if self.tuned else 1
        for first in range(0, len(inputs), size):
            batches = (array[first : first + size] for array in (inputs, targets, rates))
            self.learned = self.compiled_train(self.state, self.learned, *batches)
        self.iteration += len(inputs)
        jax.block_until_ready(self.learned)

    def parameters(self) -> Parameters:
        """Return the parameters, copied."""
        result = [{"kernel": np.array(self.learned[w.weights.root])} for w in self.synapses]
        if not self.residual:
            for layer, synapse in zip(result, self.synapses, strict=True):
                layer["bias"] = np.array(self.learned[synapse.biases.root])[0]
        return result

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, in batches of the job's size because cells have one."""
        size, width = self.job.batch_size, self.job.widths[-1]
        padded = np.pad(inputs, ((0, -len(inputs) % size), (0, 0))).reshape(
            -1, size, inputs.shape[1]
        )
        outputs = self.compiled_predict(self.state | self.learned, padded)
        return np.array(outputs).reshape(-1, width)[: len(inputs)]


class Tuned(Contender):
    """K batches in one donated call."""

    tuned = True
    name = f"ngc-learn {metadata.version('ngclearn')} (tuned: K steps scanned by hand)"
