"""Report of the benchmark: Markdown tables and a plot."""

from pathlib import Path
from typing import Any

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """All tables of a result file."""
    parts = [machine_line(results), cases_table(results["cases"])]
    if any(found["peers"] for found in results["cases"].values()):
        parts.append(peers_table(results["cases"]))
    if results.get("learning"):
        parts.append(learning_table(results["learning"]))
    if results.get("environments"):
        parts.append(environment_table(results["environments"]))
    if results.get("scaling"):
        parts += [scaling_table(k, rows) for k, rows in results["scaling"].items()]
    return "\n\n".join(parts) + "\n"


def machine_line(results: Results) -> str:
    return (
        f"{results['device']}, {results['cores']} CPU cores, {results['devices']} JAX "
        f"device(s); jax {results['versions'].get('jax', '?')}, Python "
        f"{results['versions'].get('python', '?')}; commit {results['commit']}; "
        f"XLA_FLAGS {results['xla_flags'] or 'none'}."
    )


def cases_table(cases: dict[str, Any]) -> str:
    lines = [
        "| case | seeds | T | [min, max] | E | I | T/E | limit | T/limit | bar "
        "| compile s | again |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in cases.items():
        if "error" in found:
            lines.append(f"| {name} | could not run: {found['error']} |" + " |" * 10)
            continue
        levels, training = found["levels"], found["training"]
        cells = (
            name,
            str(found["num_seeds"]),
            thousands(training["median"]),
            f"[{thousands(training['min'])}, {thousands(training['max'])}]",
            thousands(levels["environment"]),
            thousands(levels["inference"]),
            f"{found['eta']:.3f}",
            thousands(levels["limit"]),
            f"{found['of_limit']:.0%}",
            f"≥ {found['bars']['limit']:.0%}" if "limit" in found["bars"] else "-",
            f"{found['compile_cold_seconds']:.1f}",
            f"{found['compile_warm_seconds']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers_table(cases: dict[str, Any]) -> str:
    lines = [
        "| case | peer | ours | theirs | ours / theirs | [min, max] | bar | reached "
        "| their compile s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in cases.items():
        for peer, against in found.get("peers", {}).items():
            bar = found["bars"].get(peer)
            shown = f"≥ {bar:g}" if bar else "-"
            if "error" in against:
                why = f"could not run: {against['error']}"
                lines.append(
                    f"| {name} | {peer} | - | {why} | - | - | {shown} | - | - |"
                )
                continue
            ratio = against["ratio"]
            cells = (
                name,
                peer,
                thousands(against["ours"]["median"]),
                thousands(against["theirs"]["median"]),
                f"{ratio['median']:.2f}",
                f"[{ratio['min']:.2f}, {ratio['max']:.2f}]",
                shown,
                "-" if not bar else "yes" if ratio["median"] >= bar else "no",
                f"{against['compile_seconds']:.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def learning_table(learning: dict[str, Any]) -> str:
    lines = [
        "| case | steps | seeds | ours | peer | theirs | 95 % interval of the difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, check in learning.items():
        if "error" in check:
            lines.append(f"| {name} | could not run: {check['error']} |" + " |" * 5)
            continue
        ours = check["returns"]["jaxrl"]
        for peer, (low, high) in check["difference"].items():
            theirs = check["returns"][peer]
            cells = (
                name,
                f"{check['env_steps']:,}",
                str(len(ours)),
                f"{sum(ours) / len(ours):.1f}",
                peer,
                f"{sum(theirs) / len(theirs):.1f}",
                f"[{low:.1f}, {high:.1f}]",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment_table(rows: list[dict[str, Any]]) -> str:
    strategies = "fresh starts drawn every so many steps: steps/s"
    lines = [
        f"| environment | number | E | gymnax's own step | E / gymnax | {strategies} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        by_strategy = "; ".join(
            f"{name.split()[3]}: {thousands(rate)}"
            for name, rate in row["by_strategy"].items()
        )
        cells = (
            row["env"],
            f"{row['num_envs']:,}",
            thousands(row["environment"]),
            thousands(row["gymnax"]),
            f"{row['environment'] / row['gymnax']:.1f}",
            by_strategy,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scaling_table(kind: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"| {kind} | steps/s, all together |", "|---|---|"]
    lines += [f"| {row['size']:,} | {thousands(row['median'])} |" for row in rows]
    return "\n".join(lines)


def fill_in(page: Path, mark: str, content: str) -> None:
    """Writes between `<!-- MARK: begin -->` and `<!-- MARK: end -->` of a page."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}{content}{end}{after}")


def thousands(rate: float) -> str:
    """A rate in thousands of steps per second, three digits."""
    k = rate / 1e3
    return f"{k:.2f} k" if k < 10 else f"{k:.1f} k" if k < 100 else f"{k:,.0f} k"


def plot_scaling(scaling: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Steps per second against environments and against seeds, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = {"environments": "environments of one agent", "seeds": "agents"}
    for axis, (kind, label) in zip(axes, labels.items(), strict=True):
        rows = scaling[kind]
        sizes = [row["size"] for row in rows]
        axis.loglog(sizes, [row["median"] for row in rows], marker="o")
        axis.fill_between(
            sizes,
            [row["min"] for row in rows],
            [row["max"] for row in rows],
            alpha=0.3,
        )
        axis.set_xlabel(label)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].set_ylabel("training steps per second")
    figure.savefig(path, dpi=120)
