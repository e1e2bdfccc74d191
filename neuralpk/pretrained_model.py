"""A pre-trained model as the start of a study, and as the prior of its population."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuralpk.checkpoint_files import SECTION, making_task, read_checkpoint
from neuralpk.dynamics import Decoder
from neuralpk.encoders import Encoder
from neuralpk.parameters import PopulationParameters
from neuralpk.part import Part, describe, find_class, make
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import ResidualError
from neuralpk.scaling import Scaling
from neuralpk.training_data_provenance import Provenance

# what a study may decide for itself; the shape of the model is that of the pre-training
_FREE = ("omega", "omega_prior_sd", "prior_sd")
_BASES: dict[str, type[Part]] = {"dynamics": Decoder, "encoder": Encoder, "error": ResidualError}
# the dynamics of simulated populations are known far better than one of which only its smoothness is
_PRIOR_SD = 0.03


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint of a pre-training, read for a study to come.

    The pre-training saw patients of many populations, and knows only how one patient differs from another: for a
    patient of the study log(theta) ~ N(log(typical), omega²). The typical values of the study's population therefore
    have a log-normal prior with this centre and this omega. The weights of the dynamics have a normal prior around
    those that were found.

    Args:
        descriptions: of the parts of the task that was pre-trained.
        scaling: magnitudes of its data.
        provenance: whose data they were.
        model: as it was left.
        encoder: as it was left; None for none.
    """

    descriptions: Mapping[str, Any]
    scaling: Scaling
    provenance: Provenance
    model: PopulationModel
    encoder: Encoder | None

    @classmethod
    def read(cls, path: str | Path, unverified: bool = False) -> Pretrained:
        """From a checkpoint of a `LatentTask`; no code is run, only numbers are read.

        Args:
            path: of a local file.
            unverified: also read a file without a sha256.

        Raises:
            FileNotFoundError: no such file.
            neuralpk.checkpoint_files.CheckpointError: no checkpoint of a task; damaged; without a sha256.
            ValueError: a part whose class is not imported.
        """
        checkpoint = read_checkpoint(path, unverified=unverified)
        with making_task(str(path)):
            return cls._of(checkpoint)

    @classmethod
    def _of(cls, checkpoint: Mapping[str, Any]) -> Pretrained:
        parts, section = checkpoint["hyper_parameters"], checkpoint[SECTION]
        scaling = Scaling.from_plain(section["scaling"])
        model = PopulationModel(
            make(parts["dynamics"], Decoder, "dynamics"),  # type: ignore[type-abstract]
            make(parts["parameters"], PopulationParameters, "parameters"),
            make(parts["error"], ResidualError, "error"),  # type: ignore[type-abstract]
        ).build(scaling)
        encoder = None
        if parts["encoder"] is not None:
            encoder = make(parts["encoder"], Encoder, "encoder")  # type: ignore[type-abstract]
        if encoder is not None:
            encoder.build(scaling, model.latent_size)
        holder = torch.nn.ModuleDict({"model": model} | ({} if encoder is None else {"encoder": encoder}))
        state = checkpoint["state_dict"].items()
        holder.load_state_dict({k: v for k, v in state if k.startswith(("model.", "encoder."))})
        return cls(parts, scaling, Provenance.from_plain(section["provenance"]), model, encoder)

    def parts(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of a task that starts here.

        Args:
            given: the parts that were asked for, by name; None where none was.

        Raises:
            ValueError: a part of another shape than that of the pre-training.
        """
        parts: dict[str, Any] = {}
        for name, base in _BASES.items():
            saved = self.descriptions[name]
            asked = _described(given[name], base, name)
            different = {} if asked is None else _differences(asked, saved, base, name)
            if different:
                shown = ", ".join(f"{key} {value!r}" for key, value in different.items())
                raise ValueError(
                    f"the {name} of the pre-trained model has {shown}; a study that starts from it cannot have "
                    f"another: leave {name} out"
                )
            parts[name] = _with(saved, _asked_for(asked, base, name))
        options = parts["dynamics"]["init_args"]
        if "prior_sd" in _effective(parts["dynamics"], Decoder, "dynamics"):
            asked = _described(given["dynamics"], Decoder, "dynamics")
            options["prior_sd"] = _asked_for(asked, Decoder, "dynamics").get("prior_sd", _PRIOR_SD)
        asked = _described(given["parameters"], PopulationParameters, "parameters")
        population = self.model.population
        spread = population.log_omega_by_parameter().exp().tolist()
        prior = {
            "typical": {name: float(value) for name, value in population.typical_values().items()},
            "typical_prior_sd": dict(zip(population.names, spread, strict=True)),
        }
        free = _asked_for(asked, PopulationParameters, "parameters")
        parts["parameters"] = _with(self.descriptions["parameters"], free | prior)
        return parts

    def magnitudes(self, scaling: Scaling, provenance: Provenance) -> tuple[Scaling, Provenance]:
        """The magnitudes in which the networks have learned to read, with the number of subjects of the study.

        Raises:
            ValueError: covariates or units other than those of the pre-training.
        """
        if set(scaling.covariates) != set(self.scaling.covariates):
            raise ValueError(
                f"pre-trained with covariates {sorted(self.scaling.covariates)}, not {sorted(scaling.covariates)}"
            )
        if scaling.units != self.scaling.units:
            asked, own = (", ".join(one) for one in (scaling.units, self.scaling.units))
            raise ValueError(f"pre-trained with data in {own}, not in {asked}: convert the table")
        magnitudes = self.scaling._replace(subjects=scaling.subjects)
        return magnitudes, provenance._replace(pretraining=self.provenance.data_description)

    def start(self, model: PopulationModel, encoder: Encoder | None) -> None:
        """Give a model of these parts the encoder, dynamics, effects, correlations and error that were found, and
        centre the prior of the weights at those of the dynamics."""
        if encoder is not None and self.encoder is not None:
            encoder.load_state_dict(self.encoder.state_dict())
        # the prior of the weights before the pre-training is replaced
        found = {k: v for k, v in self.model.dynamics.state_dict().items() if "weight_prior." not in k}
        missing, unexpected = model.dynamics.load_state_dict(found, strict=False)
        assert not unexpected and all("weight_prior." in name for name in missing), (missing, unexpected)
        model.error.load_state_dict(self.model.error.state_dict())
        model.population.take_effects(self.model.population)
        model.dynamics.centre_prior()


def _described(part: Any, base: type[Part], name: str) -> dict[str, Any] | None:
    """The plain description of a part in any of its forms; None for none."""
    if part is None:
        return None
    description: dict[str, Any] = describe(make(part, base, name))
    return description


def _effective(description: Mapping[str, Any], base: type[Part], name: str) -> dict[str, Any]:
    """Options of a part with the defaults of its class for those left out."""
    defaults = inspect.signature(find_class(description["class_path"], base, name).__init__).parameters
    known = {k: describe(p.default) for k, p in defaults.items() if p.default is not inspect.Parameter.empty}
    return known | dict(description["init_args"])


def _differences(
    asked: Mapping[str, Any], saved: Mapping[str, Any] | None, base: type[Part], name: str
) -> dict[str, Any]:
    """What the saved part has where another is asked for, by option."""
    if saved is None or asked["class_path"] != saved["class_path"]:
        return {"class": None if saved is None else saved["class_path"]}
    left, right = (_effective(one, base, name) for one in (asked, saved))
    return {key: right.get(key) for key in left if key not in _FREE and left[key] != right.get(key)}


def _asked_for(description: Mapping[str, Any] | None, base: type[Part], name: str) -> dict[str, Any]:
    """Options that a study may decide and that differ from the default of their class."""
    if description is None:
        return {}
    defaults = _effective({**description, "init_args": {}}, base, name)
    return {k: v for k, v in description["init_args"].items() if k in _FREE and v != defaults.get(k)}


def _with(description: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """A description with some other options."""
    if description is None:
        return None
    return {"class_path": description["class_path"], "init_args": {**description["init_args"], **options}}
