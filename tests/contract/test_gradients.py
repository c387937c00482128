"""Gradients against central differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import distributions, losses
from jaxrl.rlhf import losses as text_losses

N = 6
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(*shape):
    return RNG.normal(size=shape)


LOG_PROB, OLD = -np.abs(normal(N)), -np.abs(normal(N))
ADVANTAGE, TARGET, VALUE_OLD = normal(N), normal(N), normal(N)
LEVEL = np.linspace(0.05, 0.9, N)
MASS = np.abs(normal(N)) / 10
MASK = np.array([True, False, True, True, False, True])

LOSSES = {
    "policy_gradient": lambda x: losses.policy_gradient(x, ADVANTAGE),
    "clipped_surrogate": lambda x: losses.clipped_surrogate(x, OLD, ADVANTAGE, 0.2),
    "surrogate": lambda x: losses.surrogate(x, OLD, ADVANTAGE),
    "approx_kl": lambda x: losses.approx_kl(x, OLD),
    "value_mse": lambda x: losses.value_mse(x, TARGET),
    "clipped_value_mse": lambda x: losses.clipped_value_mse(x, VALUE_OLD, TARGET, 0.2),
    "squared_td": lambda x: losses.squared_td(x, TARGET),
    "huber_td": lambda x: losses.huber_td(3 * x, TARGET),
    "quantile_huber": lambda x: losses.quantile_huber(
        x[None], TARGET[None], 0.7, LEVEL[None]
    ),
    "categorical_kl": lambda x: losses.categorical_kl(x[None], MASS[None]),
    "kl_k1": lambda x: text_losses.kl_k1(x, OLD),
    "kl_k2": lambda x: text_losses.kl_k2(x, OLD),
    "preference_loss": lambda x: text_losses.preference_loss(x, TARGET, 0.3),
    "ranking_loss": lambda x: text_losses.ranking_loss(x),
    "dpo_loss": lambda x: text_losses.dpo_loss(x, x[::-1], OLD, LOG_PROB, 0.7),
    "normalize_advantage": lambda x: losses.normalize_advantage(x) * TARGET,
    "masked normalize_advantage": lambda x: (
        losses.normalize_advantage(x, jnp.asarray(MASK)) * TARGET
    ),
}


def assert_gradient_is_right(function, x):
    """|∇f - (f(x+h) - f(x-h)) / 2h| ≤ 1e-6 in each entry, relative to the largest."""
    x = jnp.asarray(x, jnp.float64)
    found = np.asarray(jax.grad(function)(x)).ravel()
    step, flat = 1e-5, np.asarray(x).ravel()
    expected = np.zeros_like(flat)
    for i in range(flat.size):
        moved = [flat.copy(), flat.copy()]
        moved[0][i] += step
        moved[1][i] -= step
        up, down = (float(function(jnp.asarray(m.reshape(x.shape)))) for m in moved)
        expected[i] = (up - down) / (2 * step)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)
    assert np.abs(expected).max() > 1e-3  # or there would be nothing to compare


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert_gradient_is_right(lambda x: LOSSES[name](x).sum(), normal(N))


@pytest.mark.full
def test_next_token_loss():
    tokens = jnp.array([[0, 2, 1], [1, 1, 2]])
    mask = jnp.array([[True, True, True], [True, True, False]])
    assert_gradient_is_right(
        lambda x: text_losses.next_token_loss(x, tokens, mask), normal(2, 3, 4)
    )


ACTIONS = RNG.integers(0, 4, N)
LEGAL = np.ones((N, 4), bool)
LEGAL[np.arange(N), (ACTIONS + 1) % 4] = False


@pytest.mark.fast_cases("extreme-masked")
@pytest.mark.parametrize("legal", [None, LEGAL], ids=["all legal", "masked"])
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["ordinary", "extreme"])
def test_categorical(legal, scale):
    mask = None if legal is None else jnp.asarray(legal)

    def function(logits):
        pi = distributions.categorical(logits, mask)
        other = distributions.categorical(logits[::-1] / scale, None)
        log_prob = (pi.log_prob(jnp.asarray(ACTIONS)) * jnp.asarray(ADVANTAGE)).sum()
        return (
            log_prob
            + pi.entropy().sum()
            + other.kl_divergence(pi).sum() * (mask is None)
        )

    assert_gradient_is_right(function, scale * normal(N, 4))


@pytest.mark.fast_cases("tanh")
@pytest.mark.parametrize("squash", [False, True], ids=["normal", "tanh"])
def test_continuous(squash):
    actions = jnp.asarray(np.clip(normal(N, 2), -1.9, 1.9))

    def function(parameters):
        mean, log_std = jnp.split(parameters, 2, axis=-1)
        if squash:
            pi = distributions.tanh_normal(mean, log_std, -2.0, 2.0)
        else:
            pi = distributions.diag_normal(mean, log_std)
        log_prob = (pi.log_prob(actions) * jnp.asarray(ADVANTAGE)).sum()
        return log_prob + pi.entropy().sum()

    assert_gradient_is_right(function, normal(N, 4) / 2)
