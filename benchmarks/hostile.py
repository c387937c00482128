"""Cases for the readers of text models and of HTTP, as strangers might send them.

Each line of `READERS` makes whole files in a folder, draws hostile ones by name, and reads
the folder; `benchmarks/fuzz.py` runs them. Reading returns where a case is accepted and
raises `InvalidInput` where it is refused; anything else is a fault.
"""

import contextlib
import functools
import io
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from tests.support.paths import GOLDEN

LANGUAGE = GOLDEN / "language"
Files = dict[str, bytes]


class Reader(NamedTuple):
    """Whole files, hostile ones, and what reads them."""

    make: Callable[[Path], object]
    draw: Callable[[random.Random], Files]
    read: Callable[[Path], object]


# JSON and bytes.

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 0.5, 1e308, 10**6, 10**12, 10**30, -(10**30)),
    *(
        "",
        "x",
        "..",
        "/etc/passwd",
        "\x1b[31m",
        "\x00",
        "é" * 3,
        "a" * 10_000,
        "\ufdd0",
    ),
    *([], [1], [None], [[]], {}, {"a": 1}, {"": {}}, [0] * 1_000, [["a", 1.0]]),
)


def spoil_value(rng: random.Random, whole: Any) -> Any:
    """JSON with one of its parts changed, removed, renamed or wrapped."""
    parent, place, part = None, None, whole
    while isinstance(part, dict | list) and part and rng.random() < 0.8:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        parent, place = part, rng.choice(keys)
        part = parent[place]
    if parent is None:
        return rng.choice(VALUES)
    way = rng.choice(("value", "value", "value", "remove", "wrap", "twice"))
    if way == "remove":
        del parent[place]
    elif way == "wrap":
        parent[place] = {"type": "Sequence", "normalizers": [part] * rng.choice((1, 9))}
    elif way == "twice" and isinstance(parent, list):
        parent.extend([part] * rng.choice((1, 30)))
    else:
        parent[place] = rng.choice(VALUES)
    return whole


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut off, put in or doubled."""
    found = bytearray(content or b" ")
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(found) + 1)
        way = rng.choice(("flip", "flip", "cut", "insert", "double"))
        if way == "flip" and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif way == "cut" and rng.random() < 0.2:
            del found[place:]
        elif way == "insert":
            found[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
        elif way == "double":
            found[place:place] = found[place : place + rng.choice((1, 30))]
        found = found or bytearray(b" ")
    return bytes(found)


def nested(rng: random.Random) -> bytes:
    """A document that is deeper, longer or emptier than any that is meant."""
    texts = (
        "",
        "null",
        "5",
        "[1]",
        "{}",
        "NaN",
        "\ufeff{}",
        '"\\ud800"',
        "[" * 100_000,
    )
    return rng.choice((*texts, '{"a":' * 100_000, "1" * 5_000)).encode()


# Tokenizers.

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
RULES: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100},
    {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "ab"},
    {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
    {"type": "Prepend", "prepend": "b" * 50},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAA" + "YWFh" * 9},
    *(
        {"type": name}
        for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt") * 2
    ),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "StripAccents"},
    {"type": "ByteLevel"},
)
SPLITS: tuple[dict[str, Any], ...] = (
    {"type": "Split", "pattern": {"Regex": "(a+)+c"}, "behavior": "Isolated"},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
    {"type": "Whitespace"},
    {"type": "Digits", "individual_digits": True},
)


LETTERS = {x: i for i, x in enumerate("abcdexyz _01")}


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of a few letters."""
    model = {"type": "BPE", "vocab": LETTERS, "merges": []}
    content = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def draw_tokenizer(rng: random.Random) -> Files:
    """A small tokenizer of some kind, with rules, one thing or several wrong with it."""
    return {"tokenizer.json": _tokenizer(rng)}


