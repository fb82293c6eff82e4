"""The step of learning: a state and a batch in, a new state out; pure.

    state, info = step(state, batch, key)

`TrainState` is all that a step changes, one pytree. The Trainer's compiled loop takes this very step, and
a loop of one's own takes it under `jax.jit`, `jax.vmap` and `jax.lax.scan`. What layers write in a batch is
part of the state: each step draws its own dropout mask, and running statistics follow the batches. Next
file to read: `loop.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from pcflax.inference import Status
from pcflax.inference.result import in_order
from pcflax.initializers import AbstractKeptStart
from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, SplitNetwork, after_batch, split, write
from pcflax.networks.along import output_energy_along
from pcflax.networks.batch_state import after_guesses
from pcflax.settings import Argument
from pcflax.sharding.inside import devices_along, whole
from pcflax.sharding.placement import LAYERS
from pcflax.typing import Activities, Energies, PRNGKey, PyTree

from .checkpoints.arrays import as_arrays, copied
from .checks import as_optimizer, check_rule
from .measure import at_least_32_bits


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["network", "optimizer_state", "step", "activities", "starts"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step of learning changes, as one pytree.

    Attributes:
        network: parameters and other state, in training mode.
        optimizer_state: optax's.
        step: batches learned from so far, int32.
        activities: the last batch's inferred activities by layer name; a state that begins with none
            keeps none.
        starts: what the rule's initializer keeps, {} unless it keeps something.
    """

    network: SplitNetwork
    optimizer_state: PyTree
    step: Int[Array, ""]
    activities: Activities
    starts: PyTree = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        network: AbstractPCNetwork,
        optimizer: optax.GradientTransformation,
        *,
        starts: PyTree = None,
    ) -> TrainState:
        """Return the state before the first step; its arrays are copies of the network's.

        Args:
            network: the network to train, in whatever mode; the state is in training mode.
            optimizer: the optax transformation that the step is made with.
            starts: of a rule whose initializer keeps something, `rule.initializer.begin(network, data)`.

        Raises:
            TypeError: for what is no optimizer, or one that wants more than gradients, parameters and value.
        """
        taken = in_training(network)
        optimizer = as_optimizer("TrainState", optimizer, taken.parameters)
        optimizer_state = as_arrays(optimizer.init(taken.parameters))
        return copied(cls(taken, optimizer_state, jnp.int32(0), {}, starts or {}))

    def write_to(self, network: AbstractPCNetwork) -> None:
        """Write copies of parameters, other state and activities into a network object of this kind."""
        copied(self).lend_to(network)

    def lend_to(self, network: AbstractPCNetwork) -> None:
        """Write the arrays themselves, which nothing may consume from then on."""
        write(network, self.network.parameters, self.network.other)
        network.set_activities(self.activities)


class TrainInfo(NamedTuple):
    """What a step saw, before its update; what nobody looks at is not computed in compiled code.

    Attributes:
        energy: the batch mean of F where inference ended.
        loss: the batch mean of the outputs' energy of the targets under the feedforward prediction, of
            what is known of them; None without targets.
        energies: {layer name: (batch,)}, of which `energy` is the mean of the sum.
        activities: where inference ended, by layer name.
        prediction: the feedforward prediction, (batch, *out).
        converged: the share of examples whose inference reached its tolerance; None without one.
        finite: whether energy and update were finite; otherwise the step was not applied, and the
            state is as before.
    """

    energy: Float[Array, ""]
    loss: Float[Array, ""] | None
    energies: Energies
    activities: Activities
    prediction: PyTree
    converged: Float[Array, ""] | None
    finite: Bool[Array, ""]


Step = Callable[[TrainState, Evidence, PRNGKey], tuple[TrainState, TrainInfo]]


