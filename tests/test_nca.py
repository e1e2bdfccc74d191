"""Non-compartmental analysis against NonCompart (R) and closed forms."""

import csv
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralpk.cli import main
from neuralpk.cohort import Units
from neuralpk.noncompartmental import analyse_dosing_interval, nca, summarise, wide
from neuralpk.noncompartmental import analyse_single_dose as analyse
from neuralpk.tables import DataWarning

DATA = Path(__file__).parents[2] / "shared" / "data"
RULES = {"Linear": "linear", "Log": "linear-up/log-down"}
# theophylline subject 1, 319.992 mg by mouth (Boeckmann, Sheiner and Beal 1994; R data set Theoph)
TIMES = np.array([0.0, 0.25, 0.57, 1.12, 2.02, 3.82, 5.1, 7.03, 9.05, 12.12, 24.37])
VALUES = np.array([0.74, 2.84, 6.57, 10.5, 9.66, 8.58, 8.36, 7.47, 6.89, 5.94, 3.28])


def rows(path):
    if not path.exists():
        pytest.skip(f"reference data {path.name} is not beside this checkout")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def profiles(path):
    """Subject to times, values and dose."""
    samples, doses = defaultdict(list), {}
    for row in rows(path):
        if row["EVID"] == "1":
            doses[row["ID"]] = float(row["AMT"])
        else:
            samples[row["ID"]].append((float(row["TIME"]), float(row["DV"])))
    return {key: (*np.array(sample).T, doses[key]) for key, sample in samples.items()}


@pytest.mark.parametrize(
    ("data", "reference", "route", "count"),
    [
        ("theophylline.csv", "ref_nca_theoph_NonCompart.csv", "extravascular", 24),
        ("indomethacin.csv", "ref_nca_indometh_NonCompart.csv", "bolus", 12),
    ],
)
def test_every_parameter_of_every_subject_agrees_with_noncompart(data, reference, route, count):
    expected = rows(DATA / reference)
    assert len(expected) == count
    found = {rule: wide(nca(DATA / data, route=route, auc=RULES[rule])).set_index("ID") for rule in RULES}
    for row in expected:
        names = [name for name in row if name not in ("ds", "down", "Subject", "dose_mg")]
        assert len(names) >= 10
        for name in names:
            # the reference is printed with 15 digits
            np.testing.assert_allclose(
                found[row["down"]].loc[row["Subject"], name],
                float(row[name]),
                rtol=1e-12,
                err_msg=f"{name} of subject {row['Subject']}",
            )


def test_theophylline_subject_1():
    result = analyse(TIMES, VALUES, 319.992, auc="linear-up/log-down")
    assert (result["CMAX"], result["TMAX"], result["LAMZNPT"]) == (10.5, 1.12, 3)
    printed = [result["AUCLST"], result["AUCIFO"], result["LAMZHL"]]
    np.testing.assert_allclose(printed, [147.2347, 214.9236, 14.30438], rtol=4e-7)  # half a unit of the last digit
    assert result["AUCPEO"] > 20
    assert not {"C0", "CLO", "VZO"} & set(result)


def test_bolus_of_one_compartment_is_exact_with_log_down():
    times = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    result = analyse(times, 5.0 * np.exp(-0.3 * times), 100.0, route="bolus", auc="linear-up/log-down")
    # an exponential is what the logarithmic rule integrates exactly: only rounding remains
    np.testing.assert_allclose(
        [result["C0"], result["LAMZ"], result["AUCIFO"], result["CLO"], result["VZO"]],
        [5, 0.3, 5 / 0.3, 6, 20],
        rtol=1e-12,
    )
    assert result["LAMZNPT"] == 6
    assert not {"CLFO", "VZFO"} & set(result)


def test_sample_taken_before_a_bolus_changes_nothing():
    times, values = np.array([0.25, 0.5, 1.0, 2.0, 4.0]), np.array([4.0, 3.0, 2.0, 1.0, 0.3])
    before = analyse(np.append(0, times), np.append(0, values), 10.0, route="bolus")
    np.testing.assert_equal(before, analyse(times, values, 10.0, route="bolus"))