def _tokenizer(rng: random.Random) -> bytes:
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": rng.choice((None, {"max_length": 1, "stride": 10**9})),
        "padding": rng.choice((None, {"strategy": {"Fixed": 10**7}, "pad_id": 0})),
        "added_tokens": [{"id": 12, "content": "</s>", "special": True} | ADDED],
        "normalizer": _sequence(rng, "normalizers", RULES),
        "pre_tokenizer": _sequence(rng, "pretokenizers", SPLITS),
        "post_processor": rng.choice((None, {"type": "ByteLevel"}, {"type": "x"})),
        "decoder": rng.choice(
            (None, {"type": "Fuse"}, RULES[0], {"type": "ByteLevel"})
        ),
        "model": rng.choice(
            (
                {"type": "BPE", "vocab": LETTERS, "merges": []},
                {"type": "BPE", "vocab": LETTERS | {"ab": 13}, "merges": [["a", "b"]]},
                {"type": "WordLevel", "vocab": LETTERS, "unk_token": "a"},
                {"type": "WordPiece", "vocab": LETTERS, "unk_token": "a"},
                {"type": "Unigram", "vocab": [[x, -1.0] for x in LETTERS], "unk_id": 0},
            )
        ),
    }
    way = rng.random()
    if way < 0.1:
        return nested(rng)
    if way < 0.2:
        return spoil_bytes(rng, json.dumps(content).encode())
    if way < 0.3 and isinstance(content["model"]["vocab"], dict):
        content["model"]["vocab"] |= {"e": rng.choice((-1, 10**6, 2**32 - 1, 2**32))}
    if way < 0.85:
        content = json.loads(json.dumps(content))
        for _ in range(rng.choice((0, 0, 1, 1, 3))):
            if isinstance(content, dict):
                content = spoil_value(rng, content)
    return json.dumps(content).encode()


def _sequence(rng: random.Random, name: str, rules: tuple[dict[str, Any], ...]) -> Any:
    chosen = rng.choices(rules, k=rng.choice((0, 0, 1, 1, 2, 5)))
    if not chosen:
        return None
    repeated = [x for x in chosen for _ in range(rng.choice((1, 1, 1, 8)))]
    return {"type": "Sequence", name: repeated}


TEXTS = (
    "",
    "ab",
    "a b</s>c",
    "é\u0301\u202e",
    "a" * 1_000,
    "x" * 100 + "c",
    "\ufdfa" * 20,
)


def read_tokenizer(folder: Path) -> None:
    """Load it, encode texts, decode all tokens, and make it again from its `about`."""
    from jaxrl.errors import InvalidInput
    from jaxrl.rlhf.models import tokenizers

    tokenizer = tokenizers.from_file(folder / "tokenizer.json", eos=0)
    again = tokenizers.from_about(json.loads(tokenizer.about))
    assert again == tokenizer
    refused = []
    for text in TEXTS:
        try:
            tokens = tokenizer.encode(text)
            tokenizer.encode(tokenizers.shield(tokenizer, text))
        except InvalidInput as error:
            refused.append(error)
            continue
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert again.encode(text) == tokens
        tokenizers.to_text(tokenizer, tokens)
    tokenizer.decode(range(min(tokenizer.vocab_size, 100)))
    if len(refused) == len(TEXTS) - 1:  # of "" there is nothing to refuse
        raise refused[0]


# Chat templates.

PARTS = (
    *("messages", "messages[0]", "messages[0].content", "bos_token", "namespace()"),
    *("'a'", "1", "10**9", "2**10**6", "range(99999)", "lipsum(n=50)", "cycler('a')"),
    *("''.__class__.__mro__", "messages.append(1)", "self", "joiner", "dict(a=1)"),
    *("messages.__init__.__globals__", "[].__class__.__base__.__subclasses__()"),
)
FILTERS = (
    *("|length", "|tojson", "|list", "|join", "|upper", "|trim", "|batch(9)|list"),
    *("|center(10**9)", "|replace('', 'a' * 10**6)", "|indent(10**8)", "|int * 'b'"),
    *("|format(1)", "|attr('__class__')", "|random", "|sort", "|pprint", " * 10**9"),
    *(" * 10**5 * 10**5", " ~ 'a' * 10**7", "|wordwrap(1)", "|map('upper')|list"),
)
BLOCKS = (
    ("{% for a in range(99999) %}", "{% endfor %}"),
    ("{% for a in messages %}", "{% endfor %}"),
    (
        "{% set x = namespace(y='ab') %}{% for a in range(64) %}",
        "{% set x.y = x.y ~ x.y %}",
    ),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ""),
    ("{% if messages %}", "{% else %}no{% endif %}"),
    ("{% import 'os' as o %}", ""),
    ("{% include '/etc/passwd' %}", ""),
    ("{% filter upper %}", "{% endfilter %}"),
    ("{% raw %}", "{% endraw %}"),
    ("{% while true %}", "{% endwhile %}"),
)


def make_template(folder: Path) -> None:
    """A template that shows the first message."""
    (folder / "template").write_text("{{ messages[0].content }}", encoding="utf-8")


