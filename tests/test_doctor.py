"""What `neuralpk doctor` says of this machine."""

from __future__ import annotations

import pytest
import torch

from neuralpk.cli import doctor_command, main
from neuralpk.dynamics import CompartmentModel


def test_nothing_is_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    said = capsys.readouterr().out
    assert f"torch        {torch.__version__}" in said and said.endswith("Nothing is wrong\n")


def test_a_version_that_is_not_supported_is_named() -> None:
    (sentence,) = doctor_command.unsupported({"torch": "2.3.0", "numpy": "1.0"})
    assert sentence.startswith("torch 2.3.0 is not supported: neuralpk needs torch")


def test_a_wrong_gradient_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Off(CompartmentModel):
        def observe(self, states: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
            value = super().observe(states, theta)
            return value if value.dtype == torch.float64 else 1.01 * value

    monkeypatch.setattr(doctor_command, "_MODELS", (("a model", Off(1), [4.0, 70.0], doctor_command.Exact()),))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    assert stopped.value.code == 1 and "the gradient of a model is off by 1.0e-02" in capsys.readouterr().err


def test_it_takes_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--out", "x"])
    assert stopped.value.code == 2
    assert "takes no --out" in capsys.readouterr().err
