"""The small world: texts so short that all of them are known, and with them every response.

P prompts, S symbols and EOS, responses of at most L tokens: N responses in all, and M texts
that can be continued. So a policy is an array `[P, N]` of log-probabilities, sums over
responses are exact, and so are the best policy under a KL penalty, its divergence from any
other, and the accuracy that noisy labels allow. A policy may be anything autoregressive;
`table`s of logits `[P, M, S + 1]`, one row for each text, hold every policy there is.

Prompts are equally likely. A world's arrays are numpy's, float64, and what is computed
from them has JAX's precision.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import InvalidInput
from jaxrl.estimators import expected_value
from jaxrl.rlhf import estimators
from jaxrl.rlhf import losses as text_losses
from jaxrl.types import Array, Scalar

MAX_RESPONSES = 20_000
"""To a prompt. Pairs of responses are enumerated too, and these are its square."""


class SmallWorld(NamedTuple):
    """Build one with `small_world`. The tokens are 0 ... S - 1 and EOS, which is S."""

    symbols: str
    prompts: np.ndarray  # int32 [P, Q]
    tokens: np.ndarray  # int32 [N, L]: the responses; EOS where there is no token
    mask: np.ndarray  # bool [N, L]: True for their tokens, EOS too
    reward: np.ndarray  # [P, N]: the gold reward
    reference: np.ndarray  # [P, M, S + 1]: the reference policy, a table of logits

    @property
    def eos(self) -> int:
        return len(self.symbols)

    @property
    def has_eos(self) -> np.ndarray:
        """bool `[N]`: the responses that end; the others have L symbols."""
        return (self.tokens == self.eos).any(1)


def gold_reward(prompt: str, response: str) -> float:
    """Gold reward: the prompt's symbol twice, many symbols, in alphabetical order.

    min(2, how often the prompt occurs) + ¼ (distinct symbols) - ½ (descents)

    A number, of one response.
    """
    descents = sum(x > y for x, y in pairwise(response))
    return min(2, response.count(prompt)) + 0.25 * len(set(response)) - 0.5 * descents


def small_world(
    symbols: str = "abc",
    max_length: int = 5,
    prompts: Sequence[str] | None = None,
    gold: Callable[[str, str], float] = gold_reward,
    eos_penalty: float = 1.0,
    seed: int = 0,
) -> SmallWorld:
    """A world with a random reference policy, a table `[P, M, S + 1]`.

    Args:
      symbols: S different characters.
      max_length: L, the most tokens of a response, EOS included.
      prompts: texts of these symbols, of one length; None for each symbol alone.
      gold: `(prompt, response) -> reward`; the response is without EOS.
      eos_penalty: what a response costs that does not end.
      seed: of the reference's logits, which are normal with deviation ½.

    Raises:
      InvalidInput: where there is no such world, or too much of it.
    """
    prompts = list(symbols) if prompts is None else list(prompts)
    _check(symbols, max_length, prompts)
    tokens, mask = responses(len(symbols), max_length)
    texts = [
        "".join(symbols[t] for t in row[real] if t < len(symbols))
        for row, real in zip(tokens, mask, strict=True)
    ]
    score = np.array([[gold(p, a) for a in texts] for p in prompts], float)
    ends = (tokens == len(symbols)).any(1)
    rng = np.random.default_rng(seed)
    num_texts = sum(len(symbols) ** i for i in range(max_length))
    shape = (len(prompts), num_texts, len(symbols) + 1)
    return SmallWorld(
        symbols=symbols,
        prompts=np.array([[symbols.index(c) for c in p] for p in prompts], np.int32),
        tokens=tokens,
        mask=mask,
        reward=score - np.where(ends, 0.0, eos_penalty),
        reference=0.5 * rng.normal(size=shape),
    )


def responses(num_symbols: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """All responses: those that end, shorter ones first, and those cut at the length.

    Args:
      num_symbols: S; EOS is token S.
      max_length: L.

    Returns:
      (tokens, mask), int32 and bool `[N, L]`, N = 1 + S + ... + S^(L-1) + S^L.
    """
    rows, lengths = [], []
    for length in range(max_length + 1):
        rest = (num_symbols,) * (max_length - length)
        rows += [text + rest for text in product(range(num_symbols), repeat=length)]
        lengths += [min(length + 1, max_length)] * num_symbols**length
    mask = np.arange(max_length) < np.array(lengths)[:, None]
    return np.array(rows, np.int32), mask


def response_text(world: SmallWorld, index: int) -> str:
    """The response of this number as it reads: its symbols, and "." where it ends."""
    signs = world.symbols + "."
    tokens, mask = world.tokens[index], world.mask[index]
    return "".join(signs[t] for t in tokens[mask])


# Policies.


def table_logits(world: SmallWorld, table: Array, tokens: Array) -> Array:
    """The next-token logits of a policy that is a table.

    Args:
      world: the world.
      table: `[P, M, S + 1]`.
      tokens: int32 `[B, Q + L]`, prompt and response.

    Returns:
      `[B, Q + L, S + 1]`, as a language model gives them: those of row t are about token
      t + 1. 0 where there is no choice: inside the prompt and after the end.
    """
    length = world.prompts.shape[1]
    of_prompt = (tokens[:, None, :length] == world.prompts).all(-1)
    index, ended = _text_index(world, tokens[:, length:])
    logits = table[jnp.argmax(of_prompt, 1)[:, None], index]
    logits = jnp.where(ended[..., None], 0.0, logits)
    return jnp.pad(logits, ((0, 0), (length - 1, 1), (0, 0)))


def response_token_log_probs(
    world: SmallWorld, logits_fn: Callable[[Array], Array]
) -> Array:
    """The log-probability of every token of every response, under any policy.

    Args:
      world: the world.
      logits_fn: `tokens [B, Q + L] -> logits [B, Q + L, S + 1]`, autoregressive.

    Returns:
      `[P, N, L]`; arbitrary outside of `world.mask`.
    """
    (num_prompts, length), (number, longest) = world.prompts.shape, world.tokens.shape
    prompts = np.repeat(world.prompts, number, 0)
    tokens = np.concatenate([prompts, np.tile(world.tokens, (num_prompts, 1))], 1)
    log_prob = text_losses.token_log_probs(
        logits_fn(jnp.asarray(tokens)), jnp.asarray(tokens)
    )
    return log_prob[:, length:].reshape(num_prompts, number, longest)


def response_log_probs(world: SmallWorld, logits_fn: Callable[[Array], Array]) -> Array:
    """log π(y|x) of all responses to all prompts: `[P, N]`, a distribution in each row.

    Args:
      world: the world.
      logits_fn: `tokens [B, Q + L] -> logits [B, Q + L, S + 1]`, autoregressive.
    """
    log_prob = response_token_log_probs(world, logits_fn)
    return text_losses.masked_sum(
        log_prob, jnp.broadcast_to(world.mask, log_prob.shape)
    )


def table_log_probs(world: SmallWorld, table: Array) -> Array:
    """`response_log_probs` of a table `[P, M, S + 1]`: `[P, N]`."""
    return response_log_probs(
        world, lambda tokens: table_logits(world, jnp.asarray(table), tokens)
    )


def make_table(world: SmallWorld, log_prob: Array) -> np.ndarray:
    """The table `[P, M, S + 1]` whose responses have these probabilities.

    π(v | text) = Σ of π(y) over the responses that begin with text and v, normalised

    Args:
      world: the world.
      log_prob: `[P, N]` log π(y|x), all finite.

    Returns:
      float64 logits, which are log-probabilities of the text and its next token.
    """
    index, _ = _text_index(world, jnp.asarray(world.tokens))
    at = (np.asarray(index)[world.mask], world.tokens[world.mask])
    response = np.nonzero(world.mask)[0]
    mass = np.zeros(world.reference.shape)
    for row, probability in zip(mass, np.exp(np.asarray(log_prob, float)), strict=True):
        np.add.at(row, at, probability[response])
    return np.log(mass)


# Exact values of policies `[P, N]`.


def expected_reward(log_prob: Array, reward: Array) -> Array:
    """E_x E_{y ~ π(·|x)} r(x, y), of `[P, N]` each: a scalar."""
    return expected_value(jnp.asarray(reward), jnp.exp(log_prob)).mean()


def kl(log_prob: Array, other_log_prob: Array) -> Array:
    """E_x KL(π(·|x) ‖ π'(·|x)), of `[P, N]` each: a scalar, in nats.

    Source: Kullback and Leibler (1951), "On information and sufficiency".
    """
    return text_losses.kl_from_logits(log_prob, other_log_prob).mean()


def kl_penalized_reward(
    log_prob: Array, ref_log_prob: Array, reward: Array, beta: Scalar
) -> Array:
    """The objective of RLHF: J(π) = E r - β KL(π ‖ π_ref), of `[P, N]` each: a scalar.

    Source: Ziegler et al. (2019), https://arxiv.org/abs/1909.08593, equation 2.
    """
    return expected_reward(log_prob, reward) - beta * kl(log_prob, ref_log_prob)


class Optimum(NamedTuple):
    """See `optimum`."""

    log_prob: Array  # [P, N]: log π*
    log_normalizer: Array  # [P]: log Z
    value: Array  # scalar: J(π*)


def optimum(ref_log_prob: Array, reward: Array, beta: Scalar) -> Optimum:
    """The policy that maximises `kl_penalized_reward`.

    π*(y|x) = π_ref(y|x) exp(r(x, y) / β) / Z(x),    J(π*) = β E_x log Z(x)

    Args:
      ref_log_prob: `[P, N]` log π_ref.
      reward: `[P, N]` r.
      beta: β, above 0.

    Source: Ziebart (2010), "Modeling purposeful adaptive behavior with the principle of
    maximum causal entropy"; Rafailov et al. (2023), https://arxiv.org/abs/2305.18290,
    equation 4.
    """
    weight = ref_log_prob + jnp.asarray(reward) / beta
    log_normalizer = jax.nn.logsumexp(weight, -1)
    log_prob = weight - log_normalizer[:, None]
    return Optimum(log_prob, log_normalizer, beta * log_normalizer.mean())


def best_of_n_log_prob(log_prob: Array, reward: Array, n: int) -> Array:
    """The exact law of the best of n responses, each drawn from the policy.

    P(y) = π(y) / m (F^n - (F - m)^n),    F = P(r' <= r(y)),    m = P(r' = r(y))

    Of responses with equal rewards the first drawn is taken.

    Args:
      log_prob: `[P, N]` log π.
      reward: `[P, N]` r, by which the best is chosen.
      n: how many are drawn.

    Returns:
      `[P, N]` log P, a policy again.

    Source: Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, section 4.3, for the
    rule; the law is that of the largest of n independent numbers.
    """
    own, other = _both(reward)

    def log_mass(counted: Array) -> Array:
        return jax.nn.logsumexp(log_prob[:, None], -1, where=counted)

    equal, up_to = log_mass(other == own), log_mass(other <= own)
    share = jnp.exp(jnp.minimum(equal - up_to, 0.0))
    some_equal = jnp.log(-jnp.expm1(n * jnp.log1p(-share)))
    return log_prob - equal + n * up_to + some_equal


# Labels.


class Pairs(NamedTuple):
    """K labelled pairs of responses, by their numbers; int32 `[K]` each."""

    prompt: Array
    chosen: Array
    rejected: Array


def preference_probability(first: Array, second: Array, temperature: Scalar) -> Array:
    """Probability that a labeler prefers the first of two responses: σ((r_1 - r_2) / τ).

    Args:
      first: `[...]` r_1, the gold reward of the first.
      second: `[...]` r_2.
      temperature: τ, the labels' noise.

    Returns:
      `[...]`.

    Source: Bradley and Terry (1952), "Rank analysis of incomplete block designs".
    """
    return jax.nn.sigmoid((first - second) / temperature)


def sample_responses(key: Array, log_prob: Array, number: int) -> Array:
    """Responses of a policy `[P, N]` to each prompt: their numbers, int32 `[P, number]`."""
    shape = (number, log_prob.shape[0])
    return jax.random.categorical(key, log_prob, shape=shape).T.astype(jnp.int32)


def sample_pairs(
    key: Array, log_prob: Array, reward: Array, number: int, temperature: Scalar
) -> Pairs:
    """Pairs of responses of a policy, labelled with the noise of Bradley and Terry.

    Args:
      key: random key.
      log_prob: `[P, N]`, the policy whose responses are shown.
      reward: `[P, N]`, the gold reward.
      number: K; prompts are drawn uniformly.
      temperature: τ.

    Source: Bradley and Terry (1952), "Rank analysis of incomplete block designs".
    """
    key_prompt, key_first, key_second, key_label = jax.random.split(key, 4)
    reward = jnp.asarray(reward)
    prompt = jax.random.randint(key_prompt, (number,), 0, reward.shape[0])
    first, second = (
        jax.random.categorical(k, log_prob[prompt]) for k in (key_first, key_second)
    )
    probability = preference_probability(
        reward[prompt, first], reward[prompt, second], temperature
    )
    right = jax.random.uniform(key_label, (number,)) < probability
    chosen, rejected = jnp.where(right, first, second), jnp.where(right, second, first)
    return Pairs(*(x.astype(jnp.int32) for x in (prompt, chosen, rejected)))


def bayes_accuracy(log_prob: Array, reward: Array, temperature: Scalar) -> Array:
    """Accuracy of the best guess of a label: E[max(p, 1 - p)], a scalar.

    Over pairs of responses of the policy; no reward model can have a better accuracy.

    Args:
      log_prob: `[P, N]`, the policy whose responses are shown.
      reward: `[P, N]`, the gold reward.
      temperature: τ.

    Source: Devroye, Györfi and Lugosi (1996), "A probabilistic theory of pattern
    recognition", chapter 2.
    """
    p = preference_probability(*_both(reward), temperature)
    return _mean_over_pairs(log_prob, jnp.maximum(p, 1.0 - p))


def label_accuracy(
    score: Array, log_prob: Array, reward: Array, temperature: Scalar
) -> Array:
    """Accuracy of a reward model on labels, over all pairs: a scalar, exact.

    Args:
      score: `[P, N]` of the model; equal scores are right half of the time.
      log_prob: `[P, N]`, the policy whose responses are shown.
      reward: `[P, N]`, the gold reward.
      temperature: τ.
    """
    p = preference_probability(*_both(reward), temperature)
    right = estimators.preference_accuracy(*jnp.broadcast_arrays(*_both(score)))
    return _mean_over_pairs(log_prob, p * right + (1.0 - p) * (1.0 - right))


def _both(x: Array) -> tuple[Array, Array]:
    """Those of the first and of the second response, to be broadcast to `[P, N, N]`."""
    x = jnp.asarray(x)
    return x[:, :, None], x[:, None, :]


def _mean_over_pairs(log_prob: Array, x: Array) -> Array:
    """E over pairs of independent responses, of x `[P, N, N]`."""
    probability = jnp.exp(log_prob)
    return jnp.einsum("pi,pij,pj->p", probability, x, probability).mean()


def _text_index(world: SmallWorld, response: Array) -> tuple[Array, Array]:
    """The row of a table that holds the text before each token: int32 `[B, L]`, 0 once
    the response has ended, which the second result says."""
    base, longest = len(world.symbols), world.tokens.shape[1]
    number, rows = jnp.zeros(response.shape[0], jnp.int32), []
    for place in range(longest):
        shorter = sum(base**i for i in range(place))
        rows.append(shorter + number)
        number = number * base + jnp.minimum(response[:, place], base - 1)
    ends = response == world.eos
    ended = jnp.cumsum(ends, 1) - ends > 0
    return jnp.where(ended, 0, jnp.stack(rows, 1)), ended


def _check(symbols: str, max_length: int, prompts: list[str]) -> None:
    if not symbols or len(set(symbols)) < len(symbols):
        raise InvalidInput(f"symbols = {symbols!r}: must be different characters.")
    if max_length < 1:
        raise InvalidInput(f"max_length = {max_length}: must be 1 or more.")
    number = sum(len(symbols) ** i for i in range(max_length + 1))
    if number > MAX_RESPONSES:
        raise InvalidInput(
            f"{len(symbols)} symbols and max_length = {max_length} make {number:,} "
            f"responses: must be at most {MAX_RESPONSES:,}."
        )
    wrong = [p for p in prompts if not p or set(p) - set(symbols)]
    if not prompts or wrong or len({len(p) for p in prompts}) > 1:
        raise InvalidInput(
            f"prompts = {prompts}: must be texts of {symbols!r}, all of one length."
        )
    if len(set(prompts)) < len(prompts):
        raise InvalidInput(f"prompts = {prompts}: must be different.")
