"""Models as functions of rxode2 and nlmixr2, each with the same equations written by hand in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

import numpy as np

from neuralpk.cohort import Dose


@dataclass(frozen=True)
class Case:
    """A function, and what its typical patient is by hand.

    Args:
        text: in R.
        slope: dy/dt from t and y.
        observe: the outputs from y.
        y0: states at time 0.
        doses: of the patient.
        covariates: of the patient.
        lag: by compartment, from 1.
        fraction: that arrives, by compartment.
        omega: standard deviations of random effects, by parameter.
        errors: short names of the residual errors.
    """

    text: str
    slope: Callable[[float, np.ndarray], Sequence[float]]
    observe: Callable[[np.ndarray], Sequence[float]]
    y0: Sequence[float]
    doses: Sequence[Dose] = (Dose(0.0, 100.0), Dose(12.0, 100.0))
    covariates: Mapping[str, float] = field(default_factory=dict)
    lag: Mapping[int, float] = field(default_factory=dict)
    fraction: Mapping[int, float] = field(default_factory=dict)
    omega: Mapping[str, float] = field(default_factory=dict)
    errors: Sequence[str] = ("additive",)


def _oral(ka: float, k: float) -> Callable[[float, np.ndarray], Sequence[float]]:
    return lambda t, y: [-ka * y[0], ka * y[0] - k * y[1]]


CASES: dict[str, Case] = {}

CASES["theophylline_linear_compartments"] = Case(
    """
    theo <- function() {
      ini({
        tka <- 0.45        # log of 1/h
        tcl <- log(c(2.72))
        tv <- 3.45; label("log V (L)")
        eta.ka ~ 0.6; eta.cl ~ 0.3
        eta.v ~ 0.1
        add.sd <- 0.7
      })
      model({
        ka <- exp(tka + eta.ka)
        cl <- exp(tcl + eta.cl)
        v <- exp(tv + eta.v)
        linCmt() ~ add(add.sd)
      })
    }
    """.replace("log(c(2.72))", "log(2.72)"),
    _oral(exp(0.45), 2.72 / exp(3.45)),
    lambda y: [y[1] / exp(3.45)],
    [0, 0],
    omega={"ka": 0.6**0.5, "cl": 0.3**0.5, "v": 0.1**0.5},
)

CASES["one_compartment_rate_constants_with_lag"] = Case(
    """
    function() {
      ini({ lk = log(0.12); lv = log(30); lka = log(0.9); llag = log(0.4)
            eta.k ~ 0.04; prop.sd = c(0, 0.2) })
      model({
        k = exp(lk + eta.k); v = exp(lv); ka = exp(lka); tlag = exp(llag)
        cp = linCmt()
        cp ~ prop(prop.sd)
      })
    }
    """,
    _oral(0.9, 0.12),
    lambda y: [y[1] / 30],
    [0, 0],
    lag={1: 0.4},
    omega={"k": 0.2},
    errors=("proportional",),
)

CASES["three_linear_compartments"] = Case(
    """
    three <- function() {
      ini({
        tcl <- log(4); tv <- log(12); tq <- log(6); tv2 <- log(20); tq2 <- log(1.5); tv3 <- log(80)
        eta.cl + eta.v ~ c(0.09,
                           0.018, 0.04)
        prop.err <- 0.1; add.err <- 0.05
      })
      model({
        cl <- exp(tcl + eta.cl); v <- exp(tv + eta.v)
        q <- exp(tq); v2 <- exp(tv2); q2 <- exp(tq2); v3 <- exp(tv3)
        linCmt() ~ prop(prop.err) + add(add.err) + combined2()
      })
    }
    """,
    lambda t, y: [
        -(4 + 6 + 1.5) / 12 * y[0] + 6 / 20 * y[1] + 1.5 / 80 * y[2],
        6 / 12 * y[0] - 6 / 20 * y[1],
        1.5 / 12 * y[0] - 1.5 / 80 * y[2],
    ],
    lambda y: [y[0] / 12],
    [0, 0, 0],
    omega={"cl": 0.3, "v": 0.2},
    errors=("combined",),
)

CASES["two_micro_constants"] = Case(
    """
    micro <- function() {
      ini({ lk <- log(.3); l12 <- log(.5); l21 <- log(.2); lv <- log(15); eta.k ~ .01; err <- .1 })
      model({
        kel <- exp(lk + eta.k); k12 <- exp(l12); k21 <- exp(l21); vc <- exp(lv)
        linCmt() ~ lnorm(err)
      })
    }
    """,
    lambda t, y: [-0.8 * y[0] + 0.2 * y[1], 0.5 * y[0] - 0.2 * y[1]],
    lambda y: [y[0] / 15],
    [0, 0],
    omega={"kel": 0.1},
    errors=("log_normal",),
)

CASES["nonmem_names_of_volumes"] = Case(
    """
    m <- function() {
      ini({ tcl <- 4; tv2 <- 30; tq <- 3; tv3 <- 60; tka <- 1.2; eta.cl ~ 0.09; s <- 0.2 })
      model({
        cl <- tcl*exp(eta.cl); v2 <- tv2; q <- tq; v3 <- tv3; ka <- tka
        linCmt() ~ prop(s)
      })
    }
    """,
    lambda t, y: [
        -1.2 * y[0],
        1.2 * y[0] - (4 + 3) / 30 * y[1] + 3 / 60 * y[2],
        3 / 30 * y[1] - 3 / 60 * y[2],
    ],
    lambda y: [y[1] / 30],
    [0, 0, 0],
    omega={"cl": 0.3},
    errors=("proportional",),
)

CASES["two_compartments_allometric"] = Case(
    """
    two <- function() {
      description <- "Two compartments, allometric"
      reference <- 'nobody, "nowhere"'
      units <- list(time = "hour", dosing = "mg", concentration = "mg/L")
      covariateData <- list(WT = list(description = "body weight", units = "kg"))
      ini({
        lcl <- log(5) ; label("clearance")
        lvc <- log(20) ; label("central volume")
        lq <- log(2)
        lvp <- log(35)
        e_wt_cl <- fix(0.75)
        e_wt_v <- 1
        etalcl ~ 0.1
        etalvc ~ 0.05
        propSd <- 0.15
        addSd <- fixed(0.01)
      })
      model({
        cl <- exp(lcl + etalcl) * (WT/70)^e_wt_cl
        vc <- exp(lvc + etalvc + e_wt_v*log(WT/70))
        q <- exp(lq)*(WT/70)**0.75
        vp <- exp(lvp)*WT/70
        kel <- cl/vc
        k12 <- q/vc
        k21 <- q/vp
        d/dt(central) <- -kel*central - k12*central + k21*peripheral1
        d/dt(peripheral1) <- k12*central - k21*peripheral1
        Cc <- central/vc
        Cc ~ add(addSd) + prop(propSd)
      })
    }
    """,
    lambda t, y: [
        -5 * (50 / 70) ** 0.75 / (20 * 50 / 70) * y[0]
        - 2 * (50 / 70) ** 0.75 / (20 * 50 / 70) * y[0]
        + 2 * (50 / 70) ** 0.75 / (35 * 50 / 70) * y[1],
        2 * (50 / 70) ** 0.75 / (20 * 50 / 70) * y[0] - 2 * (50 / 70) ** 0.75 / (35 * 50 / 70) * y[1],
    ],
    lambda y: [y[0] / (20 * 50 / 70)],
    [0, 0],
    covariates={"WT": 50.0},
    omega={"cl": 0.1**0.5, "vc": 0.05**0.5},
    errors=("combined",),
)

CASES["covariates_of_all_kinds"] = Case(
    """
    cov <- function() {
      ini({
        tcl <- 1.2; tv <- 3; wt.cl <- 0.7; age.cl <- -0.01; sex.v <- 0.2; crcl.cl <- 0.3
        eta.cl ~ 0.2; eta.v ~ 0.1; a <- 0.5
      })
      model({
        lnwt <- log(WT) - log(70)
        cl <- exp(tcl + eta.cl + wt.cl*lnwt + age.cl*(AGE - 40)) * (CRCL/100)^crcl.cl
        tvv <- exp(tv + sex.v*SEX)
        v <- tvv*exp(eta.v)*WT/70
        d/dt(central) <- -cl/v*central
        cp <- central/v
        cp ~ add(a)
      })
    }
    """,
    lambda t, y: [-exp(1.2 + 0.7 * log(85 / 70) - 0.01 * (55 - 40)) * 0.8**0.3 / (exp(3.2) * 85 / 70) * y[0]],
    lambda y: [y[0] / (exp(3.2) * 85 / 70)],
    [0],
    covariates={"WT": 85.0, "AGE": 55.0, "SEX": 1.0, "CRCL": 80.0},
    omega={"cl": 0.2**0.5, "v": 0.1**0.5},
)

CASES["michaelis_menten"] = Case(
    """
    mm <- function() {
      ini({
        tvm <- 7; tkm <- 6; tv <- 4.2; tka <- 0
        eta.vm ~ 0.09; eta.km ~ 0.09; eta.v ~ 0.09; eta.ka ~ 0.09
        prop.sd <- 0.2
      })
      model({
        vm <- exp(tvm - 4 + eta.vm)
        km <- exp(tkm - 4 + eta.km)
        v  <- exp(tv + eta.v)
        ka <- exp(tka + eta.ka)
        d/dt(depot)  = -ka*depot
        d/dt(center) = ka*depot - (vm*center/v)/(km + center/v)
        cp = center/v
        cp ~ prop(prop.sd)
      })
    }
    """,
    lambda t, y: [
        -y[0],
        y[0] - exp(3) * y[1] / exp(4.2) / (exp(2) + y[1] / exp(4.2)),
    ],
    lambda y: [y[1] / exp(4.2)],
    [0, 0],
    omega=dict.fromkeys(["vm", "km", "v", "ka"], 0.3),
    errors=("proportional",),
)

CASES["transit_compartments"] = Case(
    """
    transit <- function() {
      ini({ lmtt <- log(1.5); lcl <- log(3); lv <- log(25); eta.mtt ~ 0.16; sd1 <- 0.3 })
      model({
        mtt <- exp(lmtt + eta.mtt)
        ktr <- 4/mtt
        cl <- exp(lcl); v <- exp(lv)
        d/dt(depot) = -ktr*depot
        d/dt(tr1) = ktr*(depot - tr1)
        d/dt(tr2) = ktr*(tr1 - tr2)
        d/dt(tr3) = ktr*(tr2 - tr3)
        d/dt(central) = ktr*tr3 - cl/v*central
        cp = central/v
        cp ~ add(sd1)
      })
    }
    """,
    lambda t, y: [
        -4 / 1.5 * y[0],
        4 / 1.5 * (y[0] - y[1]),
        4 / 1.5 * (y[1] - y[2]),
        4 / 1.5 * (y[2] - y[3]),
        4 / 1.5 * y[3] - 3 / 25 * y[4],
    ],
    lambda y: [y[4] / 25],
    [0] * 5,
    omega={"mtt": 0.4},
)

CASES["warfarin_turnover"] = Case(
    """
    pkpd <- function() {
      ini({
        tktr <- log(1); tka <- log(1); tcl <- log(0.1); tv <- log(10)
        eta.ktr ~ 1
        eta.ka ~ 1
        eta.cl ~ 2
        eta.v ~ 1
        prop.err <- 0.1
        pkadd.err <- 0.1
        temax <- logit(0.8); tec50 <- log(0.5); tkout <- log(0.05); te0 <- log(100)
        eta.emax ~ .5
        eta.ec50 ~ .5
        eta.kout ~ .5
        eta.e0 ~ .5
        pdadd.err <- 10
      })
      model({
        ktr <- exp(tktr + eta.ktr)
        ka <- exp(tka + eta.ka)
        cl <- exp(tcl + eta.cl)
        v <- exp(tv + eta.v)
        emax = expit(temax + eta.emax)
        ec50 = exp(tec50 + eta.ec50)
        kout = exp(tkout + eta.kout)
        e0 = exp(te0 + eta.e0)
        DCP = center/v
        PD = 1 - emax*DCP/(ec50 + DCP)
        effect(0) = e0
        kin = e0*kout
        d/dt(depot) = -ktr*depot
        d/dt(gut) = ktr*depot - ka*gut
        d/dt(center) = ka*gut - cl/v*center
        d/dt(effect) = kin*PD - kout*effect
        cp = center/v
        cp ~ prop(prop.err) + add(pkadd.err)
        effect ~ add(pdadd.err) | pca
      })
    }
    """,
    lambda t, y: [
        -y[0],
        y[0] - y[1],
        y[1] - 0.01 * y[2],
        5 * (1 - 0.8 * y[2] / 10 / (0.5 + y[2] / 10)) - 0.05 * y[3],
    ],
    lambda y: [y[2] / 10, y[3]],
    [0, 0, 0, 100],
    omega={"ktr": 1, "cl": 2**0.5, "emax": 0.5**0.5},
    errors=("combined", "additive"),
)

CASES["linear_compartments_with_a_response"] = Case(
    """
    idr1 <- function() {
      ini({
        tka <- log(0.8); tcl <- log(2); tv <- log(20); tkin <- log(10); tkout <- log(0.2); tic50 <- log(1)
        eta.cl ~ 0.09; eta.ic ~ 0.16
        a <- 0.1; b <- 1
      })
      model({
        ka <- exp(tka); cl <- exp(tcl + eta.cl); v <- exp(tv)
        kin <- exp(tkin); kout <- exp(tkout); ic50 <- exp(tic50 + eta.ic)
        cp <- linCmt()
        d/dt(resp) <- kin*(1 - cp/(ic50 + cp)) - kout*resp
        resp(0) <- kin/kout
        cp ~ add(a)
        resp ~ add(b)
      })
    }
    """,
    lambda t, y: [
        10 * (1 - y[2] / 20 / (1 + y[2] / 20)) - 0.2 * y[0],
        -0.8 * y[1],
        0.8 * y[1] - 0.1 * y[2],
    ],
    lambda y: [y[2] / 20, y[0]],
    [50, 0, 0],
    doses=(Dose(0.0, 100.0, compartment=2),),
    omega={"cl": 0.3, "ic50": 0.4},
    errors=("additive", "additive"),
)

CASES["indirect_response_stimulated_loss"] = Case(
    """
    idr4 <- function() {
      ini({ tk <- 0.1; tkin <- 4; tkout <- 0.5; tsmax <- 2; tsc <- 5; gam <- fix(1.5); eta.kout ~ 0.04; s <- 0.1 })
      model({
        kout <- tkout*exp(eta.kout)
        d/dt(drug) = -tk*drug
        stim <- tsmax*drug^gam/(tsc^gam + drug^gam)
        d/dt(resp) = tkin - kout*(1 + stim)*resp
        resp(0) = tkin/kout
        resp ~ prop(s)
      })
    }
    """,
    lambda t, y: [
        -0.1 * y[0],
        4 - 0.5 * (1 + 2 * y[0] ** 1.5 / (5**1.5 + y[0] ** 1.5)) * y[1],
    ],
    lambda y: [y[1]],
    [0, 8],
    doses=(Dose(0.0, 30.0),),
    omega={"kout": 0.2},
    errors=("proportional",),
)

CASES["logit_normal_bioavailability"] = Case(
    """
    fmodel <- function() {
      ini({
        tf <- logit(0.6, 0.1, 0.9)
        eta.f ~ 0.25
        tlag <- log(0.25)
        eta.lag ~ 0.01
        lka <- log(1.1)
        lcl <- log(2)
        lv <- log(18)
        sd1 <- 0.2
      })
      model({
        ka <- exp(lka)
        cl <- exp(lcl); v <- exp(lv)
        d/dt(depot) <- -ka*depot
        d/dt(central) <- ka*depot - cl/v*central
        f(depot) <- expit(tf + eta.f, 0.1, 0.9)
        alag(depot) <- exp(tlag + eta.lag)
        cp <- central/v
        cp ~ prop(sd1)
      })
    }
    """,
    _oral(1.1, 2 / 18),
    lambda y: [y[1] / 18],
    [0, 0],
    lag={1: 0.25},
    fraction={1: 0.6},
    omega={"f_depot": 0.5, "lag_depot": 0.1},
    errors=("proportional",),
)

CASES["target_mediated"] = Case(
    """
    tmdd <- function() {
      ini({
        lcl <- log(0.3); lvc <- log(3); lkon <- log(0.5); lkoff <- log(0.05); lkint <- log(0.1); lr0 <- log(10)
        lkdeg <- log(0.2)
        etalcl ~ 0.09
        etalr0 ~ 0.25
        propSd <- 0.2; recSd <- 0.5
      })
      model({
        cl <- exp(lcl + etalcl); vc <- exp(lvc); kon <- exp(lkon); koff <- exp(lkoff); kint <- exp(lkint)
        r0 <- exp(lr0 + etalr0); kdeg <- exp(lkdeg)
        ksyn <- r0*kdeg
        Cc <- central/vc
        d/dt(central) <- -cl*Cc - kon*Cc*target*vc + koff*complex*vc
        d/dt(target) <- ksyn - kdeg*target - kon*Cc*target + koff*complex
        d/dt(complex) <- kon*Cc*target - (koff + kint)*complex
        target(0) <- r0
        Cc ~ prop(propSd)
        target ~ add(recSd)
      })
    }
    """,
    lambda t, y: [
        -0.3 * y[0] / 3 - 0.5 * y[0] * y[1] + 0.05 * y[2] * 3,
        2 - 0.2 * y[1] - 0.5 * y[0] / 3 * y[1] + 0.05 * y[2],
        0.5 * y[0] / 3 * y[1] - 0.15 * y[2],
    ],
    lambda y: [y[0] / 3, y[1]],
    [0, 10, 0],
    omega={"cl": 0.3, "r0": 0.5},
    errors=("proportional", "additive"),
)

CASES["zero_order_input_into_the_second"] = Case(
    """
    order <- function() {
      ini({ cl <- 3; v <- 12; ka <- c(0, 0.7); s <- 1 })
      model({
        cmt(gut)
        d/dt(blood) <- ka*gut - cl/v*blood
        d/dt(gut) <- -ka*gut
        blood ~ add(s)
      })
    }
    """,
    lambda t, y: [-0.7 * y[0], 0.7 * y[0] - 0.25 * y[1]],
    lambda y: [y[1]],
    [0, 0],
    doses=(Dose(0.0, 40.0, compartment=2, duration=2.0), Dose(3.0, 50.0)),
)

CASES["normal_baseline"] = Case(
    """
    base <- function() {
      ini({
        te0 <- -1.5
        eta.e0 ~ 0.49
        slope <- c(-2, 0.3, 2)
        tk <- c(0, 0.2)
        age.e0 <- 0.05
        s <- 0.4
      })
      model({
        e0 <- te0 + eta.e0 + age.e0*(AGE - 30)
        k <- tk
        d/dt(drug) <- -k*drug
        eff <- e0 + slope*drug
        eff ~ add(s)
      })
    }
    """,
    lambda t, y: [-0.2 * y[0]],
    lambda y: [-1.5 + 0.05 * 12 + 0.3 * y[0]],
    [0],
    covariates={"AGE": 42.0},
    omega={"e0": 0.7},
)

CASES["assigned_again_and_again"] = Case(
    """
    again <- function() {
      ini({ lcl <- log(2); lv <- log(10); eta.cl ~ 0.09; s <- 0.1 })
      model({
        cl <- exp(lcl + eta.cl)
        v <- exp(lv)
        x <- cl
        x <- x/v
        x <- x*1.5
        d/dt(central) <- -x*central
        x <- central/v
        cp <- x
        cp ~ prop(s)
      })
    }
    """,
    lambda t, y: [-0.3 * y[0]],
    lambda y: [y[0] / 10],
    [0],
    omega={"cl": 0.3},
    errors=("proportional",),
)

CASES["conditions_on_states"] = Case(
    """
    cond <- function() {
      ini({ lk <- log(0.1); lv <- log(10); eta.k ~ 0.04; s <- 0.1 })
      model({
        k <- exp(lk + eta.k); v <- exp(lv)
        cp <- central/v
        if (cp > 8 && !(cp >= 1e3)) {
          factor <- 2
          rate1 <- k*factor
        } else if (cp > 4 || cp < 0) rate1 <- 1.5*k
        else {
          rate1 <- k
        }
        d/dt(central) <- -rate1*central
        slow <- ifelse(cp <= 2, 1, 0.5)
        d/dt(effect) <- slow*(cp - effect)
        cp ~ prop(s)
        effect ~ add(s2) | biomarker
      })
    }
    """.replace("s <- 0.1 })", "s <- 0.1; s2 <- 0.2 })"),
    lambda t, y: [
        -(0.2 if y[0] > 80 else 0.15 if y[0] > 40 else 0.1) * y[0],
        (1 if y[0] <= 20 else 0.5) * (y[0] / 10 - y[1]),
    ],
    lambda y: [y[0] / 10, y[1]],
    [0, 0],
    omega={"k": 0.2},
    errors=("proportional", "additive"),
)

CASES["time_in_the_field"] = Case(
    """
    circadian <- function() {
      ini({ rin <- 3; amp <- c(0, 0.4, 1); kout <- 0.3; eta.rin ~ 0.01; s <- 0.1 })
      model({
        input <- rin*exp(eta.rin)*(1 + amp*cos(2*pi*(t - 6)/24))
        d/dt(cortisol) <- input - kout*cortisol
        cortisol(0) <- 10
        cortisol ~ lnorm(s)
      })
    }
    """,
    lambda t, y: [3 * (1 + 0.4 * np.cos(2 * np.pi * (t - 6) / 24)) - 0.3 * y[0]],
    lambda y: [y[0]],
    [10],
    doses=(Dose(0.0, 2.0),),
    omega={"eta_rin": 0.1},
    errors=("log_normal",),
)

CASES["shared_random_effect"] = Case(
    """
    shared <- function() {
      ini({ lcl <- log(4); lv <- log(40); eta.both ~ 0.09; share <- 0.5; s <- 0.2 })
      model({
        cl <- exp(lcl + eta.both)
        v <- exp(lv + share*eta.both)
        d/dt(central) <- -cl/v*central
        cp <- central/v
        cp ~ prop(s)
      })
    }
    """,
    lambda t, y: [-0.1 * y[0]],
    lambda y: [y[0] / 40],
    [0],
    omega={"eta_both": 0.3},
    errors=("proportional",),
)

CASES["parent_and_metabolite"] = Case(
    """
    metab <- function() {
      ini({
        lcl <- log(10); lv <- log(50); lclm <- log(5); lvm <- log(30)
        fm <- fix(0.3)
        etacl + etaclm ~ sd(cor(c(0.3,
                                 0.5, 0.4)))
        p1 <- 0.1; p2 <- 0.2
      })
      model({
        cl <- exp(lcl + etacl); v <- exp(lv); clm <- exp(lclm + etaclm); vm <- exp(lvm)
        d/dt(parent) <- -cl/v*parent
        d/dt(metab) <- fm*cl/v*parent - clm/vm*metab
        cp <- parent/v
        cm <- metab/vm
        cp ~ prop(p1)
        cm ~ prop(p2)
      })
    }
    """,
    lambda t, y: [-0.2 * y[0], 0.06 * y[0] - 5 / 30 * y[1]],
    lambda y: [y[0] / 50, y[1] / 30],
    [0, 0],
    omega={"cl": 0.3, "clm": 0.4},
    errors=("proportional", "proportional"),
)

CASES["row_by_row_covariances"] = Case(
    """
    rows <- function() {
      ini({
        lcl <- log(2)
        lv <- log(10)
        lka <- log(0.5)
        etacl ~ 0.04
        etav ~ c(0.01, 0.09)
        etaka ~ c(0, 0.012, 0.16)
        s <- 0.1
      })
      model({
        cl <- exp(lcl + etacl); v <- exp(lv + etav); ka <- exp(lka + etaka)
        linCmt() ~ add(s)
      })
    }
    """,
    _oral(0.5, 0.2),
    lambda y: [y[1] / 10],
    [0, 0],
    omega={"cl": 0.2, "v": 0.3, "ka": 0.4},
)

CASES["myelosuppression"] = Case(
    """
    friberg <- function() {
      ini({
        lmtt <- log(90); lcirc0 <- log(5); lslope <- log(0.1); lgam <- log(0.17); lke <- log(0.05)
        eta.mtt ~ 0.03; eta.circ0 ~ 0.1
        s <- 0.3
      })
      model({
        mtt <- exp(lmtt + eta.mtt); circ0 <- exp(lcirc0 + eta.circ0)
        slope <- exp(lslope); gam <- exp(lgam); ke <- exp(lke)
        ktr <- 4/mtt
        edrug <- slope*central/50
        feedback <- (circ0/max(circ, 1e-3, 1e-4))^gam
        d/dt(central) <- -ke*central
        d/dt(prol) <- ktr*prol*(1 - edrug)*feedback - ktr*prol
        d/dt(tr1) <- ktr*prol - ktr*tr1
        d/dt(tr2) <- ktr*tr1 - ktr*tr2
        d/dt(tr3) <- ktr*tr2 - ktr*tr3
        d/dt(circ) <- ktr*tr3 - ktr*circ
        prol(0) <- circ0; tr1(0) <- circ0; tr2(0) <- circ0; tr3(0) <- circ0; circ(0) <- circ0
        circ ~ prop(s)
      })
    }
    """,
    lambda t, y: [
        -0.05 * y[0],
        4 / 90 * y[1] * ((1 - 0.1 * y[0] / 50) * (5 / y[5]) ** 0.17 - 1),
        4 / 90 * (y[1] - y[2]),
        4 / 90 * (y[2] - y[3]),
        4 / 90 * (y[3] - y[4]),
        4 / 90 * (y[4] - y[5]),
    ],
    lambda y: [y[5]],
    [0, 5, 5, 5, 5, 5],
    omega={"mtt": 0.03**0.5, "circ0": 0.1**0.5},
    errors=("proportional",),
)

CASES["effect_compartment_sigmoid"] = Case(
    """
    sig <- function() {
      ini({ lv = log(10); lk = log(.2); lke0 = log(.4); emax = 80; lec = log(3); lg = log(1.8)
            eta.ec ~ .16; e.add = 2; e.prop = .05 })
      model({
        v = exp(lv); k = exp(lk); ke0 = exp(lke0); ec50 = exp(lec + eta.ec); g = exp(lg)
        d/dt(central) = -k*central
        d/dt(ce) = ke0*(central/v - ce)
        E = emax*pow(ce, g)/(pow(ec50, g) + pow(ce, g)) + expit(0) + log10(100)
        E ~ add(e.add) + prop(e.prop)
      })
    }
    """,
    lambda t, y: [-0.2 * y[0], 0.4 * (y[0] / 10 - y[1])],
    lambda y: [80 * y[1] ** 1.8 / (3**1.8 + y[1] ** 1.8) + 2.5],
    [0, 0],
    omega={"ec50": 0.4},
    errors=("combined",),
)

CASES["outliers"] = Case(
    """
    outliers <- function() {
      ini({ lk <- log(0.3); eta.k ~ 0.04; a <- 0.2; b <- 0.1; nu <- fix(5) })
      model({
        k <- exp(lk + eta.k)
        d/dt(x) <- -k*x
        x ~ add(a) + prop(b) + t(nu)
      })
    }
    """,
    lambda t, y: [-0.3 * y[0]],
    lambda y: [y[0]],
    [0],
    omega={"k": 0.2},
    errors=("student",),
)

CASES["names_with_a_meaning_here"] = Case(
    """
    words <- function() {
      ini({ l.f <- log(0.7); .k <- log(0.2); hill <- fix(2); eta.1 ~ 0.04; s <- 0.3 })
      model({
        F1.abs <- exp(l.f)
        where <- exp(.k + eta.1)
        states <- hill*where
        d/dt(central.a) <- -states*central.a
        f(central.a) <- F1.abs
        lag(central.a) <- 0.5
        C.p <- central.a
        C.p ~ add(s)
      })
    }
    """,
    lambda t, y: [-0.4 * y[0]],
    lambda y: [y[0]],
    [0],
    lag={1: 0.5},
    fraction={1: 0.7},
    omega={"where_": 0.2},
)

CASES["covariate_in_an_equation"] = Case(
    """
    renal <- function() {
      ini({ tnr <- 0.5; tr <- 2; lv <- log(15); eta.cl ~ 0.09; eta.v ~ 0.04; s <- 0.2; m <- fix(0.8) })
      model({
        cl <- (tnr + tr*CRCL/100)*exp(eta.cl)
        if (SEX == 1) sexf <- m else sexf <- 1
        v <- exp(lv + eta.v)
        d/dt(central) <- -cl*sexf/v*central
        cp <- central/v
        cp ~ prop(s)
      })
    }
    """,
    lambda t, y: [-(0.5 + 2 * 0.7) * 0.8 / 15 * y[0]],
    lambda y: [y[0] / 15],
    [0],
    covariates={"CRCL": 70.0, "SEX": 1.0},
    omega={"eta_cl": 0.3, "v": 0.2},
    errors=("proportional",),
)
