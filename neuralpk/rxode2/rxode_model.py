"""A model in the parts that a function of rxode2 or nlmixr2 holds: equations, population and residual errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from neuralpk.cohort import Units
from neuralpk.dynamics import CompartmentModel, Equations
from neuralpk.parameters import CovariateEffect, ParameterDistribution, PopulationParameters
from neuralpk.parameters.distributions import of_range
from neuralpk.published_population import PublishedPopulation, equations
from neuralpk.residual_error import Assay, ErrorByEndpoint, ResidualError
from neuralpk.rxode2.compartment_text import compartment_text, names_in_text


@dataclass(frozen=True)
class RxodeModel:
    """A model with its population and its residual errors, as plain numbers. Its parts are ready for a fit::

        model = import_rxode2("theophylline.R")
        fitted = neuralpk.fit("T.csv", model.dynamics, parameters=model.parameters, error=model.error)

    Args:
        name: of the function; empty where it has none.
        text: of its `Equations`.
        typical: typical value by parameter of the equations.
        omega: standard deviation of the random effect, of the parameters that have one.
        correlation: (parameter, parameter) to the correlation of their random effects, where it is not 0.
        correlated: names of the parameters whose correlations are estimated.
        effects: covariate effects by parameter.
        distributions: by parameter.
        fixed: numbers that keep their value in a fit, as `PopulationParameters` names them.
        errors: residual error of each output, in the order of DVID.
        shared_omega: groups of parameters that have one omega; a function can only say so in a comment.
        fixed_errors: outputs whose residual error keeps its numbers in a fit.
        units: of time, amount and value.
        description: texts of the function, by name: description, reference.
        labels: what a parameter is, by parameter.
        notes: what of the function is not used, and what one has to know to use the model.
    """

    name: str
    text: str
    typical: dict[str, float]
    omega: dict[str, float]
    correlation: dict[tuple[str, str], float]
    correlated: tuple[str, ...]
    effects: dict[str, tuple[CovariateEffect, ...]]
    distributions: dict[str, ParameterDistribution]
    fixed: tuple[str, ...]
    errors: tuple[Assay, ...]
    shared_omega: tuple[tuple[str, ...], ...] = ()
    fixed_errors: tuple[str, ...] = ()
    units: Units = Units()  # noqa: RUF009  # a NamedTuple cannot be changed
    description: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of_population(cls, population: PublishedPopulation) -> RxodeModel:
        """The model of a population file.

        Raises:
            ValueError: dynamics that are not equations; variability between occasions.
        """
        if population.occasion_column:
            raise ValueError(
                f"a function of rxode2 is written without variability between occasions: kappa of "
                f"{', '.join(population.kappa)} has no place in it. Remove kappa and occasions from the population"
            )
        if population.has_factor or population.outputs:
            raise ValueError(
                "a function of rxode2 is written without a residual error that differs between subjects (RUV) and "
                "without several assays of one output (outputs). Remove them from the population"
            )
        dynamics = equations(population.dynamics)
        names = {name: name for name in dynamics.parameter_names if name not in dynamics.covariates}
        if isinstance(dynamics, CompartmentModel):
            names = names_in_text(dynamics)
            dynamics = Equations(compartment_text(dynamics, population.typical))
        if not isinstance(dynamics, Equations):
            raise ValueError(f"a function of rxode2 has equations; these dynamics are {type(dynamics).__name__}")
        effects: dict[str, tuple[CovariateEffect, ...]] = {}
        for parameter, covariate in population.effects:
            found = effects.get(names[parameter], ())
            effects[names[parameter]] = (*found, population.effect(parameter, covariate))
        ranges = dynamics.ranges
        distributions = {
            new: population.distributions.get(old) or of_range(*ranges.get(new, (0.0, math.inf)))
            for old, new in names.items()
        }
        kinds = [population.error] if isinstance(population.error, str) else population.error
        numbers = [population.error_sd] if isinstance(population.error_sd, Mapping) else population.error_sd
        if len(kinds) < len(dynamics.assays):
            kinds, numbers = [kinds[0]] * len(dynamics.assays), [numbers[0]] * len(dynamics.assays)
        errors = [
            dataclasses.replace(assay, error=kind, values=dict(values))
            for assay, kind, values in zip(dynamics.assays, kinds, numbers, strict=True)
        ]
        correlation = {(names[a], names[b]): value for (a, b), value in population.correlation.items()}
        return cls(
            name="",
            text=dynamics.text,
            typical={names[name]: value for name, value in population.typical.items()},
            omega={names[name]: value for name, value in population.omega.items() if value > 0},
            correlation=correlation,
            correlated=tuple(dict.fromkeys(one for pair in correlation for one in pair)),
            effects=effects,
            distributions=distributions,
            fixed=(),
            errors=(*errors,),
            units=population.units,
        )

    @property
    def dynamics(self) -> Equations:
        """The equations."""
        return Equations(self.text)

    @property
    def parameters(self) -> PopulationParameters:
        """The population, with the numbers as starting values of a fit."""
        return PopulationParameters(
            dict(self.typical),
            {name: self.omega.get(name, 0.0) for name in self.typical},
            list(self.correlated) or False,
            distributions=dict(self.distributions),
            effects={name: list(effects) for name, effects in self.effects.items()},
            correlation={f"{a}~{b}": value for (a, b), value in self.correlation.items()},
            fixed=list(self.fixed),
            shared_omega=[list(group) for group in self.shared_omega],
        )

    @property
    def error(self) -> ResidualError:
        """The residual error, with the numbers as starting values of a fit."""
        return self._error({*self.fixed_errors})

    def _error(self, fixed: set[str]) -> ResidualError:
        made = []
        for assay in self.errors:
            error = assay.residual_error(assay.output in fixed)
            assert error is not None  # all outputs of such a model have one
            made.append(error)
        return made[0] if len(made) == 1 else ErrorByEndpoint(made)

    @property
    def population(self) -> PublishedPopulation:
        """All numbers as a population file holds them."""
        population = PopulationParameters.from_values(
            self.typical,
            self.omega,
            {(name, one.covariates[0]): one for name, effects in self.effects.items() for one in effects},
            self.correlation,
            distributions=self.distributions,
        )
        error = self._error({assay.output for assay in self.errors}).fix()
        published = PublishedPopulation.from_parts(self.dynamics, population, error, self.units)
        numbers: list[dict[str, float]] = [dict(assay.values) for assay in self.errors]
        # on the way they got the rounding of a logarithm
        return dataclasses.replace(
            published,
            typical=self.typical,
            omega=self.omega,
            correlation=self.correlation,
            error_sd=numbers[0] if isinstance(published.error, str) else numbers,
        )
