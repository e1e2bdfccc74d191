"""The command line without a model to train: which option belongs to which class, and what is said of a wrong one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cli_stub
import lightning as L
import pytest
import yaml

from neuralpk import cohort_data, cohort_figures, datamodules, task
from neuralpk.cli import entry, main, table_commands, training
from neuralpk.cli.presets import MAIN_JOB
from neuralpk.cli.signatures import concrete, find, name_of, options_of, path_of
from neuralpk.cohort import Units
from neuralpk.datamodules import SimulatedPKDataModule
from neuralpk.tables.batchwise_writing import write_frames

PRESET = f"""
data:
  class_path: {SimulatedPKDataModule.__module__}.{SimulatedPKDataModule.__qualname__}
  init_args: {{subjects: 4, test_subjects: 2, samples: 5}}
model:
  dynamics: {{class_path: cli_stub.NeuralCompartments, init_args: {{hidden: [8, 8], activation: relu}}}}
  parameters: {{class_path: PopulationParameters, init_args: {{omega: 0.4}}}}
  error: ProportionalError
  engine: {{class_path: TorchDiffEq, init_args: {{method: rk4, rtol: 1.0e-4}}}}
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
"""


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch) -> Path:
    """The stub of a task, its preset as the main job, an empty folder."""
    path = tmp_path / "preset.yaml"
    path.write_text(PRESET)
    original = entry.preset_path
    monkeypatch.setattr(entry, "preset_path", lambda name: str(path) if name == MAIN_JOB else original(name))
    for module in (task, training):
        monkeypatch.setattr(module, "LatentTask", cli_stub.LatentTask)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return path


def configured(capsys, *arguments: str, command: str = "fit") -> dict:
    """The configuration that a command line means."""
    with pytest.raises(SystemExit) as printed:
        main([command, *arguments, "--print_config"])
    said = capsys.readouterr()
    assert printed.value.code == 0, said.err
    return yaml.safe_load(said.out)


def refused(capsys, *arguments: str, code: int = 2) -> str:
    """What is said of a command line that cannot be used: one sentence, on the error stream."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    said = capsys.readouterr()
    assert stopped.value.code == code, said.err
    words = [line for line in said.err.splitlines() if not line.startswith("Seed set to")]
    assert len(words) == 1, said.err
    for noise in ("usage:", "Namespace", "Traceback", "Union", "compute_fn", "<class"):
        assert noise not in words[0]
    return words[0]


# ---- values


def test_a_class_is_named_alone_and_has_its_options(capsys) -> None:
    model = configured(capsys, "--model.dynamics", "CompartmentModel", "--model.dynamics.compartments", "3")["model"]
    assert model["dynamics"]["class_path"] == "cli_stub.CompartmentModel"
    assert model["dynamics"]["init_args"] == {"compartments": 3, "absorption": "none", "transits": 3}


def test_another_class_drops_the_options_of_the_one_in_the_preset(capsys) -> None:
    model = configured(capsys, "--model.engine", "RungeKutta", "--model.dynamics", "CompartmentModel")["model"]
    assert model["engine"] == {"class_path": "cli_stub.RungeKutta", "init_args": {"rtol": 1e-5, "atol": 1e-6}}
    assert "hidden" not in model["dynamics"]["init_args"]


def test_the_same_class_keeps_the_options_of_the_preset(capsys) -> None:
    model = configured(capsys, "--model.dynamics", "NeuralCompartments", "--model.dynamics.activation", "tanh")["model"]
    assert model["dynamics"]["init_args"] == {"hidden": [8, 8], "activation": "tanh"}


def test_parts_of_parts(capsys) -> None:
    line = "--model.dynamics HybridDynamics --model.dynamics.mechanism CompartmentModel "
    line += "--model.dynamics.mechanism.compartments 1 --model.dynamics.hidden=4"
    dynamics = configured(capsys, *line.split())["model"]["dynamics"]
    assert dynamics["init_args"]["mechanism"]["class_path"] == "cli_stub.CompartmentModel"
    assert dynamics["init_args"]["mechanism"]["init_args"]["compartments"] == 1
    assert dynamics["init_args"]["hidden"] == 4