def draw_template(rng: random.Random) -> Files:
    """Expressions and blocks, one inside another, some of them damaged."""

    def expression(depth: int) -> str:
        part = rng.choice(PARTS) + "".join(
            rng.choices(FILTERS, k=rng.choice((0, 1, 2)))
        )
        return part if depth == 0 else f"({part}) ~ ({expression(depth - 1)})"

    def text(depth: int) -> str:
        inside = f"{{{{ {expression(rng.choice((0, 0, 1)))} }}}}"
        if depth == 0:
            return inside
        begin, end = rng.choice(BLOCKS)
        return f"{begin}{text(depth - 1)}{inside if rng.random() < 0.3 else ''}{end}"

    found = text(rng.choice((0, 1, 2, 3)))
    if rng.random() < 0.05:
        found = "{{" + "(" * 5_000 + "1" + ")" * 5_000 + "}}"
    if rng.random() < 0.2:
        found = spoil_bytes(rng, found.encode()).decode(errors="replace")
    return {"template": (found + "{{ '' }}").encode()}


def read_template(folder: Path) -> None:
    """Render two messages; less time than users have, so that many cases are quick."""
    from jaxrl.rlhf.models import chat, jinja

    with mock.patch.object(jinja, "TIME", 0.5):
        text = (folder / "template").read_text(encoding="utf-8")
        chat.template(text, eos="</s>")(
            [
                {"role": "user", "content": "is it so?"},
                {"role": "assistant", "content": "yes </s>"},
            ],
            True,
        )


# Parquet.


def make_parquet(folder: Path) -> None:
    """One row."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"prompt": ["a"]}), folder / "rows.parquet")


def draw_parquet(rng: random.Random) -> Files:
    """A file whose rows are few, or far more than it has bytes, whole or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = rng.choice((1, 5, 5, 50, 2_000, 20_000))
    text = rng.choice(("ab", "é" * 50, "a" * 100_000))
    places = pa.array(np.zeros(rows, np.int32))
    texts = pa.DictionaryArray.from_arrays(places, pa.array([text]))
    ends = pa.array([0, *([rows] * (rows if rows < 100 else 1))], pa.int32())
    columns: dict[str, Any] = {
        "prompt": texts,
        "completion": texts.dictionary_decode() if rows * len(text) < 10**6 else texts,
        "margin": pa.array(np.arange(rows) / 7),
        "other": pa.nulls(rows, pa.string()),
        "talk": pa.StructArray.from_arrays([texts, texts], ["role", "content"]),
        "when": pa.array(np.full(rows, 2**62), pa.timestamp("ns", "Nowhere/None")),
        "day": pa.array(np.full(rows, 2**30, np.int32), pa.date32()),
        "raw": pa.DictionaryArray.from_arrays(places, pa.array([b"\xff\x00"])),
    }
    if rng.random() < 0.3:
        columns = {"ranked": pa.ListArray.from_arrays(ends, texts)}
    else:
        names = rng.sample(sorted(columns), rng.choice((1, 2, 4)))
        columns = {name: columns[name] for name in names}
    stream = io.BytesIO()
    parquet.write_table(
        pa.table(columns),
        stream,
        compression=rng.choice(("none", "snappy", "zstd", "gzip")),
        row_group_size=rng.choice((None, 1_000)),
        use_dictionary=rng.random() < 0.8 or rows * len(text) > 10**6,
    )
    content = stream.getvalue()
    content = spoil_bytes(rng, content) if rng.random() < 0.7 else content
    return {"rows.parquet": content}


def read_parquet(folder: Path) -> None:
    """All rows."""
    from jaxrl.rlhf import data

    data.read(folder / "rows.parquet")


# Folders of Hugging Face.

KINDS = ("gpt2", "llama", "llama3")
SIZES = (
    *("n_layer", "n_embd", "n_head", "n_positions", "n_inner", "vocab_size"),
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "intermediate_size", "max_position_embeddings"),
    *("eos_token_id", "pad_token_id", "rope_parameters", "model_type"),
    *("layer_norm_epsilon", "rms_norm_eps", "tie_word_embeddings"),
)


def make_folders(folder: Path) -> None:
    """The golden folders, and which of them is read."""
    for kind in KINDS:
        shutil.copytree(LANGUAGE / kind, folder / kind)
    (folder / "kind").write_text(KINDS[0], encoding="utf-8")


