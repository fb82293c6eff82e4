"""Closed forms of deep linear networks: the equilibrium, its energy and the activity Hessian.

A chain of linear Gaussian layers, z_l = A_l z_{l-1} + b_l + e_l with the energy p_l/2 ||e_l||^2 of its
errors, has one equilibrium, and linear algebra gives it: no inference, no step size, no tolerance.
What inference does on real networks is held against it, and a Hessian's condition number says how many
steps gradient descent will need. Everything here is of each example by itself.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from pcflax.energies import Gaussian
from pcflax.layers import PCDense, PCLayer
from pcflax.networks import PCNetwork


@dataclasses.dataclass(frozen=True, eq=False)
class DeepLinear:
    """The chain z_l = A_l z_{l-1} + b_l + e_l, l = 1..L, with F = sum_l p_l/2 ||e_l||^2.

    z_0 is the input x and z_L the target y, both clamped; z_1..z_{L-1} are the free hidden activities.
    With P_l = A_L ... A_{l+1} (P_L = I), the covariance of y under the model is
    S = sum_l P_l P_l^T / p_l, and everything follows from it and from r = y - prediction(x). All
    computations are in the dtype of the arrays; condition numbers beyond 1e5 want 64-bit floats.

    Args:
        matrices: A_l = a_l W_l, plus the identity where the layer has a skip; each (out, in).
        biases: b_l; each (out,).
        precisions: p_l, numbers above 0.

    Raises:
        ValueError: for no layers, shapes that do not meet, a number of biases or precisions other than
            that of matrices, or inputs and targets of another width.

    Source: Innocenti, Achour, Singh & Buckley (2024), arXiv 2408.11979 (the energy at equilibrium);
    Innocenti, Achour & Buckley (2025), arXiv 2505.13124 (skips, multipliers and the Hessian). Biases and
    a precision for each layer are ours.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> model = pc.analysis.DeepLinear(
    ...     (jnp.array([[2.0]]), jnp.array([[3.0]])), (jnp.zeros(1), jnp.zeros(1)), (1.0, 1.0))
    >>> x, y = jnp.array([[1.0]]), jnp.array([[16.0]])
    >>> model.prediction(x), model.energy(x, y)  # r = 10 and S = 1 + 3^2
    (Array([[6.]], dtype=float32), Array([5.], dtype=float32))
    >>> model.activities(x, y)
    [Array([[5.]], dtype=float32)]
    """

    matrices: tuple[Float[Array, " out in"], ...]
    biases: tuple[Float[Array, " out"], ...]
    precisions: tuple[float, ...]

    def __post_init__(self):
        counts = len(self.matrices), len(self.biases), len(self.precisions)
        if counts[0] == 0 or len(set(counts)) > 1:
            raise ValueError(
                f"DeepLinear expected a bias and a precision for each of at least one matrix, got "
                f"{counts[0]} matrices, {counts[1]} biases and {counts[2]} precisions"
            )
        width = self.matrices[0].shape[-1]
        layers = zip(self.matrices, self.biases, self.precisions, strict=True)
        for number, (matrix, bias, precision) in enumerate(layers, start=1):
            if matrix.ndim != 2 or matrix.shape[1] != width or bias.shape != matrix.shape[:1]:
                raise ValueError(
                    f"DeepLinear expected a matrix A_{number} of shape (out, {width}) and a bias of "
                    f"shape (out,), got {matrix.shape} and {bias.shape}; a kernel of shape "
                    f"(in, out) goes in transposed"
                )
            if not precision > 0:
                raise ValueError(
                    f"DeepLinear expected a precision p_{number} above 0, got {precision}; without "
                    f"it the error of that layer costs nothing"
                )
            width = matrix.shape[0]

    @classmethod
    def from_network(cls, network: PCNetwork) -> DeepLinear:
        """Return the closed form of a chain of linear `PCDense` layers, at its present weights.

        Multipliers, skips, biases and precisions are the layers' own. A root, an activation, another
        energy than `Gaussian` with one float above 0, and layers whose map is not known are refused.

        Raises:
            TypeError: where `network` is not a `PCNetwork`.
            ValueError: for a layer that has no closed form, with its name and why, and for feedback weights.

        >>> import pcflax as pc
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> layers = [pc.PCDense(3, 5, rngs=rngs), pc.PCDense(5, 5, skip=True, rngs=rngs),
        ...           pc.PCDense(5, 2, rngs=rngs)]
        >>> pc.analysis.DeepLinear.from_network(pc.PCNetwork(layers)).hessian().shape
        (10, 10)
        """
        if not isinstance(network, PCNetwork):
            raise TypeError(f"expected a PCNetwork, got {type(network).__name__}")
        network.check_no_feedback("a closed form is of the minimum of one")
        maps = []
        for name, layer in zip(network.names, network.layers, strict=True):
            maps += [_affine_map(*node) for node in layer.each_node(name).items()]
        matrices, biases, precisions = zip(*maps, strict=True)
        return cls(matrices, biases, precisions)

    def prediction(self, inputs: Float[Array, " batch in"]) -> Float[Array, " batch out"]:
        """Return the feedforward prediction of the output: A_L(... A_1 x + b_1 ...) + b_L.

        Raises:
            ValueError: for inputs of another width.
        """
        return self._forward(inputs, [0.0] * len(self.matrices))[-1]

    def energy(
        self, inputs: Float[Array, " batch in"], targets: Float[Array, " batch out"]
    ) -> Float[Array, " batch"]:
        """Return the least energy over the hidden activities, F*_i = 1/2 r_i^T S^-1 r_i, of each example.

        Never a mean over the batch. S does not depend on the example: it rescales the squared error of
        the prediction, the loss of backpropagation, which is F* where S = I.

        Raises:
            ValueError: for inputs or targets of another shape.
        """
        residual, weighted = self._residuals(inputs, targets)
        return 0.5 * jnp.sum(residual * weighted, axis=-1)

    def activities(
        self, inputs: Float[Array, " batch in"], targets: Float[Array, " batch out"]
    ) -> list[Float[Array, " batch features"]]:
        """Return the hidden activities z*_1..z*_{L-1} at the least energy, the solution of H z = b.

        The errors there are e_l = P_l^T S^-1 r / p_l, and z*_l = A_l z*_{l-1} + b_l + e_l in order, so
        that nothing larger than S, (out, out), is solved.

        Raises:
            ValueError: for inputs or targets of another shape.
        """
        _, weighted = self._residuals(inputs, targets)
        errors = [
            weighted @ path / precision
            for path, precision in zip(self._paths(), self.precisions, strict=True)
        ]
        return self._forward(inputs, errors)[:-1]

    def hessian(self) -> Float[Array, " n n"]:
        """Return the Hessian of F in one example's hidden activities; n is their total width.

        Block tridiagonal, the same for every example and at every activity:
        H_ll = p_l I + p_{l+1} A_{l+1}^T A_{l+1} and H_{l,l+1} = -p_{l+1} A_{l+1}^T = H_{l+1,l}^T. A_1
        and the biases do not enter.
        """
        widths = [matrix.shape[0] for matrix in self.matrices[:-1]]
        dtype = self.matrices[0].dtype
        rows = []
        for row, width in enumerate(widths):
            above, precision = self.matrices[row + 1], self.precisions[row + 1]
            blocks = [jnp.zeros((width, other), dtype) for other in widths]
            own = self.precisions[row] * jnp.eye(width, dtype=dtype)
            blocks[row] = own + precision * above.T @ above
            if row > 0:
                blocks[row - 1] = -self.precisions[row] * self.matrices[row]
            if row + 1 < len(widths):
                blocks[row + 1] = -precision * above.T
            rows.append(jnp.concatenate(blocks, axis=1))
        return jnp.concatenate(rows) if rows else jnp.zeros((0, 0), dtype)

    def condition_number(self) -> Float[Array, ""]:
        """Return the largest over the smallest eigenvalue of `hessian()`, a number of at least 1.

        Gradient descent on the activities is stable under a step size of 2/lambda_max, and at the best
        one needs steps in proportion to this number for each digit. Costs O(n^3) and memory for n^2.

        Raises:
            ValueError: for a network of one layer, which has no hidden activity.
        """
        if len(self.matrices) == 1:
            raise ValueError(
                "expected at least two layers, got one: without a hidden activity there is no Hessian"
            )
        eigenvalues = jnp.linalg.eigvalsh(self.hessian())
        return eigenvalues[-1] / eigenvalues[0]

    def _paths(self) -> list[Array]:
        """Return P_l = A_L ... A_{l+1} for l = 1..L, each (out, width of layer l)."""
        matrix = self.matrices[-1]
        paths = [jnp.eye(len(matrix), dtype=matrix.dtype)]
        for matrix in self.matrices[:0:-1]:
            paths.insert(0, paths[0] @ matrix)
        return paths

    def _residuals(self, inputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the residual r of each example and S^-1 r, both (batch, out)."""
        prediction = self.prediction(inputs)
        if targets.shape != prediction.shape:
            raise ValueError(f"expected targets of shape {prediction.shape}, got {targets.shape}")
        residual = targets - prediction
        covariance = sum(
            path @ path.T / precision
            for path, precision in zip(self._paths(), self.precisions, strict=True)
        )
        return residual, cho_solve(cho_factor(covariance), residual.T).T

    def _forward(self, inputs: Array, errors: list) -> list[Array]:
        """Return z_l = A_l z_{l-1} + b_l + e_l for every l."""
        width = self.matrices[0].shape[1]
        if inputs.ndim != 2 or inputs.shape[1] != width:
            raise ValueError(f"expected inputs of shape (batch, {width}), got {inputs.shape}")
        below, activities = inputs, []
        for matrix, bias, error in zip(self.matrices, self.biases, errors, strict=True):
            below = below @ matrix.T + bias[None] + error
            activities.append(below)
        return activities


