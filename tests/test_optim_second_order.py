"""Conjugate gradient, Fisher-vector products, trust-region steps and the line search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import distributions, networks, optim, spaces
from jaxrl.core import parallel
from jaxrl.networks import CNN, MLP, ActorCritic, Body, join, split
from tests.support.small import assert_trees_equal

RNG = np.random.default_rng(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def positive_definite(size):
    root = RNG.normal(size=(size, size))
    return root @ root.T + np.eye(size)


def test_conjugate_gradient_solves_what_numpy_solves(float64):
    matrix, b = jnp.asarray(positive_definite(7)), jnp.asarray(RNG.normal(size=7))
    x = optim.conjugate_gradient(lambda v: matrix @ v, b, 30, 1e-12)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)


def test_conjugate_gradient_by_hand():
    """A = diag(2, 1), b = (2, 1): r·r = 5, d·Ad = 9, so x_1 = 5/9 b; x_2 = A⁻¹ b."""
    diagonal, b = jnp.array([2.0, 1.0]), jnp.array([2.0, 1.0])
    one, two, more = (
        optim.conjugate_gradient(lambda v: diagonal * v, b, n) for n in (1, 2, 9)
    )
    np.testing.assert_allclose(one, 5 / 9 * b, rtol=1e-6)
    np.testing.assert_allclose(two, [1.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(more, two)  # the residual is 0: nothing moves


def test_conjugate_gradient_of_a_tree_is_that_of_its_vector():
    b = {"w": jnp.asarray(RNG.normal(size=(2, 2))), "b": jnp.ones(1)}
    vector, unflatten = optim.flat(b)
    matrix = jnp.asarray(positive_definite(5))

    def product(tree):
        return unflatten(matrix @ optim.flat(tree)[0])

    tree = jax.jit(lambda b: optim.conjugate_gradient(product, b, 3))(b)
    flat = optim.conjugate_gradient(lambda v: matrix @ v, vector, 3)
    np.testing.assert_allclose(optim.flat(tree)[0], flat, rtol=1e-4)


def test_the_tolerance_stops_conjugate_gradient(float64):
    matrix, b = jnp.asarray(positive_definite(20)), jnp.asarray(RNG.normal(size=20))

    @jax.jit
    def residual(iterations, tolerance):
        x = optim.conjugate_gradient(lambda v: matrix @ v, b, iterations, tolerance)
        return jnp.linalg.norm(b - matrix @ x) / jnp.linalg.norm(b)

    steps = [float(residual(n, 0.0)) for n in range(30)]
    assert steps[0] == 1.0 and steps[-1] < 1e-6
    first = next(r for r in steps if r <= 0.1)
    assert 0 < float(residual(30, 0.1)) == pytest.approx(first, rel=1e-9)


def test_a_right_side_of_zero_or_nan_is_its_own_answer():
    zero = optim.conjugate_gradient(lambda v: 2 * v, jnp.zeros(3), 5)
    np.testing.assert_array_equal(zero, 0.0)
    nan = optim.conjugate_gradient(lambda v: 2 * v, jnp.array([1.0, jnp.nan]), 5)
    assert np.isnan(nan).all()


PLANE, BODY = spaces.box(-9, 9, (2,)), Body(MLP((4,), "tanh"))
NET = {
    "discrete": ActorCritic(PLANE, spaces.Discrete(3), BODY, separate=True),
    "continuous": ActorCritic(PLANE, spaces.box(-2, 1, (2,)), BODY, separate=True),
}


def policy_of(kind, masked=False):
    """A small policy: parameters as a vector, and the distribution they give."""
    net, obs = NET[kind], jnp.asarray(RNG.normal(size=(50, 2)))
    policy, value = split(jax.jit(net.init)(jax.random.key(0), (), obs))
    theta, unflatten = optim.flat(policy)
    theta = theta + 0.5 * jnp.asarray(RNG.normal(size=theta.shape))
    mask = jnp.asarray(RNG.random((50, 3)) < 0.6).at[:, 0].set(True)

    def pi_of(theta):
        _, parameters, _ = net.apply(join(unflatten(theta), value), (), obs)
        return networks.policy_distribution(
            net.action_space, parameters, mask if masked else None
        )

    return theta, pi_of


def explicit_fisher(kind, theta, pi_of):
    """E[∇log π ∇log πᵀ] over actions: exact for a categorical; for a normal the metric
    1/σ² of the mean and 2 of log σ, pulled back through their Jacobians."""

    def parameters(theta):
        pi = pi_of(theta)
        if kind == "discrete":
            return pi.logits, pi.probs
        return pi.distribution.loc, jnp.log(pi.distribution.scale)

    def fisher(theta):
        first, second = jax.jacrev(parameters)(theta)
        if kind == "discrete":
            _, weight = parameters(theta)
            return jnp.einsum("sap,sa,saq->pq", first, weight, first) / len(first)
        _, log_std = parameters(theta)
        metric = jnp.einsum("sap,sa,saq->pq", first, jnp.exp(-2 * log_std), first)
        return (metric + 2 * jnp.einsum("sap,saq->pq", second, second)) / len(first)

    return jax.jit(fisher)(theta)


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "masked"), [("discrete", True), ("continuous", False)]
)
def test_fisher_vector_products_are_those_of_the_explicit_matrix(float64, kind, masked):
    theta, pi_of = policy_of(kind, masked)
    old = pi_of(theta)
    matrix = np.asarray(explicit_fisher(kind, theta, pi_of))
    assert np.linalg.matrix_rank(matrix) > 10
    damped = matrix + 0.1 * np.eye(len(theta))
    g = jnp.asarray(RNG.normal(size=len(theta)))

    @jax.jit
    def found(theta):
        product = optim.fisher_vector_product(
            lambda t: old.kl_divergence(pi_of(t)).mean(), theta, 0.1
        )
        products = jax.vmap(product)(jnp.eye(len(theta)))
        return products, optim.conjugate_gradient(product, g, 60, 1e-10)

    products, x = found(theta)
    np.testing.assert_allclose(products, damped, atol=1e-4 * np.abs(matrix).max())
    expected = np.linalg.solve(damped, g)
    np.testing.assert_allclose(x, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.full
def test_in_float32_they_are_within_a_ten_thousandth_too():
    theta, pi_of = policy_of("discrete")
    theta = theta.astype(jnp.float32)
    old = pi_of(theta)
    matrix = np.asarray(explicit_fisher("discrete", theta, pi_of), np.float64)
    damped = matrix + 0.1 * np.eye(len(theta))
    g = jnp.asarray(RNG.normal(size=len(theta)), jnp.float32)

    @jax.jit
    def found(theta):
        product = optim.fisher_vector_product(
            lambda t: old.kl_divergence(pi_of(t)).mean(), theta, 0.1
        )
        return product(g), optim.conjugate_gradient(product, g, 60)

    for x, expected in zip(
        found(theta), (damped @ np.asarray(g), np.linalg.solve(damped, g)), strict=True
    ):
        np.testing.assert_allclose(x, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.full
def test_on_several_devices_the_product_is_that_of_all_states():
    obs, v = jnp.asarray(RNG.normal(size=(8, 3))), jnp.array([1.0, -2.0, 0.5])
    theta = jnp.array([0.3, 0.1, -0.2])

    def product(obs):
        def pi_of(theta):
            return distributions.diag_normal((obs @ theta)[:, None], jnp.zeros(1))

        old = pi_of(theta)
        return optim.fisher_vector_product(
            lambda t: old.kl_divergence(pi_of(t)).mean(), theta, 0.1
        )(v)

    spread = jax.vmap(product, axis_name=parallel.AXIS)(obs.reshape(4, 2, 3))
    for each in spread:
        np.testing.assert_allclose(each, product(obs), rtol=1e-5)


def test_a_trust_region_step_makes_the_divergence_asked_for():
    """KL of normals of deviation 1 is ½ x², so F = 1: from any length to √(2 δ)."""
    for length in (1e-3, 5.0):
        step = optim.trust_region_step(jnp.array([length]), jnp.array([length]), 0.02)
        np.testing.assert_allclose(step, [0.2], rtol=1e-6)
    zero = optim.trust_region_step(jnp.zeros(2), jnp.zeros(2), 0.02)
    np.testing.assert_array_equal(zero, 0.0)


PARAMS = {"w": jnp.array([1.0, 2.0]), "b": jnp.zeros(())}
STEP = {"w": jnp.array([4.0, 0.0]), "b": jnp.float32(8.0)}


def search(largest, num_steps=4, step=STEP):
    """Accepts θ whose b is at most `largest`; what it evaluates is b."""
    return jax.jit(
        lambda largest: optim.line_search(
            lambda p: (p["b"] <= largest, p["b"]), PARAMS, step, num_steps, 0.5
        )
    )(largest)


@pytest.mark.parametrize(
    ("largest", "fraction", "tried"),
    [(8.0, 1.0, 8.0), (7.9, 0.5, 4.0), (1.0, 0.125, 1.0), (0.9, 0.0, 1.0)],
    ids=["the first", "the second", "the last", "none"],
)
def test_the_line_search_takes_the_first_that_is_acceptable(largest, fraction, tried):
    after, found, evaluated = search(largest)
    assert found == fraction and evaluated == tried
    np.testing.assert_array_equal(after["w"], [1.0 + 4.0 * fraction, 2.0])
    assert after["b"] == 8.0 * fraction


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(bad):
    after, found, _ = search(1.0, step=STEP | {"b": jnp.float32(bad)})
    assert found == 0.0
    assert_trees_equal(after, PARAMS)


def test_each_member_of_a_population_searches_by_itself():
    found = jax.vmap(lambda largest: search(largest)[1])(jnp.array([9.0, 2.0, -1.0]))
    np.testing.assert_array_equal(found, [1.0, 0.25, 0.0])


def test_split_and_join_are_inverse_and_leave_nothing_out():
    for image in (False, True):
        shape = (5, 5, 1) if image else (3,)
        body = Body((CNN if image else MLP)((4,), "relu"))
        space = spaces.box(0, 1, shape)
        net = ActorCritic(space, spaces.Discrete(2), body, separate=True)
        x = jnp.zeros((1, *shape))
        params = jax.eval_shape(net.init, jax.random.key(0), (), x)
        policy, value = split(params)
        assert set(policy) == {"actor_torso", "policy_head"}
        assert set(value) == {"critic_torso", "value_head"}
        assert join(policy, value) == params
