"""Images of every kind and in every state of damage; the cache; work ahead."""

import os
import threading
import time
import zlib

import numpy as np
import pytest
from damage import count_read
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radflow.data.corpus import DataConfig, load_corpus
from radflow.data.prefetch import ImageCache, change_studies, prefetch
from radflow.data.studies import Study, load_image

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def study(*images, name="s1"):
    return Study(name, "p", "train", images, "Clear.", "Normal.")


def read(path):
    return np.asarray(load_image(path, study_id="s1"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "1", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image = Image.fromarray(GREY.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(GREY).convert(mode)
    image.save(path)
    pixels = read(path)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    if mode == "CMYK":  # ink: C = M = Y = 255 - grey, K = 0
        assert np.abs(pixels[..., 0].astype(int) - GREY).max() <= 1
    elif mode not in ("1", "I;16"):
        assert (pixels == GREY[..., None]).all()
    # Grey is scaled in one channel, with the pixels that three would give.
    whole = Image.fromarray(pixels)
    whole.thumbnail((3, 3), Image.Resampling.BICUBIC)
    assert np.array_equal(load_image(path, study_id="s1", size=3), whole)


def test_cmyk_jpeg_is_not_turned_over(tmp_path):
    # Pillow writes and reads CMYK JPEG as Adobe does, inverted; a reader unaware of it shows a negative
    path = tmp_path / "x.jpg"
    Image.fromarray(np.full((32, 32), 200, dtype=np.uint8)).convert("RGB").convert("CMYK").save(path, quality=95)
    assert abs(int(read(path)[16, 16, 0]) - 200) < 6


def damaged(path, how):
    Image.fromarray(GREY).resize((200, 200)).save(path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-60], "empty": b"", "no image": b"<html>not found</html>"}[how])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".dcm"])
@pytest.mark.parametrize("how", ["truncated", "empty", "no image"])
def test_damaged_files_are_named_with_their_study(tmp_path, suffix, how):
    path = tmp_path / f"x{suffix}"
    damaged(tmp_path / "x.png" if suffix == ".dcm" else path, how)
    if suffix == ".dcm":
        (tmp_path / "x.png").rename(path)
    with pytest.raises(ValueError, match=rf"study s1: image .*x{suffix} cannot be decoded"):
        load_image(path, study_id="s1")


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def test_a_small_file_that_unfolds_to_400_million_pixels_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.png"
    header = (20000).to_bytes(4) + (20000).to_bytes(4) + bytes([8, 0, 0, 0, 0])
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(20001)) for _ in range(20000)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert path.stat().st_size < 2_000_000
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"study s1: image .*bomb.png cannot be decoded"):
        load_image(path, study_id="s1")
    assert time.perf_counter() - began < 1  # decoding it takes several
    Image.new("1", (12000, 9000)).save(path)  # below what Pillow refuses, above what is sensible
    with pytest.raises(ValueError, match=r"expected at most 100,000,000 pixels, the file claims 12000 x 9000"):
        load_image(path, study_id="s1")


def test_links_in_a_circle_are_an_error_of_the_study(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"study s1: image .*a.png"):
        load_image(tmp_path / "a.png", study_id="s1")
    with pytest.raises(ValueError, match=r"study s1: image .*a.png is not there"):
        ImageCache(tmp_path / "cache", 4).fetch(study(tmp_path / "a.png"), tmp_path / "a.png")


