"""Rows of files to arrays, and what is refused."""

import errno
import functools
import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.core import files
from jaxrl.errors import InvalidInput
from jaxrl.rlhf import data
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import chat, tokenizers
from tests.support.paths import ROOT

GPT2_TOKENIZER = ROOT / "tests" / "golden" / "language" / "gpt2" / "tokenizer.json"
LETTERS = tokenizers.characters("abcdefghijklmnopqrstuvwxyz .:\n<>|_UA")
BYTES = tokenizers.bytes_of_text()
PAIR = {"prompt": "ab", "chosen": "cde", "rejected": "f"}
TALK = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
JINJA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('who?') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def jsonl(folder, *rows):
    path = folder / "rows.jsonl"
    lines = (
        row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows
    )
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def decode(tokens, mask, tokenizer=LETTERS):
    """The text, with "$" for EOS."""
    return "".join(
        "$" if t == tokenizer.eos else tokenizer.decode([t]) for t in tokens[mask]
    )


# Files.


def test_a_file_that_was_written_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [PAIR, {"prompt": "é\u2028\n", "margin": 0.5}]
    data.write_rows(path, rows)
    assert data.read(path) == rows and len(path.read_bytes().splitlines()) == 2
    assert [row.where for row in data.read(path)] == [
        f"{path}, line {i}" for i in (1, 2)
    ]
    data.write_rows(path, iter(rows[:1]))
    assert data.read(str(path)) == rows[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    for bad in (float("nan"), np.float32(1), "\ud800"):
        with pytest.raises(InvalidInput, match="row 2 cannot be written as JSON"):
            data.write_rows(path, [PAIR, {"margin": bad}])
    with pytest.raises(InvalidInput, match=r"rows.txt: the name must end in .jsonl"):
        data.write_rows(tmp_path / "rows.txt", [PAIR])
    with pytest.raises(InvalidInput, match=r"cannot be written .No such file"):
        data.write_rows(tmp_path / "none" / "rows.jsonl", [PAIR])
    assert list(tmp_path.iterdir()) == []


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = jsonl(
        tmp_path, b"\xef\xbb\xbf" + b'{"text": "a"}\r', b"", b" ", {"text": "b"}
    )
    rows = data.read(path)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert rows[1].where.endswith("rows.jsonl, line 4")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', r"line 2 is no JSON \(Expecting"),
        (b'{"text": "\xff"}', r"line 2 is not text in UTF-8"),
        (b"[" * 100_000, r"line 2 is no JSON \("),
        (b'["a"]', "line 2 is a JSON list: write an object"),
        (b"null", "line 2 is a JSON NoneType: write an object"),
    ],
)
def test_lines_that_are_no_rows(tmp_path, line, problem):
    path = jsonl(tmp_path, {"text": "a"}, line)
    with pytest.raises(InvalidInput, match=rf"rows.jsonl, {problem}"):
        data.read(path)


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match=r"rows.jsonl has no rows"):
        data.read(jsonl(tmp_path, b"\n"))
    with pytest.raises(InvalidInput, match=r"none.jsonl cannot be read \(No such"):
        data.read(tmp_path / "none.jsonl")
    with pytest.raises(
        InvalidInput, match=r"in .jsonl or .parquet \(did you mean '.jso"
    ):
        data.read(tmp_path / "rows.json")
    path = tmp_path / "rows.parquet"
    path.write_text("no Parquet")
    with pytest.raises(InvalidInput, match=r"rows.parquet cannot be read as Parquet"):
        data.read(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[rlhf\]'"):
        data.read(path)


def test_rows_that_a_small_file_repeats_without_end_are_not_made(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    def repeat(text, number):
        places = pa.array([0] * number, pa.int32())
        return pa.DictionaryArray.from_arrays(places, [text])

    path = tmp_path / "rows.parquet"
    many = pa.array([0, 4000], pa.int32())
    for column in (
        repeat("a" * 300_000, 4_000),
        pa.ListArray.from_arrays(many, repeat("a" * 300_000, 4_000)),
        pa.nulls(1_700_000, pa.string()),
    ):
        parquet.write_table(pa.table({"prompt": column}), path)
        with pytest.raises(
            InvalidInput, match=r"rows.parquet has rows of about 1,2|1,1"
        ):
            data.read(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InvalidInput, match=rf"{name} (cannot be read|is a pipe)"):
        data.read(tmp_path / name)


def test_parquet_gives_what_jsonl_gives(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [
        PAIR | {"prompt": TALK, "margin": 0.5, "ranked": ["a", "b"]},
        PAIR | {"prompt": TALK[1:], "margin": -1.0, "ranked": ["c", "d"]},
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = data.read(path)
    assert found == data.read(jsonl(tmp_path, *rows))
    both = (
        data.preferences(found, data.Format(LETTERS, 20)),
        data.preferences(rows, data.Format(LETTERS, 20)),
    )
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b)
    parquet.write_table(pyarrow.table({"prompt": ["a", None]}), path)
    with pytest.raises(
        InvalidInput, match=r"rows.parquet, row 2: column 'prompt' is mis"
    ):
        data.prompts(data.read(path), data.Format(LETTERS))


GROWING = """
import sys
from jaxrl.rlhf import data
with data.open_append(sys.argv[1]) as (rows, append):
    print(len(rows), flush=True)
    append({"n": len(rows)})
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_growing_file_keeps_one_process_at_a_time_and_survives_its_kill(tmp_path):
    path = tmp_path / "rows.jsonl"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", GROWING, path], **pipes) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["0\n", "there\n"]
        with (
            pytest.raises(InvalidInput, match="in use by another process"),
            data.open_append(path),
        ):
            pass
        process.kill()
    with data.open_append(path, pytest.fail) as (rows, append):
        assert rows == [{"n": 0}]
        append({"n": 1})
    assert data.read(path) == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_line_written_in_part_is_cut_off(tmp_path, cut):
    path, lines, said = tmp_path / "rows.jsonl", [], []
    line = b'{"n": "\xc3\xa9"}\n'
    path.write_bytes(line + line[:cut])
    with data.open_append(path, said.append) as (rows, append):
        lines = list(rows)
        append({"n": 2})
    whole = cut >= len(line) - 1
    assert lines == [{"n": "é"}] * (1 + whole) and len(said) == (not whole)
    assert data.read(path) == [*lines, {"n": 2}]


def fail(number):
    """A function that fails as the disk does."""

    def function(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return function


def test_a_full_disk_is_named_where_a_row_is_added(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    with data.open_append(path) as (_, append):
        monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
        with pytest.raises(OSError, match=re.escape(str(path))):
            append({"n": 0})


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_disk_that_fails_is_no_bad_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.touch()
    monkeypatch.setattr("pyarrow.parquet.read_metadata", fail(errno.EIO))
    monkeypatch.setattr(files, "read_bytes", fail(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        data.read(path)


def test_a_file_that_is_another_is_left_as_it_is(tmp_path):
    for content in (b"notes, not rows", b"[1]\n", b'no\n{"n'):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="line 1 is"), data.open_append(path):
            pass
        assert path.read_bytes() == content


def test_parts_of_the_rows():
    rows = list(range(50))
    train, held_out = data.split(rows, 0.2, seed=1)
    assert len(held_out) == 10 and sorted(train + held_out) == rows
    assert train == sorted(train) and held_out == sorted(held_out)
    assert data.split(rows, 0.2, seed=1) == (train, held_out)
    assert data.split(rows, 0.2, seed=2) != (train, held_out)
    assert [len(part) for part in data.split([1, 2], 0.01, 0)] == [1, 1]
    assert [len(part) for part in data.split([1, 2], 0.99, 0)] == [1, 1]
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidInput, match="share = "):
            data.split(rows, share, 0)
    with pytest.raises(InvalidInput, match="1 row: two parts need 2"):
        data.split([1], 0.5, 0)


# Templates.


def test_templates_by_hand():
    said = [*TALK, {"role": "assistant", "content": "yes"}]
    assert chat.plain(said, False) == "be kindhiyes"
    assert chat.turns(TALK, True) == "System: be kind\nUser: hi\nAssistant:"
    assert chat.turns(said[1:], False) == "User: hi\nAssistant: yes"
    chatml = chat.template("chatml")
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chatml(TALK[1:], True) == expected
    assert chatml(said[1:], False) == expected + "yes<|im_end|>\n"
    assert chat.template(chat.plain) is chat.plain
    with pytest.raises(InvalidInput, match=r"'chatlm': must be .* mean 'chatml'"):
        chat.template("chatlm")


def test_a_template_of_hugging_face():
    render = chat.template(JINJA, bos="<s>", eos="</s>")
    assert render(TALK[1:], True) == "<s>[user]hi</s>\n[assistant]"
    with pytest.raises(InvalidInput, match=r"cannot render it \(who\?\)"):
        render(TALK, True)
    with pytest.raises(InvalidInput, match=r"template is no Jinja text: .*end of"):
        chat.template("{{ messages")
    rows = [PAIR | {"prompt": TALK}]
    with pytest.raises(InvalidInput, match=r"row 1: prompt: the template .*who"):
        data.preferences(rows, data.Format(BYTES, 99, JINJA))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_a_template_is_kept_in_its_sandbox(attack):
    with pytest.raises(InvalidInput, match="the template cannot render it"):
        chat.template(attack)(TALK, False)


@pytest.mark.parametrize(
    "attack, words",
    [
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "more than 1 s"),
        ("{{ 'a' * messages|length * 10**10 }}", "memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(99) %}"
            "{% set n.x = n.x ~ n.x %}{% endfor %}",
            "memory",
        ),
        ("{{ 'a' * 10**6 * messages|length }}", "2,000,000 characters"),
    ],
)
def test_a_template_without_an_end_is_stopped(attack, words, monkeypatch):
    monkeypatch.setattr(chat.jinja, "TIME", 1.0)
    monkeypatch.setattr(chat.jinja, "MEMORY", 1 << 28)
    monkeypatch.setattr(chat.jinja, "MOST", 1 << 20)
    monkeypatch.setattr(chat.jinja, "_worker", functools.cache(chat.jinja._Worker))
    render = chat.template(attack)
    with pytest.raises(InvalidInput, match=words):
        render(TALK, False)
    assert chat.template("{{ messages|length }}")(TALK, False) == "2"
    chat.jinja._worker().stop()


def test_jinja_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[rlhf\]'"):
        chat.template(JINJA)


# Arrays.


def test_texts_by_hand():
    found = data.texts([{"text": "abc"}, {"text": "d"}], data.Format(LETTERS))
    end, pad = LETTERS.eos, LETTERS.pad
    np.testing.assert_array_equal(found.tokens, [[0, 1, 2, end], [3, end, pad, pad]])
    np.testing.assert_array_equal(found.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(found.target, found.mask)
    assert found.tokens.dtype == np.int32 and found.mask.dtype == bool
    assert data.texts([{"text": "abc"}], data.Format(LETTERS, 9)).tokens.shape == (1, 9)
    spoken = data.texts([{"text": TALK}], data.Format(BYTES, None, template="turns"))
    assert decode(*spoken[:2], BYTES) == "System: be kind\nUser: hi$"


@pytest.mark.parametrize("length", [1, 4, 9, 10, 64])
def test_packing_drops_nothing(length):
    texts = ["abcdef", "g", "hi"]
    found = data.texts(
        [{"text": t} for t in texts], data.Format(LETTERS, length), pack=True
    )
    assert decode(found.tokens, found.mask) == "abcdef$g$hi$"
    assert found.tokens.shape == (-(-12 // length), length)
    assert found.mask[:-1].all() and (found.target == found.mask).all()
    assert (found.tokens[~found.mask] == LETTERS.pad).all()
    with pytest.raises(InvalidInput, match="packed rows need a length"):
        data.texts([{"text": "a"}], data.Format(LETTERS), pack=True)


def test_only_the_completion_is_a_target():
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "a", "completion": "b"}]
    found = data.completions(rows, data.Format(LETTERS, 6))
    assert [decode(*x) for x in zip(*found[:2], strict=True)] == ["abcd$", "ab$"]
    targets = [decode(*x) for x in zip(found.tokens, found.target, strict=True)]
    assert targets == ["cd$", "b$"]
    # What is said of the prompt, and behind the response, is not in the loss.
    logits = jnp.full((1, 6, LETTERS.vocab_size), jnp.nan).at[:, 1:4].set(0.0)
    loss = text_losses.next_token_loss(logits, found.tokens[:1], found.target[:1])
    np.testing.assert_allclose(loss, np.log(LETTERS.vocab_size), rtol=1e-6)


@pytest.mark.parametrize("template", ["plain", "turns", "chatml", JINJA])
def test_a_prompt_has_the_same_tokens_wherever_it_stands(template):
    rows = [{"prompt": "ab", "completion": "cd", "chosen": "e", "rejected": "f"}]
    prompt = data.prompts(rows, data.Format(BYTES, None, template)).tokens[0]
    for tokens in (
        data.completions(rows, data.Format(BYTES, None, template)).tokens[0],
        *data.preferences(rows, data.Format(BYTES, None, template)).tokens[0],
    ):
        np.testing.assert_array_equal(tokens[: len(prompt)], prompt)


def test_an_end_that_the_template_writes_is_not_written_twice():
    text = "{% for m in messages %}{{ m.content }}.\n{% endfor %}"
    dotted = LETTERS._replace(eos=LETTERS.encode(".")[0])
    row = [{"prompt": "ab", "completion": "c"}]
    found = data.completions(row, data.Format(dotted, None, text))
    np.testing.assert_array_equal(found.tokens[0], LETTERS.encode("ab.\nc."))
    # An end inside is no end.
    row = [{"prompt": "ab", "completion": "c.d"}]
    found = data.completions(row, data.Format(dotted))
    np.testing.assert_array_equal(found.tokens[0], LETTERS.encode("abc.d."))


def test_pairs_by_hand():
    rows = [PAIR, {"prompt": "g", "chosen": "h", "rejected": "ij"}]
    found = data.preferences(rows, data.Format(LETTERS, 7))
    assert found.tokens.shape == (2, 2, 7) and found.margin.tolist() == [0.0, 0.0]
    texts = [
        [decode(*x) for x in zip(*row, strict=True)]
        for row in zip(found.tokens, found.mask, strict=True)
    ]
    assert texts == [["abcde$", "abf$"], ["gh$", "gij$"]]
    assert decode(found.tokens[0], found.response[0]) == "cde$f$"
    with_margin = [row | {"margin": i} for i, row in enumerate(rows)]
    assert data.preferences(with_margin, data.Format(LETTERS, 7)).margin.tolist() == [
        0.0,
        1.0,
    ]


def test_rankings_are_best_first():
    rows = [{"prompt": "a", "ranked": ["b", "cc", "d"]}] * 2
    found = data.rankings(rows, data.Format(LETTERS))
    assert found.tokens.shape == (2, 3, 4) and found.margin.shape == (2,)
    assert decode(found.tokens[1], found.response[1]) == "b$cc$d$"


def test_prompts_are_padded_on_the_left():
    rows = [{"prompt": "abc"}, {"prompt": [{"role": "user", "content": "d"}]}]
    found = data.prompts(rows, data.Format(LETTERS._replace(eos=None), 4))
    np.testing.assert_array_equal(found.mask, [[0, 1, 1, 1], [0, 0, 0, 1]])
    assert [decode(*x) for x in zip(*found, strict=True)] == ["abc", "d"]


def preferences(row):
    before = PAIR | {"margin": 0} if "margin" in row else PAIR
    return data.preferences([before, row], data.Format(LETTERS, 8))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"chosen": None}, "column 'chosen' is missing"),
        ({"prompt": ""}, "prompt is empty: fill it in, or remove"),
        ({"rejected": ""}, "rejected is empty"),
        ({"chosen": []}, "chosen is empty"),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "chosen is empty"),
        ({"prompt": 3}, "prompt = 3: must be text, or a list of messages"),
        ({"prompt": ["a"]}, r"prompt = \['a'\]: must be text"),
        (
            {"prompt": [{"role": "user"}]},
            r"prompt = \[.*\]: must be text, or a list of messages",
        ),
        ({"chosen": b"x" * 99}, r"chosen = b'x{55}\.\.\.: must be text"),
        ({"rejected": "cde"}, "chosen and rejected are the same"),
        ({"chosen": "1e2"}, "chosen has characters without a token: '1', '2'; replace"),
        ({"chosen": "\ud800"}, r"chosen is no Unicode \("),
        ({"margin": float("nan")}, "margin = nan: must be a finite number"),
        ({"margin": 10**400}, "margin = 10*.*: must be a finite number"),
        ({"margin": "1"}, "margin = '1': must be a finite number"),
        ({"margin": None}, "column 'margin' is missing, which other rows have"),
        (
            {"rejected": "abcdef"},
            "prompt and rejected have 9 tokens, 1 more than max_l",
        ),
    ],
)
def test_bad_pairs(change, problem):
    with pytest.raises(InvalidInput, match=f"^row 2: {problem}"):
        preferences(PAIR | change)


def test_other_bad_rows(tmp_path):
    row = data.read(jsonl(tmp_path, b"", {"prompts": "a", "completion": "b"}))
    with pytest.raises(InvalidInput, match=r"jsonl, line 2: .* mean 'prompts'"):
        data.completions(row, data.Format(LETTERS, 8))
    with pytest.raises(InvalidInput, match="row 1: column 'margin' is missing"):
        data.preferences([PAIR, PAIR | {"margin": 1.0}], data.Format(LETTERS, 8))
    for ranked in ("ab", ["a"], 3):
        with pytest.raises(InvalidInput, match=r"ranked = .*: must be a list of two"):
            data.rankings([{"prompt": "a", "ranked": ranked}], data.Format(LETTERS, 8))
    with pytest.raises(InvalidInput, match=r"ranked\[0\] and ranked\[2\] are the same"):
        data.rankings(
            [{"prompt": "a", "ranked": ["b", "c", "b"]}], data.Format(LETTERS, 8)
        )
    rows = [{"prompt": "a", "ranked": list("bcd"[:k])} for k in (3, 2)]
    with pytest.raises(
        InvalidInput, match="row 2: ranked has 2 responses, the first row"
    ):
        data.rankings(rows, data.Format(LETTERS, 8))
    with pytest.raises(InvalidInput, match="there are no rows"):
        data.prompts([], data.Format(LETTERS, 8))
    with pytest.raises(InvalidInput, match="the tokenizer has no eos"):
        data.completions([PAIR], data.Format(LETTERS._replace(eos=None), 8))
    with pytest.raises(InvalidInput, match="max_length = 0: must be at least 1"):
        data.prompts([PAIR], data.Format(LETTERS, 0))
    backwards = "{% for m in messages|reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(InvalidInput, match="writes the prompt differently"):
        data.preferences([PAIR], data.Format(LETTERS, 8, backwards))


def test_long_rows_are_dropped_only_where_that_is_said():
    rows = [{"text": "a" * n} for n in (3, 9, 2, 8)]
    with pytest.raises(
        InvalidInput, match=r"row 2: text has 10 tokens, 2 more .* too_lon"
    ):
        data.texts(rows, data.Format(LETTERS, 8))
    said: list[str] = []
    found = data.texts(
        rows, data.Format(LETTERS, 8, too_long="drop", report=said.append)
    )
    assert found.mask.sum(1).tolist() == [4, 3]
    assert said == [
        "2 of 4 rows dropped, longer than max_length = 8 tokens: the first is row 2."
    ]
    with pytest.raises(InvalidInput, match="max_length = 1: every row is longer"):
        data.texts(rows, data.Format(LETTERS, 1, too_long="drop", report=said.append))
    with pytest.raises(InvalidInput, match="too_long = 'cut': must be one of"):
        data.texts(rows, data.Format(LETTERS, 8, too_long="cut"))
    # The margin stays with its row.
    rows = [PAIR | {"chosen": "a" * n, "margin": n} for n in (3, 9, 2)]
    pairs = data.preferences(
        rows, data.Format(LETTERS, 8, too_long="drop", report=said.append)
    )
    assert pairs.margin.tolist() == [3.0, 2.0] and len(pairs.tokens) == 2


def test_special_tokens_in_a_message_are_text(tmp_path):
    """A prompt that holds the name of EOS must not end there."""
    content = json.loads((GPT2_TOKENIZER).read_text())
    letters = "<>eos/ "
    known = content["model"]["vocab"]
    content["model"]["vocab"] |= {
        x: len(known) + i for i, x in enumerate(x for x in letters if x not in known)
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = tokenizers.from_file(path, eos="<eos>")
    row = {"prompt": "a<eos>b", "completion": "no<eos>"}
    for template in ("plain", "{% for m in messages %}{{ m.content }}{% endfor %}"):
        found = data.completions([row], data.Format(tokenizer, template=template))
        tokens = found.tokens[0][found.mask[0]].tolist()
        assert tokens.count(tokenizer.eos) == 1 and tokens[-1] == tokenizer.eos
        assert tokenizer.decode(tokens) == "a<eos>bno<eos>"
    written = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    found = data.prompts([row], data.Format(tokenizer, template=written))
    assert found.tokens[0].tolist().count(tokenizer.eos) == 1
    found = data.prompts([row], data.Format(tokenizer, template="rendered"))
    assert found.tokens[0].tolist().count(tokenizer.eos) == 1
    found = data.texts([{"text": "a<eos>b"}], data.Format(tokenizer))
    assert found.tokens[0].tolist().count(tokenizer.eos) == 2