def draw_folder(rng: random.Random) -> Files:
    """Which folder is read, and one of its files."""
    kind = rng.choice(KINDS)
    paths = sorted(path.name for path in (LANGUAGE / kind).iterdir())
    name = rng.choice([*paths, *(["config.json"] * len(paths))])
    content = (LANGUAGE / kind / name).read_bytes()
    if rng.random() < 0.05:
        content = nested(rng)
    elif not name.endswith(".json"):
        head = 8 + int.from_bytes(content[:8], "little")
        spoiled = spoil_bytes(rng, content[:head]) + content[head:]
        content = spoiled if rng.random() < 0.7 else spoil_bytes(rng, content)
    elif rng.random() < 0.15:
        content = spoil_bytes(rng, content)
    else:
        found = json.loads(content)
        if name == "config.json" and rng.random() < 0.6:
            found[rng.choice(SIZES)] = rng.choice(VALUES)
        else:
            found = spoil_value(rng, found)
        content = json.dumps(found).encode()
    return {"kind": kind.encode(), f"{kind}/{name}": content}


def read_folder(folder: Path) -> None:
    """The model with its tokenizer."""
    from jaxrl.rlhf.models import language_model

    language_model.load(folder / (folder / "kind").read_text(encoding="utf-8"))


# HTTP.

