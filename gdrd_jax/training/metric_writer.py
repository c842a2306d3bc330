"""What a person sees of a training run: a progress line, `metrics.jsonl` and TensorBoard."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.utils.files import writing

SECONDS_IN_A_FILE = 10.0  # between two progress lines where nobody watches
SECONDS_BETWEEN_FLUSHES = 10.0
WINDOW = 20  # steps of which a line of metrics.jsonl is the mean
LINE = "{desc} {percentage:3.0f}% step {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Logbook:
    """Writes what the steps of a run were like; what lies after the step resumed from is dropped.

    Args:
      directory: of the files.
      name: shown before the progress.
      steps, batch: of the whole run.
      done: steps before the first that will be added.
      pending: metrics of the last of these, which are in no line yet; from `pending` of an earlier one.
    """

    def __init__(self, directory: Path, name: str, steps: int, batch: int, done: int, pending: list[dict]):
        self.pending, self._batch, self._directory = list(pending), batch, directory
        path = directory / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= done]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")
        self._board = _Board(directory / "tensorboard", done)
        self._compiled = False
        self._progress = tqdm(
            total=steps,
            initial=done,
            desc=name,
            bar_format=LINE,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else SECONDS_IN_A_FILE,
        )

    def add(self, steps: range, metrics: dict[str, np.ndarray]) -> None:
        """Some steps' metrics, `[len(steps)]` each."""
        for i, step in enumerate(steps):
            self.pending.append({key: float(values[i]) for key, values in metrics.items()})
            last = self.pending[-1]
            if (step + 1) % WINDOW == 0:
                self.finish_line(step + 1)
        shown = {key: f"{value:.3f}" for key, value in last.items()}
        if rate := self._rate():
            shown["img/s"] = f"{rate:,.0f}"
        if not self._compiled:  # the first steps include compiling, which says nothing of the speed
            self._progress.unpause()
            self._compiled = True
        self._progress.set_postfix(shown, refresh=False)
        self._progress.update(len(steps))

    def finish_line(self, step: int) -> None:
        """One line: the means over the steps since the last line, if there are any."""
        if self.pending:
            self.write(step, {key: float(np.mean([m[key] for m in self.pending])) for key in self.pending[0]})
            self.pending.clear()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line with whatever there is to say after a step."""
        with writing(self._directory):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            self._board.write(step, {**metrics, "images_per_second": self._rate()})

    def _rate(self) -> float:
        return self._batch * (self._progress.format_dict["rate"] or 0.0)  # tqdm's, smoothed

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        with writing(self._directory), contextlib.ExitStack() as stack:  # each, whatever the others meet
            stack.callback(self._file.close)
            stack.callback(self._board.close)


class _Board:
    """TensorBoard's curves, without tensorboardX's thread: once that dies of a full disk, training waits for it."""

    def __init__(self, directory: Path, done: int):
        # Imported late: tensorboardX imports torch where that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        directory.mkdir(exist_ok=True)
        self._file = EventsWriter(str(directory / "events"), f".{done}")
        # TensorBoard then forgets what an earlier file has of later steps.
        self._add(done + 1, session_log=SessionLog(status=SessionLog.START))
        self.close, self._flushed = self._file.close, 0.0

    def _add(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        self._add(step, summary=Summary(value=[Summary.Value(tag=key, simple_value=metrics[key]) for key in metrics]))
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:  # each waits for the disk
            self._file.flush()
            self._flushed = time.monotonic()
