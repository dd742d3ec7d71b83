"""Shared by all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # small networks: threads only get in each other's way
settings.register_profile("bar", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("bar")
