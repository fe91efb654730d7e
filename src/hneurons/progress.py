"""Progress bars on stderr, silent when it is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """How a stage reports its progress."""

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Generator[Callable[[int], None]]:
        """A bar for `total` steps, `done` of which are done; yields a function that adds steps."""
        ...


class NoProgress:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Generator[Callable[[int], None]]:
        """Nothing."""
        yield lambda _: None


class TerminalProgress:
    """Bars with elapsed and remaining time on a terminal; plain lines, one a stage, elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def say(self, text: str) -> None:
        """Show one line."""
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Generator[Callable[[int], None]]:
        """A live bar, or one line when stderr is not a terminal."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        if not self.console.is_terminal:
            self.say(f"{text}: {total:,} to do" + (f", {done:,} done" if done else ""))
            yield lambda _: None
            return
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(text, total=total, completed=done)
            yield lambda steps: bars.advance(task, steps)


def default_progress() -> Progress:
    """Bars when stderr is a terminal, nothing otherwise."""
    return TerminalProgress() if sys.stderr.isatty() else NoProgress()