def _affine_map(name: str, layer: PCLayer) -> tuple[Array, Array, float]:
    """Return A_l, b_l and p_l of a layer; refuse one that the closed form does not hold for."""
    refusal = f"layer '{name}' has no closed form: "
    kind, energy = type(layer), layer.energy
    known = all(getattr(kind, a, None) is getattr(PCDense, a) for a in ("predict", "affine"))
    if not isinstance(layer, PCDense) or not known:
        raise ValueError(
            refusal + f"it is a {kind.__name__}, whose map is not known; use pc.PCDense"
        )
    for option in ("norm", "dropout"):
        if getattr(layer, option, None) is not None:
            raise ValueError(refusal + "it normalizes or drops; leave out norm and dropout")
    if layer.activation is not None:
        function = getattr(layer.activation, "__name__", layer.activation)
        raise ValueError(
            refusal + f"its activation {function} need not be linear; set activation=None"
        )
    if not isinstance(energy, Gaussian) or type(energy).__call__ is not Gaussian.__call__:
        raise ValueError(
            refusal
            + f"its energy {type(energy).__name__} may not be quadratic; use pc.energies.Gaussian()"
        )
    precision = energy.precision
    if not isinstance(precision, float) or not precision > 0:
        got = precision if isinstance(precision, float) else "an array"
        raise ValueError(refusal + f"its precision is {got}; give Gaussian one float above 0")
    kernel, bias = layer.linear.kernel[...], layer.linear.bias
    if layer.mask is not None:
        kernel = kernel * layer.mask[...].astype(kernel.dtype)
    matrix = layer.multiplier * kernel.T  # kernels are (in, out)
    if layer.skip:
        matrix = matrix + jnp.eye(len(matrix), dtype=matrix.dtype)
    return matrix, jnp.zeros_like(kernel[0]) if bias is None else bias[...], precision
