"""Folders of images as people have them: odd pixels, odd files, odd layouts, and images that change between runs."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import bar
from bar import data, runs
from bar.data import decoding, leftovers, limits, splits, walking
from bar.errors import BarError


def paint(folder, classes="ab", count=10, start=0, suffix=".png", size=(8, 8)):
    """Images of one colour each: class k is k * 50 in red, green tells them apart."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            Image.new("RGB", size, (50 * k, i, 7)).save(folder / name / f"{i:03}{suffix}")
    return folder


def load(folder, **options):
    return data.load(str(folder), root=folder.parent, **options)


def sizes(images):
    return [len(split) for split in (images.train, images.validation, images.test)]


def greens(images):
    """The colours by which images can be told apart, of each split."""
    return [set(split.images[:, 1, 0, 0].tolist()) for split in (images.train, images.validation, images.test)]


def pixels(path):
    return np.asarray(data.decode(str(path)))


# ---- E1 to E3: what pixels mean


GREYS = np.array([[0, 256, 1000], [32767, 32768, 65535]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_e1_greys_of_16_bits_are_scaled(tmp_path, suffix):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(GREYS).save(path)
    expected = np.rint(GREYS / 65535 * 255)
    assert all(np.array_equal(channel, expected) for channel in pixels(path).transpose(2, 0, 1))


def test_e1_a_folder_of_16_bits_is_as_one_of_8(tmp_path):
    draws = np.random.default_rng(0)
    for name in "ab":
        for bits in (8, 16):
            (tmp_path / str(bits) / name).mkdir(parents=True)
        for i in range(10):
            grey = draws.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "8" / name / f"{i}.png")
            Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16" / name / f"{i}.png")
    assert torch.equal(load(tmp_path / "8").train.images, load(tmp_path / "16").train.images)


@pytest.mark.parametrize(("kind", "message"), [(np.int32, "integers of 32 bits"), (np.float32, "floats")])
def test_e1_numbers_without_a_largest_value_are_refused_by_name(tmp_path, kind, message):
    paint(tmp_path / "set")
    Image.fromarray(np.full((8, 8), 7, kind)).save(tmp_path / "set/b/odd.tif")
    with pytest.raises(BarError, match=rf"b.odd\.tif holds {message}"):
        load(tmp_path / "set", size=8)


def test_e1_other_modes(tmp_path):
    """Palette, one bit, four inks; each as what people see."""
    columns = np.array([[0, 0, 255, 255]], np.uint8).repeat(4, 0)
    black_and_white = Image.fromarray(columns)
    black_and_white.convert("1").save(tmp_path / "one.png")
    black_and_white.convert("P").save(tmp_path / "palette.png")
    black_and_white.convert("RGB").convert("CMYK").save(tmp_path / "inks.tif")
    for path in tmp_path.iterdir():
        assert np.array_equal(pixels(path), columns[..., None].repeat(3, 2)), path
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg")
    assert np.abs(pixels(tmp_path / "cyan.jpg").astype(int) - (0, 255, 255)).max() < 8


def exif(orientation):
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_e2_images_are_turned_as_their_exif_says(tmp_path, suffix, orientation):
    """Stored lying in any way, an image with one bright quarter is the same."""
    upright = np.full((16, 32), 20, np.uint8)
    upright[:8, :16] = 220
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    path = tmp_path / f"image.{suffix}"
    if suffix == "tif":
        stored.save(path, tiffinfo={0x112: orientation}, compression="tiff_lzw")
    else:
        stored.save(path, exif=exif(orientation))
    assert np.abs(pixels(path)[..., 0].astype(int) - upright).max() < 12


def test_e2_16_bits_are_turned_too_and_what_pillow_scrambles_is_refused(tmp_path):
    Image.fromarray(GREYS).save(tmp_path / "grey.png", exif=exif(6))
    assert np.array_equal(pixels(tmp_path / "grey.png")[..., 0], np.rot90(np.rint(GREYS / 257), -1))
    Image.fromarray(GREYS).save(tmp_path / "grey.tif", tiffinfo={0x112: 6})
    with pytest.raises(BarError, match=r"grey\.tif is an uncompressed TIFF lying on its side"):
        pixels(tmp_path / "grey.tif")


def test_e3_transparent_pixels_show_white(tmp_path):
    """Whatever colour lies under them; half transparent ones half of it."""
    Image.new("RGBA", (4, 4), (9, 200, 9, 0)).save(tmp_path / "rgba.png")
    Image.new("RGBA", (4, 4), (9, 200, 9, 0)).save(tmp_path / "rgba.webp", lossless=True)
    Image.new("LA", (4, 4), (9, 0)).save(tmp_path / "la.png")
    Image.new("PA", (4, 4)).save(tmp_path / "pa.tif")
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette(range(30))
    palette.save(tmp_path / "palette.png", transparency=3)
    palette.save(tmp_path / "palette.gif", transparency=3)
    Image.new("L", (4, 4), 3).save(tmp_path / "key.png", transparency=3)
    Image.new("RGB", (4, 4), (3, 4, 5)).save(tmp_path / "keys.png", transparency=(3, 4, 5))
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "key16.png", transparency=3000)
    for path in tmp_path.iterdir():
        assert (pixels(path) == 255).all(), path
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert (pixels(tmp_path / "half.png") == 127).all()


