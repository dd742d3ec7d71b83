"""Temporary files in a folder that several processes share, and the removal of those that killed ones have left."""

import contextlib
import os
import platform
import re
import threading
import time
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.(?:npy|json)(?:\.(?P<host>[\w-]+))?\.(?P<process>\d+)\.\d+")  # see `unfinished`
_DAY = 86_400  # seconds


def unfinished(path: Path) -> Path:
    """Return the temporary path under which this thread writes a file until it is complete."""
    host = re.sub(r"[^\w-]+", "-", platform.node()) or "-"
    return path.with_name(f".{path.name}.{host[:40]}.{os.getpid()}.{threading.get_ident()}")


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of killed processes: this machine's at once, those of others when they are a day old."""
    host = _UNFINISHED.fullmatch(unfinished(Path("x.npy")).name)["host"]
    for path in folder.iterdir():
        if match := _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):  # another may have removed it, or it may not be removed
                old = time.time() - path.stat().st_mtime > _DAY
                if old or (match["host"] == host and not _is_alive(int(match["process"]))):
                    path.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        pass
    return True
