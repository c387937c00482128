"""Steps in the metric of the policies: the natural gradient, and TRPO.

The natural policy gradient (Kakade, 2001, "A natural policy gradient"):

    θ <- θ + α F⁻¹ g,    g = ∇E[log π A],    F = E[∇log π ∇log πᵀ]

so that the step does not depend on how policies are parameterised; α is fixed. Trust
Region Policy Optimization (Schulman et al., 2015, arXiv:1502.05477) takes the same
direction and replaces α by a bound on the KL divergence and a line search:

    maximise E[ρ A]    subject to    E[KL(π_old ‖ π)] <= max_kl

The two are one function apart (`natural_step`, `trust_region_step`). Discrete (also masked)
and continuous actions; MLP and CNN policies.

The details that matter, in the order of the code:

1. The direction F⁻¹ g comes from conjugate gradient on Fisher-vector products over the
   whole batch; F is never formed. Damping keeps it finite where the batch says nothing.
2. Nothing bounds the natural gradient's step. As a policy becomes deterministic F
   vanishes, F⁻¹ g grows, and the divergence of a step with it: `policy/kl` shows it.
3. TRPO's length comes from the damped F, so it errs on the short side, and the line
   search accepts a step only if the divergence, not its quadratic model, is within
   `max_kl` and the surrogate has risen. If no fraction of it does, the policy stays.
4. Policy and value share no parameters, on images too: what fits the value must not move
   the policy out of the region. The value has Adam, epochs and minibatches.
5. Advantages are normalised over the whole batch. TRPO's step does not depend on their
   scale, but on their mean, which is noise in the gradient.
6. Observation statistics are frozen while a batch is collected and learned from, so that
   π is exactly π_old, and F is the KL's second derivative, where the step begins. The
   bound holds for these statistics. Those of the next rollout include this batch, which
   changes the policy once more: to 0.0112 in all at `max_kl` = 0.01, on Pendulum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, losses, networks, normalize, optim, rollout, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.core import parallel
from jaxrl.core.minibatches import batches
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class SharedConfig(PyTreeNode):
    """Hyper-parameters of both; the defaults are those of the CartPole benchmark row."""

    total_steps: float = traced(100_000.0, low=1, high=1e12)
    """Environment steps of the whole run."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(128, low=1)
    """Steps of each environment between updates."""
    cg_iterations: int = static(15, low=1)
    """Fisher-vector products of the conjugate gradient."""
    cg_damping: float = traced(0.1, low=0)
    """What is added to the diagonal of the Fisher matrix."""
    num_epochs: int = static(10, low=1)
    """Passes over each batch that fit the value."""
    num_minibatches: int = static(8, low=1)
    """Gradient steps of the value per pass."""
    max_grad_norm: float = traced(0.5, above=0)
    """Gradients of the value are scaled down to this global norm."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    gae_lambda: float = traced(0.95, low=0, high=1)
    """Decay of the generalised advantage estimator."""
    normalize_advantage: bool = static(True)
    """Whether advantages are standardised over the batch."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("tanh")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""
    normalize_obs: bool = static(False)
    """Whether observations are standardised by running statistics."""
    normalize_reward: bool = static(True)
    """Whether rewards are divided by the running deviation of the discounted return."""


class NaturalConfig(SharedConfig):
    """Hyper-parameters of the natural policy gradient."""

    learning_rate: float = traced(0.5, low=0)
    """α: the step is this times F⁻¹ g."""
    anneal_lr: bool = static(False)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    vf_learning_rate: float = traced(1e-3, low=0)
    """Adam's step size for the value."""


class Config(SharedConfig):
    """Hyper-parameters of TRPO."""

    max_kl: float = traced(0.01, above=0)
    """δ: the largest mean KL divergence between the policies before and after a step, in
    nats."""
    line_search_steps: int = static(10, low=1)
    """Lengths of the step that are tried before the policy is left as it is."""
    line_search_shrink: float = traced(0.8, above=0, high=1)
    """Each length is the one before times this."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size for the value; the policy's step has none."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds; the optimiser is the value's."""

    obs_stats: normalize.RunningStats | None
    reward_stats: normalize.RewardStats | None


class State(types.State, kw_only=True):
    """The state of training."""

    reward_trace: Array = types.per_env()  # float32 [N], discounted return so far


class Batch(NamedTuple):
    """What a rollout is turned into: `[T, N, ...]`."""

    obs: PyTree
    action: PyTree  # as `log_prob` takes it
    policy: PyTree  # parameters of the behaviour policy
    advantage: Array
    target: Array
    value: Array


def validate(config: Any, env: Env, name: str) -> None:
    checks.policy_gradient(name, config, env)
    on_policy.check_minibatches(config, env, normalized=False)


def plan(config: Any, env: Env) -> types.Plan:
    """The policy's step, and the value's."""
    counts = on_policy.plan_minibatches(config, env)
    return counts._replace(updates=1 + counts.updates)


def network(config: Any, env: Env) -> networks.ActorCritic:
    return networks.actor_critic(config, env, separate=True)