@pytest.mark.parametrize("content", [b"", b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_e3_what_is_no_image_is_refused_by_name(tmp_path, content):
    paint(tmp_path / "set")
    (tmp_path / "set/b/odd.png").write_bytes(content)
    with pytest.raises(BarError, match=r"b.odd\.png cannot be read as an image"):
        load(tmp_path / "set", size=8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "pgm"])
def test_e3_cut_short_images_are_refused_by_name(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    for part in (0.05, 0.5, 0.8):
        (tmp_path / f"cut.{suffix}").write_bytes(content[: int(part * len(content))])
        with pytest.raises(BarError, match=rf"cut\.{suffix} cannot be read as an image"):
            pixels(tmp_path / f"cut.{suffix}")


# ---- E4 to E6: which files there are


def test_e4_links_that_lead_nowhere_are_counted_and_named(tmp_path, caplog):
    paint(tmp_path / "set")
    (tmp_path / "set/a/x.png").symlink_to("nowhere.png")
    (tmp_path / "set/b/folder").symlink_to("nowhere")
    (tmp_path / "set/b/y.png").symlink_to("z.png")
    (tmp_path / "set/b/z.png").symlink_to("y.png")
    (tmp_path / "set/gone").symlink_to("/nowhere/at/all")
    assert sum(sizes(load(tmp_path / "set"))) == 20
    (line,) = (record.getMessage() for record in caplog.records)
    assert "5 entries are not used: 5 missing, or links that lead nowhere (gone, a/x.png, b/folder, …)" in line


def test_e4_what_is_no_image_or_hidden_is_counted_and_named(tmp_path, caplog):
    paint(tmp_path / "set")
    for name in (
        "a/notes.txt",
        "a/Thumbs.db",
        "a/.DS_Store",
        "b/._001.png",
        "b/.hidden/x.png",
        "__MACOSX/a/._x.png",
        "loose.png",
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"nothing")
    images = load(tmp_path / "set")
    assert (images.classes, sum(sizes(images))) == (["a", "b"], 20)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "2 no images by their names (a/Thumbs.db, a/notes.txt)" in line
    assert "1 in no class's folder (loose.png)" in line
    assert "3 hidden (a/.DS_Store, b/._001.png, b/.hidden)" in line
    caplog.clear()
    load(paint(tmp_path / "tidy"))
    assert not caplog.records


AS_NOBODY = """
import os, sys
from bar import data
from bar.errors import BarError

if os.getuid() == 0:  # who may read everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    print(len(data.load(sys.argv[1], size=8, root=sys.argv[2]).train))
except BarError as error:
    print(error)
"""


@pytest.fixture
def shared():
    """A folder that another user may enter, which pytest's own are not; with class folders and splits in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o755)
        paint(place / "set")
        paint(place / "parts/train")
        paint(place / "parts/test", count=3, start=90)
        (place / "root").mkdir()
        (place / "root").chmod(0o777)
        yield place
        for path in place.rglob("*"):
            path.chmod(0o755)  # so that it can be removed


def load_as_nobody(folder, root):
    command = [sys.executable, "-c", AS_NOBODY, str(folder), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("closed", "mode", "folder", "said"),
    [
        ("set/b/003.png", 0, "set", "set/b/003.png may not be read: Permission denied"),
        ("set/b", 0, "set", "set/b may not be read: Permission denied"),
        ("set/b", 0o444, "set", "set/b/000.png may not be read: Permission denied"),
        ("set", 0, "set", "set may not be read: Permission denied"),
        ("parts/train", 0, "parts", "parts/train may not be read: Permission denied"),
        ("parts/test", 0o444, "parts", "parts/test/"),
        ("parts", 0, "parts/train", "parts/train may not be read: Permission denied"),
        ("root", 0o555, "set", "root/.decoded: [Errno 13] Permission denied"),
    ],
)
def test_e4_what_may_not_be_read_or_written_is_named(shared, closed, mode, folder, said):
    (shared / closed).chmod(mode)
    told = load_as_nobody(shared / folder, shared / "root")
    assert f"{shared}/{said}" in told
    assert told.count("\n") == 1


def test_e4_a_class_that_is_a_link_to_where_one_may_not_go_is_named(shared):
    (shared / "set/c").symlink_to(shared / "parts/train/a")
    (shared / "parts").chmod(0)
    assert f"{shared}/set/c may not be read: Permission denied" in load_as_nobody(shared / "set", shared / "root")


@pytest.mark.parametrize("suffix", [".npy", ".json", ""])
def test_e10_a_cache_that_may_not_be_read_is_named(shared, suffix):
    """One that may be read, and not be written, is used."""
    load(shared / "set", size=8)
    for path in (shared / ".decoded").iterdir():
        path.chmod(0o644)
    (shared / ".decoded").chmod(0o555)
    assert load_as_nobody(shared / "set", shared) == "14\n"
    (path,) = (shared / ".decoded").glob(f"*{suffix}") if suffix else [shared / ".decoded"]
    path.chmod(0)
    told = load_as_nobody(shared / "set", shared)
    assert told.startswith(f"the decoded images of {shared}/set cannot be kept in {shared}/.decoded: [Errno 13]")
    assert str(path) in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("target", [".", "..", "../..", "../../../set", "../b", "../../test/a"])
@pytest.mark.parametrize("links", [1, 2])
def test_e5_links_back_count_nothing_twice(tmp_path, target, links, caplog):
    """A link inside a class to itself, to the folder around it, to another class or to another split."""
    paint(tmp_path / "set/train")
    paint(tmp_path / "set/test", count=3, start=90)
    for i in range(links):
        (tmp_path / f"set/train/a/more{i}").symlink_to(target)
    images = load(tmp_path / "set")
    assert sizes(images) == [18, 2, 6]
    for split in (images.train, images.validation, images.test):
        assert torch.equal(split.images[:, 0, 0, 0], (split.labels * 50).byte())
    assert len([r for r in caplog.records if "links to folders listed already" in r.getMessage()]) == 1


def test_e5_a_folder_beside_the_classes_that_is_the_whole_is_no_class(tmp_path):
    paint(tmp_path / "set")
    (tmp_path / "set/all").symlink_to(".")
    images = load(tmp_path / "set")
    assert (images.classes, sum(sizes(images))) == (["a", "b"], 20)


def test_e5_links_to_other_places_are_followed_once(tmp_path):
    """Classes and files that are links, as from a pool; the pool is reached by two names."""
    paint(tmp_path / "pool")
    (tmp_path / "set").mkdir()
    for name in "ab":
        (tmp_path / "set" / name).symlink_to(tmp_path / "pool" / name)
    (tmp_path / "set/c").mkdir()
    (tmp_path / "set/c/again.png").symlink_to(tmp_path / "pool/a/003.png")
    for i in range(5):
        Image.new("RGB", (8, 8), (100, 50 + i, 7)).save(tmp_path / f"{i}.png")
        (tmp_path / f"set/c/{i}.png").symlink_to(tmp_path / f"{i}.png")
    images = load(tmp_path / "set")
    assert sum(sizes(images)) == 25
    assert sum(len(split.labels[split.labels == 2]) for split in (images.train, images.validation, images.test)) == 5


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_e5_no_file_is_in_two_splits(tmp_path, link, caplog):
    paint(tmp_path / "set/train")
    paint(tmp_path / "set/val", count=2, start=50)
    paint(tmp_path / "set/test", count=2, start=90)
    for split in ("val", "test"):
        link(tmp_path / "set/train/a/003.png", tmp_path / f"set/{split}/a/other.png")
    images = load(tmp_path / "set")
    assert sizes(images) == [20, 4, 4]
    assert greens(images) == [set(range(10)), {50, 51}, {90, 91}]
    assert "2 other names of files listed already (val/a/other.png, test/a/other.png)" in caplog.text


def test_e5_a_split_that_is_another_one_is_refused(tmp_path):
    paint(tmp_path / "set/train")
    (tmp_path / "set/test").symlink_to("train")
    with pytest.raises(BarError, match=r"test holds no image that is not also a training image"):
        load(tmp_path / "set")


LOAD = "import sys; from bar import data; print(len(data.load(sys.argv[1], size=8, root=sys.argv[2]).train))"


def test_e6_what_is_no_regular_file_is_never_opened(tmp_path):
    """In a process of its own, which would wait for ever."""
    paint(tmp_path / "set")
    os.mkfifo(tmp_path / "set/a/pipe.png")
    (tmp_path / "set/a/linked.png").symlink_to("pipe.png")
    (tmp_path / "set/b/device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as unix:
        place = os.getcwd()
        os.chdir(tmp_path / "set/b")  # a socket's path must be short
        unix.bind("socket.png")
        os.chdir(place)
        command = [sys.executable, "-c", LOAD, str(tmp_path / "set"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "14\n"), done.stderr
    assert "4 no regular files (a/pipe.png, b/socket.png, a/linked.png, …)" in done.stderr


def test_e6_a_class_without_an_image_ends_the_listing(tmp_path, monkeypatch):
    """In /usr, say, the other classes take minutes. But its images may be links, which come last."""
    paint(tmp_path / "set", classes="bc")
    (tmp_path / "set/a").mkdir()
    (tmp_path / "set/a/notes.txt").write_text("")
    (tmp_path / "set/a/more").symlink_to("notes.txt")
    listed = []
    entries = walking.entries_of
    monkeypatch.setattr(walking, "entries_of", lambda path: [listed.append(Path(path).name), *entries(path)][1:])
    with pytest.raises(BarError, match=r"set.a holds no image of its own"):
        load(tmp_path / "set")
    assert listed == ["a"]
    paint(tmp_path / "elsewhere", classes="d", start=100)
    (tmp_path / "set/a/pool").symlink_to(tmp_path / "elsewhere/d")
    assert load(tmp_path / "set").classes == ["a", "b", "c"]


@pytest.mark.parametrize(("what", "many"), [("FOLDERS", 5), ("ENTRIES", 50)])
def test_e6_looking_in_vain_has_an_end(tmp_path, monkeypatch, what, many):
    monkeypatch.setattr(walking, f"MOST_{what}_WITHOUT_IMAGE", many)
    paint(tmp_path / "set", count=2)
    for i in range(20):
        (tmp_path / f"set/b/{i:03}").mkdir()
        for k in range(5):
            (tmp_path / f"set/b/{i:03}/{k}.txt").write_text("")
    with pytest.raises(BarError, match=r"set is no folder of images: there was none in \d+ folders with \d+ entries"):
        load(tmp_path / "set")
    for i in range(0, 20, 4):
        Image.new("RGB", (8, 8), (50, 100 + i, 7)).save(tmp_path / f"set/b/{i:03}/9.png")
    assert sum(sizes(load(tmp_path / "set"))) == 9


# ---- E7, E8: how they are split


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("parts", [[""], ["train", "test"]])
def test_e7_tiny_folders_load_or_are_refused(tmp_path, count, parts):
    for part in parts:
        paint(tmp_path / "set" / part, count=count, start=0 if part != "test" else 50)
    if count == 1:
        with pytest.raises(BarError, match="set has too few images to hold some out: of 2, none of class"):
            load(tmp_path / "set")
        return
    images = load(tmp_path / "set")
    assert min(sizes(images)) > 0
    assert set(images.train.labels.tolist()) == {0, 1}
    assert np.isfinite([images.mean, images.std]).all()


def test_e7_two_images_are_one_line_on_the_command_line(bar_command, tmp_path):
    paint(tmp_path / "set", count=1)
    code, out, err = bar_command("run", "--dataset", str(tmp_path / "set"), "--data", str(tmp_path), "--epochs", "1",
                                 "0", "0")  # fmt: skip
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "set has too few images to hold some out: of 2, none of class" in err


def test_e7_images_of_one_colour_give_numbers(tmp_path):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (0, 255, 7)).save(tmp_path / f"set/{name}/{i}.png")
    for images in (load(tmp_path / "set"), load(tmp_path / "set", limit=4)):
        for batch, _ in data.batches(images.train, 4, mean=images.mean, std=images.std):
            assert batch.isfinite().all()


@pytest.mark.parametrize(
    "names", ["train valid test", "training validation testing", "Train Val Test", "TRAIN VALID TEST"]
)
def test_e8_splits_in_their_usual_spellings(tmp_path, names):
    for i, name in enumerate(names.split()):
        paint(tmp_path / "set" / name, count=10 - i, start=50 * i)
    images = load(tmp_path / "set")
    assert images.classes == ["a", "b"]
    assert greens(images) == [set(range(10)), set(range(50, 59)), set(range(100, 108))]


def test_e8_without_a_validation_folder_some_are_held_out(tmp_path):
    paint(tmp_path / "set/Train")
    paint(tmp_path / "set/Test", count=3, start=90)
    assert sizes(load(tmp_path / "set")) == [18, 2, 6]


def test_e8_layouts_that_could_mean_two_things_are_refused(tmp_path):
    paint(tmp_path / "two/train")
    for name in ("val", "Validation"):
        paint(tmp_path / "two" / name, count=2)
    with pytest.raises(BarError, match=r"Validation/ and val/, both for validation"):
        load(tmp_path / "two")
    paint(tmp_path / "loose", ["Train", "Test"])
    with pytest.raises(BarError, match=r"holds Train/, Test/ but no folder train/ with a folder for each class"):
        load(tmp_path / "loose")


def test_e8_a_class_that_a_split_lacks_is_said(tmp_path, caplog):
    paint(tmp_path / "set/train", "abc")
    paint(tmp_path / "set/valid", "ab", count=3)
    paint(tmp_path / "set/test", "abc", count=3)
    shutil.rmtree(tmp_path / "set/test/a")
    (tmp_path / "set/test/a").mkdir()
    images = load(tmp_path / "set")
    assert images.validation.labels.bincount(minlength=3).tolist() == [3, 3, 0]
    assert images.test.labels.bincount(minlength=3).tolist() == [0, 3, 3]
    assert "set: no validation image is of class c" in caplog.text
    assert "set: no test image is of class a" in caplog.text
    shutil.rmtree(tmp_path / "set/train/b")
    with pytest.raises(BarError, match=r"do not hold the same classes: only one of them has b, c"):
        load(tmp_path / "set")


# ---- E9: a record knows its data


TINY = {"model": "wrn-10-1", "pruning_factor": 2, "size": 8, "epochs": (1, 0, 0)}


def test_e9_a_fingerprint_stands_for_images_labels_splits_and_classes(tmp_path):
    paint(tmp_path / "set/train")
    paint(tmp_path / "set/test", count=3, start=90)
    first = load(tmp_path / "set").fingerprint
    assert len(first) == 64
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == first
    seen = {first, load(tmp_path / "set", size=4).fingerprint, load(tmp_path / "set", limit=4).fingerprint}
    changes = [
        lambda folder: Image.new("RGB", (8, 8), (1, 1, 1)).save(folder / "train/a/003.png"),  # a pixel's value
        lambda folder: (folder / "train/a/003.png").rename(folder / "train/b/x.png"),  # a label
        lambda folder: (folder / "train/a/003.png").rename(folder / "test/a/x.png"),  # a split
        lambda folder: (folder / "test/b/090.png").unlink(),
        lambda folder: [(folder / part / "b").rename(folder / part / "c") for part in ("train", "test")],
        lambda folder: paint(folder / "train", count=1, start=10),
    ]
    for i, change in enumerate(changes):
        shutil.copytree(tmp_path / "set", tmp_path / f"{i}")
        change(tmp_path / f"{i}")
        seen.add(load(tmp_path / f"{i}").fingerprint)
    assert len(seen) == 3 + len(changes)


def test_e9_every_data_set_has_one():
    digits = data.load("digits")
    assert digits.fingerprint == data.load("digits").fingerprint
    assert len({digits.fingerprint, data.load("digits", size=8).fingerprint, data.load("digits", limit=99).fingerprint,
                data.load("digits", limit=98).fingerprint}) == 4  # fmt: skip
    assert data.load("digits", limit=10**6).fingerprint == digits.fingerprint


def test_e9_a_file_that_looks_unchanged_is_noticed(tmp_path):
    """As many bytes and the same time of modification, but other pixels."""
    paint(tmp_path / "set", suffix=".bmp")
    first = load(tmp_path / "set")
    path = tmp_path / "set/a/000.bmp"
    before = path.stat()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load(tmp_path / "set").fingerprint != first.fingerprint


def trained(config, folder, root):
    """A run's record, and which methods were trained for it."""
    methods = set()
    record = bar.run(config, folder, root=root, device="cpu", report=lambda config, record: methods.add(config.method))
    return record, methods


def test_e9_images_added_between_two_runs_make_another_run(tmp_path, monkeypatch):
    """The same command: a folder and a teacher of its own; with a folder given, a clear refusal."""
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "set", count=20)
    config = bar.RunConfig(dataset=str(tmp_path / "set"), **TINY)
    first, methods = trained(config, None, tmp_path)
    assert methods == {"bar", "unpruned"}
    again, methods = trained(config, None, tmp_path)
    assert (again, methods) == (first, set())
    given, _ = trained(config, "given/run", tmp_path)
    assert given["fingerprint"] == first["fingerprint"] == load(tmp_path / "set", size=8).fingerprint

    paint(tmp_path / "set", count=5, start=20)
    second, methods = trained(config, None, tmp_path)
    assert methods == {"bar", "unpruned"}
    assert second["training_images"] > first["training_images"]
    assert second["fingerprint"] == load(tmp_path / "set", size=8).fingerprint != first["fingerprint"]
    assert trained(config, None, tmp_path) == (second, set())
    held = {p.parent.name: json.loads(p.read_text())["fingerprint"] for p in Path("runs").glob("*/config.json")}
    assert len(held) == 4
    assert held[config.name] == held[config.unpruned.name] == first["fingerprint"]
    assert runs.read(runs.place(Path("runs") / config.name, config, second["fingerprint"])) == second
    with pytest.raises(BarError, match=r"given.run already holds this run on other images\. Choose another folder"):
        bar.run(config, "given/run", root=tmp_path, device="cpu")

    paint(tmp_path / "set", "abc", count=5, start=30)
    assert trained(config, None, tmp_path)[1] == {"bar", "unpruned"}


def test_e9_an_interrupted_run_does_not_go_on_with_other_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "set")
    config = bar.RunConfig(dataset=str(tmp_path / "set"), **(TINY | {"epochs": (2, 0, 0)}))

    def interrupt(config, record):
        if config.method == "bar":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bar.run(config, root=tmp_path, device="cpu", report=interrupt)
    paint(tmp_path / "set", count=3, start=20)
    seen = []
    bar.run(config, root=tmp_path, device="cpu", report=lambda config, record: seen.append(config.method))
    assert (seen.count("unpruned"), seen.count("bar")) == (2, 3)  # with the cut


