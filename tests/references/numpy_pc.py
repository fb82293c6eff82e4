"""Predictive coding chains in NumPy float64: an oracle derived by hand, no autodiff.

Layer l predicts mu_l = phi(z_{l-1} W + b) or phi(z_{l-1}) W + b; z_0 is the input or a root. Each
example has F = sum_l E_l(z_l, mu_l). Shapes: B batch, I features below, D features of the layer.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class ReferenceLayer:
    """One dense layer, its activation and the energy of its activity."""

    kernel: np.ndarray  # (I, D)
    bias: np.ndarray  # (D,)
    activation: str = "identity"
    activation_first: bool = False
    energy: str = "gaussian"
    precision: float = 1.0  # of the gaussian energy; a number, or one per feature (D,)


@dataclass(frozen=True, eq=False)
class ReferenceRoot:
    """First element of a chain whose z_0 has the prior N(mean (D,), 1/precision)."""

    mean: np.ndarray
    precision: float = 1.0
    energy = "gaussian"  # not a field: the prior is always Gaussian


def float64(array):
    return None if array is None else np.asarray(array, np.float64)


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


def log_softmax(mu_BD):
    shifted_BD = mu_BD - mu_BD.max(axis=-1, keepdims=True)
    return shifted_BD - np.log(np.exp(shifted_BD).sum(axis=-1, keepdims=True))


# phi and its derivative, both as functions of the preactivation.
ACTIVATIONS = {
    "identity": (lambda x: x, np.ones_like),
    "tanh": (np.tanh, lambda x: 1.0 - np.tanh(x) ** 2),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "relu": (lambda x: np.maximum(x, 0.0), lambda x: (x > 0.0).astype(np.float64)),
}
# The mean p of an energy's distribution given mu, and dF/dmu from p and g = dF/dp.
MEANS = {
    "gaussian": (lambda mu: mu, lambda p, g: g),
    "categorical": (
        lambda mu: np.exp(log_softmax(mu)),
        lambda p, g: p * (g - (p * g).sum(axis=-1, keepdims=True)),
    ),
    "bernoulli": (sigmoid, lambda p, g: p * (1.0 - p) * g),
}


def predict(layer, below_BI, batch_size):
    """Prediction mu (B, D): phi(z W + b), phi(z) W + b or a root's mean; and its pullback.

    The pullback takes dF/dmu to dF/dz (B, I) and the batch sums (dF/dW (I, D), dF/db (D,)).
    """
    if isinstance(layer, ReferenceRoot):
        return np.tile(float64(layer.mean), (batch_size, 1)), lambda delta: (None, None)
    phi, slope = ACTIVATIONS[layer.activation]
    kernel_ID, first = float64(layer.kernel), layer.activation_first
    features_BI = phi(below_BI) if first else below_BI
    affine_BD = features_BI @ kernel_ID + float64(layer.bias)

    def pull_back(delta_BD):
        delta_BD = delta_BD if first else delta_BD * slope(affine_BD)
        back_BI = (delta_BD @ kernel_ID.T) * (slope(below_BI) if first else 1.0)
        return back_BI, (features_BI.T @ delta_BD, delta_BD.sum(axis=0))

    return (affine_BD if first else phi(affine_BD)), pull_back


def energy_terms(layer, z_BD, mu_BD):
    """E (B,), dE/dz (B, D) and dE/dmu (B, D); a categorical z need not sum to one."""
    if layer.energy == "categorical":
        log_p_BD, total_B1 = log_softmax(mu_BD), z_BD.sum(axis=-1, keepdims=True)
        return -(z_BD * log_p_BD).sum(axis=-1), -log_p_BD, total_B1 * np.exp(log_p_BD) - z_BD
    if layer.energy == "bernoulli":
        energy_BD = np.logaddexp(0.0, mu_BD) - z_BD * mu_BD
        return energy_BD.sum(axis=-1), -mu_BD, sigmoid(mu_BD) - z_BD
    assert layer.energy == "gaussian", layer.energy
    error_BD = float64(layer.precision) * (z_BD - mu_BD)
    return 0.5 * (error_BD * (z_BD - mu_BD)).sum(axis=-1), error_BD, -error_BD


def local_terms(layers, inputs, activities):
    """Per layer, from the activities at its ends: mu, pullback, E, dE/dz, dE/dmu."""
    below, terms = float64(inputs), []
    for layer, z_BD in zip(layers, map(float64, activities), strict=True):
        mu_BD, pull_back = predict(layer, below, len(z_BD))
        terms.append((mu_BD, pull_back, *energy_terms(layer, z_BD, mu_BD)))
        below = z_BD
    return terms


def feedforward(layers, inputs, batch_size=1):
    """Means z_l given z_{l-1}: list of (B, D); a root is the inputs, or batch_size x its mean."""
    activities, below = [], float64(inputs)
    for layer in layers:
        if inputs is None or not isinstance(layer, ReferenceRoot):
            below = MEANS[layer.energy][0](predict(layer, below, batch_size)[0])
        activities.append(below)
    return activities


def predictions(layers, inputs, activities):
    """mu_l (means or logits) from the activity below each layer: list of (B, D)."""
    return [mu_BD for mu_BD, *_ in local_terms(layers, inputs, activities)]


def energies(layers, inputs, activities):
    """E_l(z_l, mu_l) for each layer: list of (B,); their sum is F of each example."""
    return [energy_B for _, _, energy_B, *_ in local_terms(layers, inputs, activities)]


def activity_gradients(layers, inputs, activities, free):
    """dF_i/dz_l = dE_l/dz_l + J_{l+1}^T dE_{l+1}/dmu_{l+1}: list of (B, D).

    Zero where free[l], a bool or a mask (B, D), is False, and at a root given inputs.
    """
    terms = local_terms(layers, inputs, activities)
    gradients = [own_BD for *_, own_BD, _ in terms]
    for index, (_, pull_back, *_, delta_BD) in enumerate(terms[1:]):
        gradients[index] = gradients[index] + pull_back(delta_BD)[0]
    if inputs is not None and isinstance(layers[0], ReferenceRoot):
        free = [False, *free[1:]]
    return [np.where(mask, g_BD, 0.0) for mask, g_BD in zip(free, gradients, strict=True)]


def infer(layers, inputs, activities, free, step_size, num_steps, momentum=0.0):
    """Trace <- dF/dz + momentum * trace; z <- z - step_size * trace. Returns z, F (T + 1, B)."""
    activities, traces = [float64(z_BD) for z_BD in activities], [0.0] * len(layers)
    totals = [sum(energies(layers, inputs, activities))]
    for _ in range(num_steps):
        gradients = activity_gradients(layers, inputs, activities, free)
        traces = [g_BD + momentum * trace for g_BD, trace in zip(gradients, traces, strict=True)]
        activities = [z - step_size * trace for z, trace in zip(activities, traces, strict=True)]
        totals.append(sum(energies(layers, inputs, activities)))
    return activities, np.stack(totals)


def parameter_gradients(layers, inputs, activities):
    """(dkernel, dbias) of the batch mean of F, activities held fixed; a root: None."""
    terms = local_terms(layers, inputs, activities)
    return [pull_back(delta_BD / len(delta_BD))[1] for _, pull_back, *_, delta_BD in terms]


def backprop_gradients(layers, inputs, targets):
    """(dkernel, dbias) of the batch mean of E_L(targets, mu_L), feedforward pass."""
    activities = [*feedforward(layers, inputs, len(targets))[:-1], targets]
    terms = local_terms(layers, inputs, activities)
    gradient_BD, gradients = terms[-1][-1] / len(targets), []  # dF/dmu of the output
    for layer, z_BD, (_, pull_back, *_) in list(zip(layers, activities, terms, strict=True))[::-1]:
        if gradients:  # from dF/dz to dF/dmu, as z is the mean given mu
            gradient_BD = MEANS[layer.energy][1](z_BD, gradient_BD)
        gradient_BD, gradient = pull_back(gradient_BD)
        gradients.insert(0, gradient)
    return gradients


def residuals(gradients, counts):
    """Root mean square of each example's dF/dz over its `counts` free elements: (B,)."""
    squares_B = sum((g_BD**2).sum(axis=-1) for g_BD in gradients)
    return np.sqrt(squares_B / counts)


