"""A model that was pre-trained, as the start of a study and as what is believed before the study has data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from neuralpk.models import DynamicsSettings, EncoderSettings, LatentModel, build_model
from neuralpk.origin import Origin
from neuralpk.scaling import Scaling

# what a study may decide for itself; the shape of the model is that of the pre-training
_FREE = ("omega", "omega_spread", "bend")
_SHAPE = ("dynamics", "encoder", "error")
# the field of simulated populations is known far better than one of which only its smoothness is
_BEND = 0.03


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint of a pre-training says of a study to come.

    The pre-training saw patients of many populations, and knows only how one patient differs from another. Of a patient
    of the study it therefore believes log(theta) ~ N(log(typical), omega²). The study's population lies somewhere in
    there: its typical values are a priori log-normal with this centre and this omega. The weights of the field are
    a priori normal around those that were found.

    Args:
        settings: hyperparameters of the task that was pre-trained.
        model: as it was left.
    """

    settings: Mapping[str, Any]
    model: LatentModel

    @classmethod
    def read(cls, path: str | Path) -> Pretrained:
        """From a checkpoint of a `LatentODETask`; its code is not run, only numbers are read."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings = checkpoint["hyper_parameters"]
        dynamics, encoder = cast(DynamicsSettings, settings["dynamics"]), cast(EncoderSettings, settings["encoder"])
        scaling = Scaling.from_plain(settings["scaling"])
        model = build_model(dynamics or {}, encoder or {}, settings["error"], {}, scaling)
        state = checkpoint["state_dict"].items()
        weights = {name.removeprefix("model."): value for name, value in state if name.startswith("model.")}
        model.load_state_dict(weights)
        return cls(settings, model)

    def tuned(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters of a task that starts here: plain values, so that its checkpoint needs no other.

        Args:
            settings: hyperparameters as they were asked for, with the scaling of the study.

        Raises:
            ValueError: a model of another shape, or covariates that were not there in the pre-training.
        """
        for name in _SHAPE:
            asked, saved = settings[name] or {}, self.settings[name] or {}
            if name == "error":
                asked, saved = {"error": asked}, {"error": saved}
            differ = {k for k, v in asked.items() if k not in _FREE and v != saved.get(k, v)}
            if differ:
                known = ", ".join(f"{k} {saved[k]!r}" for k in sorted(differ))
                raise ValueError(f"the pre-trained model has {known}; a study that starts from it cannot have another")
        study, source = (Scaling.from_plain(one["scaling"]) for one in (settings, self.settings))
        if set(study.covariates) != set(source.covariates):
            raise ValueError(f"pre-trained with covariates {sorted(source.covariates)}, not {sorted(study.covariates)}")
        individual = self.model.individual
        centre, spread = individual.log_typical.exp().tolist(), individual.log_omega.exp().tolist()
        asked = {k: v for k, v in (settings["dynamics"] or {}).items() if k in _FREE}
        if (self.settings["dynamics"] or {}).get("weights") != "own":  # there it is the size of the slope itself
            asked = {"bend": _BEND} | asked
        believed = {
            "typical": dict(zip(individual.names, centre, strict=True)),
            "typical_spread": dict(zip(individual.names, spread, strict=True)),
        }
        shape = {name: self.settings[name] for name in _SHAPE}
        # the magnitudes in which the networks have learned to read, and the number of those who now teach
        scaling = source._replace(subjects=study.subjects).plain()
        origin = {"pretraining": Origin.from_plain(self.settings["scaling"]).described}
        return shape | {
            "dynamics": (self.settings["dynamics"] or {}) | asked | believed,
            "scaling": scaling | origin,
            "pretrained": None,
        }

    def start(self, model: LatentModel) -> None:
        """Give a model of these hyperparameters the encoder, field, effects, correlations and error that were found,
        and make the weights of the field what is expected of it."""
        model.encoder.load_state_dict(self.model.encoder.state_dict())
        # what was believed of the weights before the pre-training is believed no longer
        found = {k: v for k, v in self.model.dynamics.state_dict().items() if "weight_prior." not in k}
        missing, unexpected = model.dynamics.load_state_dict(found, strict=False)
        assert not unexpected and all("weight_prior." in name for name in missing), (missing, unexpected)
        model.error.load_state_dict(self.model.error.state_dict())
        with torch.no_grad():
            model.individual.effects.copy_(self.model.individual.effects)
            model.individual.links.copy_(self.model.individual.links)
            model.dynamics.centre_prior()