def test_e9_trials_of_other_images_are_not_used(tmp_path):
    paint(tmp_path / "set", count=20)
    config = bar.RunConfig(dataset=str(tmp_path / "set"), method="l0", **TINY)
    first = bar.run(config, tmp_path / "one", root=tmp_path, device="cpu")
    paint(tmp_path / "set", count=5, start=20)
    second = bar.run(config, tmp_path / "two", root=tmp_path, device="cpu")
    assert first["search"]["trials_made"] > 0
    assert second["search"]["trials_made"] > 0


def test_e9_a_record_without_a_fingerprint_is_read_but_not_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = bar.RunConfig(limit=64, **TINY)
    new = bar.run(config, device="cpu")
    for folder in Path("runs").iterdir():  # as they were before
        for name in (runs.CONFIG, runs.RESULT):
            held = json.loads((folder / name).read_text())
            del held["fingerprint"]
            (folder / name).write_text(json.dumps(held))
    old = Path("runs") / config.name
    assert runs.read(old)["weights_sha256"] == new["weights_sha256"]
    assert len(runs.records("runs")) == 2
    again, methods = trained(config, None, None)
    assert methods == {"bar", "unpruned"}
    assert again["weights_sha256"] == new["weights_sha256"]
    assert "fingerprint" not in runs.read(old)
    old.rename("given")
    with pytest.raises(BarError, match=r"given already holds this run from before records knew their images"):
        bar.run(config, "given", device="cpu")


