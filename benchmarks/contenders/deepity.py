"""Deepity, a C++ library with a Python interface: `SimplePCN` on the CPU, one call a batch.

Another energy than the job's. A layer's activation acts on its own state before the weights,

    F = 1/2 sum_l ||z_l - (phi(z_{l-1}) K_l + b_l)||^2 of an example, phi the identity on the input z_0,
    dz_l/dt = -e_l + phi'(z_l) (e_{l+1} K_{l+1}^T),   dF/dK_l = -1/B phi(z_{l-1})^T e_l,

so hidden states are those before phi, where the job's are those behind it. The network as a function of its
input is the job's, and so are the initial parameters, T, the step size and Adam. (The library's own
examples place the activation behind each `Linear`, which applies phi to the input too, and not to the last
hidden state; here it stands behind the next `Linear`.) Other departures:

- a training call of S steps learns from the errors measured before the S-th update, which is then discarded;
  S = T + 1 therefore is T steps and learning from the errors there, as the job has it, for one step's price;
- weight decay acts on the kernels alone, not on the biases.

The prediction of the clamped input is cached (threshold 0, which changes no result), and the energy, which
only a progress bar would show, is not computed. Wheels from PyPI are for the CPU, with OpenBLAS and OpenMP,
whose threads wait by spinning: on a machine that is busy otherwise its times grow out of proportion.
Next file to read: `ngclearn.py`, which can express the job.
"""

from importlib import metadata

import numpy as np
from deepity import GeLU, Linear, ReLU, Sigmoid, SimplePCN, TanH

from . import Job, Parameters, Unsupported

ACTIVATIONS = {"tanh": TanH, "sigmoid": Sigmoid, "relu": ReLU, "gelu": GeLU}


class Contender:
    """One SimplePCN; a batch is one call into C++."""

    name = (
        f"Deepity {metadata.version('pydeepity')} (C++, one call a batch; phi before the weights)"
    )
    packages = ("pydeepity",)
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the network and overwrite the weights that it draws; its kernels are (out, in)."""
        if job.model == "residual":
            raise Unsupported("Deepity's SimplePCN has no skip connections.")
        if job.model == "vgg5":
            raise Unsupported("Deepity has convolutions but no max-pooling.")
        self.job, self.iteration = job, 0
        parts = [Linear(*job.widths[:2])]
        for below, above in zip(job.widths[1:-1], job.widths[2:], strict=True):
            parts += [Linear(below, above), ACTIVATIONS[job.activation]()]
        self.network = SimplePCN(*parts, batch_size=job.batch_size)
        self.network.configure(
            learning_rate=job.learning_rate,
            inference_rate=job.activity_step_size,
            lmbda=job.weight_decay,
            optimizer="ADAMW" if job.weight_decay else "ADAM",
            seed=0,
        )
        self.network.set_mu_cache_threshold(0.0)
        self.layers = self.network.layers[:-1]  # the last one holds the output and no weights
        for layer, values in zip(self.layers, parameters, strict=True):
            layer.set_weights(np.ascontiguousarray(values["kernel"].T))
            layer.set_biases(values["bias"])

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order."""
        self.job.check_batches(inputs, targets)
        for batch, labels in zip(inputs, targets, strict=True):
            if self.job.learns:
                self.network.set_learning_rate(self.job.learning_rate_at(self.iteration))
                steps = self.job.num_inference_steps + 1
                self.network.train_step_with_projection(batch, labels, steps, False)
            else:
                self.infer(batch, labels)
            self.iteration += 1

    def infer(self, batch: np.ndarray, labels: np.ndarray) -> None:
        """T steps from the feedforward start, without learning."""
        self.network.reset_state()
        self.network.clamp_input(batch)
        self.network.project_forward()
        self.network[-1].clamp_state(labels)
        for _ in range(self.job.num_inference_steps):
            self.network.calculate_state(False)
            self.network.update_state()
        self.network[-1].unclamp_state()

    def parameters(self) -> Parameters:
        """Return the parameters, copied."""
        result = []
        for layer in self.layers:
            kernel = np.array(layer.weights).reshape(layer.output_size, layer.input_size)
            result.append({"kernel": kernel.T.copy(), "bias": np.array(layer.biases)})
        return result

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, in batches of the job's size because the network has one."""
        size, width = self.job.batch_size, self.job.widths[-1]
        padded = np.pad(inputs, ((0, -len(inputs) % size), (0, 0))).reshape(
            -1, size, inputs.shape[1]
        )
        outputs = [self.network.predict_with_projection(batch, 0) for batch in padded]
        return np.array(outputs).reshape(-1, width)[: len(inputs)]
