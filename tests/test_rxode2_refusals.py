"""What a function of rxode2 or nlmixr2 may not have is refused by its name, with the line where it stands."""

import random

import pytest

from neuralpk.dynamics import EquationError
from neuralpk.rxode2 import import_rxode2

# line 1 is the line of the function itself; {ini} are lines 3 on, {model} the lines after "model({"
FRAME = """m <- function() {{
  ini({{
    lcl <- log(5); lv <- log(50); eta.cl ~ 0.09; s <- 0.2
    {ini}
  }})
  model({{
    cl <- exp(lcl + eta.cl); v <- exp(lv)
    {model}
    d/dt(central) <- -cl/v*central
    cp <- central/v
    {error}
  }})
}}"""


def text(ini: str = "", model: str = "", error: str = "cp ~ prop(s)") -> str:
    return FRAME.format(ini=ini, model=model, error=error)


REFUSED = {
    # in ini()
    "variability between occasions": (text(ini="eta.iov ~ 0.1 | occ"), 4, "variability between the levels of 'occ'"),
    "a number that is not used": (text(ini="tka <- 1"), 4, "tka is not used in model"),
    "a random effect that is not used": (text(ini="eta.ka ~ 1"), 4, "eta.ka is not used in model"),
    "a name twice": (text(ini="lcl <- 3"), 4, "lcl is defined already, in line 3"),
    "a value outside its bounds": (text(ini="x <- c(1, 5, 3)"), 4, "x = 5 is not between its bounds 1 and 3"),
    "a negative variance": (text(ini="eta.v ~ -0.1"), 4, "variance of eta.v must be 0 or above"),
    "too few covariances": (text(ini="a + b ~ c(1, 2)"), 4, "2 random effects have 3 variances and covariances, not 2"),
    "a covariance that cannot be": (text(ini="a + b ~ c(1, 2, 1)"), 4, "no random effects have this covariance"),
    "a number that is none": (text(ini="x <- log(-1)"), 4, "log of these numbers is no number"),
    "a function in a number": (text(ini="x <- runif(1)"), 4, "the function runif()"),
    "a Cholesky factor": (text(ini="a + b ~ chol(c(1, 0.1, 1))"), 4, "chol"),
    "a number infinite": (text(ini="x <- 1e999"), 4, "x must be a finite number"),
    "a statement in ini": (text(ini="print(1)"), 4, "'print' in ini()"),
    # in model()
    "time after the dose": (text(model="x <- tad"), 8, "tad: a number of the doses"),
    "time after dose of a state": (text(model="x <- tad(depot)"), 8, "the function tad()"),
    "the normal distribution function": (text(model="x <- phi(v)"), 8, "the function phi()"),
    "a probit": (text(model="x <- probitInv(lv, 0, 1)"), 8, "the function probitInv()"),
    "a factorial": (text(model="x <- factorial(v)"), 8, "the function factorial()"),
    "transit()": (text(model="x <- transit(3, v, 1)"), 8, "the function transit()"),
    "random numbers": (text(model="x <- rxnorm(0, 1)"), 8, "the function rxnorm()"),
    "a loop": (text(model="while (v > 1) { v <- v/2 }"), 8, "'while'"),
    "a loop over numbers": (text(model="for (i in 1:3) x <- i"), 8, "'for'"),
    "a remainder": (text(model="x <- t %% 24"), 8, "the operator %%"),
    "an element": (text(model="x <- v[1]"), 8, "an element of a vector"),
    "another package": (text(model="x <- stats::rnorm(1)"), 8, "a name of another package"),
    "a text": (text(model='x <- SEX == "male"'), 8, 'the text "male"'),
    "a value on one side of a condition": (text(model="if (v > 1) w <- 2\n    x <- w"), 9, "w has no value where"),
    "a slope on one side of a condition": (text(model="if (v > 1) d/dt(x) <- 2"), 8, "write an else"),
    "a number of ini assigned": (text(model="lcl <- 3"), 8, "lcl stands in ini() and cannot be assigned"),
    "a number of ini as a state": (text(model="d/dt(lcl) <- 3"), 8, "lcl stands in ini() and cannot be a compartment"),
    "a state assigned": (text(model="central <- 3"), 8, "central is a compartment and cannot be assigned"),
    "a slope in an expression": (text(model="x <- d/dt(central)"), 8, "d/dt() in an expression"),
    "a slope twice": (text(model="d/dt(central) <- 1"), 9, "it is given already, in line 8"),
    "a lag of no compartment": (text(model="lag(depot) <- 1"), 8, "there is no compartment 'depot'"),
    "an initial value at another time": (text(model="central(1) <- 1"), 8, "an initial value is written central(0)"),
    "a bioavailability that changes": (
        text(model="f(central) <- central"),
        8,
        "a bioavailability depends on parameters",
    ),
    "used before it is assigned": (text(model="x <- kel\n    kel <- cl/v"), 8, "kel is used before it is assigned"),
    "a function with names": (text(model="x <- expit(lv, low = 0)"), 8, "without names"),
    "linCmt beside its compartment": (text(model="x <- linCmt()"), 9, "it is given already"),
    "an interpolated covariate": (text(model="linear(WT)"), 8, "linear()"),
    "another statement": (text(model="print(v)"), 8, "the statement print()"),
    "an assignment to the right": (text(model="3 -> x"), 8, "the assignment ->"),
    "an assignment outside": (text(model="x <<- 3"), 8, "the assignment <<-"),
    "two comparisons": (text(model="x <- 1 < v < 3"), 8, "two comparisons in a row"),
    "an open parenthesis": (text(model="x <- (v + 1"), 9, "')' is expected here"),
    "an open call at the end": ("m <- function(", 1, "is expected here"),
    "an open text": (text(model="x <- 'v"), 8, "the text that begins here does not end"),
    "a strange character": (text(model="x <- v \\ 2"), 8, "has no meaning here"),
    "too many operations": (text(model=f"x <- {'-' * 400}v"), 8, "too many operations within each other"),
    "too many parentheses": (text(model=f"x <- {'(' * 3000}v{')' * 3000}"), 8, "too many operations within each other"),
    # errors
    "standard deviations that add": (
        text(error="cp ~ add(s) + prop(0.1) + combined1()"),
        11,
        "combined1(): sd = a + b·f",
    ),
    "a power of the prediction": (text(error="cp ~ pow(s, 0.5)"), 11, "pow(): an error that grows with a power"),
    "a Box-Cox transformation": (text(error="cp ~ add(s) + boxCox(0.5)"), 11, "boxCox()"),
    "counts": (text(error="cp ~ dpois(v)"), 11, "the error dpois()"),
    "an error that is computed": (text(error="cp ~ add(v)"), 11, "v: a number of the error that is not in ini()"),
    "an error that does not exist": (text(error="cp ~ proportional(s)"), 11, "the error proportional()"),
    "an error of nothing": (text(error="Cc ~ prop(s)"), 11, "there is no variable or compartment 'Cc'"),
    "an expression measured": (text(error="log(cp) ~ add(s)"), 11, "is expected before ~"),
    "an error twice": (text(error="cp ~ add(s) + norm(0.1)"), 11, "say the same"),
    "no error": (text(error="s2 <- s"), 6, "which value is measured?"),
    "a log-normal and another": (text(error="cp ~ lnorm(s) + add(0.1)"), 11, "lnorm() together with add()"),
    "a measured value that depends on the time": (
        text(error="y <- cp*t\n    y ~ prop(s)"),
        12,
        "depends on the time itself",
    ),
    "the error in the model": (text(model="x <- s"), 8, "s is a standard deviation of the residual error"),
    # around it
    "no model": ("library(nlmixr2)", 1, "there is no model"),
    "two functions": (text() + "\n" + text(), 14, "a text holds one model function"),
    "another call": ("fit <- nlmixr2(one, data, 'saem')", 1, "in a model function"),
    "arguments": ("m <- function(x = 1) { ini({}); model({}) }", 1, "a function with arguments"),
    "no ini": ("m <- function() {\n model({ x <- 1 })\n}", 1, "the model has no ini"),
    "model that is no block": ("m <- function() {\n ini({ a <- 1 })\n model(a)\n}", 3, "model() is read as model({…})"),
    "code": ("m <- function() {\n system('rm -rf /')\n ini({})\n model({})\n}", 2, "'system' in a model function"),
    "no equations": (
        "m <- function() {\n ini({ a <- 1; s <- 1 })\n model({\n x <- a\n x ~ add(s) })\n}",
        3,
        "a model needs differential equations",
    ),
    "linCmt without parameters": (
        "m <- function() {\n ini({ a <- 1; s <- 1 })\n model({\n b <- a\n linCmt() ~ add(s) })\n}",
        5,
        "linCmt() finds its parameters by their names",
    ),
    "linCmt with two volumes": (
        "m <- function() {\n ini({ cl <- 1; v <- 1; vc <- 1; s <- 1 })\n model({\n linCmt() ~ add(s) })\n}",
        4,
        "v and vc may both be meant",
    ),
    "linCmt with half a compartment": (
        "m <- function() {\n ini({ cl <- 1; v <- 1; q <- 1; s <- 1 })\n model({\n linCmt() ~ add(s) })\n}",
        4,
        "q stands alone",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_by_name_with_its_line(what):
    written, line, words = REFUSED[what]
    with pytest.raises(EquationError) as refused:
        import_rxode2(written)
    assert words in str(refused.value)
    assert refused.value.line == line
    assert 1 <= refused.value.column <= len(written.split("\n")[line - 1]) + 1


def test_the_frame_itself_is_read():
    assert import_rxode2(text()).typical == {"cl": 5.0, "v": 50.0}


@pytest.mark.parametrize("seed", range(4))
def test_a_text_with_random_changes_is_read_or_refused(seed):
    chance = random.Random(seed)
    written = text(ini="a + b ~ c(1, 0.1, 1)", model="x <- a*b; if (x > 1) { y <- 2 } else y <- 3 # end")
    pieces = [*"(){}~|'\"\n,^ 1\\%é", "<-", "if", "else", "c(", "d/dt("]
    for _ in range(150):
        at = chance.randrange(len(written))
        changed = written[:at] + chance.choice(pieces) + written[at + chance.randrange(4) :]
        try:
            import_rxode2(changed)
        except EquationError as mistake:
            assert mistake.line <= changed.count("\n") + 1