def infer_adaptively(
    layers, inputs, activities, free, step_size, tolerance, max_steps, momentum=0.0
):
    """`infer` of each example alone until its residual is at most the tolerance: z, steps (B,)."""
    rows, steps = [], []
    masks = [np.broadcast_to(mask, z.shape) for z, mask in zip(activities, free, strict=True)]
    for row in range(len(activities[-1])):
        own_free = [mask_BD[row : row + 1] for mask_BD in masks]
        count = sum(mask_1D.sum() for mask_1D in own_free)
        own = None if inputs is None else inputs[row : row + 1]
        z, traces = [float64(z_BD[row : row + 1]) for z_BD in activities], [0.0] * len(layers)
        taken = 0
        while taken < max_steps:
            gradients = activity_gradients(layers, own, z, own_free)
            if residuals(gradients, count)[0] <= tolerance:
                break
            traces = [g + momentum * trace for g, trace in zip(gradients, traces, strict=True)]
            z = [z_1D - step_size * trace for z_1D, trace in zip(z, traces, strict=True)]
            taken += 1
        rows.append(z)
        steps.append(taken)
    return [np.concatenate(z_1D) for z_1D in zip(*rows, strict=True)], np.array(steps)


def langevin_step(layers, inputs, activities, free, step_size, temperature, noises):
    """A step: z - step_size dF/dz + sqrt(2 step_size temperature) noise where free; noises (B, D)."""
    gradients = activity_gradients(layers, inputs, activities, free)
    scale = np.sqrt(2.0 * step_size * temperature)
    return [
        z_BD - step_size * g_BD + scale * np.where(is_free, noise_BD, 0.0)
        for z_BD, g_BD, noise_BD, is_free in zip(
            map(float64, activities), gradients, noises, free, strict=True
        )
    ]


