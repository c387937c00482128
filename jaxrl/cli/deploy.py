"""Commands that take a policy away from its run: export and serve."""

import json
from typing import Any

import click

from jaxrl.cli.running import (
    AGENT,
    ALGORITHM,
    ENV,
    JSON,
    NETWORK,
    STOCHASTIC,
    echo,
    remember_signals,
)


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--format",
    "kind",
    default="stablehlo",
    show_default=True,
    help="stablehlo, onnx",
)
@click.option("--out", required=True, type=click.Path(), help="The file.")
@AGENT
@click.option(
    "--observations",
    type=int,
    default=1_000,
    help="Observations on which the file must agree with the policy.",
)
@click.option("--licence", help="Licence of the weights, for the card: apache-2.0.")
@click.option(
    "--push-to-hub", metavar="REPO", help="Hugging Face repository: name/model."
)
@ENV
@ALGORITHM
@NETWORK
@JSON
def export(run: str, kind: Any, out: str, as_json: bool, **choice: Any) -> None:
    """Export an agent as a file that needs no jaxrl.

    Its model card is written beside it.
    """
    from jaxrl.deployment.export import export as write
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    about = write(run, out, kind, **choice)
    agreement = about["agreement"]
    echo(
        f"{about['algorithm']} on {about['env']}, seed {about['seed']}: agrees with the "
        f"policy on {agreement['within']} of {agreement['observations']} observations, "
        f"largest difference {agreement['largest']:.1e}"
    )
    for name in ("file", "card", "hub"):
        if name in about:
            echo(about[name])
    if as_json:
        echo(json.dumps(about))


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
)
@click.option("--port", default=8000, show_default=True, help="0: any that is free.")
@AGENT
@STOCHASTIC
@click.option("--seed", default=0, show_default=True, help="Seed of the samples.")
@click.option(
    "--max-batch", default=64, show_default=True, help="Observations of one request."
)
@click.option(
    "--max-body", default=1 << 20, show_default=True, help="Bytes of a request."
)
@click.option(
    "--max-connections", default=128, show_default=True, help="Open connections."
)
@ENV
@ALGORITHM
@NETWORK
def serve(
    run: str,
    stochastic: bool,
    max_batch: int,
    max_body: int,
    max_connections: int,
    **choice: Any,
) -> None:
    """Serve the actions of an agent over HTTP, until stopped."""
    from jaxrl.deployment.serving import Limits
    from jaxrl.deployment.serving import serve as serve_run
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    with remember_signals() as received:
        serve_run(
            run,
            greedy=not stochastic,
            limits=Limits(max_batch, max_body, max_connections),
            report=echo,
            interrupted=lambda: bool(received),
            **choice,
        )
