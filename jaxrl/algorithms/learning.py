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
from jaxrl.types import Array, Batches, Metrics, PyTree, Scalar

Found = TypeVar("Found")


class Learner(flax.struct.PyTreeNode):
    """Networks by name, and the target networks of some of them."""

    networks: dict[str, optim.Fitted]
    targets: dict[str, Array]  # [P]
    trees: tuple[tuple[str, Callable[[Array], PyTree]], ...] = flax.struct.field(
        pytree_node=False
    )
    """Name -> the function from a vector to parameters."""

    @property
    def params(self) -> dict[str, PyTree]:
        """The parameters by name."""
        return {name: tree(self.networks[name].vector) for name, tree in self.trees}

    @property
    def target_params(self) -> dict[str, PyTree]:
        """Those of the target networks."""
        trees = dict(self.trees)
        return {name: trees[name](vector) for name, vector in self.targets.items()}


def optimizer() -> optax.GradientTransformation:
    """Adam as the papers of continuous control have it."""
    return optim.adam(None, eps=1e-8)


def init_optimizers(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """The state of an optimiser for each of several networks."""
    return {n: optimizer().init(optim.flat(x)[0]) for n, x in params.items()}


def begin(agent: Any) -> Learner:
    """The learner of an agent, whose parameters and targets have names."""
    flat = {name: optim.flat(params) for name, params in agent.params.items()}
    return Learner(
        networks={
            name: optim.Fitted(vector, agent.opt_state[name])
            for name, (vector, _) in flat.items()
        },
        targets={n: optim.flat(params)[0] for n, params in agent.target_params.items()},
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
    learning_rate: Scalar,
) -> tuple[Learner, Found, Array]:
    """A gradient step of one network.

    Args:
      learner: what learns.
      name: the network.
      loss: its parameters -> (a scalar, anything else).
      learning_rate: of Adam.

    Returns:
      The learner, what the loss returned beside the scalar, and the gradient's norm.

    Source: as `optim.step`.
    """
    tree = dict(learner.trees)[name]
    fitted, found, norm = optim.step(
        lambda vector: loss(tree(vector)),
        learner.networks[name],
        optimizer(),
        learning_rate,
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


def alternate(
    learner: Learner,
    batches: Batches,
    draws: tuple[PyTree, PyTree],
    critic_step: Callable[[Learner, PyTree, PyTree], tuple[Learner, Metrics]],
    actor_step: Callable[[Learner, PyTree, PyTree], tuple[Learner, Metrics]],
) -> tuple[Learner, Metrics]:
    """Gradient steps of critics, with one of the actor after every few of them.

    The batches between two steps of the actor, which learns from the last of them, are in
    memory together.

    Args:
      learner: what the steps change.
      batches: what the critics learn from, S of them.
      draws: the randomness `[S, ...]` of the critics' steps, and `[A, ...]` of the
        actor's, of which S is a multiple.
      critic_step: `(learner, batch, draw) -> (learner, metrics)`.
      actor_step: the same.

    Returns:
      The learner, and the metrics of all steps.
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

    learner, metrics = jax.lax.scan(turn, learner, (rows, of_actor))
    return learner, jax.tree.map(lambda x: x.sum(0), metrics)
