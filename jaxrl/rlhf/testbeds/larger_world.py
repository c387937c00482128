"""The larger world: short texts of about 160 words, and a judge that is a program.

Enough language for a small GPT to be pretrained, fine-tuned and trained against a reward
model, on two cores: a grammar that writes paragraphs about twelve places, prompts that ask
for one, demonstrations of mixed quality, instruction tasks, and questions which of two
responses is better.

The judge (`gold`, or `gold_scores` on tokens) is known to the benchmark alone. Two of its
parts hardly show in responses of a fine-tuned policy: that praise can be too much, and that
repetition costs with its square. A reward model fitted to such responses does not know
them, so that a policy without a KL penalty finds what the model overrates.

Everything is a function of its seed, and of a larger number the beginning is the same.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import require
from jaxrl.rlhf.models import tokenizers
from jaxrl.types import Array, Scalar


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS: dict[str, tuple[str, ...]] = {
    "market": ("stall", "basket", "fruit", "seller"),
    "garden": ("flower", "gate", "bee", "bench"),
    "harbour": ("boat", "sailor", "net", "pier"),
    "kitchen": ("stove", "soup", "bread", "cook"),
    "forest": ("tree", "path", "deer", "moss"),
    "school": ("teacher", "pupil", "book", "desk"),
    "mountain": ("peak", "snow", "goat", "hut"),
    "beach": ("sand", "wave", "shell", "towel"),
    "farm": ("barn", "cow", "farmer", "field"),
    "library": ("shelf", "reader", "page", "lamp"),
    "station": ("train", "clock", "ticket", "driver"),
    "weather": ("rain", "wind", "cloud", "sun"),
}
"""Subjects, and the words that belong to each besides its own name."""

PLEASANT = _split(
    "lovely bright warm gentle sweet cheerful calm fresh golden kind merry splendid"
)
UNPLEASANT = _split("ugly dull cold rude bitter gloomy noisy rotten")
PLAIN = _split("old new small large round quiet tall plain")

WORDS: dict[str, tuple[str, ...]] = {
    "determiner": ("the", "this", "our", "every"),
    "adjective": PLEASANT + UNPLEASANT + PLAIN,
    "noun": tuple(SUBJECTS) + sum(SUBJECTS.values(), ()),
    "be": ("is", "was"),
    "very": ("very", "quite"),
    "and": ("and",),
    "verb": _split("finds likes meets sees holds needs keeps passes waits rests"),
    "adverb": _split("today often again slowly early there"),
    "preposition": _split("near behind under beside inside"),
    "stop": (".",),
}
"""The words of each part of speech; none is in two."""

GRAMMAR: dict[str, dict[str, float]] = {
    "start": {"determiner": 1.0},
    "determiner": {"adjective": 0.4, "noun": 0.6},
    "adjective": {"noun": 1.0},
    "noun": {"be": 0.45, "verb": 0.55},
    "be": {"very": 0.25, "adjective 2": 0.75},
    "very": {"adjective 2": 1.0},
    "adjective 2": {"and": 0.25, "stop": 0.75},
    "and": {"adjective 3": 1.0},
    "adjective 3": {"stop": 1.0},
    "verb": {"determiner 2": 0.6, "preposition": 0.25, "adverb": 0.15},
    "determiner 2": {"adjective 4": 0.4, "noun 2": 0.6},
    "adjective 4": {"noun 2": 1.0},
    "noun 2": {"stop": 0.7, "preposition": 0.3},
    "adverb": {"stop": 1.0},
    "preposition": {"determiner 3": 1.0},
    "determiner 3": {"adjective 5": 0.3, "noun 3": 0.7},
    "adjective 5": {"noun 3": 1.0},
    "noun 3": {"stop": 1.0},
    "stop": {"determiner": 1.0},
}
"""A sentence: the states that may follow each, with their probabilities. A state's first
word is the part of speech that it writes."""

DIGITS = tuple("0123456789")
OTHER = _split(
    "write describe tell me about : = ; ? judge first second which better copy reverse "
    "sort count replace with last one two three"
)
VOCABULARY = sum(WORDS.values(), ()) + DIGITS + OTHER
TOKENIZER = tokenizers.words(VOCABULARY)

TEMPLATES = ("write about {} :", "describe {} :", "tell me about {} :")
MAX_SHOTS = 3
RESPONSE_TOKENS = 32
"""The most of a response, EOS included. A cut response has as many words."""
PROMPT_TOKENS = 9
"""The most of what `prompts` gives."""
INSTRUCTION_TOKENS = 62
"""The most of an instruction's prompt, with `MAX_SHOTS` examples."""
SOLUTION_TOKENS = 6
"""The most tokens of a solution of an instruction, EOS included."""
JUDGE_TOKENS = 83
"""The most of a judge's prompt. The verdict has two: a word and EOS."""
CORPUS_TOKENS = 48
"""The most of a paragraph of `corpus`, EOS included."""


