"""What an evaluation writes: one table to read, and everything behind it as JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rsbackbones.atomic import write_text

# A row: subject, stream, protocol, seed, metrics, interval of every metric.
Row = Mapping[str, Any]


def shown(protocol: str, metric: str) -> str:
    """Return the metric that the table shows of a protocol: the set's; of sparse probes the mean F1."""
    return "f1_macro" if protocol == "sparse" else metric


def table(rows: Sequence[Row], metric: str) -> str:
    """Return the table: features by protocol, ``metric`` in percent, with 95 % intervals.

    Of several seeds the mean, their standard deviation, and the mean of the intervals' ends.
    """
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    metrics = {p: shown(p, metric) for p in protocols}
    head = ["features", "stream", *(f"{p}, {metrics[p]}" for p in protocols)]
    lines = [head, ["---", "---", *("---:" for _ in protocols)]]
    for subject, stream in dict.fromkeys((row["subject"], row["stream"]) for row in rows):
        cells = [subject, stream]
        for protocol in protocols:
            mine = [
                r for r in rows
                if (r["subject"], r["stream"], r["protocol"]) == (subject, stream, protocol)
            ]  # fmt: skip
            cells.append(_cell(mine, metrics[protocol]))
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _cell(rows: Sequence[Row], metric: str) -> str:
    if not rows:
        return "-"
    values = [100 * row["metrics"][metric] for row in rows]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    intervals = [row["intervals"][metric] for row in rows if metric in row["intervals"]]
    ends = [100 * mean(interval[end] for interval in intervals) for end in (0, 1)] if intervals else None
    between = f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""
    return f"{mean(values):.1f}{spread}{between}"


def papers_way(rows: Sequence[Row]) -> list[str]:
    """Return what the papers report of a sweep: its best on the test split itself."""
    lines = []
    for subject, stream, protocol in dict.fromkeys((r["subject"], r["stream"], r["protocol"]) for r in rows):
        key = (subject, stream, protocol)
        bests = [
            r["details"]["best_on_test"] for r in rows
            if (r["subject"], r["stream"], r["protocol"]) == key and "best_on_test" in r["details"]
        ]  # fmt: skip
        if bests:
            metric = next(name for name in bests[0] if name != "lr")
            rates = ", ".join(f"{best['lr']:g}" for best in bests)
            value = 100 * mean(best[metric] for best in bests)
            lines.append(f"- {subject}, {stream}, {protocol}: {metric} {value:.1f} at {rates}")
    if lines:
        lines = [
            "The best learning rates on the test split, as the papers report; optimistic:",
            "",
            *lines,
            "",
        ]
    return lines


def write_report(folder: Path, found: Mapping[str, Any]) -> str:
    """Write ``result.json``, ``result.csv`` and ``result.md`` and return the last.

    Args:
        folder: of the three files.
        found: ``rows``, ``metric``, ``data``, ``notes`` and what else belongs to the record.
    """
    rows: Sequence[Row] = found["rows"]
    lines = csv.writer(text := io.StringIO(), lineterminator="\n")
    lines.writerow(("subject", "stream", "protocol", "seed", "metric", "value", "low", "high"))
    for row in rows:
        for metric, value in row["metrics"].items():
            low, high = row["intervals"].get(metric, ("", ""))
            key = [row[name] for name in ("subject", "stream", "protocol", "seed")]
            lines.writerow([*key, metric, value, low, high])
    page = [f"# {found['data']['name']}", "", table(rows, found["metric"])]
    page += papers_way(rows)
    page += [f"- {note}" for note in found["notes"]]
    markdown = "\n".join(page) + "\n"
    write_text(folder / "result.json", json.dumps(found, indent=1) + "\n")
    write_text(folder / "result.csv", text.getvalue())
    write_text(folder / "result.md", markdown)
    return markdown