def test_e9_the_command_line_says_where_the_records_are_and_events_go_there(bar_command, tmp_path, monkeypatch):
    paint(tmp_path / "set")
    command = ["run", "--dataset", str(tmp_path / "set"), "--data", str(tmp_path), "--size", "8", "--epochs", "1", "0",
               "0", "--tensorboard"]  # fmt: skip
    shown = []
    writer = types.SimpleNamespace(add_scalar=lambda *_: None, flush=lambda: None)
    events = []
    module = types.SimpleNamespace(SummaryWriter=lambda folder: events.append(folder) or writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    for start in (20, 30):
        paint(tmp_path / "set", count=3, start=start)
        code, out, err = bar_command(*command)
        assert code == 0, err
        shown.append(tmp_path / out.splitlines()[-1].removeprefix("records and network: "))
        assert runs.read(shown[-1])["training_images"] == len(load(tmp_path / "set").train)
    assert shown[0] != shown[1]
    assert [tmp_path / folder for folder in events] == [
        folder / "tensorboard" / method for folder in shown for method in ("unpruned", "bar")
    ]


# ---- E10: what is kept of a folder


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


def nothing(path):
    path.write_bytes(b"")


def other(path):
    path.write_bytes(b"PK\x03\x04 or something else" if path.suffix == ".npy" else b"[5]")


@pytest.mark.parametrize("damage", [halve, garble, lengthen, nothing, other, os.unlink])
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_e10_a_damaged_cache_is_decoded_again(tmp_path, caplog, damage, suffix):
    paint(tmp_path / "set")
    first = load(tmp_path / "set")
    images = [getattr(first, split).images.clone() for split in ("train", "validation", "test")]
    (path,) = (tmp_path / ".decoded").glob(f"*{suffix}")
    copy = path.with_name("whole")  # what is mapped must stay as it is
    shutil.copyfile(path, copy)
    damage(copy)
    path.unlink()
    if copy.exists():
        copy.rename(path)
    again = load(tmp_path / "set")
    for before, split in zip(images, ("train", "validation", "test"), strict=True):
        assert torch.equal(before, getattr(again, split).images)
    assert (again.mean, again.std, again.fingerprint) == (first.mean, first.std, first.fingerprint)
    assert caplog.text.count("is damaged and made again") == (damage is not os.unlink)
    caplog.clear()
    load(tmp_path / "set")
    assert not caplog.records
    assert len(list((tmp_path / ".decoded").iterdir())) == 2


def test_e10_two_at_once(tmp_path):
    paint(tmp_path / "set", count=40)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "set"), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120) for process in both] == [("56\n", "")] * 2
    found, threads = [], []
    shutil.rmtree(tmp_path / ".decoded")
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(load(tmp_path / "set").fingerprint)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(list((tmp_path / ".decoded").iterdir())) == 2


