"""Conversations as text: chat templates.

A conversation is a list of messages {role, content}, as in TRL and in Hugging Face's chat
templates. A string counts as one message, a prompt's of the user and a response's of the
assistant, so that one template reads both.
"""

from collections.abc import Callable, Mapping, Sequence

from jaxrl.errors import did_you_mean, require
from jaxrl.rlhf.models import jinja

Message = Mapping[str, str]
"""`role` ("user", "assistant", "system") and `content`."""

Template = Callable[[Sequence[Message], bool], str]
"""The text of messages; if the second argument is True, up to where a response begins."""


def plain(messages: Sequence[Message], response_follows: bool) -> str:
    """The contents, joined as they are."""
    return "".join(message["content"] for message in messages)


def rendered(messages: Sequence[Message], response_follows: bool) -> str:
    """As `plain`, of texts that were rendered before: special tokens in them are read.

    With every other template only the template writes special tokens, and text of a
    message that looks like one stays text.
    """
    return plain(messages, response_follows)


def turns(messages: Sequence[Message], response_follows: bool) -> str:
    """Lines such as "User: Is it so?" and "Assistant: Yes."; a prompt ends in
    "Assistant:"."""
    lines = [f"{m['role'].capitalize()}: {m['content']}" for m in messages]
    return "\n".join([*lines, "Assistant:"] if response_follows else lines)


def chatml(messages: Sequence[Message], response_follows: bool) -> str:
    """OpenAI's markup, `<|im_start|>ROLE`, the content, `<|im_end|>`, as many models read
    it."""
    parts = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(parts) + ("<|im_start|>assistant\n" if response_follows else "")


TEMPLATES: dict[str, Template] = {
    "plain": plain,
    "rendered": rendered,
    "turns": turns,
    "chatml": chatml,
}


def template(template: str | Template, bos: str = "", eos: str = "") -> Template:
    """A template by name, or from a Jinja text like Hugging Face's `chat_template`.

    A text is rendered in Jinja's sandbox (the extra `rlhf`), where it can call nothing
    and change nothing, by a process with limits of time and memory. It sees `messages`,
    `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception` and the filter
    `tojson`. Today's date is not among them, so equal rows stay equal texts.

    Args:
      template: a name of `TEMPLATES`, a text with `{{` or `{%` in it, or a template.
      bos: what `bos_token` is in a text.
      eos: what `eos_token` is in a text.

    Raises:
      InvalidInput: there is no such template, the text is no Jinja, or `jinja2` is not
        installed; from the template itself, where it cannot render the messages.
    """
    if not isinstance(template, str):
        return template
    if "{{" in template or "{%" in template:
        return _of_jinja(template, bos, eos)
    names = ", ".join(TEMPLATES)
    require(
        template in TEMPLATES,
        f"template = {template!r}: must be one of {names}, or a Jinja text"
        f"{did_you_mean(template, TEMPLATES)}.",
    )
    return TEMPLATES[template]


def _of_jinja(text: str, bos: str, eos: str) -> Template:
    jinja.check(text)

    def render(messages: Sequence[Message], response_follows: bool) -> str:
        values = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": response_follows,
            "bos_token": bos,
            "eos_token": eos,
            "tools": None,
            "documents": None,
        }
        return jinja.render(text, values)

    return render
