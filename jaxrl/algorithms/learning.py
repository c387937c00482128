"""Several networks that learn by turns, each as one vector, and targets that follow them.

The loop over gradient steps carries a `Learner`: one vector for each network, as in
`optim.fit`, is fewer and larger operations than its arrays one by one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import optax

from jaxrl import optim
from jaxrl.networks.batch_renorm import join, split
from jaxrl.types import Array, Batches, Counter, Metrics, PyTree, Scalar

Found = TypeVar("Found")


class Learner(flax.struct.PyTreeNode):
    """Networks by name, and the target networks of some of them."""

    networks: dict[str, optim.Fitted]
    targets: dict[str, Array]  # [P]
    statistics: dict[str, PyTree]  # None where a network has no running ones
    trees: tuple[tuple[str, Callable[[Array], PyTree]], ...] = flax.struct.field(
        pytree_node=False
    )
    """Name -> the function from a vector to parameters."""

    @property
    def params(self) -> dict[str, PyTree]:
        """The parameters by name, with running statistics."""
        return {name: self.tree(name, x.vector) for name, x in self.networks.items()}

    @property
    def target_params(self) -> dict[str, PyTree]:
        """Those of the target networks."""
        return {name: self.tree(name, x) for name, x in self.targets.items()}

    def tree(self, name: str, vector: Array) -> PyTree:
        """The parameters of a network from a vector, with its running statistics."""
        return join(dict(self.trees)[name](vector), self.statistics[name])

    def with_statistics(self, name: str, statistics: PyTree) -> "Learner":
        """The learner with other running statistics of a network."""
        return self.replace(statistics=self.statistics | {name: statistics})


def optimizer(momentum: float = 0.9) -> optax.GradientTransformation:
    """Adam as the papers of continuous control have it."""
    return optim.adam(None, eps=1e-8, b1=momentum)


def init_optimizers(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """The state of an optimiser for each of several networks."""
    return {n: optimizer().init(optim.flat(split(x)[0])[0]) for n, x in params.items()}


def begin(agent: Any) -> Learner:
    """The learner of an agent, whose parameters and targets have names."""
    parts = {name: split(params) for name, params in agent.params.items()}
    flat = {name: optim.flat(learned) for name, (learned, _) in parts.items()}
    return Learner(
        networks={
            name: optim.Fitted(vector, agent.opt_state[name])
            for name, (vector, _) in flat.items()
        },
        targets={
            name: optim.flat(split(params)[0])[0]
            for name, params in agent.target_params.items()
        },
        statistics={name: statistics for name, (_, statistics) in parts.items()},
        trees=tuple((name, tree) for name, (_, tree) in flat.items()),
    )


def end(learner: Learner, agent: Any) -> Any:
    """The agent with what its learner has become."""
    return agent.replace(
        params=learner.params,
        opt_state={name: x.opt_state for name, x in learner.networks.items()},
        target_params=learner.target_params,
    )


def step(
    learner: Learner,
    name: str,
    loss: Callable[[PyTree], tuple[Array, Found]],
    rates: dict[str, Scalar],
    momentum: float = 0.9,
) -> tuple[Learner, Found, Array]:
    """A gradient step of one network.

    Args:
      learner: what learns.
      name: the network.
      loss: its parameters -> (a scalar, anything else).
      rates: learning rates of Adam by the name of a network.
      momentum: Adam's decay of the first moment.

    Returns:
      The learner, what the loss returned beside the scalar, and the gradient's norm.

    Source: as `optim.step`.
    """
    fitted, found, norm = optim.step(
        lambda vector: loss(learner.tree(name, vector)),
        learner.networks[name],
        optimizer(momentum),
        rates[name],
    )
    networks = learner.networks | {name: fitted}
    return learner.replace(networks=networks), found, norm


def follow(learner: Learner, tau: Scalar) -> Learner:
    """The learner with target networks that are a step of `optim.polyak` further."""
    targets = {
        name: optim.polyak(vector, learner.networks[name].vector, tau)
        for name, vector in learner.targets.items()
    }
    return learner.replace(targets=targets)


def rates(config: Any, env_steps: Counter) -> dict[str, Scalar]:
    """The learning rates of critics, actor and temperature after so many steps."""
    own = {
        "critics": config.learning_rate,
        "actor": config.actor_learning_rate,
        "log_temperature": getattr(config, "temperature_learning_rate", None),
    }
    return {
        name: optim.annealed(
            config, config.learning_rate if rate is None else rate, env_steps
        )
        for name, rate in own.items()
    }


def take_turns(
    agent: Any,
    batches: Batches,
    draws: tuple[PyTree, PyTree],
    critic_step: Callable[[Learner, PyTree, PyTree], tuple[Learner, Metrics]],
    actor_step: Callable[[Learner, PyTree, PyTree], tuple[Learner, Metrics]],
) -> tuple[Any, Metrics]:
    """Gradient steps of critics, with one of the actor after every few of them.

    The batches between two steps of the actor, which learns from the last of them, are in
    memory together.

    Args:
      agent: what the steps change, by its `Learner`.
      batches: what the critics learn from, S of them.
      draws: the randomness `[S, ...]` of the critics' steps, and `[A, ...]` of the
        actor's, of which S is a multiple.
      critic_step: `(learner, batch, draw) -> (learner, metrics)`.
      actor_step: the same.

    Returns:
      The agent, and the metrics of all steps.
    """
    of_critics, of_actor = draws
    turns = len(jax.tree.leaves(of_actor)[0])

    def grouped(x: Array) -> Array:
        return x.reshape(turns, len(x) // turns, *x.shape[1:])

    rows = jax.tree.map(grouped, (batches.index, of_critics))

    def turn(learner: Learner, row: tuple) -> tuple[Learner, Metrics]:
        (index, for_critics), for_actor = row
        group = jax.vmap(batches.read)(index)
        learner, metrics = jax.lax.scan(
            lambda learner, row: critic_step(learner, *row),
            learner,
            (group, for_critics),
        )
        last = jax.tree.map(lambda x: x[-1], group)
        learner, found = actor_step(learner, last, for_actor)
        return learner, jax.tree.map(lambda x: x.sum(0), metrics) | found

    learner, metrics = jax.lax.scan(turn, begin(agent), (rows, of_actor))
    return end(learner, agent), jax.tree.map(lambda x: x.sum(0), metrics)
