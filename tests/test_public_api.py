import re
import subprocess
import sys

import pytest

import hneurons

PUBLIC = [
    "Card",
    "HNeuronsError",
    "IdentifySettings",
    "ImpactSettings",
    "Monitor",
    "Question",
    "Run",
    "StudyModel",
    "demo_settings",
    "export",
    "identify",
    "impact",
    "load_model",
    "load_questions",
    "origin",
    "pull",
    "scale",
    "verify",
    "write_report",
]
HEAVY = ("torch", "transformers", "numpy", "scipy", "sklearn", "matplotlib", "pydantic", "typer")


def test_public_names_are_these_and_no_others():
    assert hneurons.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str):
    thing = getattr(hneurons, name)
    assert thing.__name__ == name
    assert thing.__doc__
    assert name in dir(hneurons)


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'idenfity'"):
        hneurons.idenfity  # noqa: B018


def test_star_import_gives_the_public_names():
    space: dict[str, object] = {}
    exec("from hneurons import *", space)
    assert set(PUBLIC) <= set(space)


def test_every_error_is_one_of_ours():
    from hneurons import errors

    kinds = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, Exception)]
    assert len(kinds) >= 15
    assert all(issubclass(kind, hneurons.HNeuronsError) for kind in kinds)
    assert {kind.__name__ for kind in kinds} <= set(re.findall(r"\w+", errors.__doc__ or ""))
    assert {kind.exit_status for kind in kinds} == {1, 2}


def test_an_error_is_one_line_with_its_remedy():
    error = hneurons.HNeuronsError("It is\n  broken.", "Mend\nit.")
    assert str(error) == "It is broken. Mend it."
    assert (error.problem, error.remedy) == ("It is broken.", "Mend it.")


def test_import_costs_nothing():
    code = f"import sys, hneurons; print([name for name in {HEAVY!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert out.stderr == ""


def test_a_finished_run_is_read_without_torch(tmp_path):
    code = "import sys, hneurons; hneurons.Run, hneurons.Card, hneurons.write_report; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