def make_step(
    network: AbstractPCNetwork, optimizer: optax.GradientTransformation, rule: AbstractLearning
) -> Step:
    """Return the pure function `state, info = step(state, batch, key)` of one step of learning.

    Dropout masks and other draws are folded from `key` and the state's step number, so that one key
    serves a whole run. The network object is only looked at: begin with `TrainState.of(network,
    optimizer)`, and end with `state.write_to(network)`.

    Args:
        network: what is trained; the rule may refuse it.
        optimizer: an optax transformation of the parameters' gradients. One that wants the `value` gets
            the batch-mean energy.
        rule: the learning rule, such as `pc.learning.PredictiveCoding(...)`.

    Raises:
        TypeError: for an argument of the wrong kind, or an optimizer that wants more than gradients,
            parameters and value.
        ValueError: for a network that the rule cannot train.

    >>> import jax, jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(64, 32, activation=jnp.tanh, dropout=0.1, rngs=rngs),
    ...                         pc.PCDense(32, 10, rngs=rngs)])
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1)))
    >>> optimizer = optax.adam(1e-2)
    >>> step = pc.training.make_step(network, optimizer, rule)
    >>> state, key = pc.training.TrainState.of(network, optimizer), jax.random.key(0)
    >>> for batch in pc.data.load("digits"):
    ...     state, info = step(state, batch, key)
    >>> int(state.step), bool(info.finite)
    (22, True)
    >>> state.write_to(network)

    It is a function like any other: several steps in one program, and several seeds at once.

    >>> batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pc.data.load("digits"))
    >>> state, info = jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)
    >>> info.energy.shape
    (22,)
    >>> many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    >>> many, info = jax.vmap(step, (0, None, 0))(many, batch, jax.random.split(key, 2))
    >>> info.energy.shape
    (2,)
    """
    held = Argument(as_optimizer("make_step", optimizer, split(network).parameters))
    rule = check_rule("make_step", rule, network)
    names, layers = tuple(network.names), tuple(network.layer_names)

    def step(state: TrainState, batch: Evidence, key: PRNGKey) -> tuple[TrainState, TrainInfo]:
        state, info = take_finite_step(state, batch, key, rule, held)
        return state, in_order(info, names, layers)  # here and not within, where jit would undo it

    return step


@functools.partial(jax.jit, inline=True)  # one program, also where the step is not within another
def take_finite_step(
    state: TrainState, batch: Evidence, key: PRNGKey, rule: AbstractLearning, optimizer: Argument
) -> tuple[TrainState, TrainInfo]:
    """Take one step of learning on one batch; where it is not finite, the state stays."""
    new, info = take_step(state, batch, key, rule, optimizer)
    starts = new.starts  # the initializer has chosen; a choice here would copy them
    new, old = (dataclasses.replace(each, starts={}) for each in (new, state))
    kept = jax.lax.cond(info.finite, lambda: new, lambda: old)
    return dataclasses.replace(kept, starts=starts), info


@functools.partial(jax.jit, inline=True)  # one trace for all
def take_step(
    state: TrainState, batch: Evidence, key: PRNGKey, rule: AbstractLearning, optimizer: Argument
) -> tuple[TrainState, TrainInfo]:
    """Take one step of learning on one batch, with an optax transformation, whether it is finite or not."""
    if batch.weights is not None and not rule.weighs_examples:
        raise ValueError(
            f"the examples have weights, but {type(rule).__name__} counts all alike; leave the weights out, "
            f"or take a rule that says weighs_examples = True"
        )
    step_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
    before = draw_streams(state.network, noise_key)
    initializer: Any = getattr(rule, "initializer", None)
    if isinstance(initializer, AbstractKeptStart):
        rule = _started(rule, initializer, state.starts, batch)
    network, optimizer_state, seen = rule.update(
        before, optimizer.value, state.optimizer_state, batch, key=step_key, step=state.step
    )
    batch_size = jax.tree.leaves(seen.prediction)[0].shape[0]
    if not rule.along_time:  # nothing is normalized over the batch there
        after = after_batch(before, batch, batch_size=batch_size, activities=seen.activities)
        after = after_guesses(after, before, batch, seen.activities)
        network = network.replace(other=after.other)
    means = [mean.reshape(-1) for mean in layer_means(seen.energies).values()]
    energy = jnp.concatenate(means).sum()
    loss = None
    if batch.targets is not None:
        bound = state.network.bind()
        of = output_energy_along if rule.along_time else type(bound).output_energy
        scores = of(bound, seen.prediction, batch.targets)
        loss = jnp.mean(at_least_32_bits(scores))
    # Parameters may turn NaN while the energy they come from is finite (the slope of a square root).
    # A sum is finite where its numbers are (of less than 1e38): one loop over each array, and no other.
    sums = [jnp.sum(at_least_32_bits(leaf)) for leaf in jax.tree.leaves(network.parameters)]
    finite = jnp.isfinite(functools.reduce(jnp.add, sums, energy))
    activities = seen.activities if state.activities else {}
    starts = state.starts
    if isinstance(initializer, AbstractKeptStart):
        starts = initializer.after(starts, batch, seen.activities, network=before, applied=finite)
    new = TrainState(network, optimizer_state, state.step + 1, activities, starts)
    converged = None if seen.status is None else jnp.mean(seen.status == Status.CONVERGED)
    return new, TrainInfo(
        energy, loss, seen.energies, seen.activities, seen.prediction, converged, finite
    )