# Writing.


class Style(NamedTuple):
    """Style of a paragraph."""

    topical: float  # share of nouns that belong to its subjects
    pleasant: float  # share of adjectives
    unpleasant: float  # share of adjectives


def corpus(number: int, seed: int) -> list[str]:
    """Paragraphs of one to five sentences, right in grammar, of any mood.

    Each has its subjects above it, "about the market :".
    """
    rng = _rng(number, seed)
    rows = []
    for _ in range(number):
        subjects = _subjects(rng)
        title = f"about {_named(subjects)} : "
        most = CORPUS_TOKENS - 1 - len(title.split())
        rows.append(title + " ".join(_paragraph(rng, subjects, _style(rng), most)))
    return rows


def prompts(number: int, seed: int) -> list[str]:
    """Prompts that ask for a text about one subject, or two: 432 different ones."""
    rng = _rng(number, seed)
    return [_prompt(rng, _subjects(rng)) for _ in range(number)]


def demonstrations(number: int, seed: int) -> list[tuple[str, str]]:
    """Prompts with responses to be fine-tuned on: good, middling and bad ones.

    Independently of each other a response may stray from the subject, be ill-tempered, be
    short, have words in the wrong order, or break off.
    """
    rng = _rng(number, seed)
    rows = []
    for _ in range(number):
        subjects = _subjects(rng)
        prompt, style = _prompt(rng, subjects), _style(rng)
        response = _paragraph(rng, subjects, style, RESPONSE_TOKENS - 1)
        rows.append((prompt, " ".join(_spoilt(rng, response))))
    return rows


def _paragraph(
    rng: np.random.Generator, subjects: Sequence[str], style: Style, most: int
) -> list[str]:
    """One to five sentences, as many as fit in so many words."""
    about = [word for x in subjects for word in (x, *SUBJECTS[x])]
    words: list[str] = []
    for _ in range(1 + int(5 * rng.random())):
        sentence = _sentence(rng, about, style)
        if len(words) + len(sentence) > most:
            break
        words += sentence
    return words


def _sentence(
    rng: np.random.Generator, about: Sequence[str], style: Style
) -> list[str]:
    words, state = [], "start"
    while part_of_speech(state) != "stop":
        following = GRAMMAR[state]
        edges = np.cumsum(list(following.values()))
        state = list(following)[int(np.searchsorted(edges[:-1], rng.random(), "right"))]
        words.append(_one(rng, _choices(rng, part_of_speech(state), about, style)))
    return words


def _choices(
    rng: np.random.Generator, part: str, about: Sequence[str], style: Style
) -> Sequence[str]:
    luck = rng.random()
    if part == "noun":
        return about if luck < style.topical else WORDS["noun"]
    if part != "adjective":
        return WORDS[part]
    if luck < style.pleasant:
        return PLEASANT
    return UNPLEASANT if luck < style.pleasant + style.unpleasant else PLAIN


def _style(rng: np.random.Generator) -> Style:
    """Topical, more or less; of any mood between pleasant and unpleasant."""
    strays, mood = rng.random(2)
    return Style(1.0 - strays**2, 0.7 * mood, 0.7 * (1.0 - mood))


def _spoilt(rng: np.random.Generator, words: list[str]) -> list[str]:
    """In 3 of 10 cases words change places, in 2 of 10 the end is missing."""
    words = list(words)
    if rng.random() < 0.3:
        for _ in range(1 + int(4 * rng.random())):
            i, j = (int(len(words) * rng.random()) for _ in range(2))
            words[i], words[j] = words[j], words[i]
    if rng.random() < 0.2:
        words = words[: max(1, len(words) - 1 - int(4 * rng.random()))]
    return words


def _subjects(rng: np.random.Generator) -> list[str]:
    """One, or two different ones."""
    names = list(SUBJECTS)
    order = rng.permutation(len(names))
    return [names[i] for i in order[: 1 + int(2 * rng.random())]]


def _prompt(rng: np.random.Generator, subjects: Sequence[str]) -> str:
    return _one(rng, TEMPLATES).format(_named(subjects))


def _named(subjects: Sequence[str]) -> str:
    return " and ".join(f"the {x}" for x in subjects)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(len(choices) * rng.random())]


def _rng(number: int, seed: int) -> np.random.Generator:
    require(number >= 0, f"number = {number}: must be 0 or more.")
    require(seed >= 0, f"seed = {seed}: must be 0 or more.")
    return np.random.default_rng(seed)


# The judge.


def part_of_speech(state: str) -> str:
    """The part of speech of a state of `GRAMMAR`."""
    return state.split(" ")[0]


