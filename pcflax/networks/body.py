"""The body of every network: starts, passes upward, energies, their gradients, and inference.

A network knows energies, starts and clamps, and imports no algorithm: `infer` takes the algorithm as an
argument. Next file to read: `base.py`, what a network is asked besides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import total_energy
from pcflax.layers import Clamp, Evidence, PCLayer
from pcflax.layers.clamps import Known, held_at
from pcflax.layers.evaluate import failed, no_rows, without_errors, without_rounding
from pcflax.typing import Activities, Energies, Inference, Initializer, PRNGKey, PyTree, Result

from .batch_state import at_batch_statistics, end_batch
from .given import as_initializer, check_batch, node_of, parse, says_nothing
from .pure import energy_gradients
from .upward import Pass, check_shapes, pass_upward
from .wired import WiredLayers, no_activity


class NetworkBody(WiredLayers):
    """Activities, energies and passes of layers under a wiring; see `AbstractPCNetwork`."""

    # Starts and passes upward.

    def init_activities(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        targets: Float[Array, " batch *out"] | None = None,
        clamps: Mapping[str, Clamp | Array] | None = None,
        initializer: Initializer | Mapping[str, Array] | None = None,
        key: PRNGKey | None = None,
    ) -> None:
        """Give every activity its size and its start, and store it in its layer.

        Args:
            inputs: what the first layer is predicted from; None leaves a root free.
            targets: what the last activity is clamped to; None leaves it at its start.
            clamps: {layer name: value or `pc.Clamp(value, mask)`} for any other layer; one layer of a
                stack goes by its node's name, `hidden/3`.
            initializer: where the free activities start: the feedforward pass unless given.
            key: randomness for an initializer that wants it.

        Raises:
            ValueError, TypeError: for inputs or targets of a wrong shape or dtype.
        """
        known = self.known(Evidence(inputs, targets, clamps))
        self.set_activities(self.start(known, initializer=initializer, key=key))

    def known(self, evidence: Evidence | Known) -> Known:
        """Parse evidence, once; what is parsed already comes back as it is.

        Raises:
            ValueError, TypeError: see `pcflax/networks/given.py`.
        """
        return evidence if isinstance(evidence, Known) else parse(self, evidence)

    def check_batch(
        self, inputs: Any, targets: Any, clamps: Mapping[str, Any] | None = None
    ) -> int:
        """Refuse what is not a batch that the network can take; return its size.

        Raises:
            TypeError: for a dtype that is not floating (or, for inputs of tokens, integer).
            ValueError: for missing axes, batch sizes that differ, an empty batch, or neither array.
        """
        return check_batch(inputs, targets, clamps, integers=self.takes_integers)

    def start(
        self,
        evidence: Evidence | Known,
        *,
        initializer: Initializer | Mapping[str, Array] | None = None,
        key: PRNGKey | None = None,
    ) -> Activities:
        """Return the start of every activity, clamps included, by layer name; store none.

        Raises:
            ValueError: where a clamp, or a given activity, does not have the shape of its layer.
            TypeError: for an initializer that is none.
        """
        size = (known := self.known(evidence)).batch_size
        if initializer is None or isinstance(initializer, Mapping):
            start = self.feedforward(known.inputs, batch_size=size, clamps=known.clamps)
            for name, value in (initializer or {}).items():
                layer, index = node_of(self, name)
                whole = start[layer]
                place = slice(None) if index is None else (slice(None), index)
                if (got := jnp.shape(value)) != (shape := whole[place].shape):
                    raise ValueError(
                        f"layer '{name}' has activities of shape {shape}, but inference was to start "
                        f"from {got}; give that shape"
                    )
                start[layer] = whole.at[place].set(jnp.asarray(value, whole.dtype))
        else:
            begin = as_initializer(initializer)
            start = begin(self, known.inputs, batch_size=size, clamps=known.clamps, key=key)
        for name, clamp in known.clamps.items():
            silent = says_nothing(self, name, clamp.mask)
            start[name] = held_at(
                name, clamp, jnp.zeros_like(start[name]) if silent else start[name]
            )
        return {name: start[name] for name in self.names}

    def feedforward(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        batch_size: int | None = None,
        clamps: Mapping[str, Clamp] | None = None,
        errors: Activities | None = None,
    ) -> Activities:
        """Return z_l at the mean of f_l(what is below) + e_l, parents first, or at its clamp.

        Args:
            inputs: (batch, *features), or {name: array} where there are several; None starts from the
                prior of a root.
            batch_size: how many examples there are, needed where there are no inputs.
            clamps: layers that stand at their clamp instead; the layers above follow from there.
            errors: e_l by layer name.

        Returns:
            Every layer's activity by name. Where all means are the predictions themselves
            (Gaussian layers) and no errors or clamps are given, every error is zero there.

        Raises:
            ValueError: for errors of a network with cycles, in which no order makes activities of
                them.
        """
        if errors is not None:
            self.check_acyclic("errors make activities only in an order")
        return self.pass_upward(
            inputs, batch_size=batch_size, clamps=clamps, errors=errors
        ).activities

    def predict(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        batch_size: int = 1,
        clamps: Mapping[str, Clamp | Array] | None = None,
    ) -> Any:
        """Return the output's prediction after a feedforward pass; store no activity.

        On a chain with a free output this is already the minimum of the energy; on a network with
        cycles it is where the sweeps arrive, not the equilibrium. For an energy that works on logits
        (Categorical, Bernoulli) these are the logits. Without inputs, a network with a root predicts
        from its prior, for `batch_size` examples. `clamps` of layers below an output are passed through.
        Several outputs come as a dictionary by name.

        Raises:
            ValueError, TypeError: for inputs of a wrong shape or dtype.
        """
        batch_size = batch_size if inputs is None else self.check_batch(inputs, None)
        known = self.known(Evidence(clamps=clamps)).clamps if clamps else {}
        known = {name: clamp for name, clamp in known.items() if name not in self.outputs}
        predictions = self.pass_upward(inputs, batch_size=batch_size, clamps=known).predictions
        tops = {name: self.layer(name).top_node(predictions[name]) for name in self.outputs}
        return tops[self.output] if self.one_output else tops

    def pass_upward(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        clamps: Mapping[str, Clamp] | None = None,
        errors: Activities | None = None,
    ) -> Pass:
        """Pass over all layers, parents first; see `feedforward` and `predict`.

        Layers on cycles start from zero and are passed over `wiring.sweeps` times.

        Raises:
            ValueError: where shapes do not meet, naming the layer; for a layer that there is not.
            TypeError: for a prediction of integers.
        """
        return pass_upward(self, inputs, batch_size, clamps or {}, errors or {})

    # Energies.

    def belows(
        self, inputs: Float[Array, " batch *in"] | None = None
    ) -> dict[str, tuple[Array, ...]]:
        """Return what each layer predicts from, at the stored activities; nothing below a root."""
        activities = self.activities()
        tops = {name: layer.top_node(activities[name]) for name, layer in self._named_layers()}
        return self.wiring.belows(inputs, tops)

    def predictions(self, inputs: Float[Array, " batch *in"] | None = None) -> Activities:
        """Return mu_l = f_l(what is below) of every layer, at the stored activities, by layer name.

        Raises:
            ValueError: where shapes do not meet, or a layer has no activity yet.
        """
        return {name: prediction for name, _, _, prediction in self._predicted(inputs)}

    def energies(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        layers: Collection[str] | None = None,
        *,
        clamps: Mapping[str, Clamp | Array] | None = None,
    ) -> Energies:
        """Return the energy of each example at each layer, at the stored activities.

        Args:
            inputs: what the first layer is predicted from; None where the network has a root.
            layers: those whose energies are wanted; all unless given.
            clamps: of the pass upward at whose statistics normalizations over the batch are frozen: those
                that `infer` was given. The activities stay as they are stored.

        Returns:
            {layer name: (batch,)}, summed over features, never averaged; of a stack (batch, depth).

        Raises:
            ValueError: where shapes do not meet, naming the layer.
        """
        network = self
        if clamps or self.numerics.stateful:
            network = at_batch_statistics(self, self._given(inputs, clamps))
        energies: Energies = {}
        for name, layer, activity, prediction in network._predicted(inputs, layers):
            if activity.shape != prediction.shape or not layer.energy.predicts_activity:
                check_shapes(name, layer, activity, prediction)
            energies[name] = layer.energy(activity, prediction)
            if energies[name].shape != activity.shape[: layer.node_axes]:
                raise ValueError(
                    f"the energy {type(layer.energy).__name__} of layer '{name}' returned shape "
                    f"{energies[name].shape}, expected one number an example, {activity.shape[:1]}; "
                    f"sum over features and do not average over the batch"
                )
        return energies

    def _predicted(
        self, inputs: Any, layers: Collection[str] | None = None
    ) -> list[tuple[str, PCLayer, Array, Array]]:
        """Return (name, layer, activity, prediction) of all layers, or of these, at stored activities."""
        found, activities, tops = [], {}, {}
        for name in self.names:
            layer = getattr(self.layers, name)
            activity = layer.activity[...]
            if activity.ndim == 1 and activity.shape[0] == 0:
                raise no_activity(name)
            if layer.node_axis:
                activity = jnp.moveaxis(activity, 0, layer.node_axis)
            activities[name] = activity
            tops[name] = layer.top_node(activity) if layer.node_axis else activity
        targets = self.wiring.targets
        for name, belows in self.wiring.belows(inputs, tops).items():
            if layers is not None and name not in layers:
                continue
            layer, activity = getattr(self.layers, name), activities[targets[name]]
            try:
                prediction = layer.predict_nodes(belows, activity, self.numerics)[0]
            except (TypeError, ValueError) as error:
                raise failed(name, layer, belows, error) from error
            if belows and getattr(prediction, "shape", ())[:1] != belows[0].shape[:1]:
                raise no_rows(name, layer, prediction, belows)
            known = self.numerics.untouched
            waiting = [node in known for node in layer.each_node_name(name)] if known else []
            if any(waiting) and prediction.shape == activity.shape:
                prediction = without_errors(activity, prediction, waiting)
            elif name in self.numerics.rounds and layer.energy.predicts_activity:
                prediction = without_rounding(activity, prediction)
            found.append((name, layer, activity, prediction))
        return found

    def energy(
        self, inputs: Float[Array, " batch *in"] | None = None, **options: Any
    ) -> Float[Array, " batch"]:
        """Return F of each example, the sum of all layers' `energies`; the options are those of it."""
        return total_energy(self.energies(inputs, **options))

    def output_energy(self, prediction: Any, targets: Any) -> Float[Array, " batch"]:
        """Return the output's energy of these targets under this prediction: the usual loss.

        Of several outputs, the sum over those that have targets. What a mask leaves unknown stands at its
        prediction.

        Raises:
            ValueError: where none has.
        """
        if self.one_output:
            prediction, targets = {self.output: prediction}, {self.output: targets}
        energies = []
        for name in self.outputs:
            target, mu = targets.get(name), prediction[name]
            if target is None:
                continue
            energy = self.layer(name).top_node_layer().energy
            if isinstance(target, Clamp):
                mean = energy.mean(mu)
                target = target.apply(mean * 0 if says_nothing(self, name, target.mask) else mean)
            energies.append(energy(jnp.asarray(target, mu.dtype), mu))
        if not energies:
            raise ValueError(f"there are no targets for the output '{self.output}'; give them")
        return sum(energies[1:], energies[0])

    def parameter_gradients(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        clamps: Mapping[str, Clamp | Array] | None = None,
    ) -> nnx.State:
        """Return dF/dtheta of the batch-mean energy at the stored activities, which are held fixed.

        It ends a batch, as learning does: running statistics follow it, and the next batch draws other
        dropout masks. Where nothing is stored besides weights and activities, nothing changes.

        Args:
            inputs: as for `energies`.
            clamps: as for `energies`.

        Returns:
            A State of `nnx.Param`, ready for `nnx.Optimizer.update(network, gradients)`. The mean
            over the batch makes a learning rate mean the same at every batch size.
        """
        known = self._given(inputs, clamps)
        frozen = at_batch_statistics(self, known)
        gradients = energy_gradients(*nnx.split(frozen, nnx.Param, ...), inputs)
        end_batch(self, known)
        return gradients

    def _given(self, inputs: Any, clamps: Mapping[str, Any] | None) -> Known:
        return self.known(Evidence(inputs, None, clamps)) if clamps else Known(inputs, {})

    # Inference.

    def infer(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        targets: Float[Array, " batch *out"] | None = None,
        *,
        inference: Inference[Result],
        clamps: Mapping[str, Clamp | Array] | None = None,
        initializer: Initializer | Mapping[str, Array] | None = None,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Callable[[Any], PyTree] | None = None,
        throw: bool = False,
    ) -> Result:
        """Minimize the energy over the free activities, store them, and report on it.

        Inside a function that jax transforms, nothing is stored in a network from outside.

        Args:
            inputs: clamped below; None leaves a root free. Or a whole data set, of which every example is
                solved in batches, in stored order; the result's arrays are then NumPy's, on the host.
            targets: clamped above; None leaves the output free.
            inference: the algorithm, such as `pc.inference.GradientDescent(0.1, num_steps=20)`. Equal
                settings share one compiled program, and another step size needs no other.
            clamps: {layer name: value or `pc.Clamp(value, mask)`} for any other layer.
            initializer: where the free activities start: the feedforward pass unless given; or
                activities by layer name, or by a node's, `hidden/3`, to go on from an earlier result.
            key: randomness for algorithms and initializers that want it.
            trace: whether to record energies and residuals at every step.
            record: a function of `pc.inference.Seen` whose values the result keeps, step by step:
                `lambda seen: seen.activities` for the way of all activities.
            throw: whether to raise where an example did not converge, too.

        Returns:
            An `InferenceResult`: per-example energy, residual, number of steps and status, activities,
            and the trace when asked for.

        Raises:
            ValueError, TypeError: for inputs or targets of a wrong shape or dtype, or a free layer
                whose energy can only be clamped.
            NonFiniteEnergyError: where an example's energy or activities are not finite.
            ConvergenceError: with `throw`, where an example did not reach its tolerance.
        """
        if not hasattr(inference, "run"):
            raise TypeError(
                f"expected inference to be an algorithm such as "
                f"pc.inference.GradientDescent(0.1, num_steps=20), got {inference!r}"
            )
        known: Any = Evidence(inputs, targets, clamps)
        if hasattr(inputs, "batches"):
            if targets is not None or clamps is not None:
                raise ValueError(
                    "a data set says what is known itself; leave targets and clamps out"
                )
            known = inputs
        return inference.run(
            self,
            known,
            initializer=initializer,
            key=key,
            trace=trace,
            record=record,
            throw=throw,
        )