def test_profile_by_mouth_without_time_zero_starts_at_zero():
    later, written = analyse(TIMES[1:], VALUES[1:], 1.0), analyse(TIMES, np.append(0, VALUES[1:]), 1.0)
    assert (later["AUCLST"], later["AUCIFO"]) == (written["AUCLST"], written["AUCIFO"])


def test_trailing_zeros_neither_extend_the_area_nor_the_slope():
    short = analyse(TIMES, VALUES, 1.0)
    long = analyse(np.append(TIMES, [36.0, 48.0]), np.append(VALUES, [0.0, 0.0]), 1.0)
    np.testing.assert_equal(long, short)


def test_slope_of_an_infusion_starts_after_its_end():
    times = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    rising = np.array([2.0, 1.9, 1.8])  # a peak during the infusion, by noise
    values = np.append(rising, 3.0 * np.exp(-0.2 * times[3:]))
    result = analyse(times, values, 10.0, route="infusion", infusion_duration=3.5)
    assert result["LAMZNPT"] == 4
    np.testing.assert_allclose(result["LAMZ"], 0.2, rtol=1e-12)


def test_longer_stretch_wins_among_equal_fits():
    times = np.arange(1.0, 9.0)
    noise = np.array([0, 0, 1e-4, -1e-4, 1e-4, 0, 0, 0])  # the last three lie exactly on the line, all eight nearly
    result = analyse(times, np.exp(-0.5 * times + noise), 1.0, route="bolus")
    assert result["LAMZNPT"] == 8


def test_no_terminal_slope_gives_nan_and_flags():
    result = analyse(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]), 5.0)
    assert np.isnan([result["LAMZ"], result["LAMZHL"], result["AUCIFO"], result["CLFO"]]).all()
    assert (result["LAMZNPT"], result["AUCLST"]) == (0, 2.0)


def test_time_unit_scales_as_it_should():
    hours, minutes = analyse(TIMES, VALUES, 2.0), analyse(60 * TIMES, VALUES, 2.0)
    np.testing.assert_allclose(minutes["AUCIFO"], 60 * hours["AUCIFO"], rtol=1e-12)
    np.testing.assert_allclose(minutes["LAMZHL"], 60 * hours["LAMZHL"], rtol=1e-12)
    np.testing.assert_allclose(minutes["VZFO"], hours["VZFO"], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dose": 0.0}, "dose must be positive"),
        ({"route": "oral"}, "route is"),
        ({"auc": "log"}, "auc is"),
        ({"times": TIMES[::-1]}, "must increase"),
        ({"times": TIMES - 1}, "must increase"),
        ({"values": VALUES[1:]}, "of one length"),
        ({"values": np.where(VALUES > 10, np.nan, VALUES)}, "finite"),
        ({"values": -VALUES}, "not negative"),
        ({"values": 0 * VALUES}, "at least one positive"),
        ({"route": "infusion"}, "positive duration"),
        ({"infusion_duration": 1.0}, "positive duration"),
    ],
)
def test_refuses_what_no_profile_can_be(change, message):
    arguments = {"times": TIMES, "values": VALUES, "dose": 320.0} | change
    with pytest.raises(ValueError, match=message):
        analyse(**arguments)


def steady(times, interval, doses, rate=0.2, volume=10.0):
    """One compartment, bolus of 100 every interval: sum of exponentials."""
    given = interval * np.arange(doses)
    since = np.subtract.outer(times, given)
    return 100 / volume * np.where(since >= 0, np.exp(-rate * np.maximum(since, 0)), 0).sum(1)


def events(times, values, *, bolus_after=True, **dose):
    """An event table of one subject; the samples are before a dose of the same time unless it is the first."""
    given = {"ID": 1, "TIME": 0.0, "EVID": 1, "AMT": 100.0, "DV": np.nan, "CENS": 0} | dose
    samples = [{"ID": 1, "TIME": t, "EVID": 0, "DV": v, "CENS": 0} for t, v in zip(times, values, strict=True)]
    return pd.DataFrame([given, *samples]).fillna({"AMT": 0.0})


