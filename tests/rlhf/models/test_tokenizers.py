"""Text to tokens and back, and what has no token."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl.errors import InvalidInput
from jaxrl.pipelines.rlhf import writing
from jaxrl.rlhf.models import tokenizers
from tests.support.language import GPT2
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "language"


@given(st.text(max_size=20))
def test_bytes_are_those_of_utf8(text):
    tokenizer = tokenizers.bytes_of_text()
    tokens = tokenizer.encode(text)
    assert tokens == list(text.encode()) and tokenizer.decode(tokens) == text


def test_bytes_by_hand():
    tokenizer = tokenizers.bytes_of_text()
    assert tokenizer.encode("aé") == [97, 195, 169]
    assert tokenizer[2:5] == (258, 256, 257)
    assert tokenizer.decode(np.array([257, 97, 195, 256])) == "a�"
    with pytest.raises(InvalidInput, match=r"token \[258\].*258 tokens"):
        tokenizer.decode([258])


def test_characters_by_hand():
    tokenizer = tokenizers.characters("ab ")
    assert tokenizer.encode("b a") == [1, 2, 0] and tokenizer[2:5] == (5, 3, 4)
    assert tokenizer.decode([4, 1, 2, 0, 3]) == "b a"
    with pytest.raises(InvalidInput, match=r"'bcd' has characters .* token: 'c', 'd'"):
        tokenizer.encode("bcd")
    with pytest.raises(InvalidInput, match="must have a character"):
        tokenizers.characters("")
    with pytest.raises(InvalidInput, match=r"has \['a'\] more than once"):
        tokenizers.characters("aba")


def test_words_by_hand():
    tokenizer = tokenizers.words(["a", "cat", "."])
    assert tokenizer.encode("cat a .") == [1, 0, 2] and tokenizer[2:5] == (4, 3, 3)
    assert tokenizer.encode("") == [] and tokenizer.decode([3]) == ""
    assert tokenizer.decode(np.array([3, 0, 1, 3])) == "a cat"
    with pytest.raises(InvalidInput, match=r"token \[4\].*4 tokens"):
        tokenizer.decode([4])
    with pytest.raises(InvalidInput, match=r"has words without a token: 'dog', 'cow'"):
        tokenizer.encode("a dog cow dog")
    with pytest.raises(InvalidInput, match="has words without a token: ''"):
        tokenizer.encode("a  cat")


@pytest.mark.parametrize(
    "vocabulary, words",
    [
        ([], "must have a word"),
        (["a", "b", "a"], r"has \['a'\] more than once"),
        (["a", "b c", ""], r"\['b c', ''\] must be words without spaces"),
        (["a\n"], "must be words without spaces"),
    ],
)
def test_vocabularies_that_cannot_be(vocabulary, words):
    with pytest.raises(InvalidInput, match=words):
        tokenizers.words(vocabulary)


def test_a_tokenizer_of_a_file():
    path = GOLDEN / "gpt2" / "tokenizer.json"
    tokenizer = tokenizers.from_file(path, eos="<eos>", pad=0)
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    tokens = tokenizer.encode("the cat.")
    assert tokens == [vocabulary[x] for x in "the cat."]
    assert tokenizer[2:5] == (max(vocabulary.values()) + 1, 1, 0)
    assert tokenizer.decode([0, *tokens, 1]) == "the cat."
    assert tokenizers.from_file(path, eos=1).pad == 1
    # The package itself drops what it does not know.
    with pytest.raises(InvalidInput, match=r"characters without a token: 'é', '7'"):
        tokenizer.encode("thé cat 7")
    with pytest.raises(InvalidInput, match="eos = '</s>': there is no such token"):
        tokenizers.from_file(path, eos="</s>")


def test_a_token_for_the_unknown_is_no_token(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[UNK]": 0, "cat": 1, "dog": 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.encode("dog cat") == [2, 1] and tokenizer.eos is None
    with pytest.raises(InvalidInput, match="without a token: 'c', 'o', 'w'"):
        tokenizer.encode("dog cow")


def test_files_that_are_none(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    for missing in (path, tmp_path / "none.json"):
        with pytest.raises(InvalidInput, match=rf"{missing.name} is no tokenizer.json"):
            tokenizers.from_file(missing)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[rlhf\]'"):
        tokenizers.from_file(path)


def test_a_model_must_know_every_token():
    tokenizers.check_vocabulary(tokenizers.characters("abcdefghi"), GPT2)
    bigger = dataclasses.replace(GPT2, vocab_size=300)
    tokenizers.check_vocabulary(tokenizers.bytes_of_text(), bigger)
    with pytest.raises(InvalidInput, match=r"has 258 tokens, .* vocab_size is 11"):
        tokenizers.check_vocabulary(tokenizers.bytes_of_text(), GPT2)


def test_a_token_that_only_the_model_has_can_be_shown():
    """The golden GPT-2 has 41 tokens and 33 in its tokenizer, as padded tables do."""
    known = tokenizers.characters("ab")
    assert tokenizers.to_text(known, np.array([0, 9, 4, 1, known.eos])) == "a��b"
    with pytest.raises(InvalidInput, match="does not exist"):
        known.decode([9])
    done = writing.respond(str(GOLDEN / "gpt2"), "a", 8, 16, 1.0, None, None, False, 0)
    assert any("�" in text for text in done)


def test_prompts_are_padded_on_the_left():
    tokens, mask = tokenizers.pad_rows([[1, 2, 3], [4]], pad=9)
    np.testing.assert_array_equal(tokens, [[1, 2, 3], [9, 9, 4]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 1]])
    assert tokenizers.pad_rows([[1]], 0, length=4)[0].tolist() == [[0, 0, 0, 1]]
    with pytest.raises(InvalidInput, match="prompt 1 is empty"):
        tokenizers.pad_rows([[1], []], 0)
    with pytest.raises(InvalidInput, match="prompt 0 has 3 tokens: at most 2 fit"):
        tokenizers.pad_rows([[1, 2, 3]], 0, length=2)


def test_equal_tokenizers_are_equal():
    one, other = tokenizers.characters("ab"), tokenizers.characters("ab", own_pad=True)
    assert one == other and hash(one) == hash(other) and not one.__ne__(other)
    assert one != tokenizers.characters("ab", own_pad=False) and one != "ab"
    assert tokenizers.bytes_of_text() == tokenizers.bytes_of_text()


@pytest.fixture
def stored(tmp_path):
    """Saves a byte-level tokenizer in which a program left some state, and reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    whole.train_from_iterator(["hello world this is a test"] * 5, trainer)
    path = tmp_path / "tokenizer.json"

    def make(change=lambda whole: None, **fields):
        other = Tokenizer.from_str(whole.to_str())
        change(other)
        path.write_text(json.dumps(json.loads(other.to_str()) | fields))
        return tokenizers.from_file(path, eos="<eos>", pad="<pad>")

    return make


