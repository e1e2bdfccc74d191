"""Which lines of a function are an individual parameter, with which numbers."""

import math

import pytest

from neuralpk.parameters import LogitNormal, LogNormal, Normal
from neuralpk.rxode2 import import_rxode2


def read(line: str, ini: str = "", more: str = ""):
    return import_rxode2(
        f"""ini({{ t1 <- log(5); t2 <- 0.5; w <- 0.7; e1 ~ 0.09; {ini} s <- 1 }})
        model({{ {line}; spare <- t2*w; {more}
          d/dt(x) <- -p*x*spare
          x ~ add(s) }})"""
    )


# the line, its distribution and typical value, and its effects: covariate, reference, coefficient, whether it is fixed
PARAMETERS = {
    "log-normal": ("p <- exp(t1 + e1)", LogNormal, 5.0, []),
    "in another order": ("p <- exp(e1 + t1)", LogNormal, 5.0, []),
    "of a product": ("p <- exp(t1)*exp(e1)", LogNormal, 5.0, []),
    "with a factor": ("p <- 2*exp(t1 + e1)/4", LogNormal, 2.5, []),
    "with a factor that is a variable": ("k <- 60; p <- exp(t1 + e1)/k", LogNormal, 5 / 60, []),
    "with a sum": ("p <- exp(t1 + e1 + log(2))", LogNormal, 10.0, []),
    "of a theta that is a factor": ("p <- t1*exp(e1)", LogNormal, math.log(5), []),
    "in two lines": ("tv <- exp(t1); p <- tv*exp(e1)", LogNormal, 5.0, []),
    "a power": ("p <- exp(t1 + e1)*(WT/70)^0.75", LogNormal, 5.0, [("WT", 70, 0.75, True)]),
    "a power without reference": ("p <- exp(t1 + e1)*WT^2", LogNormal, 5.0, [("WT", 1, 2, True)]),
    "a share of the weight": ("p <- exp(t1 + e1)*WT/70", LogNormal, 5.0, [("WT", 70, 1, True)]),
    "per weight": ("p <- t1*WT*exp(e1)", LogNormal, math.log(5), [("WT", 1, 1, True)]),
    "a power of a ratio that is a variable": (
        "size <- WT/70; p <- exp(t1 + e1)*size**0.75",
        LogNormal,
        5.0,
        [("WT", 70, 0.75, True)],
    ),
    "an inverse power": ("p <- exp(t1 + e1)/(WT/70)^0.25", LogNormal, 5.0, [("WT", 70, -0.25, True)]),
    "a difference of logarithms": ("p <- exp(t1 + e1 + 0.5*(log(WT) - log(70)))", LogNormal, 5 / 70**0.5, None),
    "two covariates": (
        "p <- exp(t1 + e1 + 0.1*(AGE - 40)/10)*(WT/70)",
        LogNormal,
        5.0,
        [("AGE", 40, 0.01, True), ("WT", 70, 1, True)],
    ),
    "a covariate that is 0 or 1": ("p <- exp(t1 + e1 - 0.2*SEX)", LogNormal, 5.0, [("SEX", 0, -0.2, True)]),
    "logit-normal": ("p <- expit(t1 + e1, 0, 10)", LogitNormal, 10 / 1.2, []),
    "logit-normal from 0 to 1": ("p <- expit(t1 + e1)", LogitNormal, 5 / 6, []),
    "normal": ("p <- t1 + e1", Normal, math.log(5), []),
    "normal with an effect": ("p <- t1 + e1 + 2*(AGE - 40)", Normal, math.log(5), [("AGE", 40, 2, True)]),
    "of a random effect alone": ("p <- 3*exp(e1)", LogNormal, 3.0, []),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_line_is_a_parameter(what):
    line, kind, typical, effects = PARAMETERS[what]
    model = read(line) if "t1" in line else read(line, more="spare2 <- t1;")
    assert type(model.distributions["p"]) is kind
    assert model.typical["p"] == pytest.approx(typical, rel=1e-14)
    assert model.omega == {"p": 0.3}
    assert ("p" in model.fixed) == ("t1" not in line)
    if effects is not None:
        read_effects = [[*effect.arguments.values()] for effect in model.effects.get("p", ())]
        assert read_effects == [pytest.approx([*effect]) for effect in effects]


@pytest.mark.parametrize(
    ("line", "ini", "coefficient", "fixed"),
    [
        ("p <- exp(t1 + e1 + c1*log(WT/70))", "c1 <- 0.6;", 0.6, False),
        ("p <- exp(t1 + e1 + log(WT/70)*c1)", "c1 <- fix(0.6);", 0.6, True),
        ("p <- exp(t1 + e1)*(WT/70)^c1", "c1 <- fixed(0.6);", 0.6, True),
        ("p <- exp(t1 + e1)*c1^SEX", "c1 <- 0.6;", math.log(0.6), False),
        ("p <- exp(t1 + e1 + c1*SEX/2)", "c1 <- 0.6;", 0.3, False),
        ("p <- exp(t1 + e1 + c1*(log(WT) - log(70)))", "c1 <- 0.6;", 0.6, False),
    ],
)
def test_a_coefficient_is_a_theta(line, ini, coefficient, fixed):
    (effect,) = read(line, ini).effects["p"]
    numbers = effect.arguments
    assert (numbers.get("exponent") or numbers.get("slope")) == pytest.approx(coefficient)
    assert effect.fixed == fixed
    assert numbers["reference"] == (70.0 if "WT" in line else 0.0)


@pytest.mark.parametrize(
    "line",
    [
        "p <- exp(t1 + e1*w)",
        "p <- exp(t1)*(1 + e1)",
        "p <- exp(t1 + e1); q <- t1",
        "p <- exp(t1 + e1) + 1",
        "p <- exp(t1 + e1 + 0.1*WT*AGE)",
        "p <- exp(t1 + e1)*(1 + 0.2*SEX)",
        "p <- exp(t1 + e1 + 0.1*WT + 0.2*WT)",
        "p <- exp(-t1 + e1)",
        "p <- -exp(t1 + e1)",
        "p <- 1/(1 + exp(-t1 - e1))",
    ],
)
def test_any_other_use_stays_an_equation(line):
    model = read(line)
    assert model.typical["t1"] == math.log(5) and model.typical["e1"] == 0.0
    assert model.omega == {"e1": 0.3} and model.fixed == ("e1",)
    assert "\np = " in model.text


def test_a_typical_value_with_another_use_is_a_parameter_of_its_own():
    model = read("tv <- exp(t1); p <- tv*exp(e1); q <- tv")
    assert model.typical["tv"] == 5.0 and model.typical["e1"] == 0.0
    assert "\np = tv*exp(e1)\n" in model.text


def test_numbers_are_those_written():
    model = import_rxode2(
        """ini({
          a <- c(-1, log(3), 4, fixed); b <- fix(0, logit(0.3), 1); k = 1e-2; big <- 0x10L
          e1 ~ fix(0.04); e2 + e3 ~ sd(c(0.3, 0.01, 0.2)); e4 ~ 0; label("a random effect")
          s <- .5 })
        model({
          pa <- exp(a + e1); pb <- expit(b); pk <- k + e2; pc <- exp(big - 10 + e3); pd <- 2*exp(e4)
          d/dt(x) <- -pa*pb*pk*pc*pd; x ~ add(s) })""".replace("fix(0, logit(0.3), 1)", "fix(-3, logit(0.3), 1)")
    )
    assert (model.typical["pa"], model.typical["pb"], model.typical["pk"]) == (3.0, 0.3, 0.01)
    assert model.typical["pc"] == pytest.approx(math.exp(6)) and model.typical["pd"] == 2.0
    assert model.omega == {"pa": 0.2, "pk": 0.3, "pc": 0.2}
    assert model.correlation == pytest.approx({("pk", "pc"): 0.01 / 0.06})
    assert {*model.fixed} == {"pa", "pb", "omega pa", "pd"}


def test_layout_comments_and_texts_of_r_are_read():
    text = (
        "\ufefflibrary(nlmixr2)  # it's here; not ('run')\n\n"
        'mod =\n  function ()\n{\n  description = "a \\"quoted\\" text,\n  of two lines"\n'
        "  meta$dosing <- c('central', \"depot\",\n 3, -1, TRUE)\n"
        "  ini(\n  {\n    # (\n    t.k <- # the rate {\n      log(.1)\n    label('rate \"k\" {')\n"
        "    e.k ~ 4.e-2 ; s <-\t1.\n    sv = 20L;\n  }\n  )\n"
        "  model({\n    `k` <- exp(t.k +\n      e.k)\n    d/dt(x) = (-k\n      * x\n      + 0)\n"
        "    if (k > 0 &&\n      k < 9)\n    {\n      z <- x\n    }\n    else if (k == 9) z = x else {\n z <- x }\n"
        "    z ~ add(s) +\n      prop(0.1);\n    v <- sv\n  })\n}\n"
    )
    for ends in ("\n", "\r\n"):
        model = import_rxode2(text.replace("\n", ends))
        assert (model.name, model.typical, model.omega) == ("mod", {"k": 0.1}, {"k": 0.2})
        assert model.labels == {"k": 'rate "k" {'}
        assert model.description == {"description": 'a "quoted" text, of two lines'}
        assert "z = where(k > 0 and k < 9, x, where(k == 9, x, x))" in model.text
        assert "dosing (line 8) is not used" in model.notes
        line = text[: text.index("v <- sv")].count("\n") + 1
        assert f"v (line {line}) is not used in any equation and is left out" in model.notes