def _bigrams() -> tuple[np.ndarray, np.ndarray]:
    """Words that may begin a response, bool `[V]`, and that may follow each, `[V, V]`."""
    vocab_size = TOKENIZER.vocab_size
    members = {"start": np.zeros(vocab_size, bool)}
    for part, words in WORDS.items():
        members[part] = np.isin(
            np.arange(vocab_size), TOKENIZER.encode(" ".join(words))
        )
    first, follows = (
        np.zeros(vocab_size, bool),
        np.zeros((vocab_size, vocab_size), bool),
    )
    for state, following in GRAMMAR.items():
        for other in map(part_of_speech, following):
            first |= members[other] & (state == "start")
            follows |= members[part_of_speech(state)][:, None] & members[other]
    return first, follows


def _table(lists: Iterable[Iterable[str]]) -> np.ndarray:
    """Bool `[..., V]`: which words are in each list."""
    numbers = np.arange(TOKENIZER.vocab_size)
    return np.stack(
        [np.isin(numbers, TOKENIZER.encode(" ".join(words))) for words in lists]
    )


FIRST, FOLLOWS = _bigrams()
"""Words that the grammar allows: bool `[V]` at the beginning, `[V, V]` after each word."""
_SUBJECT = _table([x] for x in SUBJECTS)
_BELONGS = _table((x, *SUBJECTS[x]) for x in SUBJECTS)
_PLEASANT, _UNPLEASANT, _CONTENT = _table(
    [PLEASANT, UNPLEASANT, WORDS["noun"] + WORDS["adjective"]]
)


class Traits(NamedTuple):
    """Properties of a response that the judge scores; numbers, or arrays `[B]`."""

    topical: Scalar  # different words that belong to the prompt's subjects
    pleasant: Scalar  # pleasant words
    unpleasant: Scalar  # unpleasant words
    repeated: Scalar  # nouns and adjectives that were there before
    allowed: Scalar  # words that the grammar allows where they stand
    words: Scalar  # how many
    ends: Scalar  # 1 where the last is a full stop


def score_traits(traits: Traits) -> Array:
    """The judge's points.

    2.4 (1 - 0.75^topical) + 0.5 (pleasant - 2 max(0, pleasant - 4)) - 0.5 unpleasant
    - 0.1 repeated² + 2 allowed / words - 0.1 max(0, |words - 20| - 4) + 0.5 ends
    """
    topical, pleasant, unpleasant, repeated, allowed, words, ends = map(
        jnp.asarray, traits
    )
    return (
        2.4 * (1.0 - 0.75**topical)
        + 0.5 * (pleasant - 2.0 * jnp.maximum(0.0, pleasant - 4.0))
        - 0.5 * unpleasant
        - 0.1 * repeated**2
        + 2.0 * allowed / jnp.maximum(words, 1)
        - 0.1 * jnp.maximum(0.0, jnp.abs(words - 20.0) - 4.0)
        + 0.5 * ends
    )


def traits(prompt: str, response: str) -> Traits:
    """Those of a text.

    Raises:
      InvalidInput: a word that is not in the vocabulary.
    """
    tokens = TOKENIZER.encode(response)
    asked = {VOCABULARY[t] for t in TOKENIZER.encode(prompt)} & set(SUBJECTS)
    about = {word for x in asked for word in (x, *SUBJECTS[x])}
    words = [VOCABULARY[t] for t in tokens]
    count = Counter(words)
    content = [x for x in count if x in WORDS["noun"] + WORDS["adjective"]]
    return Traits(
        topical=len(about & set(words)),
        pleasant=sum(count[x] for x in PLEASANT),
        unpleasant=sum(count[x] for x in UNPLEASANT),
        repeated=sum(count[x] - 1 for x in content),
        allowed=sum(FIRST[tokens[:1]])
        + sum(FOLLOWS[pair] for pair in pairwise(tokens)),
        words=len(words),
        ends=float(words[-1:] == ["."]),
    )


def gold(prompt: str, response: str) -> float:
    """The judge of texts: `score_traits` of `traits`.

    Args:
      prompt: as of `prompts`; the subjects are those that it names.
      response: without EOS. That a response does not end is
        `estimators.score_with_eos_rule`'s; here its last word counts.
    """
    return float(score_traits(traits(prompt, response)))


