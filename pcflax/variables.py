"""Kinds of state: what tells an activity from a weight.

NNX sorts a module's arrays by the class of the Variable that holds them. Weights are `nnx.Param`;
the activities of a predictive coding network are `Activity`. A filter then picks one kind out of a
whole network (`nnx.state(network, Activity)`), which is all that inference, learning and checkpoints
need. Next file to read: `pcflax/layers/base.py`.
"""

from __future__ import annotations

from flax import nnx

# Marks a stack's arrays in their path. No Python name has a hyphen, so no attribute of a layer's has it.
STACKED = "stacked-layers"


class Activity(nnx.Variable):
    """The activity z_l of one layer, batch first: shape (batch, *features), floating.

    A layer makes its activity empty, of shape (0,); `PCNetwork.init_activities` and
    `PCNetwork.infer` give it its size. Read and write it with `layer.activity[...]`.

    >>> import jax.numpy as jnp
    >>> import pcflax as pc
    >>> activity = pc.Activity(jnp.zeros((2, 3)))
    >>> activity[...].shape
    (2, 3)
    """


class Connectivity(nnx.Variable):
    """Which weights of a layer there are; nothing writes it, and checkpoints hold it."""


class FeedbackWeights(Connectivity):
    """Fixed weights that a layer's error goes down through; nothing writes them, either."""