def test_only_files_are_opened(tmp_path):
    # a pipe without a writer never opens, a device never ends
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.dcm").mkdir()
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.dcm", "link.png"):
        with pytest.raises(ValueError, match=rf"study s1: image .*{name} .*expected a file, got a folder, pipe or"):
            load_image(tmp_path / name, study_id="s1")


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_of_several_frames_the_manifest_names_one(tmp_path, name):
    path = tmp_path / name
    frames = [Image.fromarray(np.full((8, 8), level, dtype=np.uint8)) for level in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ValueError, match=r"study s1: .*expected one frame, got 3; .*'#frame=1' is the first"):
        load_image(path, study_id="s1")
    for number, level in enumerate((0, 100, 200), 1):
        assert abs(int(read(tmp_path / f"{name}#frame={number}")[4, 4, 0]) - level) <= 1
    for number in (0, 4):
        with pytest.raises(ValueError, match=f"expected a frame from 1 to 3, got {number}"):
            load_image(tmp_path / f"{name}#frame={number}", study_id="s1")
    cache = ImageCache(tmp_path / "cache", 8)
    copies = {cache.fetch(study(chosen), chosen) for chosen in (tmp_path / f"{name}#frame={n}" for n in (1, 2))}
    assert sorted(int(read(copy)[4, 4, 0]) // 50 for copy in copies) == [0, 2]
    (tmp_path / f"{name}#frame=9").write_bytes((tmp_path / name).read_bytes())  # a file of that very name
    with pytest.raises(ValueError, match="expected one frame, got 3"):
        load_image(tmp_path / f"{name}#frame=9", study_id="s1")


def test_no_damage_escapes_or_hangs(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    images = []
    for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000"):
        Image.fromarray(noise).save(tmp_path / "x", form)
        images.append((tmp_path / "x").read_bytes())
    assert 0 < count_read(images, tmp_path / "x", count=2000) < 2000


def test_cached_images_have_the_pixels_of_a_fresh_scaling_and_are_made_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)
    for name, pixels in (("grey", colours[..., 0]), ("colour", colours)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        fresh = load_image(path, study_id="s1")
        fresh.thumbnail((24, 24), Image.Resampling.BICUBIC)
        cache = ImageCache(tmp_path / "cache", 24)
        copy = cache.fetch(study(path), path)
        assert Image.open(copy).mode == ("L" if name == "grey" else "RGB")
        assert (read(copy) == np.asarray(fresh)).all()
        written = copy.stat().st_mtime_ns
        assert cache.fetch(study(path), path) == copy and copy.stat().st_mtime_ns == written
        assert ImageCache(tmp_path / "cache", 16).fetch(study(path), path) != copy
        path.write_bytes(path.read_bytes() + b" ")  # another file of the same name
        assert cache.path_of(study(path), path) != copy


@pytest.mark.parametrize("workers", [0, 3])
def test_filling_the_cache_names_every_broken_image(tmp_path, workers):
    good = tmp_path / "good.png"
    Image.fromarray(GREY).save(good)
    damaged(tmp_path / "bad.png", "truncated")
    cache = ImageCache(tmp_path / "cache", 8)
    broken = [study(good, name="a"), study(tmp_path / "bad.png", name="b"), study(tmp_path / "gone.png", name="c")]
    with pytest.raises(ValueError, match=r"2 problems in 3 studies(.|\n)*study b: (.|\n)*study c: .* is not there"):
        change_studies(broken, cache.fetch, title="", workers=workers)
    (kept,) = change_studies([study(good, GREY)], cache.fetch, title="", workers=workers)
    assert (read(kept.images[0]) == GREY[..., None]).all() and kept.images[1] is GREY
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_corpus_through_the_cache_is_the_corpus_without_it(tmp_path):
    lines = []
    for number, split in enumerate(("train", "train", "test")):
        Image.fromarray(np.roll(GREY, number)).resize((64, 80)).save(tmp_path / f"{number}.png")
        lines.append(f'{{"id": "s{number}", "images": ["{number}.png"], "findings": "Clear.", "split": "{split}"}}')
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    config = DataConfig(source="manifest", manifest=tmp_path / "m.jsonl", keep_size=32)
    inside = load_corpus(config, seed=0)
    outside = load_corpus(DataConfig(**{**vars(config), "cache_dir": tmp_path / "cache"}), seed=0)
    for one, other in zip((*inside.train, *inside.test), (*outside.train, *outside.test), strict=True):
        assert (one.images[0] == read(other.images[0])).all()
    assert inside.fingerprint == outside.fingerprint
    (tmp_path / "m.jsonl").write_text("\n".join(lines).replace("Clear.", "Dry.", 1))
    assert load_corpus(config, seed=0).fingerprint != inside.fingerprint
    with pytest.raises(ValueError, match=r"keep_size of at least 1 with data.cache_dir"):
        DataConfig(source="manifest", manifest=tmp_path / "m.jsonl", cache_dir=tmp_path)


@given(st.lists(st.integers(), max_size=20), st.integers(0, 4), st.integers(1, 9))
def test_work_ahead_keeps_the_order(items, workers, ahead):
    done = list(prefetch(items, lambda item: item * 2, workers=workers, ahead=ahead))
    assert done == [(item, item * 2) for item in items]


def test_work_ahead_is_bounded_and_its_errors_come_in_their_turn():
    taken, main = [], threading.get_ident()

    def endless():
        for number in range(10**9):
            assert threading.get_ident() == main
            taken.append(number)
            yield number

    def work(number):
        if number == 3:
            raise ValueError("study s3: broken")
        return threading.get_ident()

    results = prefetch(endless(), work, workers=2, ahead=5)
    for number in range(3):
        item, thread = next(results)
        assert item == number and thread != main and len(taken) <= number + 6
    with pytest.raises(ValueError, match="study s3"):
        next(results)
