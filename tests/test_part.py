"""Parts: an object and its plain description say the same, and a description runs no code."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from outside import Maturation, ParallelElimination, RobustError

from neuralpk.dynamics import CompartmentModel, Decoder, Dynamics, HybridDynamics, NeuralSlope
from neuralpk.encoders import Encoder, SetEncoder
from neuralpk.objectives import MarginalLikelihood, Objective
from neuralpk.parameters import PopulationParameters
from neuralpk.part import Part, describe, make, subclasses
from neuralpk.residual_error import ResidualError


@pytest.mark.parametrize(
    ("part", "base"),
    [
        (CompartmentModel(1, absorption="first_order", lag="depot"), Decoder),
        (HybridDynamics(CompartmentModel(1), NeuralSlope(hidden=4), overlap=0.5), Decoder),
        (
            PopulationParameters({"CL": 4.0}, omega={"CL": 0.2}, effects={"CL": [Maturation("AGE")]}),
            PopulationParameters,
        ),
        (RobustError(5.0), ResidualError),
        (SetEncoder(hidden=8), Encoder),
        (MarginalLikelihood(draws=3), Objective),
    ],
)
def test_a_description_makes_the_same_part(part: Part, base: type[Part]) -> None:
    description = describe(part)
    assert json.loads(json.dumps(description)) == description
    again = make(json.loads(json.dumps(description)), base, "part")
    assert type(again) is type(part)
    assert describe(again) == description
    assert make(part, base, "part") is part
    assert describe(copy.deepcopy(part)) == description


def test_a_class_may_be_named_without_its_module() -> None:
    part = make("ParallelElimination", Decoder, "dynamics")
    assert isinstance(part, ParallelElimination)
    made = make({"class_path": "CompartmentModel", "init_args": {"compartments": 3}}, Decoder, "dynamics")
    assert made.states == ("central", "peripheral", "peripheral2")


def test_a_name_that_several_classes_have_needs_its_module() -> None:
    first, second = (type("Twice", (ParallelElimination,), {}) for _ in range(2))
    with pytest.raises(ValueError, match="the name of several classes"):
        make("Twice", Decoder, "dynamics")
    assert first is not second


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("CompartmentModle", r"no Decoder 'CompartmentModle' \(did you mean 'CompartmentModel'"),
        ({"class_path": "CompartmentModel", "init_args": {"compartment": 1}}, "did you mean 'compartments'"),
        ("neuralpk.encoders.SetEncoder", "must be a Decoder"),
        ("subprocess.Popen", "must be a Decoder"),
        ("os.system", "must be a Decoder"),
        ("not_imported_anywhere.Field", "import not_imported_anywhere first"),
        ("Dynamics", "abstract"),
        (3, "must be a Decoder"),
        ({"class_path": "CompartmentModel", "extra": 1}, "must be a Decoder"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(value, Decoder, "dynamics")


def test_a_part_inside_a_part_has_to_be_of_its_kind() -> None:
    inner = {"class_path": "neuralpk.encoders.SetEncoder", "init_args": {}}
    with pytest.raises(ValueError, match=r"dynamics\.mechanism must be a"):
        make({"class_path": "HybridDynamics", "init_args": {"mechanism": inner}}, Decoder, "dynamics")


def test_a_class_without_an_importable_name_is_asked_for_again() -> None:
    class Local(CompartmentModel.__base__):  # type: ignore[misc,name-defined]
        def rates(self, t, y, theta):
            return theta

    local = Local(("central",), (("central", None),))
    with pytest.raises(ValueError, match=r"give the object, as in load_from_checkpoint\(path, dynamics="):
        make(describe(local), Decoder, "dynamics")
    with pytest.raises(ValueError, match="which a checkpoint cannot hold: give the object again"):
        make(describe(RobustError(freedom=lambda: 4.0)), ResidualError, "error")


def test_a_description_imports_nothing(tmp_path) -> None:
    (tmp_path / "hostile.py").write_text("open('touched', 'w')\nclass Field: pass\n")
    code = (
        "from neuralpk.part import make\nfrom neuralpk.dynamics import Decoder\n"
        "try: make('hostile.Field', Decoder, 'dynamics')\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "import hostile first" in done.stdout
    assert not (tmp_path / "touched").exists()


def test_names_of_the_classes_that_ship_are_unique() -> None:
    names = [cls.__name__ for cls in subclasses(Part) if cls.__module__.startswith("neuralpk.")]
    assert len(names) == len(set(names))
    assert Dynamics in subclasses(Part)
