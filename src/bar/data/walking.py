"""The walk through folders that finds image files, each once, and says what it leaves out. It opens no file."""

import contextlib
import itertools
import logging
import os
import stat
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from bar.errors import BarError, printable

log = logging.getLogger(__name__)

Files = list[tuple[str, int]]  # path and label

NOWHERE, LISTED = "missing, or links that lead nowhere", "links to folders listed already"
# How much is looked at without finding an image: a folder such as /usr or /proc would take minutes.
MOST_FOLDERS_IN_VAIN = 2_000
MOST_ENTRIES_IN_VAIN = 200_000


class Skipped:
    """What a folder holds that is not used, by the reason for it."""

    def __init__(self) -> None:
        self._paths: dict[str, dict[str, None]] = defaultdict(dict)  # a set that keeps the order

    def add(self, why: str, *paths: Path | str) -> None:
        """Note paths; once each, however often they are met."""
        self._paths[why].update(dict.fromkeys(map(str, paths)))

    def say(self, folder: Path) -> None:
        """Warn of everything that was noted, in one line."""
        kinds = []
        for why, paths in self._paths.items():
            if paths:
                shown = ", ".join(printable(os.path.relpath(path, folder)) for path in list(paths)[:3])
                kinds.append(f"{len(paths)} {why} ({shown}{', …' if len(paths) > 3 else ''})")
        if kinds:
            total = sum(map(len, self._paths.values()))
            log.warning("%s: %d entries are not used: %s", folder, total, "; ".join(kinds))


class Walk:
    """Finds the image files of each split and class, every file once.

    What lies in a class's own folder comes before what is linked into it, so that a link from one class to another
    does not change a label, and the first split before the next. A class of the first without an image ends it at once.

    Parameters
    ----------
    tops : list of (Path, dict)
        Of each split its folder, and of each class a folder or a list of files.
    skipped : Skipped
        Gets what is not used.
    """

    def __init__(self, tops: list[tuple[Path, dict[str, Path | list[Path]]]], skipped: Skipped) -> None:
        self._tops, self._skipped = tops, skipped
        self._found = [defaultdict(list) for _ in tops]
        self._seen = set()  # device and inode of files and folders
        self._todo, self._linked = [], deque()  # a stack, and what waits until it is empty
        self._hopeful = set()  # classes for which a link waits that may lead to images
        self._in_vain = Counter()  # since the last image

    def images(self) -> list[dict[str, list[str]]]:
        """Go; the paths of each split and class."""
        self._put([
            (which, name, str(path))
            for which, (_, classes) in enumerate(self._tops)
            for name, places in classes.items()
            for path in ([places] if isinstance(places, Path) else places)
        ])  # fmt: skip
        last = None
        while self._todo or self._linked:
            which, name, path = self._todo.pop() if self._todo else self._linked.popleft()
            if last not in (None, (which, name)):
                self._leave(*last)
            last = which, name
            self._visit(which, name, path)
        for classes in self._found:
            for files in classes.values():  # the order that torchvision's ImageFolder gives
                files.sort(key=os.path.split)
        return self._found

    def _put(self, entries: list[tuple[int, str, str]]) -> None:
        """Have entries visited: split, class and path."""
        links = list(map(os.path.islink, (path for _, _, path in entries)))
        self._todo.extend(reversed([entry for entry, link in zip(entries, links, strict=True) if not link]))
        for which, name, path in itertools.compress(entries, links):
            self._linked.append((which, name, path))
            if is_image(path) or os.path.isdir(path):
                self._hopeful.add((which, name))
            if is_image(path):
                self._in_vain.clear()

    def _leave(self, which: int, name: str) -> None:
        """Go from a class to another: to go on is no use if a training class stays without an image."""
        if which == 0 and not self._found[0][name] and (which, name) not in self._hopeful:
            raise no_image(self._tops[0][0] / name)

    def _visit(self, which: int, name: str, path: str) -> None:
        status = _status(path)
        if status is None:
            self._skipped.add(NOWHERE, path)
            return
        key = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            if key in self._seen or _leads_back(path):
                self._skipped.add(LISTED, path)
            else:
                self._seen.add(key)
                self._enter(which, name, path)
        elif not stat.S_ISREG(status.st_mode):
            self._skipped.add("no regular files", path)
        elif not is_image(path):
            self._skipped.add("no images by their names", path)
        elif key in self._seen:
            self._skipped.add("other names of files listed already", path)
        else:
            self._seen.add(key)
            self._in_vain.clear()
            self._found[which][name].append(path)

    def _enter(self, which: int, name: str, folder: str) -> None:
        entries = entries_of(folder)
        self._in_vain.update(folders=1, entries=len(entries))
        folders, files = self._in_vain["folders"], self._in_vain["entries"]
        if (folders > MOST_FOLDERS_IN_VAIN or files > MOST_ENTRIES_IN_VAIN) and not any(map(is_image, entries)):
            raise BarError(
                f"{self._tops[which][0]} is no folder of images: there was none in {folders:,} folders "
                f"with {files:,} entries, up to {folder}"
            )
        self._skipped.add("hidden", *(os.path.join(folder, entry) for entry in entries if _is_hidden(entry)))
        self._put([(which, name, os.path.join(folder, entry)) for entry in entries if not _is_hidden(entry)])


def no_image(folder: Path) -> BarError:
    """The refusal of a class without one."""
    return BarError(
        f"{folder} holds no image of its own (looked for {', '.join(IMG_EXTENSIONS)}, "
        "each file once, whatever links to it)"
    )


def subfolders(folder: Path, skipped: Skipped) -> list[str]:
    """The names of the folders in a folder, sorted."""
    names = []
    for entry in _scanned(folder):
        if entry.is_symlink() and _status(entry.path) is None:
            skipped.add(NOWHERE, entry.path)
        elif entry.is_symlink() and entry.is_dir() and _leads_back(entry.path):
            skipped.add(LISTED, entry.path)
        elif entry.is_dir() and not _is_hidden(entry.name):
            names.append(entry.name)
    return names


def loose(folder: Path) -> list[Path]:
    """The images that lie in a folder itself."""
    return [folder / entry.name for entry in _scanned(folder) if is_image(entry.name) and not entry.is_dir()]


def entries_of(folder: Path | str) -> list[str]:
    """The names in a folder, sorted; none if it is not there."""
    with _reading(folder):
        return sorted(os.listdir(folder))
    return []


def _scanned(folder: Path) -> list[os.DirEntry]:
    """The same with what the folder knows of each, so that a million files are not asked one by one."""
    with _reading(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


@contextlib.contextmanager
def _reading(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BarError(f"{folder} may not be read: {error.strerror}") from error


def _status(path: str) -> os.stat_result | None:
    """What is known of an entry; None if there is nothing, as at the end of a link to itself."""
    try:
        return os.stat(path)
    except PermissionError as error:
        raise BarError(f"{path} may not be read: {error.strerror}") from error
    except OSError:
        return None


def _leads_back(path: str) -> bool:
    """Whether a link leads to a folder that it lies in itself."""
    target, home = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return home == target or home.startswith(target.rstrip(os.sep) + os.sep)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # macOS's archives hold a hidden file beside each image there


def is_image(name: str) -> bool:
    """Whether a file is called an image, and not hidden."""
    return name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(os.path.basename(name))
