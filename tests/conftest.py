"""Shared by all tests."""

import signal
import sys

import pytest
import torch
from hypothesis import settings

from bar.cli import main

torch.set_num_threads(1)  # small networks: threads only get in each other's way
settings.register_profile("bar", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("bar-all", settings.get_profile("bar"), max_examples=200)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the long tests, too, and more examples of the others")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; run by `make test-all` only")
    # in the background of a shell it is ignored, and so by what is started here
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("bar-all" if config.getoption("--all") else "bar")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def bar_command(tmp_path, monkeypatch, capfd):
    """Call the command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bar", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capfd.readouterr()

    return call