def test_several_boluses_are_analysed_by_dosing_interval():
    rate, volume, tau = 0.2, 10.0, 6.0
    times = np.array([k * tau + t for k in range(6) for t in (0.5, 1, 2, 4, 5.999999)])
    table = events(times, steady(times, tau, 6), II=tau, ADDL=5)
    found = wide(nca(table, route="bolus", steady_from=30.0)).set_index("DOSE")
    index = 1 / (1 - np.exp(-rate * tau))
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6]
    first, last = found.loc[1], found.loc[6]
    level = 100 / volume * (1 - np.exp(-6 * rate * tau)) * index
    np.testing.assert_allclose(last["C0"], level, rtol=1e-9)
    np.testing.assert_allclose(last["AUCTAU"], level * (1 - np.exp(-rate * tau)) / rate, rtol=1e-6)
    np.testing.assert_allclose(last["CTROUGH"], level * np.exp(-rate * tau), rtol=1e-9)
    np.testing.assert_allclose(last["CAVG"] * tau, last["AUCTAU"], rtol=1e-12)
    np.testing.assert_allclose(last["FLUCP"], 100 * (last["CMAX"] - last["CMIN"]) / last["CAVG"], rtol=1e-12)
    np.testing.assert_allclose(last["ARAUC"], last["AUCTAU"] / first["AUCTAU"], rtol=1e-12)
    np.testing.assert_allclose(last["AILAMZ"], index, rtol=1e-6)
    np.testing.assert_allclose(last["CLTAU"], 100 / last["AUCTAU"], rtol=1e-12)
    # before steady state dose / AUCTAU is no clearance; after a dose on top of others AUCIFO says nothing
    assert np.isnan(found.loc[5, "CLTAU"]) and np.isnan(last["AUCIFO"])
    np.testing.assert_allclose(first["CLO"], rate * volume, rtol=1e-9)


def test_a_dose_at_steady_state_repeats_and_borrows_the_end_of_its_interval():
    t = np.array([1.0, 2.0, 4.0, 8.0, 12.0])
    table = events(t, np.array([4.0, 5.0, 4.0, 2.0, 1.0]), II=12.0, SS=1)
    found = wide(nca(table, auc="linear")).iloc[0]
    borrowed = np.trapezoid([1.0, 4.0, 5.0, 4.0, 2.0, 1.0], [0.0, 1.0, 2.0, 4.0, 8.0, 12.0])
    np.testing.assert_allclose([found["AUCTAU"], found["CLFTAU"]], [borrowed, 100 / borrowed], rtol=1e-12)
    assert (found["TAU"], found["CMIN"], found["SWING"]) == (12.0, 1.0, 4.0)


def test_an_infusion_is_recognised_by_its_rate():
    rate, volume, length = 0.2, 10.0, 2.0
    t = np.array([0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0])
    peak = 50 / (rate * volume)
    y = np.where(t <= length, peak * (1 - np.exp(-rate * t)), peak * (np.exp(rate * length) - 1) * np.exp(-rate * t))
    found = wide(nca(events(t, y, RATE=50.0))).iloc[0]
    assert found["ROUTE"] == "infusion"
    np.testing.assert_allclose([found["CLO"], found["VSSO"]], [2.0, 10.0], rtol=0.02)
    np.testing.assert_allclose(found["LAMZ"], rate, rtol=1e-9)


def test_values_below_the_limit_are_0_before_the_first_measurable_one_and_later_as_said():
    t = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    y = np.array([1.0, 4.0, 6.0, 5.0, 4.0, 1.0, 2.0, 1.0])
    table = events(t, y)
    table.loc[table["DV"] == 1.0, "CENS"] = 1
    missing = wide(nca(table, auc="linear")).iloc[0]
    zero = wide(nca(table, auc="linear", below="zero")).iloc[0]
    assert missing["AUCLST"] == np.trapezoid([0, 0, 4, 6, 5, 4, 2], [0, 0.5, 1, 2, 3, 4, 8])
    assert zero["AUCLST"] == np.trapezoid([0, 0, 4, 6, 5, 4, 0, 2], [0, 0.5, 1, 2, 3, 4, 6, 8])
    assert missing["TLST"] == zero["TLST"] == 8.0


