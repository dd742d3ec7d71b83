"""The walk through folders that finds image files, each once, and notes what it leaves out; it opens no file."""

import contextlib
import itertools
import logging
import os
import stat
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

from bar.errors import BarError, printable

log = logging.getLogger(__name__)

Files = list[tuple[str, int]]  # path and label

# those of torchvision's ImageFolder
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
BROKEN, LISTED = "missing, or links that lead nowhere", "links to folders listed already"
# The walk gives up after so many without an image: a folder such as /usr or /proc would take minutes.
MOST_FOLDERS_WITHOUT_IMAGE = 2_000
MOST_ENTRIES_WITHOUT_IMAGE = 200_000


class Skipped:
    """The entries of a folder that are not used, by reason."""

    def __init__(self) -> None:
        self._paths: dict[str, dict[str, None]] = defaultdict(dict)  # reason -> an ordered set

    def add(self, why: str, *paths: Path | str) -> None:
        """Note paths under a reason; a path counts once, however often it is noted."""
        self._paths[why].update(dict.fromkeys(map(str, paths)))

    def warn(self, folder: Path) -> None:
        """Log everything that was noted in one warning, if there is anything."""
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

    The files in a class's own folder are visited before those that are linked into it, so that a link from one class
    to another does not change a label, and the first split is visited before the next. The walk ends at once if a class
    of the first split has no image.

    Parameters
    ----------
    tops : list of (Path, dict)
        For each split, its folder, and a folder or a list of files for each class.
    skipped : Skipped
        Collects the entries that are not used.
    """

    def __init__(self, tops: list[tuple[Path, dict[str, Path | list[Path]]]], skipped: Skipped) -> None:
        self._tops, self._skipped = tops, skipped
        self._found = [defaultdict(list) for _ in tops]
        self._seen = set()  # device and inode of files and folders
        self._todo, self._linked = [], deque()  # a stack, and the links to follow once it is empty
        self._may_have_images = set()  # classes with a waiting link that may lead to images
        self._since_image = Counter()  # folders and entries since the last image

    def images(self) -> list[dict[str, list[str]]]:
        """Walk through all folders.

        Returns
        -------
        list of dict of str to list of str
            For each split, the sorted paths of each class.

        Raises
        ------
        BarError
            If a class of the first split has no image, if too many folders or entries hold none, or if something may
            not be read.
        """
        self._queue([
            (which, name, str(path))
            for which, (_, classes) in enumerate(self._tops)
            for name, places in classes.items()
            for path in ([places] if isinstance(places, Path) else places)
        ])  # fmt: skip
        last = None
        while self._todo or self._linked:
            which, name, path = self._todo.pop() if self._todo else self._linked.popleft()
            if last not in (None, (which, name)):
                self._check_left_class(*last)
            last = which, name
            self._visit(which, name, path)
        for classes in self._found:
            for files in classes.values():  # the order that torchvision's ImageFolder gives
                files.sort(key=os.path.split)
        return self._found

    def _queue(self, entries: list[tuple[int, str, str]]) -> None:
        """Queue entries (split, class, path) to be visited; links come after everything else."""
        links = list(map(os.path.islink, (path for _, _, path in entries)))
        self._todo.extend(reversed([entry for entry, link in zip(entries, links, strict=True) if not link]))
        for which, name, path in itertools.compress(entries, links):
            self._linked.append((which, name, path))
            if is_image(path) or os.path.isdir(path):
                self._may_have_images.add((which, name))
            if is_image(path):
                self._since_image.clear()

    def _check_left_class(self, which: int, name: str) -> None:
        """Refuse a training class that stays without an image, when the walk goes on to another class."""
        if which == 0 and not self._found[0][name] and (which, name) not in self._may_have_images:
            raise no_image_error(self._tops[0][0] / name)

    def _visit(self, which: int, name: str, path: str) -> None:
        status = _status(path)
        if status is None:
            self._skipped.add(BROKEN, path)
            return
        key = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            if key in self._seen or _leads_back(path):
                self._skipped.add(LISTED, path)
            else:
                self._seen.add(key)
                self._visit_folder(which, name, path)
        elif not stat.S_ISREG(status.st_mode):
            self._skipped.add("no regular files", path)
        elif not is_image(path):
            self._skipped.add("no images by their names", path)
        elif key in self._seen:
            self._skipped.add("other names of files listed already", path)
        else:
            self._seen.add(key)
            self._since_image.clear()
            self._found[which][name].append(path)

    def _visit_folder(self, which: int, name: str, folder: str) -> None:
        entries = entries_of(folder)
        self._since_image.update(folders=1, entries=len(entries))
        folders, files = self._since_image["folders"], self._since_image["entries"]
        too_many = folders > MOST_FOLDERS_WITHOUT_IMAGE or files > MOST_ENTRIES_WITHOUT_IMAGE
        if too_many and not any(map(is_image, entries)):
            raise BarError(
                f"{self._tops[which][0]} is no folder of images: there was none in {folders:,} folders "
                f"with {files:,} entries, up to {folder}"
            )
        self._skipped.add("hidden", *(os.path.join(folder, entry) for entry in entries if _is_hidden(entry)))
        self._queue([(which, name, os.path.join(folder, entry)) for entry in entries if not _is_hidden(entry)])


def no_image_error(folder: Path) -> BarError:
    """Make the error for a class without an image."""
    return BarError(
        f"{folder} holds no image of its own (looked for {', '.join(IMG_EXTENSIONS)}, "
        "each file once, whatever links to it)"
    )


def subfolders(folder: Path, skipped: Skipped) -> list[str]:
    """Return the names of the visible folders in a folder, sorted; broken and circular links are noted as skipped."""
    names = []
    for entry in _scanned(folder):
        if entry.is_symlink() and _status(entry.path) is None:
            skipped.add(BROKEN, entry.path)
        elif entry.is_symlink() and entry.is_dir() and _leads_back(entry.path):
            skipped.add(LISTED, entry.path)
        elif entry.is_dir() and not _is_hidden(entry.name):
            names.append(entry.name)
    return names


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted."""
    return [folder / entry.name for entry in _scanned(folder) if is_image(entry.name) and not entry.is_dir()]


def entries_of(folder: Path | str) -> list[str]:
    """Return the names in a folder, sorted; none if it does not exist."""
    with _reading(folder):
        return sorted(os.listdir(folder))
    return []


def _scanned(folder: Path) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted, with types known from the scan, so that no call per file is needed."""
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
    """Return the status of an entry; None if it does not exist, as at the end of a link to itself."""
    try:
        return os.stat(path)
    except PermissionError as error:
        raise BarError(f"{path} may not be read: {error.strerror}") from error
    except OSError:
        return None


def _leads_back(path: str) -> bool:
    """Whether a link leads to a folder that contains the link."""
    target, home = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return home == target or home.startswith(target.rstrip(os.sep) + os.sep)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # macOS's archives hold a hidden file beside each image there


def is_image(name: str) -> bool:
    """Whether a file has the extension of an image and is not hidden."""
    return name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(os.path.basename(name))
