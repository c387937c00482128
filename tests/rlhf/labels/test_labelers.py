"""Which of two responses is better: who says so, and that nothing said is lost."""

import http.client
import io
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import optim
from jaxrl.errors import InvalidInput
from jaxrl.rlhf import data, estimators
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.labels import labelers
from jaxrl.rlhf.labels.labelers import Question
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.transformer import GPT, ModelConfig
from tests.support import language
from tools import webdriver

LETTERS = tokenizers.characters("abcdefgh12{}: irstno\n")
CONFIG = ModelConfig(
    *(LETTERS.vocab_size, 48), num_layers=1, num_heads=2, width=16, mlp_width=32
)


def questions(number=20, seed=0):
    """Different pairs of texts, of which one has more "a"."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < number:
        first, second = ("".join(rng.choice(list("ab"), 5)) for _ in range(2))
        if first.count("a") != second.count("a"):
            found["cdef"[len(found) % 4], first, second] = None
    return [Question(*texts) for texts in found]


def score(prompt, response):
    return float(response.count("a"))


QUESTIONS = questions()
RIGHT = [int(score("", q.first) < score("", q.second)) for q in QUESTIONS]


def swapped(asked):
    return [q._replace(first=q.second, second=q.first) for q in asked]


def others(choices):
    return [1 - choice for choice in choices]


# Labelers that compute.


def test_gold_without_noise_is_right():
    assert labelers.gold(score)(QUESTIONS) == RIGHT
    assert {*RIGHT} == {0, 1}
    close = [Question("c", "a", "b")]
    assert labelers.gold(lambda p, a: 1.0 + 1e-12 * score(p, a))(close) == [0]


def test_gold_errs_as_often_as_bradley_and_terry_say():
    asked = [Question("c", "aab", "bbb", i) for i in range(4000)]
    for temperature in (0.5, 2.0, 8.0):
        choices = np.array(list(labelers.gold(score, temperature, seed=1)(asked)))
        p = 1 / (1 + np.exp(-2.0 / temperature))
        assert abs((choices == 0).mean() - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_noise_belongs_to_the_question():
    ask = labelers.gold(score, 3.0, seed=1)
    choices = ask(QUESTIONS)
    assert choices != RIGHT
    assert [ask([q])[0] for q in QUESTIONS] == choices
    assert ask(swapped(QUESTIONS)) == others(choices)
    assert labelers.gold(score, 3.0, seed=2)(QUESTIONS) != choices
    assert ask([q._replace(repeat=1) for q in QUESTIONS]) != choices


def test_equal_rewards_are_a_coin():
    asked = [Question("c", "ab", "ba", i) for i in range(1000)]
    choices = labelers.gold(score)(asked)
    assert 430 < sum(choices) < 570
    assert labelers.gold(score)(swapped(asked)) == others(choices)


def test_scores_of_a_model():
    def scores(pairs):
        return jnp.array([score(*pair) for pair in pairs])

    assert labelers.by_score(scores)(QUESTIONS) == RIGHT
    with pytest.raises(
        InvalidInput, match=r"array \(2, 1\) for 2 responses: must be \[2"
    ):
        labelers.by_score(lambda pairs: np.zeros((2, 1)))(QUESTIONS[:1])


def test_rewards_that_are_no_numbers():
    bad = QUESTIONS[3]

    def broken(prompt, response):
        return float("nan") if response == bad.first else score(prompt, response)

    with pytest.raises(
        InvalidInput, match=f"'{bad.prompt}' has a reward that is no fin"
    ):
        labelers.gold(broken, 1.0)(QUESTIONS)
    with pytest.raises(InvalidInput, match="temperature = -1"):
        labelers.gold(score, -1.0)
    with pytest.raises(InvalidInput, match="temperature = nan"):
        labelers.gold(score, float("nan"))


# A model's verdict.


TEMPLATE = "{prompt}\n1:{first}\n2:{second}\n"


def judge(**options):
    return labelers.language_model(
        GPT(CONFIG),
        language.make_params(CONFIG),
        LETTERS,
        **({"template": TEMPLATE} | options),
    )


def odds(text):
    tokens = jnp.array([LETTERS.encode(text)])
    logits = language.apply(CONFIG, language.make_params(CONFIG), tokens).logits[0, -1]
    one, two = (LETTERS.encode(word)[0] for word in "12")
    return float(logits[one] - logits[two])


def test_a_models_verdict_is_that_of_both_orders():
    asked = [*QUESTIONS[:9], Question("c", "{second}", "{first} b")]
    choices = list(judge(batch_size=4)(asked))
    for (prompt, first, second, _), choice in zip(asked, choices, strict=True):
        there = odds(f"{prompt}\n1:{first}\n2:{second}\n")
        back = odds(f"{prompt}\n1:{second}\n2:{first}\n")
        p = 0.5 * (jax.nn.sigmoid(there) + jax.nn.sigmoid(-back))
        assert choice == int(p < 0.5)
    # The position alone would have said something else of some.
    assert {*choices} == {0, 1}
    assert list(judge(batch_size=4)(swapped(asked))) == others(choices)


def test_a_judge_that_cannot_judge():
    with pytest.raises(InvalidInput, match=r"must have \{second\} in it"):
        judge(template="{prompt} {first}")
    for verdicts in (("1", "22"), ("1", "1"), ("", "1")):
        with pytest.raises(InvalidInput, match="must be two words of one token each"):
            judge(verdicts=verdicts)
    with pytest.raises(InvalidInput, match="batch_size = 0"):
        judge(batch_size=0)
    with pytest.raises(InvalidInput, match="the tokenizer has 258 tokens"):
        labelers.language_model(GPT(CONFIG), None, tokenizers.bytes_of_text())
    long = Question("a" * 40, "a", "b")
    with pytest.raises(InvalidInput, match=r"question 2 has 49 tokens .* 1 more than"):
        list(judge()([QUESTIONS[0], long]))
    assert list(judge()([])) == []
    broken = jax.tree.map(lambda x: x * jnp.nan, language.make_params(CONFIG))
    ask = labelers.language_model(GPT(CONFIG), broken, LETTERS, TEMPLATE, batch_size=4)
    with pytest.raises(InvalidInput, match="no finite number"):
        list(ask(QUESTIONS[:1]))


# A person at the terminal.


def test_the_terminal(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nx\n\n 2 \nQ\n"))
    asked = [Question("c\x1b[2J", "a\nb", "b"), *QUESTIONS]
    ask = labelers.terminal(said.append)
    assert list(ask(asked)) == [0, 1]
    assert said[:3] == ["\n[1 of 21] c\\x1b[2J", "  1: a\nb", "  2: b"]
    # The end of the input stops too.
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n"))
    assert list(ask(asked)) == [1]


# Storing.


def test_labels_are_rows_of_preferences(tmp_path):
    out, said = tmp_path / "labels.jsonl", []
    assert labelers.label(QUESTIONS, labelers.gold(score), out, said.append) == RIGHT
    rows = data.read(out)
    for row, question, right in zip(rows, QUESTIONS, RIGHT, strict=True):
        responses = question.first, question.second
        assert row == {
            "prompt": question.prompt,
            "chosen": responses[right],
            "rejected": responses[1 - right],
        }
    assert data.preferences(rows, data.Format(LETTERS, 8)).tokens.shape == (20, 2, 8)
    assert said == []


def test_sides_are_random_and_come_back(tmp_path):
    shown = []

    def first(asked):
        shown.append(asked)
        return [0] * len(asked)

    for i, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{i}.jsonl"
        labels = labelers.label(QUESTIONS, first, out, print, seed)
        turned = [
            int(a.first != b.first) for a, b in zip(shown[i], QUESTIONS, strict=True)
        ]
        assert labels == turned and 4 < sum(turned) < 16
    assert shown[0] == shown[1] != shown[2]


def test_labelling_goes_on_after_a_kill(tmp_path):
    out, whole, said = tmp_path / "labels.jsonl", tmp_path / "whole.jsonl", []
    ask = labelers.gold(score, 3.0)
    # The same pair again has noise of its own.
    asked = QUESTIONS + QUESTIONS
    expected = labelers.label(asked, ask, whole)
    assert expected[:20] != expected[20:]

    def killed(asked):
        yield from ask(asked)[:7]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        labelers.label(asked, killed, out, said.append)
    with out.open("ab") as file:
        file.write(whole.read_bytes().splitlines()[7][:20])
    seen = []

    def counting(asked):
        seen.append(len(asked))
        return ask(asked)[: 25 - 7]

    assert labelers.label(asked, counting, out, said.append) == expected[:25]
    assert labelers.label(asked, ask, out, said.append) == expected
    assert seen == [33] and out.read_bytes() == whole.read_bytes()
    assert [line.split(": ", 1)[1] for line in said] == [
        "its last line was written in part, and is cut off.",
        "7 of 40 are labelled already.",
        "25 of 40 are labelled; call again to continue.",
        "25 of 40 are labelled already.",
    ]
    # Nobody is asked when there is nothing to ask.
    assert labelers.label(asked, None, out, said.append) == expected


def test_each_label_is_stored_before_the_next_is_taken(tmp_path):
    out = tmp_path / "labels.jsonl"

    def looking(asked):
        for i in range(len(asked)):
            assert len(out.read_bytes().splitlines()) == i
            yield 0

    labelers.label(QUESTIONS, looking, out)


def test_what_cannot_be_labelled(tmp_path):
    out = tmp_path / "labels.jsonl"
    for bad, problem in (
        (Question("c", "", "a"), "question 2: prompt or response is empty"),
        (Question("c", "a", "a"), "question 2: both responses are the same"),
    ):
        with pytest.raises(InvalidInput, match=problem):
            labelers.label([QUESTIONS[0], bad], labelers.gold(score), out)
    for responses in ([0, 2], [0, None], [0, 0.5]):
        with pytest.raises(InvalidInput, match="as number 2 of 2: must be 0 or 1"):
            labelers.label(
                QUESTIONS[:2], lambda asked, x=responses: x[-len(asked) :], out
            )
        out.unlink()
    with pytest.raises(InvalidInput, match="gave 1 as number 3 of 2"):
        labelers.label(QUESTIONS[:2], lambda asked: [0, 1, 1], out)
    with pytest.raises(
        InvalidInput, match=r"labels.jsonl, line 1 is of another question"
    ):
        labelers.label(QUESTIONS[1:], labelers.gold(score), out)
    with pytest.raises(
        InvalidInput, match="line 2 is one more than there are questions"
    ):
        labelers.label(QUESTIONS[:1], labelers.gold(score), out)


def test_agreement_by_hand():
    assert labelers.agreement([0, 1, 1, 0], [0, 1, 0, 0]) == 0.75
    for first, second in (([0], [0, 1]), ([], [])):
        with pytest.raises(InvalidInput, match="must be as many, and one or more"):
            labelers.agreement(first, second)


# A person in the browser.


@contextmanager
def labelling(asked, out):
    """A page that is served: its address, and the labels it brings."""
    address, there, labels = [], threading.Event(), []

    def report(line):
        address.append(line.split()[-1])
        there.set()

    def work():
        ask = labelers.browser(open_browser=False, report=report)
        labels.extend(labelers.label(asked, ask, out))

    thread = threading.Thread(target=work)
    thread.start()
    assert there.wait(10)
    try:
        yield address[0], labels, thread
    finally:
        # Stops it, if it is not over already.
        with suppress(OSError):
            for number in range(len(asked)) if thread.is_alive() else ():
                choose(address[0], number, None)
        thread.join(10)
        assert not thread.is_alive()


def client(address, path, body=None, headers=None):
    """(status, content) of a request to the page's server."""
    root = f"http://{urlsplit(address).netloc}"
    request = urllib.request.Request(root + path, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def choose(address, number, choice):
    token = urlsplit(address).query.removeprefix("token=")
    body = json.dumps({"number": number, "choice": choice}).encode()
    status, content = client(address, "/choice", body, {"X-Token": token})
    return json.loads(content) if status == 200 else status


def better(state):
    """The person's rule: more "a"."""
    return int(score("", state["first"]) < score("", state["second"]))


@pytest.mark.full
def test_the_page_takes_every_choice_once(tmp_path):
    out = tmp_path / "labels.jsonl"
    with labelling(QUESTIONS, out) as (address, labels, thread):
        token = {"X-Token": urlsplit(address).query.removeprefix("token=")}
        state = json.loads(client(address, "/question", None, token)[1])
        for number in range(20):
            assert (state["number"], state["of"], state["over"]) == (number, 20, False)
            assert len(out.read_bytes().splitlines()) == number
            after = choose(address, number, better(state))
            # A second click is about a question that is gone.
            if number < 19:
                assert choose(address, number, 1 - better(state)) == after
            state = after
        assert state["over"] and state["number"] == 20
        thread.join(10)
    assert labels == RIGHT and len(data.read(out)) == 20
    assert accuracy_of_a_reward_model(out) == 1.0


def test_the_page_can_be_stopped(tmp_path):
    out = tmp_path / "labels.jsonl"
    with labelling(QUESTIONS, out) as (address, labels, thread):
        choose(address, 0, 1)
        state = choose(address, 1, None)
        thread.join(10)
    assert state["over"] and state["number"] == 1
    assert len(labels) == 1 and len(data.read(out)) == 1


def test_the_page_answers_nobody_else(tmp_path):
    attack = Question("<script>x</script>", "</p><b>a</b>", "b&amp;")
    with labelling([attack], tmp_path / "labels.jsonl") as (address, _, thread):
        parts = urlsplit(address)
        token, port = parts.query.removeprefix("token="), parts.port
        assert parts.hostname == "127.0.0.1" and len(token) > 20
        ours = {"X-Token": token}
        body = b'{"number": 0, "choice": 0}'
        for wrong in (
            {},
            {"X-Token": "x"},
            {"X-Token": "é"},
            ours | {"Host": f"evil.example:{port}"},
            ours | {"Host": "127.0.0.1"},
            ours | {"Origin": "http://evil.example"},
            ours | {"Origin": "null"},
            ours | {"Origin": f"https://127.0.0.1:{port}"},
        ):
            assert client(address, "/question", None, wrong)[0] == 403
            assert client(address, "/choice", body, wrong)[0] == 403
        for page in ("/", "/?token=x", "/?token="):
            assert client(address, page)[0] == 403
        for bad in (b"", b"{", b"[]", b'{"number": 0}', b'{"number": 0, "choice": 2}'):
            assert client(address, "/choice", bad, ours)[0] == 400
        for bad in (b'{"number": 0, "choice": true}', b" " * 2000 + body):
            assert client(address, "/choice", bad, ours)[0] == 400
        assert client(address, "/passwd")[0] == 404
        assert client(address, "/other", body, ours)[0] == 404
        status, page = client(address, f"/?{parts.query}")
        # The page is the same for all texts, and runs no script but its own.
        assert status == 200 and "<b>" not in page and "evil" not in page
        status, content = client(address, "/question", None, ours)
        assert json.loads(content)["over"] is False and thread.is_alive()
        texts = {json.loads(content)[name] for name in ("first", "second")}
        assert texts == {attack.first, attack.second}
        named = ours | {
            "Host": f"localhost:{port}",
            "Origin": f"http://localhost:{port}",
        }
        assert client(address, "/choice", body, named)[0] == 200


def test_the_pages_policy(tmp_path):
    with labelling(QUESTIONS[:1], tmp_path / "labels.jsonl") as (address, _, _):
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        connection.request("GET", f"/?{parts.query}")
        response = connection.getresponse()
        page, policy = (
            response.read().decode(),
            response.headers["Content-Security-Policy"],
        )
        connection.close()
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert page.count(f'nonce="{nonce}"') == 2 == page.count("nonce=")
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "innerHTML" not in page and response.headers["Cache-Control"] == "no-store"


def test_a_port_that_cannot_be_had(tmp_path):
    with labelling(QUESTIONS[:1], tmp_path / "labels.jsonl") as (address, _, _):
        port = urlsplit(address).port
        with pytest.raises(InvalidInput, match=f"port = {port}: cannot be opened"):
            next(iter(labelers.browser(port, False)(QUESTIONS)))
    with pytest.raises(InvalidInput, match="port = 65536"):
        next(iter(labelers.browser(65536, False)(QUESTIONS)))


needs_browser = pytest.mark.skipif(
    bool(webdriver.MISSING),
    reason=f"not installed: {', '.join(webdriver.MISSING)}",
)


@needs_browser
def test_twenty_clicked_pairs_train_a_reward_model(tmp_path):
    out = tmp_path / "labels.jsonl"
    with (
        labelling(QUESTIONS, out) as (address, labels, thread),
        webdriver.session(390, 844, tmp_path / "profile") as ask,
    ):
        ask("POST", "/url", url=address)
        for number in range(20):
            webdriver.wait(ask, f"document.title && number === {number}")
            shown = {
                x: webdriver.run(ask, f"{x}.textContent") for x in ("first", "second")
            }
            if number % 2:
                webdriver.click(ask, f"#choose-{better(shown)}")
            else:
                webdriver.press(ask, str(better(shown) + 1))
        webdriver.wait(ask, "at('message').textContent.startsWith('Thank you')")
        # Nothing is wider than the phone.
        assert webdriver.run(ask, "document.documentElement.scrollWidth") <= 390
        thread.join(10)
    assert labels == RIGHT
    assert accuracy_of_a_reward_model(out) == 1.0


@needs_browser
def test_the_browser_shows_texts_as_texts(tmp_path):
    attack = "<img src=x onerror=\"document.title='hit'\"><b>a</b>\n  b"
    asked = [Question(attack, "a", "b")]
    with (
        labelling(asked, tmp_path / "labels.jsonl") as (address, _, _),
        webdriver.session(1200, 800, tmp_path / "profile") as ask,
    ):
        ask("POST", "/url", url=address)
        webdriver.wait(ask, "number === 0")
        assert webdriver.run(ask, "at('prompt').textContent") == attack
        assert webdriver.run(ask, "document.querySelectorAll('b, img').length") == 0
        assert webdriver.run(ask, "document.title") == "Which response is better?"
        beside = (
            "first.getBoundingClientRect().top === second.getBoundingClientRect().top"
        )
        assert webdriver.run(ask, beside)


def accuracy_of_a_reward_model(path):
    """Of one that is trained with the pairs of a file, on those pairs."""
    pairs = data.preferences(data.read(path), data.Format(LETTERS, 8))
    assert pairs.tokens.shape == (20, 2, 8)
    flat = [x.reshape(-1, 8) for x in pairs[:2]]
    reward = rewards_of(fitted(language.make_params(CONFIG), *flat), *flat)
    return float(estimators.preference_accuracy(reward[::2], reward[1::2]).mean())


def rewards(params, tokens, mask):
    hidden = GPT(CONFIG).apply(params["model"], tokens, mask).hidden
    last = estimators.last_token(mask)
    return (jnp.where(last[..., None], hidden, 0.0).sum(1) @ params["head"])[:, 0]


rewards_of = jax.jit(rewards)


@jax.jit
def fitted(model, tokens, mask, steps=100):
    optimizer = optim.adam(1.0)

    def loss(params):
        reward = rewards(params, tokens, mask)
        return text_losses.preference_loss(reward[::2], reward[1::2]).mean()

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        updates = jax.tree.map(lambda x: -0.01 * x, updates)
        return optax.apply_updates(params, updates), state

    params = {"model": model, "head": jnp.zeros((CONFIG.width, 1))}
    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]
