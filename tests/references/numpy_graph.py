"""Predictive coding graphs in NumPy float64: an oracle derived by hand, no autodiff.

Node i predicts mu_i = phi(b_i + sum_p u_p W_p) from what stands below it: its parents' activities one by
one, their sum, or all of them side by side. F = sum_i precision_i / 2 ||z_i - mu_i||^2 for each example.
Activities and inputs are one dictionary by name. Shapes: B batch, I features below, D of the node.
"""

from dataclasses import dataclass

import numpy as np

from .numpy_pc import ACTIVATIONS


@dataclass(frozen=True, eq=False)
class Node:
    """One node; a root has no parents and predicts its bias."""

    parents: tuple[str, ...]
    kernels: tuple[np.ndarray, ...]  # (I, D): one a parent where each is by itself, else one
    bias: np.ndarray  # (D,)
    combine: str = "each"  # "each", "sum" or "concatenate"
    activation: str = "tanh"
    precision: float = 1.0


def belows(node, z):
    """What the node's kernels are applied to: a list of (B, I)."""
    parts = [z[parent] for parent in node.parents]
    if not parts or node.combine == "each":
        return parts
    return [sum(parts) if node.combine == "sum" else np.concatenate(parts, axis=-1)]


def predict(node, z, batch_size):
    """The prediction mu (B, D) and the slope of phi there (B, D)."""
    phi, slope = ACTIVATIONS[node.activation]
    affine_BD = np.tile(node.bias, (batch_size, 1))
    for below_BI, kernel_ID in zip(belows(node, z), node.kernels, strict=True):
        affine_BD = affine_BD + below_BI @ kernel_ID
    return phi(affine_BD), slope(affine_BD)


def errors(nodes, z):
    """precision_i (z_i - mu_i) by name, (B, D)."""
    return {
        name: node.precision * (z[name] - predict(node, z, len(z[name]))[0])
        for name, node in nodes.items()
    }


def energies(nodes, z):
    """E_i by name, (B,)."""
    return {
        name: 0.5 * np.sum(error_BD**2, axis=-1) / nodes[name].precision
        for name, error_BD in errors(nodes, z).items()
    }


def activity_gradients(nodes, z, held=()):
    """dF/dz_i = e_i - sum over children c of the pull of e_c; zero for what is held. By name."""
    gradients = errors(nodes, z)
    for name, error_BD in errors(nodes, z).items():
        node = nodes[name]
        delta_BD = error_BD * predict(node, z, len(error_BD))[1]
        backs = [delta_BD @ kernel_ID.T for kernel_ID in node.kernels]
        if node.combine == "sum":
            backs = backs * len(node.parents)
        if node.combine == "concatenate":
            widths = np.cumsum([z[parent].shape[-1] for parent in node.parents])[:-1]
            backs = np.split(backs[0], widths, axis=-1)
        for parent, back_BI in zip(node.parents, backs, strict=True):
            if parent in nodes:
                gradients[parent] = gradients[parent] - back_BI
    return {name: g * (name not in held) for name, g in gradients.items()}


def parameter_gradients(nodes, z):
    """([dkernel], dbias) of the batch mean of F by name, activities held fixed."""
    gradients = {}
    for name, error_BD in errors(nodes, z).items():
        delta_BD = -error_BD * predict(nodes[name], z, len(error_BD))[1] / len(error_BD)
        kernels = [below_BI.T @ delta_BD for below_BI in belows(nodes[name], z)]
        gradients[name] = kernels, delta_BD.sum(axis=0)
    return gradients


def infer(nodes, z, held, step_size, num_steps):
    """All z <- z - step_size dF/dz at once; and F before each step and after the last, (T + 1, B)."""
    z, totals = dict(z), [sum(energies(nodes, z).values())]
    for _ in range(num_steps):
        gradients = activity_gradients(nodes, z, held)
        z |= {name: z[name] - step_size * gradient for name, gradient in gradients.items()}
        totals.append(sum(energies(nodes, z).values()))
    return z, np.stack(totals)


def cyclic(nodes):
    """The names of nodes that reach themselves: the diagonal of the transitive closure."""
    names = list(nodes)
    reach = np.array([[parent in nodes[name].parents for parent in names] for name in names])
    for middle in range(len(names)):
        reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1, :]
    return {name for number, name in enumerate(names) if reach[number, number]}, names, reach


def feedforward(nodes, inputs, batch_size, order, sweeps, held=None):
    """Activities at their predictions in this order; runs of nodes on cycles `sweeps` times from zero.

    `held` are activities by name that stand at their values.
    """
    z, held, on_cycles = dict(inputs), held or {}, cyclic(nodes)[0]
    runs = []
    for name in order:
        if runs and name in on_cycles and runs[-1][-1] in on_cycles:
            runs[-1].append(name)
        else:
            runs.append([name])
    for run in runs:
        for name in run:
            z[name] = held.get(name, np.zeros((batch_size, len(nodes[name].bias))))
        for _ in range(sweeps if run[0] in on_cycles else 1):
            for name in run:
                z[name] = held.get(name, predict(nodes[name], z, batch_size)[0])
    return z
