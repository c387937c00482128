"""Training speed of jaxrl and its peers, in one run on one machine.

    python -m benchmarks.throughput                    # everything, an hour on two cores
    python -m benchmarks.throughput --quick --out DIR  # everything, a little of each
    python -m benchmarks.throughput --cases B1 B5 --peers rejax

With an empty `--peers` only jaxrl is measured. Each peer has its own virtual environment,
which this script creates from the packages and versions of `peers/peers.toml`;
`--peers-from DIR` takes the wheels from a folder, for machines that reach no package index.
Runs of ours and of a peer take turns. A peer that cannot be installed or run is named in
the table with the reason. Writes throughput.json, .md and .png, which
docs/performance.md shows.
"""

import argparse
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from benchmarks.speed.host import chosen_cases
from benchmarks.speed.report import markdown as table
from benchmarks.speed.run import run_benchmark
from jaxrl.errors import InvalidInput

PARTS = ["speed", "learning"]
HERE = Path(__file__).parent
PEERS = tomllib.loads((HERE / "peers" / "peers.toml").read_text(encoding="utf-8"))


def main() -> None:
    arguments = parse_arguments()
    commands = {
        peer: command(peer, arguments.peers_dir, arguments.peers_from)
        for peer in arguments.peers
    }
    out = Path(arguments.out) if arguments.out else HERE / "results" / "throughput"
    results = run_benchmark(
        arguments.cases,
        quick=arguments.quick,
        device=arguments.device,
        out=out,
        peers=commands,
        parts=arguments.parts,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(table(results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=[], help="B1 ... B8, scaling")
    parser.add_argument("--quick", action="store_true", help="a little of each")
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--peers-from", help="a folder of wheels")
    parser.add_argument(
        "--peers-dir",
        default=str(HERE.parent / ".peers"),
        help="where the peers' environments are made, and found again",
    )
    parser.add_argument("--out", help="a folder for the results; needed with --quick")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    try:
        chosen_cases(arguments.cases, "cpu")
    except InvalidInput as error:
        parser.error(str(error))
    return arguments


def command(peer: str, peers_dir: str, wheels: str | None) -> list[str]:
    """Command that starts a peer's worker, in an environment created if missing."""
    folder = Path(peers_dir) / peer
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {peer} into {folder} ...", file=sys.stderr, flush=True)
        install(peer, folder, python, wheels)
    return [str(python), str(HERE / "peers" / PEERS[peer]["worker"])]


def install(peer: str, folder: Path, python: Path, wheels: str | None) -> None:
    """Install a peer; a failure is reported here and, by the worker, in the table."""
    venv.create(folder, with_pip=True, clear=True)
    source = ["--no-index", "--find-links", wheels] if wheels else []
    for package in PEERS[peer]["packages"]:
        pip = [str(python), "-m", "pip", "install", "--quiet", *source, package]
        if subprocess.run(pip, check=False).returncode:
            print(f"{peer}: cannot install {package}", file=sys.stderr, flush=True)
            return
    (folder / "installed").touch()


if __name__ == "__main__":
    main()
