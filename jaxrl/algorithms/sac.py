"""Soft Actor-Critic (Haarnoja et al., 2018, arXiv:1801.01290 and arXiv:1812.05905).

A stochastic policy from replay, for reward plus α times the policy's entropy:

    V(s) = E[min_k Q_k(s, a) - α log π(a|s)],    a ~ π

The critics learn r + γ V'(s'), the policy climbs V through the sampled action, and α
follows the entropy wanted. Bounded continuous actions, squashed by tanh; for Discrete ones
(Christodoulou, 2019, arXiv:1910.07207) the expectation is a sum, also with a mask. More
critics with a random subset in the target are REDQ (Chen et al., 2021, arXiv:2101.05982).

The details that matter, in the order of the code:

1. log π is that of actions scaled to [-1, 1], so temperature and target entropy mean the
   same whatever the bounds; the memory and the environment have the environment's units.
2. log π comes from the sample before tanh. Its inverse is infinite where tanh saturates.
3. Only a *terminal* successor has no value; the entropy of its action goes with it.
4. α is the exponential of what is learned, and learned from the same samples as the actor.
5. The target networks follow every step; the actor and α learn after every
   `policy_delay` steps of the critics.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, losses, networks, optim, spaces, types
from jaxrl.algorithms import checks, off_policy
from jaxrl.algorithms.off_policy import State, Stored
from jaxrl.errors import require
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of SAC. The defaults are those of the Pendulum benchmark row."""

    total_steps: float = traced(20_000.0, low=1, high=1e12)
    """Environment steps of the whole run, `learning_starts` included."""
    num_envs: int = static(1, low=1)
    """Environments stepped in parallel."""
    train_frequency: int = static(1, low=1)
    """Environment steps (over all environments) between updates."""
    num_updates: int = static(1, low=1)
    """Gradient steps of the critics each time."""
    buffer_size: int = static(200_000, low=1)
    """Transitions the replay memory holds; the oldest are overwritten."""
    learning_starts: int = static(1_000, low=1)
    """Environment steps taken at random before the first update."""
    batch_size: int = static(256, low=1)
    """Transitions in each update."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size, of actor, critics and temperature."""
    anneal_lr: bool = static(False)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    tau: float = traced(0.005, above=0, high=1)
    """Weight of the online critics at each step of the target critics."""
    num_critics: int = static(2, low=1)
    """Critics. The policy follows the smallest value, or with a subset the mean."""
    target_subset: int = static(2, low=1)
    """How many critics, drawn at each step, the target takes the smallest value of."""
    policy_delay: int = static(1, low=1)
    """Steps of the critics for one of the actor and of the temperature."""
    temperature: float = traced(1.0, above=0)
    """α, at the start; for good without `learn_temperature`."""
    learn_temperature: bool = static(True)
    """Whether α follows the entropy of the policy."""
    target_entropy: float | None = traced(None)
    """H̄ of actions in [-1, 1], in nats; none: -D, or half of log A of Discrete ones."""
    hidden_sizes: tuple[int, ...] = static((256, 256), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds: dicts of "actor", "critics", "temperature"."""

    target_params: PyTree  # of the critics


def validate(config: Config, env: Env) -> None:
    require(
        config.target_subset <= config.num_critics,
        f"target_subset = {config.target_subset} must be at most num_critics = "
        f"{config.num_critics}.",
    )
    if isinstance(env.action_space, spaces.Discrete):
        checks.q_learning("sac", config, env)
    else:
        checks.continuous_control("sac", config, env)
    off_policy.check(config, env)


def distribution(
    config: Config, env: Env, actor: PyTree, obs: PyTree, space: Any
) -> Any:
    """π(·|s), of actions in `space`."""
    params = networks.spread_actor(config, env).apply(actor, obs)
    mask = networks.action_mask(env.observation_space, obs)
    return networks.policy_distribution(space, params, mask, squash=True)


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Array]]:
    """π(·|s) in the environment's units, and nothing else."""
    pi = distribution(config, env, agent.params["actor"], obs, env.action_space)
    return pi, memory, {}


acts = acting.stochastic(policy)


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_actor, key_critics, key_world = jax.random.split(key, 3)
    params = {
        "actor": networks.init(networks.spread_actor(config, env), key_actor),
        "critics": networks.init(networks.critics(config, env), key_critics),
        "temperature": jnp.log(jnp.asarray(config.temperature, jnp.float32)),
    }
    agent = Agent(
        params=params,
        opt_state=off_policy.init_optimizers(params),
        target_params=params["critics"],
    )
    return off_policy.init(config, env, agent, key_world, acting.unroll_randomly)


def target_entropy(config: Config, env: Env) -> types.Scalar:
    """H̄: -D of a Box (Haarnoja et al., 2018, appendix D), half of log A otherwise."""
    if config.target_entropy is not None:
        return config.target_entropy
    if isinstance(env.action_space, spaces.Discrete):
        return 0.5 * float(np.log(env.action_space.n))
    return -float(env.action_space.size)


def soft_values(
    config: Config,
    env: Env,
    actor: PyTree,
    critics: PyTree,
    temperature: Array,
    obs: PyTree,
    noise: Array,
    subset: Array | None,
) -> tuple[Array, Array]:
    """V(s) `[B]`, and log π of a sample `[B]` or its mean over Discrete actions.

    The value of the ensemble is the smallest of a random subset for the target (`subset`
    is its key), and what the policy follows otherwise.
    """

    def of_ensemble(q: Array) -> Array:
        if subset is None and config.target_subset < config.num_critics:
            return q.mean(0)
        return estimators.subset_minimum(q, subset, config.target_subset)

    net: Any = networks.critics(config, env)
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        pi = distribution(config, env, actor, obs, space)
        log_prob = jnp.maximum(pi.logits, LEAST)
        q = of_ensemble(net.apply(critics, obs))
        value = estimators.soft_value(q, log_prob, temperature)
        return (
            estimators.expected_value(value, pi.probs),
            estimators.expected_value(log_prob, pi.probs),
        )
    pi = distribution(config, env, actor, obs, spaces.box(-1.0, 1.0, space.shape))
    sample = pi.pre_tanh(noise)
    log_prob = pi.log_prob(sample)
    q = of_ensemble(net.apply(critics, obs, pi.squash(sample)))
    return estimators.soft_value(q, log_prob, temperature), log_prob


LEAST = -1e4
"""A logarithm of probabilities that are exactly 0 anyway: of illegal actions."""


class Learner(NamedTuple):
    """What the gradient steps change, as vectors."""

    actor: optim.Fitted
    critics: optim.Fitted
    temperature: optim.Fitted
    target_critics: Array


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batches: types.Batches,
    key: Array,
    learning_rate: types.Scalar,
) -> tuple[Agent, Metrics]:
    """Gradient steps of the critics on all batches, and those of the actor among them."""
    critic_net = networks.critics(config, env)
    optimizer = off_policy.optimizer()
    fitted = {name: off_policy.fitted(agent, name) for name in agent.params}
    of = {name: unflatten for name, (_, unflatten) in fitted.items()}

    def alpha(learner: Learner) -> Array:
        return jnp.exp(of["temperature"](learner.temperature.vector))

    def critic_step(
        learner: Learner, batch: Stored, noise: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        value, _ = soft_values(
            config,
            env,
            of["actor"](learner.actor.vector),
            of["critics"](learner.target_critics),
            alpha(learner),
            batch.next_obs,
            noise["next"],
            noise["subset"],
        )
        target = losses.q_target(batch.reward, batch.terminated, value, config.gamma)

        def loss(vector: Array) -> tuple[Array, tuple[Array, Array]]:
            q: Any = q_taken(critic_net, env, of["critics"](vector), batch)
            error = losses.squared_td(q, jnp.broadcast_to(target, q.shape))
            return error.sum(0).mean(), (error, q)

        critics, (error, q), norm = optim.step(
            loss, learner.critics, optimizer, learning_rate
        )
        learner = learner._replace(
            critics=critics,
            target_critics=optim.polyak(
                learner.target_critics, critics.vector, config.tau
            ),
        )
        metrics = {
            "loss/critic": mean(error),
            "value/q": mean(q),
            "optim/critic_grad_norm": mean(norm),
        }
        return learner, metrics

    def actor_step(
        learner: Learner, batch: Stored, noise: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        critics = of["critics"](learner.critics.vector)

        def loss(vector: Array) -> tuple[Array, tuple[Array, Array]]:
            value, log_prob = soft_values(
                config,
                env,
                of["actor"](vector),
                critics,
                alpha(learner),
                batch.obs,
                noise["now"],
                None,
            )
            return -value.mean(), (value, log_prob)

        actor, (value, log_prob), norm = optim.step(
            loss, learner.actor, optimizer, learning_rate
        )
        learner = learner._replace(actor=actor)
        metrics = {
            "loss/policy": mean(-value),
            "policy/entropy": mean(-log_prob),
            "policy/temperature": mean(alpha(learner)),
            "optim/actor_grad_norm": mean(norm),
        }
        if not config.learn_temperature:
            return learner, metrics
        wanted = target_entropy(config, env)

        def temperature_loss(vector: Array) -> tuple[Array, tuple]:
            log_alpha = of["temperature"](vector)
            return losses.temperature(log_alpha, log_prob, wanted).mean(), ()

        temperature, _, _ = optim.step(
            temperature_loss, learner.temperature, optimizer, learning_rate
        )
        return learner._replace(temperature=temperature), metrics

    noise = draw_noise(key, batches.index.shape, env)
    learner = Learner(
        actor=fitted["actor"][0],
        critics=fitted["critics"][0],
        temperature=fitted["temperature"][0],
        target_critics=optim.flat(agent.target_params)[0],
    )
    learner, metrics = off_policy.alternate(
        config, batches, noise, learner, critic_step, actor_step
    )
    new = Agent(
        params={name: of[name](getattr(learner, name).vector) for name in of},
        opt_state={name: getattr(learner, name).opt_state for name in of},
        target_params=of["critics"](learner.target_critics),
    )
    return new, metrics


def q_taken(net: Any, env: Env, critics: PyTree, batch: Stored) -> Array:
    """Q_k(s, a) `[K, B]` of the actions taken."""
    if not isinstance(env.action_space, spaces.Discrete):
        action = spaces.to_unit(env.action_space, batch.action)
        return net.apply(critics, batch.obs, action)
    q: Any = net.apply(critics, batch.obs)
    return estimators.action_value(q, jnp.broadcast_to(batch.action, q.shape[:-1]))


def draw_noise(key: Array, shape: tuple[int, int], env: Env) -> dict[str, Array]:
    """For each batch the noise of two samples of actions, and the key of a subset."""
    keys = dict(zip(("next", "now", "subset"), jax.random.split(key, 3), strict=True))
    size = 0 if isinstance(env.action_space, spaces.Discrete) else env.action_space.size
    noise = {x: jax.random.normal(keys[x], (*shape, size)) for x in ("next", "now")}
    return noise | {"subset": jax.random.split(keys["subset"], shape[0])}


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due."""
    return off_policy.train_step(config, env, state, acts, update)


SAC = types.Algorithm(
    name="sac",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=off_policy.plan,
    validate=validate,
)
