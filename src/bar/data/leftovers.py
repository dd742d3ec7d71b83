"""Files that are being written in a folder that several processes share, and what killed ones have left."""

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
    """Where this thread writes a file until it is whole."""
    host = re.sub(r"[^\w-]+", "-", platform.node()) or "-"
    return path.with_name(f".{path.name}.{host[:40]}.{os.getpid()}.{threading.get_ident()}")


def remove_unfinished(folder: Path) -> None:
    """Remove what decoders left that were killed: those of this machine, at once; others when they are a day old."""
    host = _UNFINISHED.fullmatch(unfinished(Path("x.npy")).name)["host"]
    for path in folder.iterdir():
        if match := _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):  # another may have removed it, or it may not be removed
                old = time.time() - path.stat().st_mtime > _DAY
                if old or (match["host"] == host and not _is_alive(int(match["process"]))):
                    path.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere, asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return True