def test_lists_and_dictionaries_of_values_and_of_parts(capsys) -> None:
    line = ["--model.parameters.omega", "{CL: 0.2}", "--model.parameters.typical.CL", "4", "--model.dynamics.hidden"]
    line += ["[4, 4]", "--model.parameters.distributions.CL", "LogNormal"]
    line += ["--model.parameters.distributions.CL.omega", "0.1", "--model.parameters.distributions.V1", "Fixed"]
    model = configured(capsys, *line)["model"]
    parameters = model["parameters"]["init_args"]
    assert parameters["omega"] == {"CL": 0.2}
    assert parameters["typical"] == {"CL": 4.0}
    assert parameters["distributions"]["CL"] == {"class_path": "cli_stub.LogNormal", "init_args": {"omega": 0.1}}
    assert parameters["distributions"]["V1"]["class_path"] == "cli_stub.Fixed"
    assert model["dynamics"]["init_args"]["hidden"] == [4, 4]
    text = "{CL: {class_path: LogNormal, init_args: {omega: 0.1}}, V1: Fixed}"
    again = configured(capsys, "--model.parameters.distributions", text)["model"]["parameters"]["init_args"]
    assert again["distributions"] == parameters["distributions"]


def test_the_only_class_of_a_slot_needs_no_name(capsys) -> None:
    Path("own.yaml").write_text("data: {class_path: TableDataModule, init_args: {table: theophylline}}\n"
                                "model: {dynamics: CompartmentModel}\n")  # fmt: skip
    config = configured(capsys, "--config", "own.yaml", "--model.parameters.omega", "0.5")
    assert config["model"]["parameters"]["init_args"]["omega"] == 0.5
    assert config["data"]["init_args"]["table"] == "theophylline"


def test_what_follows_overrides(capsys) -> None:
    Path("own.yaml").write_text("model: {learning_rate: 0.5, dynamics: {init_args: {activation: silu}}}\n")
    given = ["--preset", MAIN_JOB, "--config", "own.yaml"]
    model = configured(capsys, *given)["model"]
    assert model["learning_rate"] == 0.5
    assert model["dynamics"]["init_args"] == {"hidden": [8, 8], "activation": "silu"}
    assert configured(capsys, *given, "--model.learning_rate", "0.1")["model"]["learning_rate"] == 0.1


def test_callbacks_loggers_and_optimizers_of_lightning(capsys) -> None:
    line = "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor val_loss --trainer.callbacks+ "
    line += "LearningRateMonitor --trainer.logger CSVLogger --optimizer AdamW --optimizer.lr 0.003"
    config = configured(capsys, *line.split())
    first, second = config["trainer"]["callbacks"]
    assert first["class_path"].endswith("EarlyStopping")
    assert first["init_args"]["monitor"] == "val_loss"
    assert second["class_path"].endswith("LearningRateMonitor")
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "."
    assert config["optimizer"]["init_args"]["lr"] == 0.003
    single = configured(capsys, "--trainer.callbacks", "LearningRateMonitor")["trainer"]["callbacks"]
    assert single["class_path"].endswith("LearningRateMonitor")


def test_a_scheduler_is_the_one_that_lightning_can_monitor(capsys) -> None:
    line = "--optimizer Adam --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val_loss"
    assert configured(capsys, *line.split())["lr_scheduler"]["class_path"].startswith("lightning.")


def test_the_folder_of_a_run_is_asked_for_once(capsys) -> None:
    logger = configured(capsys, "--trainer.default_root_dir", "runs")["trainer"]["logger"]
    assert logger["init_args"]["save_dir"] == str(Path("runs", "lightning_logs"))


def test_a_text_that_looks_like_a_number_stays_a_text(capsys) -> None:
    line = ["--data", "TableDataModule", "--data.table", "123"]
    assert configured(capsys, *line)["data"]["init_args"]["table"] == "123"