BODIES = (
    b'{"obs": [0.0]}',
    b'{"obs": [[0.5], [true]]}',
    b'{"obs": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"obs": [1e999]}',
    b'{"obs": {"a": 1}, "memory": 0}',
    b"\xff\xfe",
    b"",
)
HEADERS = (
    *("Host: localhost", "Host: evil.example", "Host :localhost", "host:localhost"),
    *("Content-Length: 14", "Content-Length : 60", "Content-Length: +14"),
    *("Content-Length: 99999999999999999999", "Content-Length: 14, 14"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding : chunked"),
    *("Expect: 100-continue", "Connection: close", "Upgrade: websocket", " folded"),
    *(
        "Origin: null",
        "X\x00: a",
        ": a",
        "no colon",
        "X: " + "a" * 70_000,
        "\xe9: \xff",
    ),
    *("X: a\r", "Content-Length: 14\nHost: localhost"),
)
LINES = (
    *("POST /act HTTP/1.1", "GET /health HTTP/1.1", "GET /health HTTP/1.0", "GET /"),
    *("HEAD /health HTTP/1.1", "BREW /act HTTP/1.1", "POST  /act  HTTP/1.1"),
    *(
        "POST /act HTTP/9.9",
        "POST //act HTTP/1.1",
        "GET /" + "a" * 70_000 + " HTTP/1.1",
    ),
    *(
        "GET http://evil.example/health HTTP/1.1",
        "\x00",
        "PRI * HTTP/2.0",
        "GET /../act",
    ),
)


PAGE_BODIES = (
    b'{"number": 0, "choice": 1}',
    b'{"number": 0, "choice": null}',
    b'{"number": true, "choice": false}',
    b'{"number": 1e999, "choice": 1' + b"0" * 600 + b"}",
    b'{"number": 0}',
    b"[" * 9_000,
    *BODIES[-2:],
)
PAGE_LINES = (
    *("POST /choice HTTP/1.1", "GET /question HTTP/1.1"),
    *("GET /?token=TOKEN HTTP/1.1", "GET /?token=\xe9&token=TOKEN HTTP/1.1", *LINES),
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
QUESTION = b"GET /question HTTP/1.1\r\nHost: HOST\r\nX-Token: TOKEN\r\n\r\n"


def make_request(folder: Path) -> None:
    """A request of each kind."""
    (folder / "policy.http").write_bytes(HEALTH)
    (folder / "page.http").write_bytes(QUESTION)


def draw_policy_request(rng: random.Random) -> Files:
    """A request to `jaxrl serve`, or several in a row."""
    return {"policy.http": _requests(rng, LINES, ("Host: localhost",), BODIES)}


def draw_page_request(rng: random.Random) -> Files:
    """A request to the labelling page, or several in a row."""
    usual = ("Host: HOST", "X-Token: TOKEN")
    return {"page.http": _requests(rng, PAGE_LINES, usual, PAGE_BODIES)}


def _requests(
    rng: random.Random,
    choices: Sequence[str],
    usual: Sequence[str],
    bodies: Sequence[bytes],
) -> bytes:
    """One request or several in a row, whole or damaged."""
    found = b""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        body = rng.choice(bodies)
        lines = [rng.choice(choices[:2] if rng.random() < 0.6 else choices)]
        if rng.random() < 0.8:
            lines += usual
        if rng.random() < 0.7:
            lines.append(f"Content-Length: {len(body)}")
        lines += rng.choices(HEADERS, k=rng.choice((0, 0, 1, 1, 3)))
        lines += ["X: a"] * rng.choice((0, 0, 0, 200))
        end = rng.choice(("\r\n", "\r\n", "\r\n", "\n"))
        found += (end.join(lines) + 2 * end).encode("latin1") + body
    return spoil_bytes(rng, found) if rng.random() < 0.3 else found


@functools.cache
def server() -> Any:
    """A server of a policy that always takes action 0; it ends with the process."""
    import jax.numpy as jnp

    import jaxrl
    from jaxrl.core import http_server
    from jaxrl.deployment.serving import Limits, Service, _Handler
    from jaxrl.runs.policy import Policy

    def act(config: Any, env: Any, agent: Any, obs: Any, *rest: Any) -> Any:
        return jnp.zeros(len(obs), jnp.int32), (), {}

    algorithm: Any = SimpleNamespace(
        name="zero", act=act, init_memory=lambda config, env, n: ()
    )
    env = jaxrl.make("probe/action")
    env = env.replace(observation_space=jaxrl.spaces.box(-1, 1, (1,)))
    found = http_server.open_server(Service, _Handler, http_server.LOCAL, 0)
    policy = Policy(algorithm, None, env, ())
    found.begin(policy, True, 0, Limits(max_batch=2, max_body=4096))
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    return found


@functools.cache
def page_server() -> Any:
    """A labelling page that waits for no one; it ends with the process."""
    from jaxrl.rlhf.labels import page

    page.PATIENCE = 0.01
    found = page._server(page._Desk([page.Shown("a", "b", "c")]), "TOKEN", 0)
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    return found


def read_policy_request(folder: Path) -> None:
    """What `jaxrl serve` responds to."""
    content = (folder / "policy.http").read_bytes()
    _exchange(server().server_address, content, HEALTH)


def read_page_request(folder: Path) -> None:
    """What the labelling page responds to."""
    address = page_server().server_address
    host = f"{address[0]}:{address[1]}".encode()
    content = (folder / "page.http").read_bytes()
    _exchange(address, content.replace(b"HOST", host), QUESTION.replace(b"HOST", host))


def _exchange(address: Any, content: bytes, good: bytes) -> None:
    """Send it, and read whole responses, each a success or a refusal; a good request is
    responded to afterwards."""
    from jaxrl.errors import require

    statuses = _statuses(_responses(address, content))
    assert _statuses(_responses(address, good)) == [200]
    require(200 in statuses, f"the answers are {statuses}.")


def _responses(address: Any, content: bytes) -> bytes:
    received = b""
    # A server that does not respond is stopped by the deadline of the case.
    with (
        socket.create_connection(address, timeout=60) as connection,
        contextlib.suppress(OSError),  # refused before all of it was sent
    ):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def _statuses(received: bytes) -> list[int]:
    stream, statuses = io.BytesIO(received), []
    while line := stream.readline():
        version, status, _ = line.split(b" ", 2)
        assert version in (b"HTTP/1.0", b"HTTP/1.1"), received[:500]
        # Not 500: a method or a version that is not known is refused with 501 or 505.
        assert status[:1] in b"124" or status in (b"501", b"505"), received[:500]
        lines = iter(stream.readline, b"\r\n")
        headers = dict(x.rstrip().lower().split(b": ", 1) for x in lines)
        size = int(headers.get(b"content-length", 0)) if status != b"100" else 0
        body = stream.read(size)
        if body and headers.get(b"content-type") == b"application/json":
            known = {"error", "action", "status", "over"}
            assert json.loads(body).keys() & known, body
        statuses.append(int(status))
    return statuses


READERS = {
    "tokenizer": Reader(make_tokenizer, draw_tokenizer, read_tokenizer),
    "template": Reader(make_template, draw_template, read_template),
    "Parquet": Reader(make_parquet, draw_parquet, read_parquet),
    "Hugging Face": Reader(make_folders, draw_folder, read_folder),
    "jaxrl serve": Reader(make_request, draw_policy_request, read_policy_request),
    "labelling page": Reader(make_request, draw_page_request, read_page_request),
}
