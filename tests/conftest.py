"""Shared by all tests."""

import sys

import pytest
import torch
from hypothesis import settings

from bar.cli import main

torch.set_num_threads(1)  # small networks: threads only get in each other's way
settings.register_profile("bar", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("bar")


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