def test_given_points_determine_lambda_z():
    table = pd.concat([events(TIMES, VALUES).assign(ID=k) for k in (1, 2)])
    found = wide(nca(table, terminal={"2": [5.1, 9.05, 24.37]})).set_index("ID")
    assert (found.loc["1", "LAMZNPT"], found.loc["2", "LAMZLL"], found.loc["2", "LAMZUL"]) == (3, 5.1, 24.37)
    expected = -np.polyfit([5.1, 9.05, 24.37], np.log([8.36, 6.89, 3.28]), 1)[0]
    np.testing.assert_allclose(found.loc["2", "LAMZ"], expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"subject 1, dose 1: .*no positive sample at 5"):
        nca(table, terminal=[5, 9.05, 24.37])
    with pytest.raises(ValueError, match="terminal names subject 7"):
        nca(table, terminal={"7": [5.1, 9.05, 24.37]})


def test_one_message_says_what_could_not_be_computed():
    rising = events([1.0, 2.0], [1.0, 2.0]).assign(ID=3)
    below = events([1.0, 2.0], [1.0, 1.0]).assign(ID=4, CENS=[0, 1, 1])
    table = pd.concat([events(TIMES, VALUES), rising, below])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = wide(nca(table)).set_index("ID")
    (message,) = [str(one.message) for one in said if not issubclass(one.category, DataWarning)]
    assert "LAMZ and what rests on it not determined" in message and "subject 3" in message
    assert "subject 4, dose 1: no value above the limit" in message
    assert found.index.tolist() == ["1", "3"] and np.isnan(found.loc["3", "AUCIFO"])


def test_what_is_not_used_is_said():
    table = events(TIMES, VALUES)
    early = table.iloc[[1]].assign(TIME=-1.0, DV=0.7)
    with pytest.warns(UserWarning, match="subject 1: 1 values before the first dose are left out"):
        found = nca(pd.concat([early, table]))
    pd.testing.assert_frame_equal(found, nca(table))
    second = table[table["EVID"] == 0].assign(DVID=2, DV=np.arange(1.0, 1 + len(TIMES)))
    both = pd.concat([table.assign(DVID=1), second]).sort_values("TIME", kind="stable")
    with pytest.warns(UserWarning, match="not determined .*: subject 1 DVID 2"):
        assert nca(both)["DVID"].unique().tolist() == [1, 2]
    curves = pd.DataFrame({"ID": 1, "TIME": TIMES, "IPRED": VALUES})
    with pytest.warns(UserWarning, match="no curve of subject 2"):
        nca(pd.concat([table, table.assign(ID=2)]), curves=curves)


def test_curves_are_analysed_under_the_doses_of_the_table():
    t = np.linspace(0, 48, 481)
    curves = pd.DataFrame({"ID": 1, "TIME": t, "IPRED": steady(t, 12.0, 4), "PRED": 2 * steady(t, 12.0, 4)})
    table = events([1.0], [8.0], II=12.0, ADDL=3)
    single = wide(nca(table, curves=curves, route="bolus")).set_index("DOSE")
    double = wide(nca(table, curves=curves, value="PRED", route="bolus")).set_index("DOSE")
    np.testing.assert_allclose(single.loc[1, "CLO"], 2.0, rtol=1e-9)
    np.testing.assert_allclose(single.loc[1, "C0"], 10.0, rtol=1e-12)
    np.testing.assert_allclose(double["AUCTAU"], 2 * single["AUCTAU"], rtol=1e-12)
    with pytest.raises(ValueError, match="no column DV"):
        nca(table, curves=curves, value="DV")