def test_e10_what_a_killed_decoder_left_is_removed_and_nothing_else(tmp_path):
    paint(tmp_path / "set")
    place = tmp_path / ".decoded"
    place.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = leftovers.unfinished(place / "set-8-0123456789abcdef.npy").name.split(".")
    living = [".".join([*here[:-2], str(process), here[-1]]) for process in (os.getpid(), os.getppid())]
    elsewhere = ".".join([*here[:-3], "another-host", str(dead.pid), here[-1]])
    old = ".set-8-0123456789abcdef.npy.1.2"  # as the version before this one called it
    mine = [".set.npy.bak", "notes.npy.1.2", ".nfs0001"]
    for name in [".".join([*here[:-2], str(dead.pid), here[-1]]), *living, elsewhere, old, *mine]:
        (place / name).write_text("x")
    for name in [old, *mine]:
        os.utime(place / name, (0, 0))
    load(tmp_path / "set")
    assert {path.name for path in place.iterdir() if path.suffix not in (".npy", ".json")} == {
        *living, elsewhere, *mine
    }  # fmt: skip
    os.utime(place / elsewhere, (0, 0))
    load(tmp_path / "set")
    assert not (place / elsewhere).exists()


def test_e10_really_killed_while_it_decodes(tmp_path):
    paint(tmp_path / "set", count=40)
    kill = "import os; from bar.data import decoding; decoding.scaled = lambda *_: os.kill(os.getpid(), 9); "
    subprocess.run([sys.executable, "-c", kill + LOAD, str(tmp_path / "set"), str(tmp_path)], check=False)
    (left,) = (tmp_path / ".decoded").iterdir()
    assert left.name.startswith(".set-8-")
    load(tmp_path / "set")
    assert sorted(path.suffix for path in (tmp_path / ".decoded").iterdir()) == [".json", ".npy"]
    assert not left.exists()


