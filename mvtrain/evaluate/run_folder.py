"""The folder of an evaluation: `run.json`, `samples.jsonl` with a line per sample as it comes, and the results.

Several ranks write a file each, `samples-RANK.jsonl`, which the first one puts together. So a run that is killed at any
moment goes on where it was, on any number of ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvtrain.evaluate.records import Sample, read_samples, sample_line
from mvtrain.folders import FolderLock, write_whole

HEADER_NAME = "run.json"
SAMPLES_NAME = "samples.jsonl"
RESULTS_NAME = "results.json"


class RunFolder:
    """The folder as one rank sees it. The first rank calls `prepare` before the others use it, and `merge`."""

    def __init__(self, folder: str | Path, rank: int = 0, world_size: int = 1) -> None:
        self.path = Path(folder)
        self._own = self.path / (SAMPLES_NAME if world_size == 1 else f"samples-{rank:04d}.jsonl")
        self._file: Any = None
        self._lock: FolderLock | None = None

    def lock(self) -> None:
        """Keep other evaluations out until `unlock`, or the end of the process.

        Raises ValueError where another one works here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path, "evaluation")

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    # Before and after

    def prepare(self, identity: dict[str, Any], overwrite: bool = False) -> None:
        """Make the folder, or take up the run in it.

        Raises:
            ValueError: the run in it would have given other samples, with every difference; or it is something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; give a folder for the evaluation")
        self.lock()
        try:
            self._take_up(identity, overwrite)
        except BaseException:
            self.unlock()
            raise

    def _take_up(self, identity: dict[str, Any], overwrite: bool) -> None:
        if overwrite:
            for file in (*self._sample_files(), self.path / HEADER_NAME):
                file.unlink(missing_ok=True)
        self._refuse_another_run(identity)
        if self._sample_files() not in ([], [self.path / SAMPLES_NAME]):
            self.merge()

    def _refuse_another_run(self, identity: dict[str, Any]) -> None:
        header = self.header()
        if not header and self._sample_files():
            raise ValueError(f"{self.path} has samples but no {HEADER_NAME}; give another --out, or --overwrite")
        before = header.get("identity", identity)
        keys = before.keys() | identity.keys()
        if "answer_tokens" not in before or "answer_tokens" not in identity:
            keys -= {"answer_tokens"}  # of forced answers only, and one of the two has none
        names = sorted(k for k in keys if before.get(k) != identity.get(k))
        if names:
            changes = "; ".join(f"{k} was {before.get(k)!r} and is {identity.get(k)!r}" for k in names)
            raise ValueError(f"{self.path} holds another evaluation: {changes}; give another --out, or --overwrite")

    def merge(self, order: Sequence[tuple] = ()) -> None:
        """Put the files of all ranks into `samples.jsonl`, by keys in the given `order`, each key once."""
        lines: dict[tuple, str] = {sample.key: sample_line(sample) for sample in self.samples()}
        place = {key: k for k, key in enumerate(order)}
        keys = sorted(lines, key=lambda key: place.get(key, len(place)))
        self._write_all(lines[key] for key in keys)

    def _write_all(self, lines: Iterable[str]) -> None:
        self.close()
        write_whole(self.path / SAMPLES_NAME, "".join(lines))
        for file in self._sample_files():
            if file.name != SAMPLES_NAME:
                file.unlink()

    # Samples

    def samples(self, with_tokens: bool = True) -> Iterator[Sample]:
        """Of all ranks, so far, each key once: a run that was killed while it merged has some in two files."""
        seen = set()
        for file in reversed(self._sample_files()):
            for sample in read_samples(file):
                if sample.key not in seen:
                    seen.add(sample.key)
                    yield sample if with_tokens else replace(sample, tokens=None)

    def add(self, sample: Sample) -> None:
        """Append to this rank's file; flushed, so that a killed run has it."""
        if self._file is None:
            cut_off_tail(self._own)
            self._file = self._own.open("a", encoding="utf-8")
        self._file.write(sample_line(sample))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _sample_files(self) -> list[Path]:
        return sorted(self.path.glob("samples-[0-9]*.jsonl")) + [f for f in [self.path / SAMPLES_NAME] if f.exists()]

    def replace(self, samples: Sequence[Sample]) -> None:
        """Put these in the place of all samples."""
        self._write_all(map(sample_line, samples))

    # The header

    def header(self) -> dict[str, Any]:
        """What `run.json` says; empty where there is none."""
        file = self.path / HEADER_NAME
        if not file.exists():
            return {}
        try:
            header = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error})") from None
        if not isinstance(header, dict):
            raise ValueError(f"{file}: expected a JSON object")
        return header

    def write_header(self, header: dict[str, Any]) -> None:
        write_whole(self.path / HEADER_NAME, json.dumps(header, indent=2, ensure_ascii=False) + "\n")


def open_run(folder: str | Path) -> RunFolder:
    """A folder that an evaluation has written. Raises ValueError where it is none."""
    run = RunFolder(folder)
    if not (run.path / HEADER_NAME).is_file() or not run._sample_files():
        raise ValueError(f"{folder} is no evaluation: expected a folder with {HEADER_NAME} and {SAMPLES_NAME}")
    return run


def cut_off_tail(file: Path) -> None:
    """Drop a last line that a killed run has not finished, so that the next one does not go on in it."""
    if not file.exists():
        return
    with file.open("rb+") as stream:
        size = end = stream.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            stream.truncate(end)