def init(config: Any, env: Env, key: Array) -> State:
    key_params, key_world = jax.random.split(key)
    params = networks.init(network(config, env), key_params)
    value_vector = optim.flat(networks.split(params)[1])[0]
    agent = Agent(
        params=params,
        opt_state=optim.adam(config.max_grad_norm).init(value_vector),
        obs_stats=networks.init_stats(config, env),
        reward_stats=normalize.init_reward() if config.normalize_reward else None,
    )
    world = rollout.init_world(env, key_world, config.num_envs)
    return State(agent, world, reward_trace=jnp.zeros(config.num_envs))


def forward(
    config: Any, env: Env, agent: Agent, params: PyTree, obs: PyTree
) -> tuple[PyTree, Array]:
    """Policy parameters and V, for observations with any batch axes.

    The statistics are the agent's, the parameters may be newer.
    """
    net = network(config, env)
    after: Any = net.apply(params, (), obs, agent.obs_stats)
    _, policy, value = after
    return policy, value


def policy(
    config: Any, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Any]]:
    """One step: the action distribution, its parameters, V(s)."""
    policy, value = forward(config, env, agent, agent.params, obs)
    pi = networks.distribution(config, env, policy, obs)
    return pi, memory, {"policy": policy, "value": value}


acts = acting.stochastic(policy)


