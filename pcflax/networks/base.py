"""Every network: its body, and the questions that are made of inference.

Next file to read: `network.py`, then `pcflax/inference/problem.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pcflax.checks import expect_count
from pcflax.layers import Clamp, Evidence
from pcflax.typing import Inference, Initializer, PRNGKey

from .body import NetworkBody
from .given import node_of
from .pure import split
from .sampling import sample
from .summary import Summary, summary


class AbstractPCNetwork(NetworkBody):
    """Layers by name, with an activity each, and the energy of all of them together.

    `PCNetwork` wires a chain, `PCGraph` anything; the rest is the same.

    Args:
        layers: {name: layer}, in the wiring's order.
        wiring: which node is predicted from which.
        compute_dtype: as for `PCNetwork`.
        remat: as for `PCNetwork`.

    Attributes:
        names: the layers' names, parents before children where there is no cycle.
        layers: the layers themselves, in the same order, by place or by name.
        wiring: the `Wiring`.
        numerics: how predictions are computed.

    Raises:
        ValueError: for no layers, or a layer that stands in two places.
        TypeError: for something that is not a `PCLayer`, or one that skipped `super().__init__`.
    """

    def recall(
        self,
        partial: Float[Array, " batch *features"],
        mask: Bool[Array, " *features"] | None = None,
        *,
        inference: Inference,
        node: str | None = None,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, " batch *features"]:
        """Fill in a node from what is known of it, or settle from a noisy cue; store all activities.

        With a mask, what is known stays and the rest minimizes the energy. Without one nothing is held: the
        node begins at the cue and goes where the energy falls, as in an attractor memory. To clean a cue by a
        generative network, whose output would follow its code anywhere, clamp it and read the prediction:
        `pc.Reconstruction(inference)`.

        Args:
            partial: the cue; what stands where the mask is False is never looked at.
            mask: True where the cue is known, of one example's shape or (batch, *features).
            inference: the algorithm.
            node: the name of the layer; the output unless given.
            initializer: where the free activities start, with a mask.
            key: randomness for what wants it.

        Returns:
            The node's activity, (batch, *features).

        Raises:
            ValueError, TypeError: for a node that is not there, or a cue or mask of another shape.

        >>> import jax.numpy as jnp, pcflax as pc
        >>> from flax import nnx
        >>> network = pc.models.decoder(2, 8, 4, rngs=nnx.Rngs(0))
        >>> left = jnp.array([True, True, False, False])
        >>> descent = pc.inference.GradientDescent(0.1)
        >>> network.recall(jnp.ones((3, 4)), left, inference=descent)[:, :2]
        Array([[1., 1.],
               [1., 1.],
               [1., 1.]], dtype=float32)
        """
        name = self.output if node is None else node
        if node_of(self, name)[1] is not None or self.layer(name).num_nodes > 1:
            raise ValueError(
                f"recall reads a layer of one node, and '{name}' is of a stack; take infer"
            )
        partial = jnp.asarray(partial)
        start: Any = initializer
        if mask is None:
            # a clamp of no element tells the batch size and holds nothing
            mask = jnp.zeros(partial.shape[1:], bool)
            if initializer is not None:
                raise ValueError(
                    "recall without a mask begins at the cue, so it takes no initializer; give a mask of "
                    "what is known, or leave initializer out"
                )
            start = {name: partial}
        result = self.infer(
            inference=inference, clamps={name: Clamp(partial, mask)}, initializer=start, key=key
        )
        return result.activities[name]

    def sample(
        self,
        batch_size: int | None = None,
        *,
        key: PRNGKey,
        inputs: Float[Array, " batch *in"] | None = None,
        clamps: Mapping[str, Clamp | Array] | None = None,
        nodes: str | Sequence[str] | None = None,
        means: str | Sequence[str] = (),
    ) -> Any:
        """Draw activities from the network's own distribution, parents first; store none.

        Each z_l is drawn from exp(-E_l(z_l, mu_l)) at the prediction mu_l from the activities drawn below
        it, a root from its prior. What is clamped stays: a class of a labels' root, or a code to draw the
        image of. A clamp says nothing of the nodes below it, which are drawn as if it were not there; to
        sample what explains an image, take `pc.inference.Langevin`.

        Args:
            batch_size: how many to draw; that of inputs and clamps where there are some.
            key: randomness; the same key draws the same samples.
            inputs: what the first layer is predicted from, or the root is clamped to.
            clamps: {node: array or `pc.Clamp(value, mask)`} of activities that are given.
            nodes: whose activities are returned, one name or several; the outputs unless given.
            means: nodes that stand at the mean of their prediction instead of being drawn: images are
                shown without the noise of their pixels by `means="image"`.

        Returns:
            (batch, *features) of one node, or {node: array} where several are asked for.

        Raises:
            ValueError: for an unknown node, a batch size that is missing or another than that of what is
                given, an energy without a distribution (a flat prior, say), a network with cycles, or a
                node with several predictors.
            TypeError: for a batch size that is no whole number, or clamps of another kind or dtype.

        >>> import jax, jax.numpy as jnp, pcflax as pc
        >>> from flax import nnx
        >>> network = pc.PCNetwork({"latent": pc.PCRoot(2), "image": pc.PCDense(2, 5, rngs=nnx.Rngs(0))})
        >>> network.sample(3, key=jax.random.key(0), means="image").shape
        (3, 5)
        """
        return sample(self, batch_size, inputs, clamps, nodes, means, key)

    def label_energies(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        targets: Float[Array, " batch *out"] | None = None,
        *,
        inference: Inference,
        num_classes: int | None = None,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, " batch classes"]:
        """Return the energy of each example under each class: F where inference ends, the class clamped.

        All examples and classes are inferred in one call, a batch of batch * classes; no stored activity
        changes. The class of the least energy is a classification, by inference and not by a pass;
        `softmax(-energies)` is a posterior over classes, as far as F stands for -log p(x, class): at a
        point estimate it leaves out how sharp each minimum is. It is for generative classification, where
        the labels are at the bottom (give `targets`), for out-of-distribution scores, such as the least
        energy of an example, and for questions of calibration. Do not expect more of it than of softmax where
        the inputs are clamped below and a categorical output is on top: the margins of energies are then
        nearly a function of the logits' margin (Cacioli, 2026).

        Args:
            inputs: what is to be classified, where labels are the output's targets; or
            targets: what is to be classified, where labels are the inputs.
            inference: the algorithm; the same number of steps for each class, or a tolerance.
            num_classes: how many classes there are, one-hot; the width of the labels' layer unless given.
            initializer: where the free activities start.
            key: randomness for what wants it.

        Returns:
            (batch, classes), in nats up to a constant.

        Raises:
            ValueError, TypeError: for both or none of inputs and targets, wrong shapes or dtypes.
            NonFiniteEnergyError: where an energy is not finite.

        Source: Cacioli (2026), arXiv 2604.11011.

        >>> import jax.numpy as jnp, pcflax as pc
        >>> from flax import nnx
        >>> network = pc.models.mlp(3, 8, 4, rngs=nnx.Rngs(0))
        >>> descent = pc.inference.GradientDescent(0.1)
        >>> network.label_energies(jnp.ones((5, 3)), inference=descent).shape
        (5, 4)
        """
        if (inputs is None) == (targets is None):
            raise ValueError(
                "label_energies expected inputs, where labels are the targets, or targets=, where labels are "
                "the inputs, and just one of them"
            )
        self.check_one_output("label_energies clamps the labels at one end")
        given = jnp.asarray(targets if inputs is None else inputs)
        batch_size = self.check_batch(inputs, targets)
        if num_classes is None:
            num_classes = _number_of_classes(self, inputs, batch_size)
        num_classes = expect_count("label_energies", "num_classes", num_classes, least=1)
        # example after example, each with all classes
        rows = jnp.repeat(given, num_classes, axis=0)
        floats = (
            given.dtype if jnp.issubdtype(given.dtype, jnp.floating) else jnp.result_type(float)
        )
        labels = jnp.tile(jnp.eye(num_classes, dtype=floats), (batch_size, 1))
        evidence = Evidence(labels, rows) if inputs is None else Evidence(rows, labels)
        # a copy, so that the network's own activities stay
        result = inference.run(split(self).bind(), evidence, initializer=initializer, key=key)
        return result.energy.reshape(batch_size, num_classes)

    def summary(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        inference: Any = None,
        learning: Any = None,
    ) -> Summary:
        """Tell the layers, their sizes, and what passes, steps and gradients cost; compute nothing.

        Costs are of the compiled programs, for the whole batch: the pass upward; the weight gradient at
        given activities; beside them backpropagation's whole gradient; of an inference algorithm one step
        and all of its steps; of a rule everything that it does with a batch, without the optimizer. Each
        program is compiled, which takes a moment, and loops count as often as they turn. A loop that ends
        where it converged (of conjugate gradients, say) counts once, and the cost says so (`bounded`).

        Args:
            inputs: the shape of a batch of inputs, `x.shape`, or the batch; of several inputs
                {name: shape or array}; None where a root is free.
            batch_size: how many examples there are, where there are no inputs.
            inference: an algorithm, or several as {label: algorithm}.
            learning: a learning rule, or several as {label: rule}.

        Returns:
            A `Summary`: `print` shows it as tables, and its attributes are the numbers.

        Raises:
            ValueError, TypeError: for inputs of a wrong shape or dtype, none and no batch_size, or a network
                that an algorithm or a rule cannot take.

        >>> import pcflax as pc
        >>> from flax import nnx
        >>> network = pc.models.mlp(784, 300, 10, rngs=nnx.Rngs(0))
        >>> found = network.summary((64, 784), inference=pc.inference.GradientDescent(0.1))
        >>> found.parameters, found.costs["pass upward"].flops == 2 * 64 * (784 * 300 + 300 * 10)
        (238510, True)
        >>> found.costs["GradientDescent, a step"].flops == 2 * 64 * 2 * 300 * 10
        True
        """
        with jax.numpy_dtype_promotion("standard"):  # a shape says no dtype
            return summary(
                self, inputs, batch_size=batch_size, inference=inference, learning=learning
            )


def _number_of_classes(network: AbstractPCNetwork, inputs: Any, batch_size: int) -> int:
    """Return how many classes there are: the features of the output, or of the root that inputs clamp."""
    if inputs is not None:
        energy = network.output_layer.energy
        means = jax.eval_shape(lambda x: energy.mean(network.predict(x)), inputs)
        return means.shape[-1]
    roots = [name for name in network.wiring.inputs if name in network.names]
    if len(roots) != 1:
        raise ValueError(
            "label_energies cannot see how many classes the inputs have, since the network has not one root "
            "that they clamp; give num_classes"
        )
    start = jax.eval_shape(lambda: network.feedforward(batch_size=batch_size))
    return start[roots[0]].shape[-1]
