"""Shared by all tests: slow ones on request, one thread, seeds, Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

# Triton reads it when it is first imported, and any library but torch may be the one that does
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: give --slow"))


@pytest.fixture(autouse=True)
def _one_thread():
    # small matrices: a second thread only waits, and a busy machine makes it wait long
    torch.set_num_threads(1)
    torch.manual_seed(0)
