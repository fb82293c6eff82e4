"""Training that worker processes of grain's feed; as a script: FOLDER STEPS, resumed where it was begun.

jax and pcflax are imported where they train: a worker imports this file, and needs neither.
"""

import os
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
from absl import flags

X = np.random.default_rng(0).normal(size=(26, 4)).astype(np.float32)


def end_with_parent():
    """End this process soon after the one that began it, however that ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__mp_main__":  # a worker
    threading.Thread(target=end_with_parent, daemon=True).start()


class Source:
    """Slow examples, so that a kill falls inside training."""

    def __len__(self):
        return len(X)

    def __repr__(self):
        return "Source()"  # by which grain knows its data again

    def __getitem__(self, index):
        time.sleep(0.02)
        return X[index], np.int32(index % 3)


def loader():
    sampler = grain.samplers.IndexSampler(
        num_records=26,
        shuffle=True,
        seed=2,
        num_epochs=None,
        shard_options=grain.sharding.NoSharding(),
    )
    batch = grain.transforms.Batch(batch_size=4, drop_remainder=True)
    return grain.DataLoader(
        data_source=Source(), sampler=sampler, operations=[batch], worker_count=2
    )


def pipeline():
    examples = grain.MapDataset.source(Source()).shuffle(seed=3).repeat().batch(4)
    return examples.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=2))


KINDS = {"DataLoader": loader, "mp_prefetch": pipeline}


def train(folder, num_steps):
    """Train on both, ten steps in turn, each from its latest checkpoint on."""
    import optax
    from flax import nnx

    import pcflax as pc

    flags.FLAGS.mark_as_parsed()  # grain's workers ask for it
    trainers = {}
    for kind in KINDS:
        trainers[kind] = trainer = pc.Trainer(
            pc.models.mlp(4, 5, 3, rngs=nnx.Rngs(0)),
            optax.adam(1e-2),
            learning=pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=2)),
            checkpoints=pc.Checkpoints(folder / kind, every=7, keep_latest=3),
            progress=False,
        )
        if list((folder / kind).glob("*.sha256")):
            trainer.restore()
    loaders = {kind: make() for kind, make in KINDS.items()}
    for total in range(10, num_steps + 1, 10):
        for kind, trainer in trainers.items():
            if trainer.step < total:
                trainer.fit(loaders[kind], num_steps=total, log_every=2)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
