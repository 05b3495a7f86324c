"""What the bench prints: ratios with their spread, beside what we want of them, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

GIB = 2**30
TARGETS = {  # (numerator, denominator, what we want it to be at most)
    "PALP / host's plain step": ("ours PALP", "host plain", 1.1),
    "PALP / host's plain step, no word in either": ("ours PALP, no word", "host plain", 0.88),
    "ours plain / host's plain step": ("ours plain", "host plain", 0.45),
    "ours plain / host's plain step, no word in either": ("ours plain, no word", "host plain", 0.45),
    "ours plain / diffusers + peft": ("ours plain", "diffusers + peft plain", 1.4),
    "ours plain / diffusers + peft, no word in either": ("ours plain, no word", "diffusers + peft plain", 0.98),
    "PALP in forward passes": ("ours PALP", "forward pass", 6.0),
    "PALP in forward passes, no word": ("ours PALP, no word", "forward pass", 6.0),
}


def ratios(taken: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """For each target the ratio of medians, with the quartiles of the ratios turn by turn."""
    result: dict[str, dict[str, float]] = {}
    for title, (above, below, target) in TARGETS.items():
        if above not in taken or below not in taken:
            continue  # that contender cannot train this model
        by_turn = sorted(a / b for a, b in zip(taken[above], taken[below], strict=True))
        quartiles = statistics.quantiles(by_turn, n=4) if len(by_turn) > 1 else [by_turn[0]] * 3
        result[title] = {
            "ratio": statistics.median(taken[above]) / statistics.median(taken[below]),
            "lower quartile": quartiles[0],
            "upper quartile": quartiles[2],
            "target": target,
        }
    return result


def speed_report(result: Mapping[str, Any]) -> str:
    """The tables of what was measured in turns."""
    lines = [f"{result['machine']}, {result['model']}, latents of {result['side']} x {result['side']}, {result['steps']} turns"]
    lines += table(("", "seconds a step"), [(name, f"{statistics.median(taken):.3f}") for name, taken in result["seconds"].items()])
    lines += [f"{name}: {error}" for name, error in result["failed"].items()]
    measured = [
        (title, f"{r['ratio']:.2f} ({r['lower quartile']:.2f} to {r['upper quartile']:.2f})", f"{r['target']:g}") for title, r in result["ratios"].items()
    ]
    return "\n".join(lines + table(("ratio", "measured (quartiles)", "target"), measured))


def alone_report(result: Mapping[str, Any]) -> str:
    """The tables of what was measured in processes of their own."""
    lines = table(("peak memory of the process, training", "GiB"), [(name, f"{memory['peak'] / GIB:.2f}") for name, memory in result["memory"].items()])
    lines += table(("fixed costs", ""), [(title, _seconds_or_share(title, value)) for title, value in result["fixed"].items()])
    grown = [(title, f"{one['step']:.2f}", f"{one['peak'] / GIB:.2f}") for title, one in result["growth"].items()]
    lines += table(("PALP", "seconds a step", "peak GiB"), grown)
    if result["long run"]:
        long = result["long run"]
        memory, pace = long["after the last"] / long["after step 20"], long["last steps / first steps"]
        lines += ["", f"500 PALP steps: memory after step 500 / after step 20: {memory:.3f}; time of the last steps / of the first: {pace:.2f}"]
    return "\n".join([*lines, "", f"The pack's import at the server's start: {result['import seconds']:.2f} s"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, after an empty one; nothing without rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return ["", lines[0], "|---" * len(head) + "|", *lines[1:]] if rows else []


def _seconds_or_share(title: str, value: float) -> str:
    return f"{value:.2%}" if title.startswith("share") else f"{value:.2f} s"


def foreseen_report(foreseen: Mapping[str, Mapping[str, float]]) -> str:
    """The table of ``full_size.foreseen``."""
    columns = list(next(iter(foreseen.values())))
    return "\n".join(table(("GiB", *columns), [(name, *(f"{one[column] / GIB:.1f}" for column in columns)) for name, one in foreseen.items()]))