def _started(
    rule: AbstractLearning, initializer: AbstractKeptStart, starts: PyTree, batch: Evidence
) -> AbstractLearning:
    """Return the rule with the start that was kept for this batch."""
    if not jax.tree.leaves(starts):
        raise ValueError(
            f"{type(initializer).__name__} starts are kept in the state, and this one has none; begin with "
            f"TrainState.of(network, optimizer, starts=rule.initializer.begin(network, data))"
        )
    rule = copy.copy(rule)  # past __init__, which would check what is traced
    object.__setattr__(rule, "initializer", initializer.at(starts, batch))
    return rule


def layer_means(energies: Energies) -> dict[str, Array]:
    """Return the batch mean of each layer's energy; of a stack (depth,)."""
    if devices_along(LAYERS) > 1:  # each device takes the means of its own layers
        return {n: whole(jnp.mean(at_least_32_bits(e), axis=0)) for n, e in energies.items()}
    columns = [at_least_32_bits(e).reshape(e.shape[0], -1) for e in energies.values()]
    means = jnp.mean(jnp.concatenate(columns, axis=1), axis=0)
    ends = np.cumsum([column.shape[1] for column in columns])
    parts = jnp.split(means, ends[:-1])
    return {
        name: part.reshape(energy.shape[1:])
        for (name, energy), part in zip(energies.items(), parts, strict=True)
    }


def in_training(network: AbstractPCNetwork) -> SplitNetwork:
    """Take a network apart in training mode, whatever `network.eval()` said; the object keeps its mode."""
    taken = split(network)
    modes = ("deterministic", "use_running_average")
    # in the static structure, which is quicker to read than the modules
    if not any(
        name in modes and getattr(value, "value", None) is True
        for name, value in taken.graphdef.attributes
    ):
        return taken
    bound = taken.bind()
    bound.train()
    return split(bound)


def draw_streams(network: SplitNetwork, key: PRNGKey) -> SplitNetwork:
    """Begin the network's random streams (of dropout, say) anew from this key.

    Inference evaluates the energy many times on copies of the network, so all evaluations of one step
    see one mask, and every step sees another: a function of (seed, step), like all other randomness. Each
    stream keeps its implementation, which may be another than the key's.
    """
    numbers = itertools.count()

    def draw(leaf):
        own = jax.random.fold_in(key, next(numbers))
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if leaf.dtype == key.dtype:
            return jax.random.split(own, leaf.shape)
        words = jax.random.bits(own, jax.random.key_data(leaf).shape, jnp.uint32)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))

    # numbered in the network's order, which no name changes
    ordered = sorted(network.other, key=lambda name: (*network.names, name).index(name))
    return network.replace(
        other={name: jax.tree.map(draw, network.other[name]) for name in ordered}
    )
