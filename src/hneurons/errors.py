"""Every error this package raises on purpose. Each message is one line: what is wrong, then the remedy.

HNeuronsError                   anything below; the command line prints it and exits with status 1
├── UsageError                  wrong arguments or settings; exit status 2
├── ModelError                  the model under study
│   ├── ModelNotFoundError      no such hub id, folder, file or demo name, or no network to fetch it
│   ├── DamagedModelError       files are there but do not hold what they should (hash, cut, unreadable)
│   ├── UnsupportedModelError   loaded, but its feed-forward layers are not what this package can measure
│   ├── PairError               two checkpoints that are no base and tuned model of one another
│   └── NumericError            NaN or infinity in activations, with layer and example
├── QuestionsError              a question file that is missing, empty or malformed
├── JudgeError                  a judge that cannot give verdicts
├── TooFewExamplesError         not enough examples of a class to fit or to evaluate
├── ExportError                 a format that can't hold what was asked for, or a folder that isn't free
├── CardError                   a card that cannot be read, or does not fit the model
├── RunError                    the run folder
│   ├── RunMismatchError        the folder holds a run with other settings
│   ├── RunLockedError          another process is writing to it
│   └── StorageError            disk full, read-only or damaged
├── ServiceError                a service that makes responses
│   ├── BusyError               too many jobs wait
│   ├── PromptTooLongError      a prompt leaves no room for a response
│   └── ClosedError             it takes no more jobs
├── ClusterError                a cluster that doesn't answer, or has no workers left
└── MissingExtraError           an optional dependency is not installed
"""

from __future__ import annotations

from typing import Any


class HNeuronsError(Exception):
    """Base of all errors raised on purpose: what is wrong, and the remedy."""

    exit_status = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.problem} {self.remedy}".strip())

    def __reduce__(self) -> tuple[Any, ...]:
        # From another process too it comes with its problem and remedy, whatever its class takes.
        return _again, (type(self), self.problem, self.remedy)


def _again(kind: type[HNeuronsError], problem: str, remedy: str) -> HNeuronsError:
    error = kind.__new__(kind)
    HNeuronsError.__init__(error, problem, remedy)
    return error


class UsageError(HNeuronsError):
    """Wrong arguments or settings."""

    exit_status = 2


class ModelError(HNeuronsError):
    """Something about the model under study."""


class ModelNotFoundError(ModelError):
    """The model can't be found or fetched."""


class DamagedModelError(ModelError):
    """The model's files don't hold what they should."""


class UnsupportedModelError(ModelError):
    """The model's feed-forward layers can't be measured."""


class PairError(ModelError):
    """Two checkpoints that can't be compared."""


class NumericError(ModelError):
    """NaN or infinity where a finite number must be."""


class QuestionsError(HNeuronsError):
    """A question source that can't be used."""


class JudgeError(HNeuronsError):
    """A judge that can't give verdicts."""


class TooFewExamplesError(HNeuronsError):
    """Too few examples of a class."""


class CardError(HNeuronsError):
    """A card that can't be read or doesn't fit."""


class ExportError(HNeuronsError):
    """A format that can't hold what was asked for, or a folder that isn't free."""


class RunError(HNeuronsError):
    """Something about a run folder."""


class RunMismatchError(RunError):
    """The folder holds a run with other settings."""


class RunLockedError(RunError):
    """Another process writes to the folder."""


class StorageError(RunError):
    """The disk is full, read-only or damaged."""


class ServiceError(HNeuronsError):
    """Something about a service that makes responses."""


class BusyError(ServiceError):
    """Too many jobs wait."""


class PromptTooLongError(ServiceError):
    """The prompt leaves no room for a response."""


class ClosedError(ServiceError):
    """The service takes no more jobs."""


class ClusterError(HNeuronsError):
    """A cluster doesn't answer, or its workers are lost."""


class MissingExtraError(HNeuronsError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed.", f"Install it with: pip install 'hneurons[{extra}]'")
