"""Targets that an energy has no meaning for are refused where data come in, with what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.energies import KL, ActivityDecay, Bernoulli, Categorical, Gaussian, LearnedGaussian

FEW = pc.inference.GradientDescent(0.1, num_steps=2)
IMAGES = np.array([[-0.81, 0.0], [1.85, 0.5]])  # standardized


@pytest.mark.parametrize("wrap", [lambda energy: energy, lambda energy: ActivityDecay(energy, 0.1)])
def test_bernoulli_takes_probabilities(wrap):
    """Outside of [0, 1] its energy is not bounded below: E = log(1 + exp(mu)) - z mu."""
    energy = wrap(Bernoulli())
    for logit, target in ((1e3, 1.85), (-1e3, -0.81)):
        assert Bernoulli()(jnp.full((1, 1), target), jnp.full((1, 1), logit)) < -100
    text = (
        r"Bernoulli expected targets from 0 to 1, got numbers from -0\.81 to 1\.85, under which its "
        r"energy may fall without bound; scale them to \[0, 1\] or use pc\.energies\.Gaussian\(\)"
    )
    with pytest.raises(ValueError, match=text):
        energy.check_targets(IMAGES)
    for wrong in (IMAGES.clip(0), IMAGES.clip(max=1), jnp.asarray(IMAGES, jnp.bfloat16)):
        with pytest.raises(ValueError, match="Bernoulli expected targets from 0 to 1"):
            energy.check_targets(wrong)
    for right in (IMAGES.clip(0, 1), np.eye(3, dtype=bool), np.zeros((0, 2)), [[1 + 1e-6]]):
        energy.check_targets(right)


def test_categorical_takes_probabilities_and_counts():
    text = r"Categorical expected targets from 0 to inf, got numbers from -0\.81 to 1\.85.*one_hot"
    with pytest.raises(ValueError, match=text):
        Categorical().check_targets(IMAGES)
    for right in (np.eye(3), np.zeros((2, 3)), np.full((2, 5, 3), 1 / 3), [[2.0, 0.0, 1.0]]):
        Categorical().check_targets(right)


def test_kl_takes_finite_logits():
    text = r"KL expected logits as targets, got one-hot ones.*use pc\.energies\.Categorical\(\)"
    for one_hot in (np.eye(3), jnp.eye(3, dtype=jnp.bfloat16), np.eye(4)[None]):
        with pytest.raises(ValueError, match=text):
            KL().check_targets(one_hot)
    with pytest.raises(ValueError, match="KL expected finite logits as targets, got infinite ones"):
        KL().check_targets(np.log(np.eye(3), where=np.eye(3) > 0, out=np.full((3, 3), -np.inf)))
    for right in (np.random.default_rng(0).normal(size=(4, 3)), np.zeros((2, 3)), np.ones((0, 3))):
        KL().check_targets(right)


@pytest.mark.parametrize("energy", [Gaussian(), LearnedGaussian(), pc.energies.Huber()])
def test_others_take_any_number(energy):
    energy.check_targets(IMAGES)


@pytest.mark.parametrize("energy", [Bernoulli(), Categorical(), KL()])
def test_missing_and_traced_values_pass(energy):
    """NaN makes an energy that is not finite, of which training tells; traced values are not known."""
    energy.check_targets(np.array([[np.nan, 0.5]]))
    energy.check_targets(np.full((1, 2), np.nan))

    def traced(targets):
        energy.check_targets(targets)
        return targets

    jax.eval_shape(traced, jnp.eye(3) - 2)


class TestWhereDataComeIn:
    """`fit`, `evaluate` and `infer` refuse them before anything is computed, as clamps, too."""

    TEXT = r"Bernoulli expected targets from 0 to 1, got numbers from -0\.81 to 1\.85"

    def network(self):
        out = pc.PCDense(3, 2, energy=Bernoulli(), rngs=nnx.Rngs(0))
        return pc.PCNetwork({"z": pc.PCRoot(3), "x": out})

    def trainer(self):
        rule = pc.learning.PredictiveCoding(FEW)
        reads = pc.Reconstruction(FEW)  # a pass upward from a free root says nothing of an example
        return pc.Trainer(
            self.network(), optax.sgd(0.1), learning=rule, reads=reads, progress=False
        )

    @pytest.mark.parametrize("options", [{"targets": IMAGES}, {"clamps": {"x": IMAGES}}])
    def test_training_and_evaluation(self, options):
        trainer = self.trainer()
        data = pc.data.from_arrays(None, **{"targets": None, "batch_size": 2, **options})
        for role, call in (("training", trainer.fit), ("evaluation", trainer.evaluate)):
            steps = {"num_steps": 1} if role == "training" else {}
            with pytest.raises(
                ValueError, match=f"the {role} data 'arrays' does not fit: {self.TEXT}"
            ):
                call(data, **steps)
        assert trainer.step == 0

    def test_inference(self):
        network, images = self.network(), IMAGES.astype(np.float32)
        for given in ({"targets": images}, {"clamps": {"x": images}}):
            with pytest.raises(ValueError, match=self.TEXT):
                network.infer(None, inference=FEW, **given)
        network.infer(None, inference=FEW, clamps={"x": images.clip(0, 1)})