def token_traits(tokens: Array, mask: Array, response_mask: Array) -> Traits:
    """`traits` of a batch; the arguments are those of `gold_scores`."""
    is_word = mask & (tokens < len(VOCABULARY))
    own = is_word & response_mask
    one_hot = jax.nn.one_hot(tokens, TOKENIZER.vocab_size)
    of_prompt = jnp.einsum("bt,btv->bv", 1.0 * (is_word & ~response_mask), one_hot)
    count = jnp.einsum("bt,btv->bv", 1.0 * own, one_hot)
    about = ((of_prompt @ (1.0 * _SUBJECT.T)) > 0) @ (1.0 * _BELONGS) > 0
    before = jnp.pad(own[:, :-1], ((0, 0), (1, 0)))
    previous = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    right = jnp.where(
        before, jnp.asarray(FOLLOWS)[previous, tokens], jnp.asarray(FIRST)[tokens]
    )
    last = own & ~jnp.pad(own[:, 1:], ((0, 0), (0, 1)))
    stop = TOKENIZER.encode(".")[0]
    return Traits(
        topical=(about & (count > 0)).sum(1),
        pleasant=count @ (1.0 * _PLEASANT),
        unpleasant=count @ (1.0 * _UNPLEASANT),
        repeated=jnp.maximum(count - 1.0, 0.0) @ (1.0 * _CONTENT),
        allowed=(own & right).sum(1),
        words=own.sum(1),
        ends=1.0 * (last & (tokens == stop)).any(1),
    )


def gold_scores(tokens: Array, mask: Array, response_mask: Array) -> Array:
    """`gold` of a batch, to be compiled.

    Args:
      tokens: int32 `[B, T]`, prompt and response, of `TOKENIZER`.
      mask: bool `[B, T]`, the real ones.
      response_mask: bool `[B, T]`, those of the response: one stretch, which EOS may end.

    Returns:
      float32 `[B]`.
    """
    return score_traits(token_traits(tokens, mask, response_mask))


# Instructions.

ITEMS = WORDS["noun"]

TASKS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": lambda items: items,
    "reverse": lambda items: items[::-1],
    "sort": sorted,
    "count": lambda items: [str(len(items))],
    "replace": lambda items: items,  # see _solved
    "first one": lambda items: items[:1],
    "first two": lambda items: items[:2],
    "first three": lambda items: items[:3],
    "last one": lambda items: items[-1:],
    "last two": lambda items: items[-2:],
    "last three": lambda items: items[-3:],
}
"""Of four or five different words (of digits, where they are sorted). To `replace` has two
more words in its name, as in "replace boat with net"."""
HELD_OUT = "last two"
"""Not to be trained on. Its words are known from other tasks, and nothing else is."""
TRAINED = tuple(x for x in TASKS if x != HELD_OUT)


def instructions(
    task: str, number: int, seed: int, shots: int = 0
) -> list[tuple[str, str]]:
    """Problems of one task, `("first two : boat net sun bee =", "boat net")`.

    Args:
      task: of `TASKS`.
      number: how many.
      seed: of the problems.
      shots: how many solved ones stand before each in its prompt, " ; " between them.

    Raises:
      InvalidInput: there is no such task, or it is not to have so many shots.
    """
    require(task in TASKS, f"task = {task!r}: must be one of {', '.join(TASKS)}.")
    require(
        0 <= shots <= MAX_SHOTS, f"shots = {shots}: must be between 0 and {MAX_SHOTS}."
    )
    rng = _rng(number, seed)
    rows = []
    for _ in range(number):
        *solved, (question, answer) = (_solved(rng, task) for _ in range(shots + 1))
        shown = [f"{q} {a} ; " for q, a in solved]
        rows.append(("".join(shown) + question, answer))
    return rows


def _solved(rng: np.random.Generator, task: str) -> tuple[str, str]:
    """A problem and its answer."""
    words = DIGITS if task == "sort" else ITEMS
    order = rng.permutation(len(words))
    *items, new = [words[i] for i in order[: 5 + int(2 * rng.random())]]
    if task != "replace":
        return f"{task} : {' '.join(items)} =", " ".join(TASKS[task](items))
    old = _one(rng, items)
    answer = [new if x == old else x for x in items]
    return f"replace {old} with {new} : {' '.join(items)} =", " ".join(answer)


# A language model as the judge.

VERDICTS = ("first", "second")


def judge_prompt(prompt: str, first: str, second: str) -> str:
    """The question which of two responses is better; the answer is one of `VERDICTS`."""
    parts = ("judge :", prompt, "first :", first, "second :", second)
    return " ".join(x for x in (*parts, "which is better ?") if x)


def judge_rows(
    pairs: Iterable[tuple[str, str, str]], seed: int
) -> list[tuple[str, str]]:
    """Questions with their verdicts, to be fine-tuned on.

    Args:
      pairs: (prompt, chosen, rejected).
      seed: of the place at which the chosen response is shown.
    """
    rng = _rng(0, seed)
    rows = []
    for prompt, chosen, rejected in pairs:
        place = int(2 * rng.random())
        shown = (chosen, rejected) if place == 0 else (rejected, chosen)
        rows.append((judge_prompt(prompt, *shown), VERDICTS[place]))
    return rows