# ---- faults


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fitt", "(did you mean 'fit'?)"),
        ("fit --preset two_compartments", "(did you mean 'two_compartment'?)"),
        ("fit --preset", "--preset needs a value"),
        ("fit extra", "unexpected 'extra'"),
        ("fit --bogus 3", "there is no option --bogus"),
        ("fit --model.learning_rte 0.1", "(did you mean 'learning_rate'?)"),
        ("fit --model.learning 0.1", "LatentTask has no option 'learning' (did you mean 'learning_rate'?)"),
        ("fit --trainer.max_epoch 3", "(did you mean 'max_epochs'?)"),
        ("fit --trainer.max_epochs many", "takes a whole number or null (default null); got 'many'"),
        ("fit --trainer.precision 17", "bf16-mixed"),
        ("fit --trainer.accelerator gpuu", "gpuu"),
        ("fit --trainer 3", "--trainer is a group of options"),
        ("fit --model.dynamics.transits 3", "it belongs to CompartmentModel"),
        ("fit --model.dynamics CompartmentModel --model.dynamics.hidden 3", "CompartmentModel has no option 'hidden'"),
        ("fit --model.dynamics CompartmentModell", "(did you mean 'CompartmentModel'?)"),
        ("fit --model.dynamics nowhere.Model", "nowhere.Model cannot be imported"),
        ("fit --model.dynamics SetEncoder", "there is no Decoder 'SetEncoder'"),
        ("fit --model.dynamics cli_stub.Decoder", "is abstract"),
        ("fit --model.learning_rate abc", "--model.learning_rate takes a number (default 0.01); got 'abc'"),
        ("fit --model.learning_rate", "--model.learning_rate needs a value"),
        ("fit --model.learning_rate.x 3", "takes a number; it has no option 'x'"),
        ("fit --model.dynamics CompartmentModel --model.dynamics.absorption oral", "none, first_order, transit"),
        ("fit --model.dynamics CompartmentModel --model.dynamics.compartments 7", "compartments must be 1, 2 or 3"),
        ("fit --model.dynamics HybridDynamics", "--model.dynamics.mechanism is required by HybridDynamics"),
        ("fit --model.encoder.hidden 3", "--model.encoder needs its class first, one of RecurrentEncoder, SetEncoder"),
        ("fit --model.parameters.distributions.CL LogNorml", "(did you mean 'LogNormal'?)"),
        ("fit --model.parameters.distributions.CL.omega 3", "needs its class first"),
        ("fit --data.subjects -5", "subjects must be 1 or more"),
        ("fit --data TableDataModule", "--data.table is required by TableDataModule"),
        ("fit --data TableDataModule --data.subjects 3", "it belongs to"),
        ("fit --config none.yaml", "there is no file 'none.yaml'"),
        ("fit --trainer.callbacks+ EarlyStopping", "--trainer.callbacks.monitor is required by EarlyStopping"),
        ("fit --trainer.logger CSVLoger", "(did you mean 'CSVLogger'?)"),
        ("fit --optimizer AdamW --optimizer.lrr 3", "(did you mean 'lr'?)"),
        ("fit --import nowhere_at_all", "--import nowhere_at_all: ModuleNotFoundError"),
        ("validate", "--model FILE"),
        ("validate --checkpoint last.ckpt", "--checkpoint is now --model FILE"),
        ("estimate --population pop.yaml", "--population is now --model FILE"),
        ("import --model m.R", "--model is now --function FILE"),
        ("reconstruct", "--model is required"),
        ("reconstruct --tabel t.csv", "(did you mean 'table'?)"),
        ("simulate", "--out is required"),
        ("simulate --preset theophylline --out c.csv", "measured data"),
        ("fit --help CompartmentModell", "(did you mean 'CompartmentModel'?)"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(line: str, said: str, capsys) -> None:
    assert said in refused(capsys, *line.split())
    assert list(Path().iterdir()) == []


def test_no_gpu_is_said_in_words(capsys) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "this machine has none" in refused(capsys, "fit", "--trainer.accelerator", "gpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: {dynamics: [\n", "line 2 is not YAML"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"just words\n", "must hold options by name"),
        (b"model: {learning_rte: 0.1}\n", "own.yaml: model.learning_rte"),
        (b"model: {learning_rate: fast}\n", "own.yaml: model.learning_rate takes a number"),
        (b"model: {dynamics: {class_path: CompartmentModel, init_args: {hidden: 3}}}\n", "own.yaml: model.dynamics"),
        (b"model: {dynamics: {class_path: CompartmentModel, options: {}}}\n", "options"),
        (b"trainer: 3\n", "own.yaml: trainer is a group"),
    ],
)
def test_a_configuration_that_cannot_be_used(content: bytes, said: str, capsys) -> None:
    Path("own.yaml").write_bytes(content)
    assert said in refused(capsys, "fit", "--preset", MAIN_JOB, "--config", "own.yaml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("validate --model none.ckpt", "there is no file 'none.ckpt'"),
        ("fit --ckpt_path none.ckpt", "there is no file 'none.ckpt'"),
        ("reconstruct --model text.ckpt --table t.csv --out o", "text.ckpt holds no population"),
        ("estimate --model none.yaml --table t.csv --out o", "none.yaml"),
        ("fit --data TableDataModule --data.table none.csv", "none.csv"),
        ("fit --data TableDataModule --data.table bad.csv", "NPK-D"),
    ],
)
def test_a_fault_of_files_and_data_ends_with_code_1(line: str, said: str, capsys) -> None:
    Path("text.ckpt").write_text("no checkpoint")
    Path("bad.csv").write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n1,1,.,4\n")
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


