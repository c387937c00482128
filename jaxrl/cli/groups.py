"""How click finds the commands, and the arguments that are taken out before it parses."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose commands are made when they are needed."""

    def __init__(
        self,
        *args: Any,
        load: Callable[[], Mapping[str, Mapping[str, Any]]],
        make: Callable[[Any], click.Command],
        kind: str,
        find: Callable[[str], Any] = lambda name: None,
        **kwargs: Any,
    ) -> None:
        """Store how commands are found.

        Args:
          args: of `click.Group`.
          load: returns section of the help -> name -> value.
          make: value -> command.
          kind: the argument and what it must be, for messages: "ALGO, an algorithm".
          find: returns the value of a name that is not listed, or None.
          kwargs: of `click.Group`.
        """
        super().__init__(*args, **kwargs)
        self._load, self._make, self._kind, self._find = load, make, kind, find

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in self._load().values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        for section in self._load().values():
            if cmd_name in section:
                return self._make(section[cmd_name])
        found = self._find(cmd_name)
        if found is not None:
            return self._make(found)
        from jaxrl.errors import did_you_mean

        known = self.list_commands(ctx)
        argument, _, noun = self._kind.partition(", ")
        raise click.UsageError(
            f"{argument} = {cmd_name!r} is not {noun}{did_you_mean(cmd_name, known)} "
            f"(there are: {', '.join(known)})."
        )

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        sections = self._load()
        width = max(len(name) for section in sections.values() for name in section)
        limit = formatter.width - 6 - width
        for title, section in sections.items():
            rows = [
                (name.ljust(width), self._make(value).get_short_help_str(limit))
                for name, value in section.items()
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


def import_command(where: str) -> click.Command:
    """Import a command from "module:attribute"."""
    module, _, attribute = where.partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


class EnvParamsCommand(click.Command):
    """A command that takes `--env.NAME VALUE`, stored under `ctx.meta["env_params"]`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from jaxrl.cli.options import split_env_params

        rest, ctx.meta["env_params"] = split_env_params(args)
        return super().parse_args(ctx, rest)


def find_algorithm(name: str) -> Any:
    """Import and register the algorithm "module:VALUE"; None for another name."""
    if ":" not in name:
        return None
    from jaxrl.algorithms import register_algorithm

    return register_algorithm(name)
