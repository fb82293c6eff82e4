"""`pcflax sample RUN`: draw images with a trained generator."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import pcflax as pc
from pcflax.plotting import image_figure
from pcflax.plotting.lines import plain
from pcflax.training.checkpoints.disk import replacing
from pcflax.training.plain_json import dumps

from .build import load_data, rebuilt
from .options import read_run
from .usage import UsageError
from .verbs import SampleOptions

# So many training images tell how codes are spread.
_MOST_CODES = 1000


def sample(options: SampleOptions) -> None:
    """Restore the generator and write a picture of what it draws."""
    stored = read_run(options.run, data_dir=options.data_dir, mesh=options.mesh)
    if stored.model != "generator":
        raise ValueError(
            f"the run in {options.run} trained a {stored.model}, which draws nothing; train a generator: "
            f"pcflax train --model generator"
        )
    path = options.output or options.run / "samples.png"
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"expected --output to end in .png, .pdf or .svg, got {path}")
    data = load_data(stored, "train", batch_size=_MOST_CODES)
    trainer = rebuilt(stored, data, options.run)
    step = trainer.restore(options.step, best=options.best)
    if stored.latent:
        codes, titles = _codes(trainer, data, options), None
    else:
        codes = jnp.eye(data.spec().inputs.shape[1])  # type: ignore[union-attr]
        titles = [str(label) for label in range(len(codes))]
    network = trainer.network
    # an image is shown without the noise of its pixels and of what is below
    shown = network.names[1:]
    images = network.sample(clamps={"latent": codes}, key=jax.random.key(0), means=shown)
    figure = image_figure(images, titles=titles, title=plain(f"{data.name}, step {step}"))
    with replacing(path, "choose another --output") as file:
        figure.savefig(file, dpi=110, bbox_inches="tight")
    if options.json:
        print(dumps({"step": step, "images": len(codes), "picture": str(path)}))
    else:
        print(f"picture  {path}")


def _codes(trainer: pc.Trainer, data: pc.data.Dataset, options: SampleOptions) -> jax.Array:
    """Draw codes from the Gaussian of those that inference finds for training images.

    The prior of a generator's code is flat.
    """
    found = trainer.predict(
        next(iter(data)),
        reads=pc.Equilibrium(trainer.reads.inference, read="latent"),  # type: ignore[attr-defined]
    )
    known = np.asarray(found, np.float64)
    spread = np.atleast_2d(np.cov(known.T)) + 1e-6 * np.eye(known.shape[1])
    shape = (options.count, known.shape[1])
    noise = np.asarray(jax.random.normal(jax.random.key(options.seed), shape), np.float64)
    return jnp.asarray(known.mean(axis=0) + noise @ np.linalg.cholesky(spread).T, jnp.float32)
