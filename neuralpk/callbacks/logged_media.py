"""Figures and texts for the loggers of a run that take them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary


def takes_figures(logger: Logger) -> bool:
    """Whether figures can be given to a logger: TensorBoard, Weights & Biases, MLflow, Comet, and any with a method
    ``log_image(key, images, step)``."""
    return isinstance(logger, TensorBoardLogger | MLFlowLogger | CometLogger) or hasattr(logger, "log_image")


def log_figures(loggers: Iterable[Logger], figures: Mapping[str, bytes], step: int) -> None:
    """Give figures to every logger that takes them.

    Args:
        loggers: of the run.
        figures: PNG by name, such as ``patients/individual fits``.
        step: of the training.
    """
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None) if takes_figures(logger) else None
        for name, content in figures.items():
            if isinstance(logger, TensorBoardLogger):
                image = Summary.Image(encoded_image_string=content)
                experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
            elif isinstance(logger, MLFlowLogger):
                experiment.log_image(logger.run_id, _picture(content), f"{name} {step}.png")
            elif isinstance(logger, CometLogger):
                experiment.log_image(_picture(content), name=name, step=step)
            elif hasattr(logger, "log_image"):
                logger.log_image(key=name, images=[_picture(content)], step=step)


def log_text(loggers: Iterable[Logger], name: str, text: str, step: int) -> None:
    """Give a Markdown text to every logger that takes one.

    Args:
        loggers: of the run.
        name: of the text.
        text: Markdown.
        step: of the training.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{name}.md")
        elif isinstance(logger, CometLogger):
            logger.experiment.log_text(text, step=step)
        elif hasattr(logger, "log_text"):
            logger.log_text(key=name, columns=["text"], data=[[text]], step=step)


def _picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))