def test_long_form_has_cdisc_names_and_units_and_a_summary_is_geometric():
    table = pd.concat([events(TIMES, factor * VALUES).assign(ID=k) for k, factor in enumerate((1.0, 4.0))])
    found = nca(table, units=Units("h", "mg", "ng/mL"))
    units = dict(zip(found["PPTESTCD"], found["PPSTRESU"], strict=True))
    assert (units["AUCIFO"], units["LAMZ"], units["CLFO"]) == ("h*ng/mL", "1/h", "mg/(ng/mL)/h")
    known = nca(table)
    assert known.loc[known["PPTESTCD"] == "VZFO", "PPSTRESU"].unique().tolist() == ["L"]
    row = summarise(found).set_index("PPTESTCD").loc["CMAX"]
    np.testing.assert_allclose([row["N"], row["GMEAN"], row["MAX"]], [2, 21.0, 42.0])
    np.testing.assert_allclose(row["GCV"], 100 * np.sqrt(np.expm1(np.log(4) ** 2 / 2)))


def test_dosing_interval_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="tau must be positive"):
        analyse_dosing_interval(TIMES, VALUES, 1.0, 0.0)


def test_the_command_writes_three_tables_without_torch(tmp_path):
    events(TIMES, VALUES).to_csv(tmp_path / "T.csv", index=False)
    code = (
        "import sys; from neuralpk.cli import main; main(sys.argv[1:]); "
        "assert not [name for name in sys.modules if name == 'torch']"
    )
    line = [sys.executable, "-c", code, "nca", "T.csv", "--out", "o", "--terminal", "{1: [7.03, 9.05, 12.12, 24.37]}"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 subjects, 1 profiles" in done.stdout and "--route bolus" in done.stdout
    row = pd.read_csv(tmp_path / "o" / "nca.csv").iloc[0]
    assert (row["LAMZNPT"], row["CMAX"]) == (4, 10.5)
    assert {"PPTESTCD", "PPSTRESU"} <= set(pd.read_csv(tmp_path / "o" / "nca_long.csv"))
    assert (tmp_path / "o" / "nca_summary.csv").exists()


def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["nca", "none.csv", "--out", "o"])
    assert ended.value.code == 1 and "there is no file 'none.csv'" in capsys.readouterr().err
    events(TIMES, VALUES).to_csv("T.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["nca", "T.csv", "--out", "o", "--route", "oral"])
    assert ended.value.code == 2 and "--route takes one of extravascular, bolus" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["nca", "T.csv", "--out", "o", "--units", "[h, mg]"])
    assert ended.value.code == 2 and "--units: units are three" in capsys.readouterr().err
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "nca.csv").write_text("of before")
    with pytest.raises(SystemExit) as ended:
        main(["nca", "T.csv", "--out", "o"])
    assert ended.value.code == 2 and "give --overwrite" in capsys.readouterr().err


def test_a_dose_that_is_left_out_ends_the_profile_before():
    t = np.array([1.0, 2.0, 4.0, 8.0, 25.0, 26.0, 28.0])
    table = events(t, np.array([4.0, 3.0, 2.0, 1.0, 5.0, 4.0, 3.0]))
    dose = table[table["EVID"] == 1].iloc[:1].assign(TIME=24.0)
    alone = wide(nca(table[table["TIME"] < 24], terminal=[2.0, 4.0, 8.0])).iloc[0]
    for second, said in (
        (dose.assign(RATE=-2.0), r"infusions without a rate or a duration \(RATE -1, -2\) at TIME 24"),
        (pd.concat([dose.assign(RATE=0.0), dose.assign(RATE=10.0)]), "doses of several durations at TIME 24"),
    ):
        both = pd.concat([table.assign(RATE=0.0), second]).sort_values(["TIME", "EVID"], ascending=[True, False])
        with pytest.warns(UserWarning, match=f"subject 1: {said} are left out"):
            found = wide(nca(both))
        assert found["DOSE"].tolist() == [1]
        assert found["TLST"].iloc[0] == 8.0
        assert found["AUCLST"].iloc[0] == pytest.approx(alone["AUCLST"])