# ---- runs


def test_fit_test_and_resume(capsys) -> None:
    main(["fit", "--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val_loss"])
    (run,) = Path("lightning_logs").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "ckpt_path" not in config
    last = str(run / "checkpoints" / "last.ckpt")
    assert (run / "checkpoints" / "best.ckpt").exists()
    for command in ("validate", "test"):
        main([command, "--model", last])
        assert "_loss" in capsys.readouterr().out
    main(["test", "--ckpt_path", last, "--config", str(run / "config.yaml")])
    main(["predict", "--model", last])
    (predictions,) = Path("lightning_logs").glob("*/records.csv")
    assert float(predictions.read_text().split()[-1]) != 0.0
    main(["fit", "--ckpt_path", last, "--trainer.max_epochs", "2"])


def test_simulate_takes_the_data_of_a_preset_and_options(capsys) -> None:
    main(["simulate", "--data.subjects", "3", "--out", "c.csv"])
    assert "5 subjects" in capsys.readouterr().out
    main(["simulate", "--data", SimulatedPKDataModule.__name__, "--data.subjects", "3", "--out", "d.csv"])
    assert "3 subjects" in capsys.readouterr().out


def test_a_package_of_the_user(capsys, monkeypatch) -> None:
    Path("my_dynamics.py").write_text(
        "from cli_stub import CompartmentModel\n\n\n"
        'class MyModel(CompartmentModel):\n    """Mine.\n\n    Args:\n        speed: of it.\n    """\n\n'
        "    def __init__(self, speed: float = 1.0) -> None:\n        super().__init__()\n        self.speed = speed\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    line = ["--import", "my_dynamics", "--model.dynamics", "MyModel", "--model.dynamics.speed", "2"]
    try:
        dynamics = configured(capsys, *line)["model"]["dynamics"]
        assert dynamics == {"class_path": "my_dynamics.MyModel", "init_args": {"speed": 2.0}}
        main(["fit", "--help", "MyModel"])
        assert "--model.dynamics.speed  (a number; default 1.0)" in capsys.readouterr().out
    finally:
        sys.modules.pop("my_dynamics", None)


@pytest.mark.filterwarnings("ignore::neuralpk.tables.DataWarning")
def test_reconstruct_hands_over_what_was_asked(capsys, monkeypatch) -> None:

    asked: list = []

    class Task(cli_stub.LatentTask):
        model = SimpleNamespace(
            scaling=SimpleNamespace(covariates={"WT": (), "AGE": ()}, units=Units()),
            dynamics=SimpleNamespace(covariates={"AGE": 40.0}),
            population=SimpleNamespace(occasion_column=None),
            table_covariates=lambda encoder: ["WT", "AGE"],
            idle_covariates=lambda encoder: [],
        )
        encoder = None
        provenance = SimpleNamespace(description="learned")

        def reconstruct(self, table, times, **options):
            asked.append((table, options))
            return SimpleNamespace(unsolved=())

    main(["fit"])
    (last,) = Path("lightning_logs").glob("*/checkpoints/last.ckpt")
    for module in (task, training):
        monkeypatch.setattr(module, "LatentTask", Task)
    monkeypatch.setattr(table_commands, "_write", lambda result, out: None)
    monkeypatch.setattr(cohort_figures, "save_panels", lambda *_: [])
    header, dose, sample = "ID,TIME,AMT,DV,CONC,SS,WT,AGE", "1,0,9,.,.,99,70,.", "1,1,0,2,5,0,70,."
    Path("t.csv").write_text(f"{header}\n{dose}\n{sample}\n".replace(",99,", ",0,"))
    Path("u.csv").write_text(f"{header}\n{dose}\n{sample}\n")
    line = ["reconstruct", "--model", str(last), "--table", "t.csv", "--out", "o", "--draws", "5"]
    main(line)
    line[4] = "u.csv"
    main([*line, "--map_estimate", "false", "--columns", "DV=CONC", "--map", "SS:99=0", "--ignore", "DV > 7"])
    assert [cohort[0].values.tolist() for cohort, _ in asked] == [[2.0], [5.0]]
    assert [cohort[0].covariates for cohort, _ in asked] == [{"WT": 70.0, "AGE": 40.0}] * 2
    assert [(o["draws"], o["map"]) for _, o in asked] == [(5, None), (5, False)]
    assert all(list(o["progress"]([1, 2])) == [1, 2] for _, o in asked)


# ---- before torch


@pytest.mark.parametrize("line", [["--help"], ["--version"], ["fitt"], ["fit", "--preset", "nope"], ["fit", "word"]])
def test_what_needs_no_torch_does_not_import_it(line: list[str]) -> None:
    code = (
        "import sys\nfrom neuralpk.cli import main\n"
        f"try:\n    main({line})\nexcept SystemExit:\n    pass\n"
        "sys.exit(sorted({'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_FIGURES = {"lightning", "scipy.optimize", "scipy.stats", "matplotlib"}


@pytest.mark.parametrize(
    ("command", "unwanted", "option"),
    [(name, {"torch", "lightning", "scipy", "matplotlib", "numba"}, "--table") for name in ("check", "nca")]
    + [(name, _FIGURES, "--out") for name in ("estimate", "evaluate", "dose", "simulate", "simulate --model pop.yaml")],
)
def test_help_waits_for_nothing_that_the_command_does_not_begin_with(
    command: str, unwanted: set[str], option: str
) -> None:
    code = (
        f"import sys\nfrom neuralpk.cli import main\nmain({[*command.split(), '--help']})\n"
        f"sys.exit(sorted({unwanted} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and option in done.stdout, done.stderr


def test_a_cohort_is_simulated_without_lightning() -> None:
    Path("own.yaml").write_text("data: {class_path: neuralpk.datamodules.simulated.SimulatedSIRDataModule}")
    lines = (
        "--data SimulatedPKDataModule --data.batch_size 2 --data.subjects 3 --out a.csv",
        "--preset lotka_volterra --data.subjects 3 --out b.parquet",
        "--config own.yaml --data.subjects 3 --out c.csv",
        "--data neuralpk.datamodules.SimulatedPKDataModule --data.subjects 3 --seed 1 --out d.csv",
    )
    code = (
        f"import sys\nfrom neuralpk.cli import main\nfor line in {lines}:\n    main(['simulate', *line.split()])\n"
        f"sys.exit(sorted({{'lightning', 'matplotlib'}} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    write_frames(SimulatedPKDataModule(subjects=3, seed=1).frames(), Path("module.csv"))
    assert Path("d.csv").read_bytes() == Path("module.csv").read_bytes()


@pytest.mark.parametrize("data", list(concrete(cohort_data.SimulatedData)))
def test_simulated_data_and_their_data_module_have_one_name_and_the_same_options(data: type) -> None:
    module = getattr(datamodules, name_of(data))
    assert issubclass(module, data) and issubclass(module, L.LightningDataModule)
    assert options_of(module) == options_of(data)
    for path in (name_of(data), path_of(data), f"neuralpk.datamodules.{name_of(data)}", path_of(module)):
        assert find(path, (cohort_data.SimulatedData,), "--data", False) is data
        if path != path_of(data):
            assert find(path, (datamodules.CohortDataModule,), "--data", False) is module


def test_a_data_module_of_ones_own_is_simulated() -> None:
    Path("my_data.py").write_text(
        "from neuralpk.datamodules import SimulatedDataModule, SimulatedPKDataModule as Ours\n"
        "class Mine(SimulatedDataModule):\n"
        "    def __init__(self, subjects: int = 2, **options):\n"
        "        super().__init__(subjects, 0, 'proportional', {'b': 0.2}, **options)\n"
        "        ours = Ours()\n"
        "        self.dynamics, self.population, self.design = ours.dynamics, ours.population, ours.design\n"
        "class SimulatedPKDataModule(Ours):\n    pass\n"
    )
    lines = (
        "--import my_data --data Mine --data.seed 3 --out mine.csv",
        "--data neuralpk.datamodules.SimulatedPKDataModule --data.subjects 2 --data.seed 3 --out ours.csv",
        "--data SimulatedPKDataModule --out neither.csv",
    )
    # a process of its own: the second class of that name stays
    code = f"from neuralpk.cli import main\nfor line in {lines}:\n    main(['simulate', *line.split()])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "the name of several classes" in done.stderr
    assert Path("mine.csv").read_bytes() == Path("ours.csv").read_bytes()


def test_a_table_is_not_simulated(capsys) -> None:
    Path("own.yaml").write_text("data: {class_path: neuralpk.datamodules.TableDataModule, init_args: {table: t.csv}}")
    with pytest.raises(SystemExit):
        main(["simulate", "--config", "own.yaml", "--out", "c.csv"])
    assert "must be a SimulatedDataModule; neuralpk.datamodules.TableDataModule is not" in capsys.readouterr().err