def learned(layers, gradients, learning_rate):
    """The layers after W <- W - learning_rate dW and b <- b - learning_rate db."""
    return [
        layer
        if isinstance(layer, ReferenceRoot)
        else replace(
            layer,
            kernel=layer.kernel - learning_rate * gradient[0],
            bias=layer.bias - learning_rate * gradient[1],
        )
        for layer, gradient in zip(layers, gradients, strict=True)
    ]


def incremental(layers, inputs, activities, free, step_size, learning_rate, num_steps):
    """Both z and theta move at each step, from one (z, theta): z by each F_i, theta by their mean.

    Returns the layers and z after the last step, and F (B,) before it.
    """
    activities, before_B = [float64(z_BD) for z_BD in activities], None
    for _ in range(num_steps):
        before_B = sum(energies(layers, inputs, activities))
        on_weights = parameter_gradients(layers, inputs, activities)
        on_activities = activity_gradients(layers, inputs, activities, free)
        activities = [z - step_size * g for z, g in zip(activities, on_activities, strict=True)]
        layers = learned(layers, on_weights, learning_rate)
    return layers, activities, before_B


def fixed_prediction(layers, inputs, targets, step_size, num_steps):
    """d_l <- d_l + step_size precision_l (J_{l+1}^T d_{l+1} - d_l), J of the feedforward pass.

    d_l is precision_l times the error of a hidden Gaussian layer, and -dE/dmu of the output, which
    stays. Returns the d (B, D) and (dkernel, dbias) = -d pulled back to theta there, batch means.
    """
    activities = feedforward(layers, inputs, len(targets))
    terms = local_terms(layers, inputs, [*activities[:-1], targets])
    deltas = [np.zeros_like(z_BD) for z_BD in activities[:-1]] + [-terms[-1][-1]]
    for _ in range(num_steps):
        arrived = [
            pull_back(d_BD)[0] for (_, pull_back, *_), d_BD in zip(terms, deltas, strict=True)
        ]
        deltas = [
            d_BD + step_size * layer.precision * (above_BD - d_BD)
            for layer, d_BD, above_BD in zip(layers, deltas, arrived[1:], strict=False)
        ] + deltas[-1:]
    return deltas, [
        pull_back(-d_BD / len(targets))[1]
        for (_, pull_back, *_), d_BD in zip(terms, deltas, strict=True)
    ]


def nudged_targets(layers, inputs, targets, beta):
    """The clamp p - beta (p - y) of nudged learning, p the mean of the feedforward output."""
    output_BD = feedforward(layers, inputs, len(targets))[-1]
    return output_BD - beta * (output_BD - targets)
