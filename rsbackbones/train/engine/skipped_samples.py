"""The unusable samples of a run, listed in ``bad_samples.jsonl``, and the limit on their number."""

import json
from collections.abc import Sequence
from pathlib import Path

from rsbackbones.files.atomic import write_text
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.log import RunLog


class SkippedSamples:
    """The unusable samples of a run. Every process has the same list.

    Args:
        folder: the folder of the run.
        processes: the process group, and this process in it.
        places: the number of samples.
        limit: the share of them that may be unusable.
    """

    def __init__(self, folder: Path, processes: DistributedContext, *, places: int, limit: float) -> None:
        self.file, self.processes = folder / "bad_samples.jsonl", processes
        self.places, self.limit = places, limit
        known: dict[str, str] = {}
        if processes.is_main_process and self.file.exists():
            known = dict(json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines())
        self.known: dict[str, str] = processes.broadcast_from_rank0(known)

    def collect(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Return the samples that were skipped in these batches and are not listed yet."""
        return {name: why for b in batches for name, why in b.skipped if name not in self.known}

    def add(self, new: dict[str, str], log: RunLog) -> None:
        """List the new samples of all processes, and :meth:`check`."""
        for found in self.processes.gather(new):
            for name, why in found.items():
                if self.known.setdefault(name, why) is why:
                    log.say(f"left out {name}: {why}")
        if self.processes.is_main_process:
            write_text(self.file, "".join(json.dumps(pair) + "\n" for pair in self.known.items()))
        self.check()

    def check(self) -> None:
        """Compare their number with the limit.

        Raises:
            TrainingError: it is exceeded.
        """
        if len(self.known) > self.limit * self.places:
            shown = "\n  ".join(f"{name}: {why}" for name, why in list(self.known.items())[:20])
            raise TrainingError(
                f"{len(self.known)} of {self.places} places cannot be used, more than data.max_bad_share="
                f"{self.limit:g} allows; all are listed in {self.file} (delete it when "
                f"they are repaired):\n  {shown}"
            )
