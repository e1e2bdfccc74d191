"""Streams of random numbers: none overlaps another, and all are of one enumeration."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from neuralpk import randomness
from neuralpk.randomness import Stream

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("neuralpk", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "neuralpk" / "randomness.py"
]
# position of the stream among the arguments
FUNCTIONS = {"uniform": 1, "normal": 1, "brownian": 1, "noise": 1, "Noise": 1, "temper": 5, "move": 4}
OWNERS = {"uniform": "randomness", "normal": "randomness", "brownian": "randomness", "noise": "importance"}


def test_no_two_streams_overlap_whatever_the_step():
    ends = sorted((stream.at(0), stream.at(stream.size - 1)) for stream in Stream)
    assert all(last < first for (_, last), (first, _) in pairwise(ends))
    assert len(ends) == len(Stream.__members__), "two names for one stream"
    assert ends[-1][1] * 2 + 1 < 2**63, "the hash of a stream is a signed integer"
    for stream in Stream:
        assert {Stream.of(stream.at(step)) for step in (0, stream.size - 1)} == {stream}


@pytest.mark.parametrize("stream", Stream)
def test_a_step_beyond_a_stream_is_refused(stream):
    for step in (-1, stream.size):
        with pytest.raises(ValueError, match=rf"{stream.name} of random numbers has steps 0 to {stream.size - 1}"):
            stream.at(step)
    last = stream.at(stream.size - 1)
    assert randomness.later(stream.at(0), stream.size - 1) == last
    with pytest.raises(ValueError, match=stream.name):
        randomness.later(last, 1)


def test_a_training_has_room_for_more_steps_than_anyone_takes():
    ranged = set(Stream) - {
        Stream.ETA,
        Stream.COVARIATES,
        Stream.TIMES,
        Stream.JITTER,
        Stream.RESIDUAL,
        Stream.POPULATION,
        Stream.PATH,
        Stream.KAPPA,
    }
    assert all(stream.size > 10**12 for stream in ranged)


def test_no_number_comes_twice():
    index = torch.arange(500)
    drawn = [randomness.uniform(3, stream.at(0), index, 20).flatten() for stream in Stream]
    drawn.append(randomness.uniform(3, Stream.TRAINING.at(1), index, 20).flatten())
    # the numbers of the whole cohort, which once were those of its subject 100
    together = torch.cat(drawn)
    assert len(together.unique()) == len(together)


def test_paths_of_a_subject_and_their_selection_have_keys_of_their_own():
    index = torch.arange(1000)
    keys = torch.cat([randomness.path_key(index, occurrence) for occurrence in range(-1, 50)])
    assert len(keys.unique()) == len(keys)
    assert randomness.path_key(index, 0).tolist() == index.tolist()  # as simulated cohorts have always had it


def made_by_hand(tree: ast.Module) -> list[int]:
    """Lines where a stream is made of numbers."""
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        constants[name.id] = node.value
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
        if name not in FUNCTIONS or OWNERS.get(name, owner) != owner:
            continue
        given = [word.value for word in node.keywords if word.arg == "stream"]
        given += node.args[FUNCTIONS[name] : FUNCTIONS[name] + 1]
        found += [node.lineno for argument in given if numbers(constants.get(getattr(argument, "id", ""), argument))]
    return found


def numbers(node: ast.expr) -> bool:
    """Whether an integer is written outside ``Stream.….at(…)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "at":
        return False
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int)
    return any(numbers(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_makes_a_stream_by_hand(path):
    tree = ast.parse(path.read_text())
    assert not made_by_hand(tree)
    if any(isinstance(node, ast.ImportFrom) and "randomness" in ast.dump(node) for node in tree.body):
        shifts = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift) and isinstance(node.left, ast.Constant)
        ]
        assert not shifts


@pytest.mark.parametrize(
    "text",
    [
        "randomness.normal(seed, 7, index, 3)",
        "randomness.uniform(seed, 1 << 40, index, 3)",
        "_A = 1 << 46\nrandomness.normal(seed, _A, index, 3)",
        "A, B = 11, 12\nimportance.noise(seed, B, index, 3, 2, kind)",
        "Noise(seed, stream=3 + k)",
        "temper(model, batch, mode, 10, seed, 0)",
        "Noise(seed, Stream.TRAINING + 1)",
    ],
)
def test_a_stream_made_by_hand_is_seen(text):
    assert made_by_hand(ast.parse(text))


def test_a_stream_of_the_enumeration_is_not_taken_for_one_made_by_hand():
    text = "A, B = (Stream.SCRIPT.at(k) for k in (0, 1))\nrandomness.normal(seed, Stream.SCRIPT.at(3), index, 5)"
    assert not made_by_hand(ast.parse(text))
