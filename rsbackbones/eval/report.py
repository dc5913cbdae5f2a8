"""The report of an evaluation: a Markdown table, and all results as JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rsbackbones.eval.knn import NEIGHBORS
from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.markdown import markdown_table

# A row: source, stream, protocol, seed, metrics, interval of every metric.
Row = Mapping[str, Any]
# The caption of the table of each diagnostic; the numbered tables are CROMA's.
_CAPTIONS = {
    "invariance": "Invariance (table 11): cosine similarity of an image's embedding to those of the image "
    "flipped and turned, and to those of other images",
    "patches": "Diversity (table 12): mean cosine similarity between the patches of an image",
    "positions": "Position probing (table 12): cross-entropy in nats, that of guessing, and accuracy",
    "extrapolation": "Extrapolation (table 7): a linear probe at other image sizes, in percent",
}


def displayed(protocol: str, metric: str) -> str:
    """Return the metric of a protocol in the table: that of the task, and of sparse probes the mean F1."""
    return "f1_macro" if protocol == "sparse" else metric


def table(rows: Sequence[Row], metric: str) -> str:
    """Return the table: features by protocol, ``metric`` in percent, with 95 % intervals.

    For several seeds: the mean, the standard deviation, and the mean of the intervals' ends.
    """
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    metrics = {p: displayed(p, metric) for p in protocols}
    head = ["features", "stream", *(f"{p}, {metrics[p]}" for p in protocols)]
    lines = []
    for source, stream in dict.fromkeys((row["source"], row["stream"]) for row in rows):
        cells = [source, stream]
        for protocol in protocols:
            selected = [
                r for r in rows
                if (r["source"], r["stream"], r["protocol"]) == (source, stream, protocol)
            ]  # fmt: skip
            cells.append(_cell(selected, metrics[protocol]))
        lines.append(cells)
    return markdown_table(head, lines, "ll" + "r" * len(protocols), spaced=True) + "\n"


def diagnostics_table(rows: Sequence[Row]) -> str:
    """Return the table of a diagnostic (:mod:`rsbackbones.eval.diagnostics`), features by metric."""
    percent = rows[0]["protocol"] == "extrapolation"
    columns = list(rows[0]["metrics"])
    heads = [f"{rows[0]['details']['metric']} at {c}" if percent else c.replace("_", " ") for c in columns]
    lines = []
    for source, stream in dict.fromkeys((row["source"], row["stream"]) for row in rows):
        selected = [row for row in rows if (row["source"], row["stream"]) == (source, stream)]
        lines.append([source, stream, *(_cell(selected, column, percent=percent) for column in columns)])
    head = ["features", "stream", *heads]
    return markdown_table(head, lines, "ll" + "r" * len(columns), spaced=True) + "\n"


def _cell(rows: Sequence[Row], metric: str, *, percent: bool = True) -> str:
    scale, digits = (100, 1) if percent else (1, 4)

    def number(value: float) -> str:
        return f"{scale * value:.{digits}f}"

    # A class may lack its own metric: it occurs neither among the labels nor among the predictions.
    values = [row["metrics"][metric] for row in rows if metric in row["metrics"]]
    if not values:
        return "-"
    deviation = f" ± {number(stdev(values))}" if len(values) > 1 else ""
    intervals = [row["intervals"][metric] for row in rows if metric in row["intervals"]]
    ends = [number(mean(interval[end] for interval in intervals)) for end in (0, 1)] if intervals else None
    between = f" [{ends[0]}, {ends[1]}]" if ends else ""
    return f"{number(mean(values))}{deviation}{between}"


def best_on_test_note(rows: Sequence[Row]) -> list[str]:
    """Return what papers report of a sweep: the best learning rate on the test split itself."""
    lines = []
    for source, stream, protocol in dict.fromkeys((r["source"], r["stream"], r["protocol"]) for r in rows):
        key = (source, stream, protocol)
        bests = [
            r["details"]["best_on_test"] for r in rows
            if (r["source"], r["stream"], r["protocol"]) == key and "best_on_test" in r["details"]
        ]  # fmt: skip
        if bests:
            metric = next(name for name in bests[0] if name != "lr")
            rates = ", ".join(f"{best['lr']:g}" for best in bests)
            value = 100 * mean(best[metric] for best in bests)
            lines.append(f"- {source}, {stream}, {protocol}: {metric} {value:.1f} at {rates}")
    if lines:
        lines = [
            "The best learning rates on the test split, as the papers report; optimistic:",
            "",
            *lines,
            "",
        ]
    return lines


def _few_neighbors_note(rows: Sequence[Row]) -> list[str]:
    """Return a note where kNN had fewer training samples than neighbors."""
    ks = {row["details"]["k"] for row in rows if row["protocol"] == "knn"}
    return [f"knn: k = {k}, the number of training samples" for k in sorted(ks) if k < NEIGHBORS]


def notes_as_markdown(notes: Sequence[str]) -> list[str]:
    """Return notes as a list; those of several lines are tables in plain text."""
    lines = [f"- {note}" for note in notes if "\n" not in note]
    for note in notes:
        if "\n" in note:
            lines += ["", "```text", note, "```"]
    return lines


def refuse_other_result(folder: str | Path, model: str, source: str, data: str) -> None:
    """Refuse a folder that holds the result of another model or of other data, which would be replaced.

    Args:
        folder: the output folder.
        model: the model's name.
        source: the name of its feature source, which names a checkpoint.
        data: the name of the data set.

    Raises:
        ValueError: it does, or its result cannot be read.
    """
    file = Path(folder).expanduser() / "result.json"
    if not file.exists():
        return
    try:
        held = read_json(file)
        before = (held["model"], next(iter(held["sources"])), held["data"]["name"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"{file} is not a result of this command; choose another --output") from error
    if before != (model, source, data):
        names = " ".join(dict.fromkeys(before[:2]))
        raise ValueError(
            f"{file} holds the result of {names} on {before[2]}, which would be replaced: choose another "
            f"--output, or delete the files result.* in {folder}"
        )


def write_report(folder: str | Path, found: Mapping[str, Any]) -> str:
    """Write ``result.json``, ``result.csv`` and ``result.md`` and return the last.

    Args:
        folder: of the three files.
        found: ``rows``, ``diagnostics`` (by name the rows of each), ``metric``, ``data``, ``notes`` and what
            else belongs to the record.
    """
    folder = Path(folder).expanduser()
    rows: Sequence[Row] = found["rows"]
    diagnostics: Mapping[str, Sequence[Row]] = found["diagnostics"]
    lines = csv.writer(text := io.StringIO(), lineterminator="\n")
    lines.writerow(("source", "stream", "protocol", "seed", "metric", "value", "low", "high"))
    for row in chain(rows, *diagnostics.values()):
        for metric, value in row["metrics"].items():
            low, high = row["intervals"].get(metric, ("", ""))
            key = [row[name] for name in ("source", "stream", "protocol", "seed")]
            lines.writerow([*key, metric, value, low, high])
    page = [f"# {found['data']['name']}", ""]
    if rows:
        page += [table(rows, found["metric"])]
    page += best_on_test_note(rows)
    for name, diagnosed in diagnostics.items():
        page += [_CAPTIONS[name] + ":", "", diagnostics_table(diagnosed)]
    page += notes_as_markdown([*found["notes"], *_few_neighbors_note(rows)])
    markdown = "\n".join(page) + "\n"
    write_text(folder / "result.json", json.dumps(found, indent=1) + "\n")
    write_text(folder / "result.csv", text.getvalue())
    write_text(folder / "result.md", markdown)
    return markdown
