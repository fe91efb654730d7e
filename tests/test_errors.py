"""Errors are one line, and the tree in the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import re

import pytest

from hneurons import errors
from hneurons.errors import HNeuronsError, MissingExtraError, UsageError

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, HNeuronsError)]


def documented() -> dict[str, int]:
    """Name -> depth, from the tree that the module's docstring draws."""
    found: dict[str, int] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:│   |    )*)(├── |└── )?([A-Z]\w+Error)\b", line)
        if match:
            found[match.group(3)] = len(match.group(1)) // 4 + bool(match.group(2))
    return found


def test_the_docstring_is_the_tree():
    assert documented() == {kind.__name__: len(kind.__mro__) - len(HNeuronsError.__mro__) for kind in CLASSES}


def test_each_class_stands_under_its_parent_in_the_docstring():
    above: dict[int, str] = {}
    kinds = {kind.__name__: kind for kind in CLASSES}
    for name, depth in documented().items():
        above[depth] = name
        if depth:
            assert kinds[name].__bases__ == (kinds[above[depth - 1]],)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not MissingExtraError])
def test_messages_are_one_line(kind: type[HNeuronsError]):
    error = kind("The file\n  'a\tb'\r\nis cut.", "Get it\nagain.")
    assert str(error) == "The file 'a b' is cut. Get it again."
    assert error.problem == "The file 'a b' is cut."
    assert error.remedy == "Get it again."
    assert str(kind("Only a problem.")) == "Only a problem."


def test_a_missing_extra_says_what_to_install():
    error = MissingExtraError("pandas", "stats")
    assert str(error) == "pandas is not installed. Install it with: pip install 'hneurons[stats]'"


def test_exit_statuses():
    assert {kind.exit_status for kind in CLASSES if kind is not UsageError} == {1}
    assert UsageError.exit_status == 2