# ---- other odd files


MAKE = """
import struct, sys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

def image(mode, megapixels):
    height = int((megapixels * 8e5) ** 0.5)
    return Image.new(mode, (megapixels * 10**6 // height, height), 99)

turned = Image.Exif()
turned[0x112] = 6
name, folder = sys.argv[1:]
save = lambda image, suffix, **more: image.save(f"{folder}/large.{suffix}", **more)
if name == "photograph": save(image("RGB", 50), "jpg", exif=turned)
if name == "transparent": save(image("RGBA", 60), "png", compress_level=1)
if name == "inks": save(image("CMYK", 60), "jpg")
if name == "key": save(image("P", 150), "png", transparency=99, compress_level=1)
if name == "16 bits": save(image("I;16", 60), "png", compress_level=1)
if name == "large": save(image("RGB", 75), "jpg")
if name == "progressive": save(image("RGB", 50), "jpg", progressive=True)
if name == "webp": save(image("RGB", 40), "webp", method=0)
if name == "strip": save(image("RGB", 40), "tif", compression="tiff_lzw", strip_size=2**30)
if name == "turned tiff": save(image("RGB", 40), "tif", compression="tiff_lzw", tiffinfo={0x112: 6})
if name == "huge": save(image("1", 190), "png")
if name == "numbers":
    with open(f"{folder}/large.ppm", "wb") as file:
        file.write(b"P6 3000 3000 100 " + bytes(27_000_000))
if name == "several":
    for i in range(6): image("RGB", 40).save(f"{folder}/{i}.jpg", exif=turned)
"""
MEASURE = """
import sys
from bar import data
from bar.errors import BarError

def kept(what):
    return int(open("/proc/self/status").read().split(what)[1].split()[0]) / 1000

before = kept("VmRSS:")
try:
    print(len(data.load(sys.argv[1], size=8, root=sys.argv[2]).train))
except BarError as error:
    print(error)
print(kept("VmHWM:") - before)  # this process's own peak: getrusage has its parent's, too
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's own peak is read from /proc")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photograph", "15"),
        ("transparent", "15"),
        ("inks", "15"),
        ("key", "15"),
        ("16 bits", "15"),
        ("several", "18"),
        ("large", "large.jpg has 9683x7745 pixels, for which decoding as it is stored takes 3"),
        ("progressive", "large.jpg has 7906x6324 pixels, for which decoding"),
        ("webp", "large.webp has 7072x5656 pixels, for which decoding"),
        ("strip", "large.tif has 7072x5656 pixels, for which decoding"),
        ("turned tiff", "large.tif has 5656x7072 pixels, for which decoding"),
        ("huge", "large.png has more than 178,956,970 pixels: scale it down"),
        ("numbers", "large.ppm is too large to decode number by number"),
    ],
)
def test_large_images_are_decoded_in_300_mb_or_refused(tmp_path, name, expected):
    paint(tmp_path / "set")
    subprocess.run([sys.executable, "-c", MAKE, name, str(tmp_path / "set/b")], check=True)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "set"), str(tmp_path)]
    result, measured = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    assert expected in result
    assert float(measured) < 300


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    """Each goes over all pixels; a scan of nothing takes a few bytes."""
    Image.new("RGB", (4000, 4000)).save(tmp_path / "x.jpg", progressive=True)
    content = (tmp_path / "x.jpg").read_bytes()
    place = content.rindex(b"\xff\xda")
    (tmp_path / "x.jpg").write_bytes(content[:place] + content[place:-2] * 1000 + content[-2:])
    with pytest.raises(BarError, match=r"x\.jpg is a JPEG of 1009 scans, which would take too long"):
        decoding.scaled(str(tmp_path / "x.jpg"), 8, False)


def test_a_png_of_much_that_is_no_pixel_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("ab") as file:
        file.write(struct.pack(">I", 40_000_000) + b"prVt")
        file.truncate(file.tell() + 40_000_000)
    with pytest.raises(BarError, match=r"x\.png holds 40 MB beside its pixels"):
        pixels(tmp_path / "x.png")


def test_a_file_that_is_too_large_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.bmp")
    os.truncate(tmp_path / "x.bmp", 10**9)
    with pytest.raises(BarError, match=r"x\.bmp is a file of 1000 MB"):
        pixels(tmp_path / "x.bmp")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16"])
def test_strips_give_what_the_whole_image_gives(tmp_path, monkeypatch, mode, orientation):
    draws = np.random.default_rng(orientation)
    grey = draws.integers(0, 256, (37, 90), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 250)
    elif mode in ("L", "P"):
        picture = Image.fromarray(grey).convert(mode)
    else:
        bands = Image.getmodebands(mode)
        picture = Image.frombytes(mode, (90, 37), draws.integers(0, 256, 90 * 37 * bands, dtype=np.uint8).tobytes())
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture.save(path, exif=exif(orientation))
    whole = data.decode(str(path))
    assert whole.size == ((90, 37) if orientation < 5 else (37, 90))
    monkeypatch.setattr(limits, "STRIP", 400)
    assert np.array_equal(np.asarray(whole), pixels(path))
    for size in (1, 7, 37, 64):
        fitted = np.asarray(ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(decoding.scaled(str(path), size, False), fitted)
        with monkeypatch.context() as patch:  # no room for the whole in RGB
            patch.setattr(limits, "memory_to_decode", lambda *_: (0, False))
            assert np.abs(decoding.scaled(str(path), size, False) - fitted.astype(int)).max() <= 1


@settings(max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 40))
def test_scaling_is_that_of_pillow(tmp_path_factory, width, height, size):
    path = tmp_path_factory.getbasetemp() / "scaled.png"
    draws = np.random.default_rng(width * height)
    picture = Image.fromarray(draws.integers(0, 256, (height, width, 4), dtype=np.uint8))
    picture.save(path)
    expected = np.asarray(ImageOps.fit(data.decode(str(path)), (size, size), Image.Resampling.BILINEAR))
    for whole in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "memory_to_decode", lambda *_, whole=whole: (0, whole))
            got = decoding.scaled(str(path), size, False).transpose(1, 2, 0)
        assert np.abs(got - expected.astype(int)).max() <= (not whole)


def test_what_threads_decode_at_a_time_fits_into_the_pool():
    pool, held, most = limits.MemoryPool(10), [], []

    def take(amount):
        with pool.reserving(amount):
            held.append(amount)
            most.append(sum(held))
            time.sleep(0.01)
            held.remove(amount)

    threads = [threading.Thread(target=take, args=(amount,)) for amount in (7, 3, 6, 10, 1, 1, 8, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8
    assert max(amount for amount in most if amount != 99) <= 10


def test_an_image_for_which_there_is_no_memory(tmp_path, monkeypatch):
    def none(*_):
        raise MemoryError

    paint(tmp_path / "set")
    monkeypatch.setattr(decoding.ImageOps, "fit", none)
    with pytest.raises(BarError, match=r"000\.png cannot be read as an image \(MemoryError\)"):
        load(tmp_path / "set")


def test_what_pillow_finds_odd_but_can_read_is_not_said(tmp_path, recwarn):
    """Its warnings name a line of its own source, for each image."""
    paint(tmp_path / "set")
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "set/a/x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(20))
    load(tmp_path / "set")
    assert not recwarn


def test_names_that_a_terminal_would_obey_are_escaped(bar_command, tmp_path, caplog):
    paint(tmp_path / "set")
    (tmp_path / "set/a/x\x1b[31m\u202e\n.txt").write_text("")
    (tmp_path / "set/a/y\x1b[31m\u202e.png").write_text("")
    code, _, err = bar_command("run", "--dataset", str(tmp_path / "set"), "--data", str(tmp_path), "--size", "8")
    assert code == 2
    assert err.count("\n") == 1
    assert "a/y\\x1b[31m\\u202e.png cannot be read as an image" in err
    assert "1 no images by their names (a/x\\x1b[31m\\u202e\\n.txt)" in caplog.text


# ---- copies


def test_copies_of_an_image_in_two_splits_are_said(tmp_path, caplog):
    for split, start in (("train", 0), ("val", 50), ("test", 100)):
        paint(tmp_path / "set" / split, start=start)
    load(tmp_path / "set")
    assert not caplog.records
    copies = {
        "test/a/x.png": "train/a/003.png", "test/b/y.png": "train/a/003.png", "val/b/z.png": "train/b/001.png",
        "test/a/v.png": "val/a/050.png", "train/a/twice.png": "train/a/004.png",
    }  # fmt: skip
    for copy, original in copies.items():
        shutil.copyfile(tmp_path / "set" / original, tmp_path / "set" / copy)
    for _ in range(2):  # decoded, and as it is kept
        caplog.clear()
        load(tmp_path / "set")
        (said,) = [record.getMessage() for record in caplog.records]
        assert said == (
            "set: 4 validation or test images are copies, byte by byte, of images in another split, such as "
            "val/b/z.png of train/b/001.png"
        )


def test_copies_of_an_image_in_a_folder_that_is_split_here(tmp_path, caplog):
    paint(tmp_path / "set", count=20)
    for path in list((tmp_path / "set").glob("*/*.png")):
        shutil.copyfile(path, path.with_name(f"copy of {path.name}"))
    load(tmp_path / "set")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "validation or test images are copies" in said


# ---- E11: as they are distributed


def tiny_imagenet(folder):
    """The layout of tiny-imagenet-200, with three classes."""
    classes = ["n01443537", "n01629819", "n02124075"]
    folder.mkdir()
    (folder / "wnids.txt").write_text("\n".join(reversed(classes)) + "\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    for k, name in enumerate(classes):
        place = folder / "train" / name / "images"
        place.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (64, 64), (80 * k, 80 * k, 80 * k)).save(place / f"{name}_{i}.JPEG")
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for split in ("val", "test"):
        (folder / split / "images").mkdir(parents=True)
    for i in range(9):
        k = (2 * i) % 3
        Image.new("RGB", (64, 64), (80 * k, 80 * k, 80 * k)).save(folder / f"val/images/val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{classes[k]}\t0\t32\t44\t62\n")
        Image.new("RGB", (64, 64), (255, 255, 255)).save(folder / f"test/images/test_{i}.JPEG")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    return classes


def test_e11_tiny_imagenet(tmp_path, caplog):
    """Its validation images are for the test; the test images have no labels."""
    classes = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    images = load(tmp_path / "tiny-imagenet-200")
    assert (images.classes, images.input_size, sizes(images)) == (classes, (3, 64, 64), [27, 3, 9])
    for split in (images.train, images.validation, images.test):
        assert ((split.images[:, 0, 9, 9].int() - 80 * split.labels).abs() < 5).all()
    assert images.validation.labels.bincount().tolist() == images.train.labels.bincount().div(9).tolist()
    assert "9 without a label (test/images/test_0.JPEG" in caplog.text


def test_e11_tiny_imagenet_whose_validation_images_were_put_into_classes(tmp_path):
    tiny_imagenet(tmp_path / "set")
    before = load(tmp_path / "set")
    val = tmp_path / "set/val"
    for line in (val / "val_annotations.txt").read_text().splitlines():
        file, name, *_ = line.split("\t")
        (val / name).mkdir(exist_ok=True)
        (val / "images" / file).rename(val / name / file)
    assert load(tmp_path / "set").fingerprint == before.fingerprint
    (val / "images").rmdir()
    assert load(tmp_path / "set").fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.JPEG n01443537\n", r"val_annotations\.txt, line 10, must hold a file's name, a tab and its class"),
        ("../x.JPEG\tn01443537\n", r"val_annotations\.txt, line 10"),
        ("val_9.JPEG\tn99999999\n", r"do not hold the same classes: only one of them has n99999999"),
    ],
)
def test_e11_bad_annotations(tmp_path, line, message):
    tiny_imagenet(tmp_path / "set")
    with (tmp_path / "set/val/val_annotations.txt").open("a") as file:
        file.write(line)
    with pytest.raises(BarError, match=message):
        load(tmp_path / "set")


def test_e11_annotations_and_images_that_miss_each_other_are_said(tmp_path, caplog):
    tiny_imagenet(tmp_path / "set")
    (tmp_path / "set/val/images/val_3.JPEG").rename(tmp_path / "set/val/images/other.JPEG")
    assert len(load(tmp_path / "set").test) == 8
    assert "val/images/other.JPEG" in caplog.text
    assert "1 missing, or links that lead nowhere (val/images/val_3.JPEG)" in caplog.text


def test_e11_mio_tcd(tmp_path, caplog):
    """Its test images have no labels; a fifth of the training images, of each class, is held out instead."""
    folder, classes = tmp_path / "MIO-TCD-Classification", ["articulated_truck", "bus", "non-motorized_vehicle"]
    paint(folder / "train", classes, count=20, suffix=".jpg", size=(12, 9))
    (folder / "test").mkdir()
    for i in range(5):
        Image.new("RGB", (9, 9)).save(folder / f"test/{i:08}.jpg")
    (folder / "gt_train.csv").write_text("00000000,bus\n")
    images = load(folder, size=8)
    assert images.classes == classes
    assert sizes(images) == [42, 6, 12]
    assert images.test.labels.bincount().tolist() == [4, 4, 4]
    assert images.validation.labels.bincount().tolist() == [2, 2, 2]
    assert "5 without a label (test/00000000.jpg" in caplog.text
    again = load(folder, size=8)
    assert torch.equal(again.test.images, images.test.images)


# ---- E12: larger than the device


def test_e12_what_does_not_fit_stays_and_batches_move(tmp_path, monkeypatch, caplog):
    """The meta device stands for a GPU of which so many bytes are free."""
    paint(tmp_path / "set")
    images = load(tmp_path / "set")
    held = 20 * 3 * 8 * 8
    for free, moves in ((None, True), (2 * held, True), (2 * held - 2, False)):
        monkeypatch.setattr(splits, "free_memory", lambda device, free=free: free)
        there = images.to("meta")
        for split in (there.train, there.validation, there.test):
            assert split.images.is_meta == moves
            assert split.device.type == split[:2].device.type == "meta"
            generator = torch.Generator().manual_seed(0)
            options = {"mean": images.mean, "std": images.std}
            for more in ({}, {"generator": generator, "augment": (1, True)}):
                for batch, labels in data.batches(split, 2, **options, **more):
                    assert batch.is_meta
                    assert labels.is_meta
        assert there.fingerprint == images.fingerprint
    assert there.train.images.data_ptr() == images.train.images.data_ptr()
    assert "stay in main memory or on disk" in caplog.text


def test_e12_a_run_does_not_move_what_does_not_fit(tmp_path, monkeypatch):
    """With no memory free, a run gives bit for bit what it gives when everything is moved."""
    paint(tmp_path / "set")
    config = bar.RunConfig(dataset=str(tmp_path / "set"), **TINY)
    moved = bar.run(config, tmp_path / "one/run", root=tmp_path, device="cpu")
    monkeypatch.setattr(splits, "free_memory", lambda device: 0)
    streamed = bar.run(config, tmp_path / "two/run", root=tmp_path, device="cpu")
    assert streamed["weights_sha256"] == moved["weights_sha256"]


def test_e12_only_a_gpu_has_memory_of_its_own(monkeypatch):
    assert splits.free_memory(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert splits.free_memory(torch.device("cuda", 0)) == 7
