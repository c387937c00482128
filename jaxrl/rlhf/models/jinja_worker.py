"""A process that renders Jinja templates: `python jinja_worker.py MEMORY MOST SECONDS`.

Loops without an end and texts without a limit are stopped with their process, since nothing
stops them inside of one. It says that it has started by an empty line, then it reads a
request a line, as JSON, and writes a reply:

    {"template": TEXT}                      -> {"text": ""}     whether it can be compiled
    {"template": TEXT, "values": {...}}     -> {"text": ...}
    a template or values that fail          -> {"error": ...}

It imports nothing of jaxrl, so that it starts at once.
"""

import contextlib
import functools
import json
import resource
import signal
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox


def limit_memory(size: int) -> None:
    """Let allocations beyond a number of bytes fail, where the system can do that."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def make_environment() -> jinja2.Environment:
    """Jinja, set as Hugging Face sets it for its chat templates."""

    def fail(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = fail
    # Jinja's own filter escapes the signs of HTML.
    environment.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
    return environment


ENVIRONMENT = make_environment()


@functools.lru_cache(maxsize=8)
def compile_template(text: str) -> jinja2.Template:
    """A compiled template."""
    return ENVIRONMENT.from_string(text)


def reply(line: bytes, most: int) -> dict[str, str]:
    """Reply to a request.

    Args:
      line: the request.
      most: characters of a text.
    """
    request: dict[str, Any] = json.loads(line)
    try:
        template = compile_template(request["template"])
        text = template.render(request["values"]) if "values" in request else ""
        if len(text) > most:
            return {"error": f"it makes {len(text):,} characters, at most {most:,}"}
        return {"text": text}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # whatever a template's operations raise
        return {"error": f"{error or type(error).__name__}"[:500]}


def write(content: bytes) -> None:
    """Write a line."""
    sys.stdout.buffer.write(content + b"\n")
    sys.stdout.buffer.flush()


def main(memory: int, most: int, seconds: int) -> None:
    """Reply to requests until there are no more."""
    limit_memory(memory)
    write(b"")
    for line in sys.stdin.buffer:
        # Whoever asked is quicker to stop us, unless it has been killed.
        signal.alarm(seconds)
        write(json.dumps(reply(line, most)).encode())
        signal.alarm(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