def make_batch(
    config: Any, env: Env, agent: Agent, trajectory: types.Transition, reward: Array
) -> Batch:
    """Advantages and targets of a rollout `[T, N]`."""

    def value_of(obs: PyTree, _: Memory = ()) -> Array:
        return forward(config, env, agent, agent.params, obs)[1]

    # The critic is not run in the rollout: few products of many rows are faster.
    value = acting.in_blocks(value_of, trajectory.obs)
    next_value = estimators.successor_values(
        value_of, value, trajectory.next_obs, (), trajectory.truncated
    )
    advantage, target = estimators.gae(
        reward,
        value,
        next_value,
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    if config.normalize_advantage:
        advantage = losses.normalize_advantage(advantage, terms=target)
    return Batch(
        obs=trajectory.obs,
        action=acting.sample_of(trajectory),
        policy=trajectory.extras["policy"],
        advantage=advantage,
        target=target,
        value=value,
    )


class Problem(NamedTuple):
    """The policy's part of an update, over its parameters θ as one vector."""

    theta: Array
    unflatten: Callable[[Array], PyTree]
    old: Any  # the behaviour policy
    pi: Callable[[Array], Any]
    kl: Callable[[Any], Array]  # mean over this device's states, from `old`


def policy_problem(config: Any, env: Env, agent: Agent, batch: Batch) -> Problem:
    """The behaviour policy, and policies as functions of their parameters."""
    old = networks.distribution(config, env, batch.policy, batch.obs)
    policy, value = networks.split(agent.params)
    theta, unflatten = optim.flat(policy)

    def pi_of(theta: Array) -> Any:
        params = networks.join(unflatten(theta), value)
        policy, _ = forward(config, env, agent, params, batch.obs)
        return networks.distribution(config, env, policy, batch.obs)

    def kl_of(pi: Any) -> Array:
        return old.kl_divergence(pi).mean()

    return Problem(theta, unflatten, old, pi_of, kl_of)


def direction_of(config: Any, problem: Problem, grads: Array) -> tuple[Array, Array]:
    """s = F⁻¹ (-g), downhill, and the damped F s."""
    product = optim.fisher_vector_product(
        lambda theta: problem.kl(problem.pi(theta)), problem.theta, config.cg_damping
    )
    direction = optim.conjugate_gradient(product, -grads, config.cg_iterations)
    return direction, product(direction)


def natural_step(
    config: NaturalConfig,
    env: Env,
    agent: Agent,
    batch: Batch,
    env_steps: types.Counter,
) -> tuple[PyTree, Metrics]:
    """The policy's parameters after one step along the natural gradient.

    On several devices each has its share of the states; gradient and Fisher-vector
    products are means over all.
    """
    learning_rate = optim.annealed(config, config.learning_rate, env_steps)
    problem = policy_problem(config, env, agent, batch)

    def loss_of(theta: Array) -> Array:
        log_prob = problem.pi(theta).log_prob(batch.action)
        return losses.policy_gradient(log_prob, batch.advantage).mean()

    loss, grads = parallel.mean(jax.value_and_grad(loss_of)(problem.theta))
    step = learning_rate * direction_of(config, problem, grads)[0]
    theta = problem.theta + step
    metrics = {
        "loss/policy": mean(loss),
        "policy/entropy": mean(problem.old.entropy()),
        "policy/kl": mean(parallel.mean(problem.kl(problem.pi(theta)))),
        "policy/expected_improvement": mean(-grads @ step),
        "optim/grad_norm": mean(optim.global_norm(grads)),
        "optim/step_norm": mean(optim.global_norm(step)),
        "optim/learning_rate": mean(learning_rate),
    }
    return problem.unflatten(theta), metrics


def trust_region_step(
    config: Config, env: Env, agent: Agent, batch: Batch, env_steps: types.Counter
) -> tuple[PyTree, Metrics]:
    """The policy's parameters after one step within the trust region.

    On several devices each has its share of the states; gradient, Fisher-vector products
    and the line search's quantities are means over all.
    """
    del env_steps
    problem = policy_problem(config, env, agent, batch)
    old_log_prob = problem.old.log_prob(batch.action)

    def loss_of(pi: Any) -> Array:
        log_prob = pi.log_prob(batch.action)
        return losses.surrogate(log_prob, old_log_prob, batch.advantage).mean()

    loss, grads = parallel.mean(
        jax.value_and_grad(lambda theta: loss_of(problem.pi(theta)))(problem.theta)
    )
    direction, fisher_direction = direction_of(config, problem, grads)
    step = optim.trust_region_step(direction, fisher_direction, config.max_kl)

    def evaluate(theta: Array) -> tuple[Array, tuple[Array, Array]]:
        pi = problem.pi(theta)
        kl = parallel.mean(problem.kl(pi))
        improvement = loss - parallel.mean(loss_of(pi))
        return (kl <= config.max_kl) & (improvement > 0.0), (kl, improvement)

    theta, fraction, (kl, improvement) = optim.line_search(
        evaluate,
        problem.theta,
        step,
        config.line_search_steps,
        config.line_search_shrink,
    )
    accepted = fraction > 0.0
    metrics = {
        "loss/policy": mean(loss),
        "policy/entropy": mean(problem.old.entropy()),
        "policy/kl": mean(kl, where=accepted),
        "policy/accepted": mean(accepted),
        "policy/step_fraction": mean(fraction),
        "policy/improvement": mean(improvement, where=accepted),
        "policy/expected_improvement": mean(-fraction * grads @ step, where=accepted),
        "optim/grad_norm": mean(optim.global_norm(grads)),
        "optim/step_norm": mean(optim.global_norm(step)),
    }
    return problem.unflatten(theta), metrics


def fit_value(
    config: Any, env: Env, agent: Agent, batch: Batch, key: Array, rate: types.Scalar
) -> tuple[PyTree, PyTree, Metrics]:
    """The value's parameters and optimiser state after passes over the batch."""
    policy, value = networks.split(agent.params)

    def loss(
        value: PyTree, rows: tuple[PyTree, Array]
    ) -> tuple[Array, tuple[Array, ...]]:
        obs, target = rows
        params = networks.join(policy, value)
        error = losses.value_mse(forward(config, env, agent, params, obs)[1], target)
        return error.mean(), (error,)

    rows = (batch.obs, batch.target)
    value, opt_state, metrics = optim.fit(
        loss,
        value,
        agent.opt_state,
        batches(key, rows, config.num_epochs, config.num_minibatches),
        optim.adam(config.max_grad_norm),
        rate,
        ("loss/value",),
    )
    return value, opt_state, {"loss/value": metrics["loss/value"]}


def train_step(
    config: Any, env: Env, state: State, step: Callable, value_rate: str
) -> tuple[State, Metrics]:
    """One rollout of `num_steps`, one step of the policy, and a fit of the value.

    Args:
      config: of the algorithm.
      env: the environment.
      state: of training.
      step: `natural_step` or `trust_region_step`.
      value_rate: the config's field with the step size of the value.
    """
    agent, world = state.agent, state.world
    env_steps = world.env_steps
    key, key_update = jax.random.split(world.key)
    world, trajectory, stats = acts.unroll(
        config, env, agent, world.replace(key=key), config.num_steps
    )
    reward, reward_stats, reward_trace = normalize.scaled_rollout(
        agent.reward_stats,
        state.reward_trace,
        trajectory.reward,
        trajectory.done,
        config.gamma,
    )
    batch = make_batch(config, env, agent, trajectory, reward)
    policy, metrics = step(config, env, agent, batch, env_steps)
    rate = getattr(config, value_rate)
    value, opt_state, of_value = fit_value(config, env, agent, batch, key_update, rate)
    metrics |= of_value | stats
    metrics["value/explained_variance"] = mean(
        losses.explained_variance(batch.value, batch.target)
    )
    agent = Agent(
        params=networks.join(policy, value),
        opt_state=opt_state,
        obs_stats=networks.update_stats(config, env, batch.obs, agent.obs_stats),
        reward_stats=reward_stats,
    )
    return State(agent, world, reward_trace=reward_trace), metrics


NATURAL_PG = types.Algorithm(
    name="natural_pg",
    Config=NaturalConfig,
    init=init,
    train_step=partial(train_step, step=natural_step, value_rate="vf_learning_rate"),
    act=acts.act,
    explain=acts.explain,
    plan=plan,
    validate=partial(validate, name="natural_pg"),
)

TRPO = NATURAL_PG._replace(
    name="trpo",
    Config=Config,
    train_step=partial(train_step, step=trust_region_step, value_rate="learning_rate"),
    validate=partial(validate, name="trpo"),
)
