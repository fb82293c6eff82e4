"""Backpropagation in plain PyTorch, eager: what most people would write for the same network.

Loss: L = 1/B sum_i 1/2 ||y_i - mu_L(x_i)||^2, summed over classes, mean over the batch, as in
`flax_backprop.py`. The job's inference fields are ignored.

Units. `torch.optim.Adam` is optax's (eps outside the root, bias corrected); AdamW's decay, lr * wd *
parameter from the value before the step, is that of `optax.adamw`, biases included.

Layouts. `nn.Linear` holds kernels as (out, in), `nn.Conv2d` as (out, in, 3, 3), images become (channels,
height, width) by a view, which leaves them channels-last in memory, and the rows of the linear kernel of
"vgg5" are permuted once, so that no step pays for another order.

How it is driven. An eager loop over batches that turns a NumPy array into a tensor without a copy, with
the optimizer in its fused form, one call for all parameters, which was faster than `foreach` and than a loop
over parameters. Kernels of convolutions are kept channels-last like the images. `torch.compile` is left out,
because it needs a C++ compiler where it runs.
"""

from importlib import metadata

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from . import Job, Parameters, Unsupported

ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": lambda z: functional.gelu(z, approximate="tanh"),
}


def reorder(kernel: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Permute the rows of a linear kernel, flattened over `shape`, by moving its last axis to the front."""
    return np.moveaxis(kernel.reshape(*shape, -1), 2, 0).reshape(kernel.shape)


class Network(nn.Module):
    """The network of a job, with these parameters."""

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Set every kernel and bias."""
        super().__init__()
        self.job = job
        self.layers = nn.ModuleList()
        for given in parameters:
            kernel = given["kernel"]
            *window, below, above = kernel.shape
            layer: nn.Linear | nn.Conv2d
            if window:
                layer = nn.Conv2d(below, above, 3, padding=1)
                kernel = kernel.transpose(3, 2, 0, 1)
            else:
                layer = nn.Linear(below, above, bias="bias" in given)
                if job.model == "vgg5":
                    kernel = reorder(kernel, (2, 2, below // 4))
                kernel = kernel.T
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(kernel))
                if "bias" in given:
                    layer.bias.copy_(torch.tensor(given["bias"]))
            self.layers.append(layer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, ...) -> (batch, classes)."""
        job, value = self.job, inputs
        activation = ACTIVATIONS[job.activation]
        if job.model == "vgg5":
            value = value.permute(0, 3, 1, 2)
        for index, layer in enumerate(self.layers):
            is_last = index == job.depth - 1
            if job.model == "residual":
                change = job.multipliers[index] * layer(activation(value) if index else value)
                value = change if is_last or not index else value + change
            elif is_last:
                value = layer(value.flatten(1))
            else:
                value = activation(layer(value))
                if job.model == "vgg5":
                    value = functional.max_pool2d(value, 2)
        return value


class Contender:
    """An eager loop over batches, with a fused optimizer."""

    name = f"PyTorch {metadata.version('torch').split('+')[0]} backprop (eager, fused optimizer)"
    packages = ("torch",)
    rule = "backprop"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the network and start Adam's state."""
        if not job.learns:
            raise Unsupported("backpropagation has no inference")
        self.job = job
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = Network(job, parameters).to(self.device, memory_format=torch.channels_last)
        weights = self.network.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(weights, job.learning_rate, weight_decay=job.weight_decay, fused=True)
            if job.weight_decay
            else torch.optim.Adam(weights, job.learning_rate, fused=True)
        )
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, job.decay_every, job.decay)

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on K batches in order."""
        self.job.check_batches(inputs, targets)
        batches = torch.from_numpy(inputs), torch.from_numpy(targets)
        for batch, labels in zip(*(tensor.to(self.device) for tensor in batches), strict=True):
            loss = 0.5 * (labels - self.network(batch)).square().sum() / len(labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.job.decay != 1:
                self.schedule.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        result = []
        for layer in self.network.layers:
            kernel = layer.weight.detach().cpu().numpy()
            if isinstance(layer, nn.Conv2d):
                kernel = kernel.transpose(2, 3, 1, 0)
            elif self.job.model == "vgg5":
                kernel = kernel.T.reshape(-1, 2, 2, self.job.widths[-1])
                kernel = np.moveaxis(kernel, 0, 2).reshape(-1, self.job.widths[-1])
            else:
                kernel = kernel.T
            result.append({"kernel": kernel.copy()})
            if layer.bias is not None:
                result[-1]["bias"] = layer.bias.detach().cpu().numpy().copy()
        return result

    @torch.no_grad()
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return self.network(torch.from_numpy(inputs).to(self.device)).cpu().numpy()
