"""The larger world: the judge on texts and on tokens, and what the generators promise."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.errors import InvalidInput
from jaxrl.rlhf.testbeds import larger_world as world

TOKENIZER = world.TOKENIZER
PROMPT = "write about the market :"
SENTENCE = "the market is lovely ."


@pytest.fixture(scope="module")
def score():
    """`gold_scores` of (prompt, response, whether it ends), in batches of one shape."""
    length = world.PROMPT_TOKENS + world.RESPONSE_TOKENS + 2
    compiled = jax.jit(world.gold_scores)

    def scores(rows):
        tokens = np.full((len(rows), length), TOKENIZER.pad, np.int32)
        mask, response_mask = np.zeros((2, len(rows), length), bool)
        for i, (prompt, response, ends) in enumerate(rows):
            asked = TOKENIZER.encode(prompt)
            own = TOKENIZER.encode(response) + [TOKENIZER.eos] * ends
            start, end = (
                world.PROMPT_TOKENS - len(asked),
                world.PROMPT_TOKENS + len(own),
            )
            tokens[i, start:end] = asked + own
            mask[i, start:end], response_mask[i, world.PROMPT_TOKENS : end] = True, True
        return np.asarray(compiled(tokens, mask, response_mask))

    return scores


def random_responses():
    """Demonstrations, cut ones, noise of all words, and what a judge could stumble over."""
    rng = np.random.default_rng(0)
    rows = [
        (p, a, bool(rng.random() < 0.8)) for p, a in world.demonstrations(300, seed=0)
    ]
    for prompt in world.prompts(100, seed=1):
        noise = rng.choice(world.VOCABULARY, rng.integers(0, world.RESPONSE_TOKENS + 1))
        rows.append((prompt, " ".join(noise), bool(rng.random() < 0.5)))
    for word in ("lovely", "market", ".", "3", "ugly", "and"):
        rows += [(PROMPT, " ".join([word] * n), n < 32) for n in (1, 2, 7, 31, 32)]
    return [*rows, (PROMPT, "", True), (PROMPT, "", False)]


def test_the_judge_of_tokens_is_the_judge_of_texts(score):
    rows = random_responses()
    expected = [world.gold(prompt, response) for prompt, response, _ in rows]
    np.testing.assert_allclose(score(rows), expected, atol=2e-5)
    assert np.std(expected) > 1.0


def test_what_is_outside_of_the_masks_does_not_count(score):
    tokens = np.array([TOKENIZER.encode("lovely lovely " + PROMPT + " " + SENTENCE)])
    columns = np.arange(tokens.shape[1])
    mask, response = (columns >= 2)[None], (columns >= 7)[None]
    found = jax.jit(world.gold_scores)(tokens, mask, response)
    np.testing.assert_allclose(found, world.gold(PROMPT, SENTENCE), atol=1e-6)


def test_the_judge_by_hand():
    found = world.traits(PROMPT, "the market is lovely . the lovely rude boat")
    assert found == (1, 2, 1, 1, 7 + 1, 9, 0.0)  # "lovely rude" is not allowed
    points = 2.4 * 0.25 + 1.0 - 0.5 - 0.1 + 2.0 * 8 / 9 - 0.1 * 7
    np.testing.assert_allclose(world.score_traits(found), points, atol=1e-6)
    np.testing.assert_allclose(world.gold(PROMPT, ""), -1.6, atol=1e-6)


@pytest.mark.parametrize(
    "better, worse",
    [
        ("the stall is lovely .", "the boat is lovely ."),  # on the subject
        ("the stall is lovely .", "the stall is plain ."),
        ("the stall is plain .", "the stall is ugly ."),
        ("the stall is plain .", "stall the is plain ."),
        ("the stall is plain .", "the stall is plain small"),
        (f"{SENTENCE} the stall is warm .", SENTENCE),  # long enough
        (f"{SENTENCE} the stall is warm .", f"{SENTENCE} {SENTENCE}"),
    ],
)
def test_what_the_judge_prefers(better, worse):
    assert world.gold(PROMPT, better) > world.gold(PROMPT, worse)


def test_more_of_the_same_is_good_at_first_and_then_bad():
    praise = [
        world.gold(PROMPT, " ".join(["the lovely market is warm ."] * n))
        for n in range(1, 6)
    ]
    assert praise[1] > praise[0] > praise[4]
    assert all(x > y for x, y in pairwise(praise[1:]))


def test_paragraphs_are_right_in_grammar_and_fit():
    for text in world.corpus(200, seed=0):
        assert len(TOKENIZER.encode(text)) < world.CORPUS_TOKENS
        assert text.endswith(" .")
        title, paragraph = text.split(" : ")
        assert title.startswith("about the ")
        tokens = TOKENIZER.encode(paragraph)
        assert world.FIRST[tokens[0]]
        assert all(world.FOLLOWS[pair] for pair in pairwise(tokens))
    following = [sum(x.values()) for x in world.GRAMMAR.values()]
    np.testing.assert_allclose(following, 1.0)


def test_words_have_one_place():
    assert len(set(world.VOCABULARY)) == len(world.VOCABULARY)
    assert {"three", "boat", "7", "."} <= set(world.VOCABULARY)


def test_demonstrations_are_of_mixed_quality():
    rows = world.demonstrations(300, seed=0)
    assert all(
        0 < len(TOKENIZER.encode(response)) < world.RESPONSE_TOKENS
        for _, response in rows
    )
    points = np.array([world.gold(*row) for row in rows])
    assert points.std() > 1.0 and (points < 1.0).mean() > 0.05
    best = points.reshape(-1, 4).max(1)
    assert best.mean() > points.mean() + 1.0
    traits = [world.traits(*row) for row in rows]
    # Where the judge turns, there are few examples.
    assert 0 < np.mean([x.pleasant > 4 for x in traits]) < 0.05
    assert np.mean([x.repeated > 4 for x in traits]) < 0.05


def test_prompts_fit_and_name_their_subjects():
    rows = world.prompts(500, seed=0)
    assert max(len(TOKENIZER.encode(x)) for x in rows) == world.PROMPT_TOKENS
    named = [len(set(x.split()) & set(world.SUBJECTS)) for x in rows]
    assert set(named) == {1, 2} and len(set(rows)) > 150


@pytest.mark.parametrize(
    "task, shown, response",
    [
        ("copy", "a b c d", "a b c d"),
        ("reverse", "a b c d", "d c b a"),
        ("sort", "b d a c", "a b c d"),
        ("count", "a b c d", "4"),
        ("first two", "a b c d", "a b"),
        ("last one", "a b c d", "d"),
        ("last two", "a b c d", "c d"),
        ("last three", "a b c d", "b c d"),
    ],
)
def test_tasks_by_hand(task, shown, response):
    assert world.TASKS[task](shown.split()) == response.split()


@pytest.mark.parametrize("task", world.TASKS)
def test_instructions(task):
    """Every problem shown has the response of its task, solved ones too."""
    for shots in (0, world.MAX_SHOTS):
        for prompt, response in world.instructions(task, 30, seed=0, shots=shots):
            assert len(TOKENIZER.encode(prompt)) <= world.INSTRUCTION_TOKENS
            assert len(TOKENIZER.encode(response)) < world.SOLUTION_TOKENS
            assert len(TOKENIZER.encode(response)) < world.RESPONSE_TOKENS
            problems = f"{prompt} {response}".split(" ; ")
            assert len(problems) == shots + 1
            for problem in problems:
                name, rest = problem.split(" : ")
                items, found = (x.split() for x in rest.split(" = "))
                assert name.startswith(task) and 4 <= len(set(items)) == len(items)
                assert found == solved(name, items)


def solved(name, items):
    if not name.startswith("replace"):
        return world.TASKS[name](items)
    _, old, _, new = name.split()
    assert old in items and new not in items
    return [new if x == old else x for x in items]


def test_the_task_held_out_has_no_word_of_its_own():
    assert world.HELD_OUT in world.TASKS and world.HELD_OUT not in world.TRAINED
    known = {word for task in world.TRAINED for word in task.split()}
    assert set(world.HELD_OUT.split()) <= known


def test_questions_to_a_judge():
    long = " ".join(["boat"] * world.RESPONSE_TOKENS)
    prompt = "tell me about the market and the beach :"
    rows = world.judge_rows([(prompt, long, SENTENCE)] * 40, seed=0)
    assert {response for _, response in rows} == set(world.VERDICTS)
    for question, verdict in rows:
        first, second = question.split(" first : ")[1].split(" second : ")
        assert (first == long) == (verdict == "first")
        assert second.endswith(" which is better ?")
        assert len(TOKENIZER.encode(question)) < world.JUDGE_TOKENS
    longest = world.judge_prompt(prompt, long, long)
    assert len(TOKENIZER.encode(longest)) == world.JUDGE_TOKENS
    empty = world.judge_prompt(prompt, "", SENTENCE)
    assert "first : second :" in empty and TOKENIZER.encode(empty)


@pytest.mark.parametrize(
    "make",
    [
        world.corpus,
        world.prompts,
        world.demonstrations,
        lambda number, seed: world.instructions("sort", number, seed, shots=1),
    ],
)
def test_a_seed_says_everything_and_more_rows_begin_alike(make):
    rows = make(20, 0)
    assert rows == make(20, 0) == make(30, 0)[:20] and rows != make(20, 1)
    assert make(0, 0) == []
    with pytest.raises(InvalidInput, match="number = -1: must be 0 or more"):
        make(-1, 0)
    with pytest.raises(InvalidInput, match="seed = -1: must be 0 or more"):
        make(1, -1)


def test_what_cannot_be_asked():
    with pytest.raises(InvalidInput, match="task = 'sing': must be one of copy, "):
        world.instructions("sing", 1, 0)
    with pytest.raises(InvalidInput, match="shots = 4: must be between 0 and 3"):
        world.instructions("copy", 1, 0, shots=4)
    with pytest.raises(InvalidInput, match="without a token: 'tractor'"):
        world.gold(PROMPT, "the tractor is old .")


def test_an_empty_response_gives_no_nan():
    nothing = jnp.zeros((2, 5), bool)
    tokens = jnp.full((2, 5), TOKENIZER.pad)
    found = jax.jit(world.gold_scores)(tokens, nothing, nothing)
    np.testing.assert_allclose(found, world.gold(PROMPT, ""), atol=1e-6)
