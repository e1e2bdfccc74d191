"""The report: one HTML file that needs nothing else, says what is true, names nobody, and can be browsed."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

from neuralpk import LatentTask, SetEncoder, SimulatedPKDataModule, read_model, write_report
from neuralpk.cli import main
from neuralpk.cohort import Cohort, Units
from neuralpk.diagnostics.plots import Panel
from neuralpk.diagnostics.style import new_figure
from neuralpk.dynamics import CompartmentModel, Equations, HybridDynamics, NeuralCompartments, NeuralField
from neuralpk.dynamics.equation_text import EquationReader, tokens_of_line
from neuralpk.evaluation import Evaluation, evaluate
from neuralpk.objectives import SquaredError
from neuralpk.parameters import LinearEffect, LogitNormal, Normal, PopulationParameters
from neuralpk.report import mathml
from neuralpk.report.dynamics_equations import dynamics_equations
from neuralpk.report.encoder_section import encoder_section
from neuralpk.report.individual_plots import individual_plot
from neuralpk.report.learned_section import learned_section
from neuralpk.report.population_equations import error_equations, population_equations
from neuralpk.report.tables_and_figures import digits, svg
from neuralpk.residual_error import CombinedError, ProportionalError
from neuralpk.saved_model import SavedTask
from neuralpk.scaling import CovariateScale, Scaling
from neuralpk.solve import TorchDiffEq
from neuralpk.tables import DataError, write_table

HOSTILE = "<script>window.broken=1</script>"
POPULATION = """
dynamics: {compartments: 1, absorption: first_order}
typical: {CL: 4.0, V1: 70.0, KA: 1.0}
cv: {CL: 30, V1: 25}
correlation: {CL~V1: 0.4}
effects: {CL~WT: 0.75}
references: {WT: 70}
error: proportional
error_sd: {b: 0.2}
units: {time: h, amount: mg, value: mg/L}
"""


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    typical = {"CL": 4.0, "V1": 70.0, "KA": 1.0}
    drawn = SimulatedPKDataModule(
        subjects=8, compartments=1, absorption="first_order", typical=typical, lloq=[0.05], seed=2
    ).part("train")
    ids = [HOSTILE, *(f"HOSPITAL-{k}" for k in range(1, len(drawn)))]
    people = [
        dataclasses.replace(subject, id=name, covariates={"WT": 50.0 + 5 * k})
        for k, (name, subject) in enumerate(zip(ids, drawn, strict=True))
    ]
    return Cohort(tuple(people), Units("h", "mg", "mg/L"))


@pytest.fixture(scope="module")
def files(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret_study")
    (folder / "pop.yaml").write_text(POPULATION)
    write_table(cohort, folder / "ward.csv")
    # the last patient has nothing that was measured
    with (folder / "ward.csv").open("a") as table:
        table.write(f"HOSPITAL-99,0,1,1,10,1,.,0,{80.0}\n")
    return folder


@pytest.fixture(scope="module")
def written(files: Path) -> tuple[str, Evaluation]:
    out = files / "report.html"
    found = write_report(files / "pop.yaml", files / "ward.csv", out, title="A & B", simulations=100, draws=20)
    return out.read_text(encoding="utf-8"), found


def frames(page: str) -> dict[str, pd.DataFrame]:
    found = re.search(r'<script type="application/json" id="frames">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return {name: pd.read_csv(io.StringIO(text)) for name, text in json.loads(found[1]).items()}


def test_the_page_needs_nothing_from_elsewhere(written: tuple[str, Evaluation]) -> None:
    page, _ = written
    assert "default-src 'none'" in page and len(page) < 1_500_000
    assert not re.search(
        r"https?://|@import|<link (?!rel=\"icon\" href=\"data:)|<(img|iframe|object)|<style.*<style", page
    )
    assert not re.search(r"(src|xlink:href)=", page)
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_what_users_wrote_is_escaped(written: tuple[str, Evaluation]) -> None:
    page, _ = written
    assert HOSTILE not in page and "&lt;script&gt;window.broken=1" in page
    assert "<title>A &amp; B</title>" in page


def test_the_sections_say_what_is_there(written: tuple[str, Evaluation]) -> None:
    page, evaluation = written
    names = ("verdict", "data", "model", "population", "diagnostics", "individuals", "reproduction")
    assert re.findall(r'<section id="(\w+)"', page) == list(names)
    assert f"{evaluation.sentence}." in page
    assert "1 subjects without an observation" in page or "NPK-D52" in page  # who was left out, and by which rule
    assert page.count('class="card"') == 8
    assert "−544" not in page and digits(evaluation.likelihood["OBJECTIVE"], 5) in page
    assert "neuralpk.write_report(" in page and len(re.findall(r"\b[0-9a-f]{64}\b", page)) == 2


def test_every_figure_has_its_text_and_its_data(written: tuple[str, Evaluation]) -> None:
    page, evaluation = written
    data = frames(page)
    figures = re.findall(r'<figure id="figure-(\w+)">(.*?)</figure>', page, re.DOTALL)
    assert [name for name, _ in figures] == ["data", *(name for name in evaluation.figures if name != "individuals")]
    for name, content in figures:
        text = re.search(rf'<p id="text-{name}">(.*?)</p>', content, re.DOTALL)
        assert text is not None and re.search(r"\d", text[1])
        assert re.search(r'data-csv="(\w+)"', content)[1] in data
    pd.testing.assert_frame_equal(data["records"], evaluation.records, check_dtype=False, rtol=1e-6)
    expected = evaluation.data("vpc").drop(columns="STRATUM")
    pd.testing.assert_frame_equal(data["vpc"].drop(columns="STRATUM"), expected, check_dtype=False, rtol=1e-6)


def test_an_anonymous_report_names_nobody(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = files / "named.html"
    line = ["report", "--model", str(files / "pop.yaml"), "--table", str(files / "ward.csv"), "--out", str(out)]
    line += ["--anonymise", "--simulations", "100", "--draws", "0", "--ignore", "ID=HOSPITAL-3"]
    main(line)
    assert str(out) in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    for word in ("HOSPITAL", "script&gt;window", "ward", "secret", "pop.yaml", str(files), "20 %26", str(Path.home())):
        assert word not in page, word
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)
    assert set(frames(page)["individuals"]["ID"]) == {f"S{k}" for k in range(1, 8)}
    assert "--anonymise" in page and "--ignore …" in page.replace("&#39;", "")
    with pytest.raises(SystemExit):
        main(line)
    assert "--overwrite" in capsys.readouterr().err


def test_a_table_with_faults_writes_nothing(files: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ID,TIME,DV,AMT,WT\n1,0,.,10,70\n1,2,x,.,70\n")
    with pytest.raises(DataError, match="NPK-D10"):
        write_report(files / "pop.yaml", tmp_path / "t.csv", tmp_path / "r.html")
    with pytest.raises(ValueError, match="there is no network 'E' in the model; it has none"):
        write_report(files / "pop.yaml", files / "ward.csv", tmp_path / "r.html", simulations=100, formulas={"E": "C"})
    assert not (tmp_path / "r.html").exists()


# ---- formulas


def drawn(text: str) -> ElementTree.Element:
    expression = EquationReader(tokens_of_line(text, 1)).expression()
    return ElementTree.fromstring(f"<math>{mathml.draw(expression, {})}</math>")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("-CL*C", "−CL·C"),
        ("a - (b - c)", "a−(b−c)"),
        ("a - b - c", "a−b−c"),
        ("a*(-b)", "a·(−b)"),
        ("-(a + b)", "−(a+b)"),
        ("(a + b)*c", "(a+b)·c"),
        ("1e-3*KDEG", "10−3·KDEG"),
        ("alpha*V12", "α·V12"),
    ],
)
def test_expressions_keep_their_brackets(text: str, seen: str) -> None:
    assert "".join(drawn(text).itertext()) == seen


def test_fractions_powers_and_cases_are_drawn_as_such() -> None:
    (top, bottom) = drawn("EMAX*C/(EC50 + C)").find("mfrac")
    assert "".join(bottom.itertext()) == "EC50+C" and "".join(top.itertext()) == "EMAX·C"
    assert [len(list(node)) for node in drawn("hill(C, EC50, 2)").iter("msup")] == [2, 2, 2]
    assert len(list(drawn("where(C > 1, 2, exp(-C))").iter("mtr"))) == 2
    assert drawn("sqrt(C)").find("msqrt") is not None


def test_every_kind_of_dynamics_has_its_equations() -> None:
    compartments = next(iter(dynamics_equations(CompartmentModel(2, "first_order", lag="depot"))))
    assert len(compartments.formulas) == 5 and "first-order absorption" in compartments.sentence
    (text,) = dynamics_equations(Equations(model="tmdd"))
    assert len(text.formulas) == 8
    hybrid = list(dynamics_equations(HybridDynamics(CompartmentModel(1))))
    assert [block.title for block in hybrid] == ["Dynamics: HybridDynamics", "Compartments", "Dynamics: NeuralFlows"]
    assert "K(A, base, z)" in hybrid[-1].text and "weights" in hybrid[-1].note
    network = next(iter(dynamics_equations(NeuralField())))
    assert "dy/dt = network(y, z)" in network.sentence
    for block in (compartments, text):
        for formula in block.formulas:
            ElementTree.fromstring(formula)


def test_the_population_is_written_with_its_numbers(files: Path, cohort: Cohort) -> None:
    model = read_model(files / "pop.yaml").population_model(cohort)
    block = population_equations(model.population)
    said = ["".join(ElementTree.fromstring(formula).itertext()) for formula in block.formulas]
    assert said[0] == "CL=4·(WT/70)0.75·eηCL" and said[2] == "KA=1"
    covariance = 0.4 * np.sqrt(np.log1p(0.3**2) * np.log1p(0.25**2))
    assert f"{covariance:.3g}" in said[3]
    (error,) = error_equations(model.error, ["C"]).formulas
    assert "".join(ElementTree.fromstring(error).itertext()) == "y=f·(1+0.2ε)"


def test_other_distributions_and_effects() -> None:
    effects = {("F", "AGE"): LinearEffect("AGE", reference=40.0, change=0.01)}
    population = PopulationParameters.from_values(
        {"F": 0.5, "E0": -1.0}, {"F": 0.2}, effects, {}, {}, {"F": LogitNormal(), "E0": Normal()}
    )
    population.build({"F": 0.5, "E0": -1.0}, 2, Scaling(covariates={"AGE": CovariateScale(40.0, 10.0, False)}))
    block = population_equations(population)
    said = ["".join(ElementTree.fromstring(formula).itertext()) for formula in block.formulas]
    assert said[0].startswith("log\u2061(F−01−F)=log\u2061(0.5−01−0.5)+log\u2061((1+0.01·(AGE−40)))+ηF")
    assert said[1] == "E0=−1" and said[2] == "η∼N(0,0.04)" and "2 latent dimensions" in block.note
    (error,) = error_equations(CombinedError.from_values(a=0.1, b=0.2), ["C"]).formulas
    assert "".join(ElementTree.fromstring(error).itertext()) == "y=f+0.12+(0.2f)2ε"
    (error,) = error_equations(ProportionalError.from_values(b=0.2), ["C"], "RUV").formulas
    assert "".join(ElementTree.fromstring(error).itertext()) == "y=f·(1+0.2RUVε)"


def test_parameters_with_one_omega_are_named() -> None:
    population = PopulationParameters(shared_omega=[["CL", "V1"]])
    population.build({"CL": 5.0, "V1": 20.0, "KA": 1.0}, 0, Scaling())
    assert "those of CL and V1 have one standard deviation" in population_equations(population).sentence


# ---- figures


def test_a_figure_takes_the_colours_of_the_page_and_keeps_its_numbers() -> None:
    figure, axes = new_figure(1, 1)
    axes[0, 0].plot([0.0, 0.001], [0.0, 1.0], "o", color="#0072B2")
    axes[0, 0].set_xticks([0.00125])
    drawing = svg(figure, "one")
    assert "var(--blue)" in drawing and "#0072b2" not in drawing.lower()
    assert ">0.00125<" in drawing and "<style" not in drawing
    ElementTree.fromstring(drawing)


def test_every_mark_of_a_scatter_plot_is_drawn_and_takes_little_room() -> None:
    figure, axes = new_figure(1, 1)
    axes[0, 0].set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    x, y = np.random.default_rng(0).random((2, 1000))
    axes[0, 0].plot(x, y, ls="none", marker="o", color="#0072B2", alpha=0.3)
    axes[0, 0].plot(x[:5], y[:5], ls="none", marker="v", color="#D55E00")
    drawing = svg(figure, "one")
    root = ElementTree.fromstring(drawing)
    lines = {}
    for path in root.iter("path"):
        if "marker: url(#" in path.get("style", ""):
            name = path.get("style").partition("url(#")[2].rstrip(")")
            lines[name] = np.array(path.get("d")[1:].split(), float).reshape(-1, 2)
    known = {one.get("id"): one.find("use").get("style") for one in root.iter("marker")}
    assert [(len(lines[name]), "0.3" in known[name]) for name in known] == [(1000, True), (5, False)]
    first = next(iter(lines.values()))
    for k, drawn in enumerate((x, -y)):  # places grow downwards
        slope, start = np.polyfit(drawn, first[:, k], 1)
        np.testing.assert_allclose(first[:, k], start + slope * drawn, atol=0.1)
    assert len(drawing) < 30_000


def test_numbers_in_words() -> None:
    assert [digits(x) for x in (8.0, 0.05, -12.3456, 1234567.0, 3e-7, np.nan)] == [
        "8", "0.05", "−12.35", "1234567", "3.000e−7", "–",
    ]  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
def test_an_individual_is_drawn_by_few_points_without_leaving_its_line(log: bool) -> None:
    times = np.linspace(0.0, 24.0, 300)
    line = 5 * np.exp(-0.3 * times)
    panel = Panel(
        id="1", times=times, ipred=line, lower=0.8 * line, upper=1.2 * line, pred=1.1 * line,
        observed_times=np.array([2.0, 20.0]), observed_values=np.array([3.0, 0.05]), seen=np.array([True, True]),
        censored=np.array([False, True]), dose_times=np.array([0.0]),
    )  # fmt: skip
    root = ElementTree.fromstring(individual_plot(panel, Units(), "patient 1", log))
    paths = {node.get("class"): node.get("d") for node in root.iter("path")}
    points = np.array([pair.split() for pair in paths["ipred"][1:].split("L")], float)
    assert len(points) < 60
    (circle,) = root.iter("circle")
    assert circle.find("title").text == "2 h: 3 mg/L" and "below 0.05 mg/L" in "".join(root.itertext())
    # a sample on the line lies on the drawn line
    on_line = np.interp(float(circle.get("cx")), points[:, 0], points[:, 1])
    expected = 5 * np.exp(-0.6)
    scale = [float(node.get("y")) - 4 for node in root.iter("text") if node.get("text-anchor") == "end"]
    values = [float(node.text) for node in root.iter("text") if node.get("text-anchor") == "end"]
    of = np.log if log else np.asarray
    assert on_line == pytest.approx(np.polyval(np.polyfit(of(values), scale, 1), of(expected)), abs=0.7)


# ---- networks and encoders


def task_of(dynamics: Any, cohort: Cohort, **parts: Any) -> LatentTask:
    task = LatentTask(dynamics=dynamics, **parts)
    return task.build(Scaling.of(cohort.with_covariates([])))


def test_learned_terms_are_drawn_with_their_formula(cohort: Cohort) -> None:
    text = "parameters: V = 70\nk = network(C, range=(0, inf))\ncentral' = -0.05*k*central\nC = central/V\noutputs: C"
    bare = cohort.with_covariates([])[:2]
    task, data = task_of(Equations(text), bare, engine=TorchDiffEq(rtol=1e-2, atol=1e-2)), {}
    formula = EquationReader(tokens_of_line("1 + 2*C", 1)).expression()
    found = learned_section(task, bare, {"k": formula}, data)
    assert found is not None
    ((name, formula),) = found.formulas
    assert name == "k" and "".join(ElementTree.fromstring(formula).itertext()).endswith("=1+2·C")
    (figure,) = found.figures
    assert not found.lines  # it was given
    assert figure.name == "network_k" and set(data["network_k"]) == {"INPUT", "OUTPUT", "LO90", "HI90"}


@pytest.mark.slow
def test_a_formula_is_found_for_a_network_without_one(cohort: Cohort) -> None:
    text = "parameters: V = 70\nk = network(C, range=(0, inf))\ncentral' = -0.05*k*central\nC = central/V\noutputs: C"
    bare = cohort.with_covariates([])[:2]
    task = task_of(Equations(text), bare, engine=TorchDiffEq(rtol=1e-2, atol=1e-2))
    found = learned_section(task, bare, {}, {})
    assert found is not None and not found.formulas and "constant" in found.lines[0]
    with torch.no_grad():
        for weight in task.model.dynamics.parameters():
            weight.fill_(0.2)
    found = learned_section(task, bare, {}, {})
    assert found is not None and re.search(r"in k: .* with .*% from the network", found.lines[0])
    assert "".join(ElementTree.fromstring(found.formulas[0][1]).itertext()).startswith("k=")


def test_the_learned_part_of_a_slope(cohort: Cohort) -> None:
    bare = cohort.with_covariates([])[:2]
    data: dict[str, pd.DataFrame] = {}
    task = task_of(
        NeuralCompartments(CompartmentModel(1)), bare, engine=TorchDiffEq(rtol=1e-2, atol=1e-2), encoder=SetEncoder()
    )
    task.objective = SquaredError()  # the estimate is that of the encoder: no search through a slow solver
    with torch.no_grad():
        for weight in task.model.dynamics.parameters():
            weight.fill_(0.1)
    found = learned_section(task, bare, {}, data)
    assert found is not None and [figure.name for figure in found.figures] == ["learned_slopes"]
    slopes = data["learned_slopes"]
    assert set(slopes["STATE"]) == {"central"} and (slopes["LEARNED"].abs() > 0).any()
    # out of one compartment: slope = −CL/V1·A·g, of which the learned part is −CL/V1·A·(g − 1)
    mechanism = slopes["SLOPE"] - slopes["LEARNED"]
    rate = (mechanism / slopes["VALUE"])[slopes["VALUE"] > 1e-3]
    assert rate.max() < 0 and rate.groupby(slopes["ID"]).std().max() < 1e-4 * rate.abs().min()


def test_what_the_encoder_contributed(cohort: Cohort) -> None:
    bare = cohort.with_covariates([])[:3]
    task, data = task_of(CompartmentModel(1, "first_order"), bare, encoder=SetEncoder()), {}
    evaluation = evaluate(SavedTask(Path("x"), task), bare, simulations=100, draws=0)
    section = encoder_section(task, evaluation, bare, data)
    assert len(section.table.rows) == 4 and "does not lower" in section.lines[0]  # it has learned nothing
    population, alone, begun, from_typical = data["encoder"]["RMSE_PERCENT"]
    assert alone == pytest.approx(population, rel=2e-2)
    assert begun == pytest.approx(from_typical, rel=1e-2) and begun < population


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def shown(browser: Any) -> list[str]:
    """IDs of the individuals that are to be seen."""
    script = "return [...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => c.dataset.id)"
    return list(browser.execute_script(script))


def test_the_report_can_be_browsed(browser: Any, files: Path, written: tuple[str, Evaluation], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _, evaluation = written
    address = (files / "report.html").as_uri()
    browser.get(address)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {address}
    assert browser.execute_script("return window.broken") is None

    ids = list(evaluation.individuals["ID"])
    body = browser.find_element(By.TAG_NAME, "body")
    assert shown(browser) == [ids[0]]
    browser.find_element(By.ID, "next").click()
    body.send_keys(Keys.ARROW_RIGHT)
    assert shown(browser) == [ids[2]]
    body.send_keys(Keys.HOME)
    assert shown(browser) == [ids[0]]

    browser.find_element(By.ID, "grid").click()
    assert shown(browser) == ids
    search = browser.find_element(By.ID, "search")
    search.send_keys("hospital-4")
    assert shown(browser) == ["HOSPITAL-4"]
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.DELETE)
    browser.find_element(By.CSS_SELECTOR, "#covariate option:nth-child(2)").click()
    browser.find_element(By.ID, "high").send_keys("60")
    assert shown(browser) == ids[:3]  # 50, 55, 60 kg
    browser.find_element(By.CSS_SELECTOR, "#order option[value=fit]").click()
    iwres = evaluation.records.groupby("ID")["IWRES"].apply(lambda values: np.sqrt(np.square(values).mean()))
    assert shown(browser) == list(iwres[ids[:3]].sort_values(ascending=False).index)

    def ground() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    theme = browser.find_element(By.ID, "theme")
    theme.click()
    light = ground()
    theme.click()
    assert theme.text == "Theme: dark" and ground() != light

    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.execute_script("document.querySelector('[data-csv=curves]').click()")
    path = tmp_path / "curves.csv"
    for _ in range(100):
        if path.exists():
            break
        browser.execute_async_script("setTimeout(arguments[0], 50)")
    pd.testing.assert_frame_equal(pd.read_csv(path), evaluation.curves, check_dtype=False, rtol=1e-6)
    assert browser.get_log("browser") == []
