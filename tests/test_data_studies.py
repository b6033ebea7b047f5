import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radflow.data.augment import jitter
from radflow.data.batches import shuffled_batches
from radflow.data.corpus import DataConfig, load_corpus
from radflow.data.prefetch import decode_studies
from radflow.data.readers.manifest import read_manifest
from radflow.data.studies import Study, check_studies, load_image


@pytest.fixture
def good(tmp_path):
    studies = []
    for number in range(3):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(np.full((32, 32), 40 * number, dtype=np.uint8)).save(path)
        studies.append(Study(f"s{number}", f"p{number}", "train", (path,), "Clear.", "Normal."))
    check_studies(studies)
    decode_studies(studies)
    return studies


def broken(good, **changes):
    return [*good[:2], dataclasses.replace(good[2], **changes)]


def test_missing_image_is_named(good, tmp_path):
    with pytest.raises(ValueError, match=r"study s2: image .*absent.jpg does not exist"):
        decode_studies(broken(good, images=(tmp_path / "absent.jpg",)))


def test_truncated_jpeg_is_named(good):
    path = good[2].images[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"study s2: image .*2.jpg cannot be decoded"):
        decode_studies(good)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"findings": " ", "impression": ""}, "study s2: an empty report"),
        ({"findings": ""}, "study s2: no Findings"),
        ({"id": "s1"}, "study s1: the id occurs 2 times"),
        ({"patient_id": "p0", "split": "test"}, "study s2: patient p0 is in split test and, with study s0, in train"),
        ({"images": ()}, "study s2: no image"),
    ],
)
def test_each_defect_is_named(good, changes, said):
    with pytest.raises(ValueError, match=said):
        check_studies(broken(good, **changes))


def test_all_defects_come_in_one_message(good):
    bad = [dataclasses.replace(study, findings="", images=()) for study in good]
    with pytest.raises(ValueError, match="6 problems in 3 studies") as caught:
        check_studies(bad)
    assert all(f"study s{i}" in str(caught.value) for i in range(3))


def test_sixteen_bit_images_keep_their_contrast(tmp_path):
    # levels 1000, 2000, 3000 of a detector: darkest -> 0, middle -> 127.5 -> 128, brightest -> 255; clipped: 255 thrice
    levels = np.array([[1000, 2000, 3000]], dtype=np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(levels).save(path)
    for source in (path, levels):
        image = load_image(source, study_id="s")
        assert image.mode == "RGB" and np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


def test_array_that_is_no_image_and_oversized_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"study s7: image array uint16 \(4, 4, 3\) cannot be decoded"):
        load_image(np.zeros((4, 4, 3), dtype=np.uint16), study_id="s7")
    path = tmp_path / "big.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses images of over twice as many
    with pytest.raises(ValueError, match=r"study s8: image .*big.png cannot be decoded"):
        load_image(path, study_id="s8")


def test_palette_image_becomes_rgb(tmp_path):
    path = tmp_path / "palette.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P").save(path)
    assert load_image(path, study_id="s").mode == "RGB"


def test_kept_images_are_scaled_down_in_memory_and_never_up(good):
    (kept, *_) = decode_studies(good, keep_size=16)
    assert kept.images[0].shape == (16, 16, 3)
    assert decode_studies(good, keep_size=64)[0].images[0].shape == (32, 32, 3)
    assert decode_studies(good)[0].images == good[0].images


def write(tmp_path, *rows):
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"id": "a", "uid": 7, "images": ["x.jpg"], "findings": "Clear.", "impression": "Normal.", "split": "val"}


def test_manifest_by_hand(tmp_path):
    (study,) = read_manifest(write(tmp_path, ROW))
    assert study == Study("a", "7", "val", (tmp_path / "x.jpg",), "Clear.", "Normal.")
    assert study.report == "Findings: Clear. Impression: Normal."
    (elsewhere,) = read_manifest(write(tmp_path, ROW), image_root=tmp_path / "images")
    assert elsewhere.images == (tmp_path / "images" / "x.jpg",)


def test_null_patient_and_split_count_as_absent(tmp_path):
    nobody = {**ROW, "uid": None, "patient_id": None, "split": None}
    studies = read_manifest(write(tmp_path, nobody, {**nobody, "id": "b"}, {**ROW, "id": "c"}))
    assert [(s.patient_id, s.split) for s in studies] == [("a", "train"), ("b", "train"), ("7", "val")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{broken\n", ":2: "),
        ("[1]\n", ":2: expected a JSON object, got list"),
        ({**ROW, "id": ""}, ":2: key 'id' is missing"),
        ({**ROW, "findings": 3}, ":2: key 'findings': expected text, got int"),
        ({**ROW, "images": {"path": "x.jpg"}}, ":2: key 'images': expected a list"),
    ],
)
def test_bad_line_is_named(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        read_manifest(write(tmp_path, ROW, row))


def test_empty_or_binary_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty file"):
        read_manifest(write(tmp_path))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_manifest(binary)


def test_real_manifest_is_read_whole(shared):
    corpus = load_corpus(
        DataConfig(source="manifest", manifest=shared / "data/iu_xray/manifest.jsonl", eval_split="val"), seed=0
    )
    assert (len(corpus.train), len(corpus.test)) == (1920, 296)


def test_split_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    image = tmp_path / "x.jpg"
    Image.new("L", (32, 32)).save(image)
    with pytest.raises(ValueError, match=r"got the splits \['val'\]"):
        load_corpus(DataConfig(source="manifest", manifest=write(tmp_path, ROW)), seed=0)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.booleans())
def test_batches_resumed_at_a_step_are_those_of_an_unbroken_run(count, size, step, weighted):
    weights = [1.0 + i for i in range(count)] if weighted else None
    whole = islice(shuffled_batches(count, size, seed=3, weights=weights), step, step + 3)
    resumed = islice(shuffled_batches(count, size, seed=3, start_step=step, weights=weights), 3)
    assert list(whole) == list(resumed)


@given(st.integers(1, 20), st.integers(1, 7))
def test_an_epoch_visits_every_study_once(count, size):
    drawn = [i for batch in islice(shuffled_batches(count, size, seed=0), count) for i in batch]
    assert sorted(drawn[:count]) == list(range(count))


def test_weights_are_chances():
    batches = islice(shuffled_batches(2, 1000, seed=0, weights=[3.0, 1.0]), 5)
    share = np.mean([index == 0 for batch in batches for index in batch])
    # four standard errors of a share of 0.75 over 5,000 draws: 0.0245
    assert abs(share - 0.75) < 0.0245


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_are_no_chances_are_refused(weights):
    # one weight too many used to draw a study that does not exist
    with pytest.raises(ValueError, match="expected 2 weights"):
        next(shuffled_batches(2, 4, seed=0, weights=weights))


@given(st.integers(4, 20))
def test_a_weighted_batch_holds_no_study_twice(count):
    for batch in islice(shuffled_batches(count, 4, seed=0, weights=[1.0] * (count - 1) + [50.0]), 5):
        assert len(set(batch)) == 4


def test_jitter_is_a_function_of_its_seed_and_keeps_the_centre():
    image = Image.fromarray(np.pad(np.full((20, 20), 200, dtype=np.uint8), 46)).convert("RGB")
    first, again, other = (np.asarray(jitter(seed)(image)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    # a square of 20 in 112 pixels moves by at most 6 % + rounding, so its middle stays bright
    assert first[50:62, 50:62].mean() > 120 and first.shape == (112, 112, 3)
