"""Help: the main options of a command on two screens, and all options of a part or class on request."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from neuralpk.cli.faults import UsageError
from neuralpk.cli.merged_configuration import shown
from neuralpk.cli.presets import MAIN_JOB, PRESETS
from neuralpk.cli.signatures import (
    REQUIRED,
    Option,
    bases,
    concrete,
    entry,
    item,
    name_of,
    names_for,
    options_of,
    words,
)
from neuralpk.part import Part, did_you_mean
from neuralpk.tables import read_table

# Lightning's first sentences do not fit into one line, and some of the defaults are ours
_TRAINER = {
    "max_epochs": "length of the training (default 1000)",
    "accelerator": "cpu, gpu, tpu, mps (default auto)",
    "devices": "how many devices, or which of them (default auto)",
    "precision": "32-true, 64-true, 16-mixed, bf16-mixed (default 32-true)",
    "logger CLASS": "where curves are written; false for nowhere (default TensorBoardLogger)",
    "callbacks+ CLASS": "a callback beside ours; its options follow as --trainer.callbacks.NAME (default none)",
    "gradient_clip_val": "largest norm of the gradient (default null, no limit)",
    "check_val_every_n_epoch": "epochs from one validation to the next (default 1)",
    "fast_dev_run": "one batch of everything, and nothing is saved (default false)",
    "default_root_dir": "folder in which lightning_logs is made (default the current one)",
}
_LEFT = 37
_READING = set(options_of(read_table)) - {"covariates", "units"}


def print_help(
    command: str,
    options: Mapping[str, Option],
    about: str | None,
    function: Callable[..., Any] | None = None,
    short: Mapping[str, Option] = MappingProxyType({}),
) -> None:
    """Print the help of a command, or of one part or class.

    Args:
        command: which.
        options: its options.
        about: name of a group (``model``), an option (``model.dynamics``) or a class; None for the command.
        function: what the command runs; None for those of the training.
        short: short options of a training (`neuralpk.cli.study_options`).

    Raises:
        UsageError: no such part or class.
    """
    width = max(60, min(100, shutil.get_terminal_size().columns))
    lines = (
        _command(command, options, function, width, short)
        if about is None
        else _about(about, {**short, **options}, width)
    )
    print("\n".join(line.rstrip() for line in lines))


def _command(
    command: str,
    options: Mapping[str, Option],
    function: Callable[..., Any] | None,
    width: int,
    short: Mapping[str, Option],
) -> Iterator[str]:
    trains = function is None
    configured = "[--preset NAME | --config FILE] " if "data" in options else ""
    yield f"usage: neuralpk {command} {configured}[options]"
    yield ""
    if function is not None:
        yield from textwrap.wrap(_summary(function), width)
        yield ""
    if "data" in options:
        only = " (its data)" if not trains else ""
        yield from _row("--preset NAME", f"configuration inside the package{only}; default {MAIN_JOB}", width)
        yield from textwrap.wrap(", ".join(PRESETS), width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        yield from _row("--config FILE", "configuration in YAML; what follows on the command line overrides it", width)
    if command not in ("check", "nca"):  # they have no classes
        yield from _row("--import PACKAGE", "import your package, so that its classes can be named", width)
    if trains:
        if command == "fit":
            yield from _row("--checkpoint FILE", "training to resume", width)
        else:
            yield from _row("--model FILE", "checkpoint that is measured (required)", width)
        yield from _row("--seed_everything", _line(options["seed_everything"]), width)
        yield from _row("--print_config", "print the complete configuration instead of running it", width)
        if "table" in short:
            yield ""
            yield "A study of your own, without a preset:"
        reading = [name for name in short if name in _READING]
        for name, option in short.items():
            if name not in reading:
                yield from _row(f"--{name}", _line(option), width)
        if reading:
            yield from _row(f"--{reading[0]}, …", f"how the table is read: {', '.join(reading)}", width)
        for name in ("data", "model", "trainer", "optimizer", "lr_scheduler"):
            yield ""
            yield from _group(name, options[name], width)
    else:
        for name, option in options.items():
            yield from _row(f"--{name}", _line(option), width)
    yield ""
    yield "More:"
    for name, what in (
        *((("model", "all options of the model, and the classes of its parts"),
           ("trainer", "all options of Lightning's trainer")) if trains else ()),
        *((("data", "the data modules"),) if "data" in options else ()),
        *((("CompartmentModel", "all options of a class, whatever its part"),) if trains else ()),
    ):  # fmt: skip
        yield from _row(f"neuralpk {command} --help {name}", what, width, left=44)
    if not trains:
        yield from _row("neuralpk --help", "the other commands", width, left=44)


def _group(name: str, option: Option, width: int) -> Iterator[str]:
    """A group or slot in the help of a command."""
    if option.fixed is None:
        yield from _row(f"--{name} CLASS", option.description, width)
        yield from _classes(bases(option.hint), width, indent=6)
        if name == "data":
            yield from _row(f"--{name}.OPTION", "an option of that class, see --help CLASS", width)
        return
    if name == "trainer":
        for key, what in _TRAINER.items():
            yield from _row(f"--trainer.{key}", what, width)
        return
    for key, inner in options_of(option.fixed, option.skipped).items():
        slot = _slot(inner.hint)
        yield from _row(f"--{name}.{key}" + (" CLASS" if slot else ""), _line(inner), width)
        if slot:
            yield from _classes(slot, width, indent=6)


def _classes(slot: Sequence[type], width: int, indent: int) -> Iterator[str]:
    names, margin = names_for(slot), " " * indent
    text = ", ".join(names) if len(names) <= 16 else ", ".join(names[:12]) + f", … ({len(names)} in all)"
    yield from textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin)


def _about(about: str, options: Mapping[str, Option], width: int) -> Iterator[str]:
    """All options of a part or class."""
    about = about.removeprefix("--")
    name, *path = about.split(".")
    if name in options:
        option = options[name]
        for step in path:
            if option.fixed is None or step not in options_of(option.fixed, option.skipped):
                raise UsageError(f"--help: there is no option {about!r}; name a group, an option or a class")
            option = options_of(option.fixed, option.skipped)[step]
        if option.fixed is not None:
            yield from _class(option.fixed, width, f"--{about}.", option.skipped)
            return
        slot = _slot(option.hint)
        if not slot:
            yield from _detail(f"--{about}", option, width)
            return
        yield from textwrap.wrap(f"--{about} CLASS: {option.description}", width)
        yield ""
        for base in slot:
            for cls in sorted(concrete(base), key=name_of):
                yield from _row(name_of(cls), _summary(cls), width)
        yield ""
        yield "The options of one of them: --help CLASS"
        return
    known: dict[str, tuple[type, str, tuple[str, ...]]] = {cls.__name__: (cls, "--….", ()) for cls in concrete(Part)}
    known |= {name_of(cls): (cls, prefix, skipped) for cls, prefix, skipped in _all_classes(options)}
    if about not in known:
        hint = did_you_mean(about, [*options, *known])
        raise UsageError(f"--help: there is no part and no class {about!r}{hint}; name {', '.join(options)} or a class")
    cls, prefix, skipped = known[about]
    yield from _class(cls, width, prefix, skipped)


def _all_classes(options: Mapping[str, Option], prefix: str = "--") -> Iterator[tuple[type, str, tuple[str, ...]]]:
    """Every class that can be named, with the option that takes it."""
    for name, option in options.items():
        if option.fixed is not None:
            inner = options_of(option.fixed, option.skipped)
            yield from _all_classes(inner, f"{prefix}{name}.")
            yield option.fixed, f"{prefix}{name}.", option.skipped
        for base in _slot(option.hint):
            for cls in concrete(base):
                yield cls, f"{prefix}{name}.", option.skipped


def _class(cls: type, width: int, prefix: str, skipped: tuple[str, ...]) -> Iterator[str]:
    yield from textwrap.wrap(f"{name_of(cls)}: {_summary(cls)}", width)
    yield ""
    inner = options_of(cls, skipped)
    for name, option in inner.items():
        yield from _detail(f"{prefix}{name}", option, width)
        slot = _slot(option.hint)
        if slot:
            yield from _classes(slot, width, indent=6)
    if not inner:
        yield "It has no options."


def _detail(name: str, option: Option, width: int) -> Iterator[str]:
    """An option with type, default and description in full."""
    slot = _slot(option.hint)
    kind = "class" if slot else words(option.hint)
    default = "required" if option.default is REQUIRED else f"default {shown(option.default)}"
    yield from textwrap.wrap(f"{name}  ({kind}; {default})", width, subsequent_indent=" " * 6)
    yield from textwrap.wrap(option.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _line(option: Option) -> str:
    """First sentence of the description, and the default."""
    first = option.description.split(". ")[0].split("; ")[0].rstrip(".")
    default = "required" if option.default is REQUIRED else f"default {shown(option.default)}"
    return f"{first} ({default})"


def _row(name: str, text: str, width: int, left: int = _LEFT) -> Iterator[str]:
    """A name and what it is."""
    start = f"  {name:<{left - 3}} "
    first, *others = textwrap.wrap(text, max(20, width - len(start))) or [""]
    yield start + first
    yield from (" " * left + other for other in others)


def _slot(hint: Any) -> tuple[type, ...]:
    """Classes of a slot, also of a list or a dictionary of them."""
    found = bases(hint)
    for inner in (item(hint), entry(hint)):
        if not found and inner is not None:
            found = _slot(inner)
    return found


def _summary(source: Any) -> str:
    """First paragraph of a docstring."""
    text = inspect.getdoc(source) or ""
    return " ".join(text.split("\n\n")[0].split())
