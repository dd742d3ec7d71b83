"""A run: a configuration and a seed, turned into a folder of records and a pruned network; and reading them back."""

from bar.runs.config import RunConfig, total_epochs
from bar.runs.places import CONFIG, LOCK, METRICS_FILE, RESULT, TRIAL, place
from bar.runs.reading import finished, gates, metrics, read, records
from bar.runs.running import run, teacher_in

__all__ = [
    "CONFIG",
    "LOCK",
    "METRICS_FILE",
    "RESULT",
    "TRIAL",
    "RunConfig",
    "finished",
    "gates",
    "metrics",
    "place",
    "read",
    "records",
    "run",
    "teacher_in",
    "total_epochs",
]