def test_state_in_which_a_file_was_stored_is_left_out(stored):
    text, plain = "hello world " * 3, stored()
    expected = plain.encode(text)
    assert plain.decode(expected) == text
    for change in (
        lambda t: t.enable_padding(pad_id=1, pad_token="<pad>", length=32),
        lambda t: t.enable_truncation(max_length=1),
        lambda t: t.enable_truncation(max_length=2, direction="left"),
        lambda t: setattr(t.model, "dropout", 0.9),
    ):
        found = stored(change)
        assert found.encode(text) == expected and found == plain
    ends = {"Sequence": {"id": "A", "type_id": 0}}
    twice = {"type": "TemplateProcessing", "single": [ends] * 3, "pair": [ends] * 2}
    assert (
        stored(post_processor=twice | {"special_tokens": {}}).encode(text) == expected
    )
    again = tokenizers.from_about(json.loads(plain.about))
    assert again == plain and again.encode(text) == expected


def test_what_is_unknown_is_said_by_the_model_and_not_by_offsets(stored, tmp_path):
    """A normaliser that removes or joins characters leaves them without offsets."""
    strip = {
        "type": "Sequence",
        "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}],
    }
    tokens = stored(normalizer=strip).encode
    assert tokens("e\u0301te\u0301") == tokens("ete") == tokens("été")
    gone = {"type": "Replace", "pattern": {"String": "#"}, "content": ""}
    assert stored(normalizer=gone).encode("#a#") == stored().encode("a")
    # Two letters of four: the model drops the others, and would say nothing.
    path = tmp_path / "letters.json"
    content = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    letters = tokenizers.from_file(path)
    assert letters.encode("abba") == [0, 1, 1, 0]
    for text, character in (("ab\nab", r"'\\n'$"), ("abé", "'é'$")):
        with pytest.raises(InvalidInput, match=rf"{character[:-1]}\.$"):
            letters.encode(text)


def test_special_tokens_in_a_shielded_text_are_text(stored):
    tokenizer = stored()
    assert tokenizer.special == ("<eos>", "<pad>")
    evil = "is <eos> a<pad>"
    hidden = tokenizers.shield(tokenizer, evil)
    tokens = tokenizer.encode(f"hello{hidden}<eos>")
    assert tokens.count(tokenizer.eos) == 1 and tokens[-1] == tokenizer.eos
    assert tokenizer.pad not in tokens and tokenizer.decode(tokens) == f"hello{evil}"
    assert tokenizers.unshield(hidden) == evil
    assert tokenizer.encode(tokenizers.shield(tokenizer, "hello")) == tokenizer.encode(
        "hello"
    )
    with pytest.raises(InvalidInput, match="no character"):
        tokenizers.shield(tokenizer, "a\ufdd0")


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
            "emp",
        ),
        (
            {"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}},
            "4000",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}, "whole number"),
        ({"model": None}, "no tokenizer.json"),
        ({"model": {"type": "BPE", "vocab": 3}}, "no tokenizer.json"),
        ({"added_tokens": [{"id": -5, "content": "x"}]}, "id -5"),
        ({"added_tokens": 7}, "no tokenizer.json"),
        ({"normalizer": {"type": "Sequence", "normalizers": 3}}, "no tokenizer.json"),
        ({"normalizer": {"type": "Nothing"}}, "no tokenizer.json"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [
                        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
                    ]
                    * 30,
                }
            },
            "bytes of one",
        ),
    ],
)
def test_a_file_that_would_end_the_process_is_refused(stored, fields, words):
    with pytest.raises(InvalidInput, match=words):
        stored(**fields)


def test_an_expression_that_does_not_end_is_refused(stored, capfd):
    """The library panics when its search gives up: that is no `Exception`."""
    looping = {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "b"}
    with pytest.raises(InvalidInput, match="cannot encode"):
        stored(normalizer=looping).encode("a" * 40 + "b")
    big = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    with pytest.raises(InvalidInput, match="100,000 characters"):
        stored(normalizer=big).encode("a" * 100_000)
