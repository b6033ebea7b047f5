"""DICOM files as scanners and archives write them, seen as a viewer shows them."""

import io
import itertools
import tracemalloc
import zlib

import numpy as np
import pytest
from damage import count_read
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from radflow.data.dicom import MAX_INFLATED
from radflow.data.dicom_levels import grey_levels
from radflow.data.studies import load_image

RAMP = np.array([[0, 500, 1000, 2000, 3000, 4095]], dtype=np.uint16)
FULL = [0, 31, 62, 125, 187, 255]  # of RAMP, stretched


def read(path):
    return np.asarray(load_image(path, study_id="s1"))


def made(levels, syntax=ExplicitVRLittleEndian, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns = levels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.PixelData = int(levels.dtype.kind == "i"), levels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def written(dataset):
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom(path, levels, **tags):
    path.write_bytes(written(made(levels, **tags)))
    return path


def shown(path, levels=RAMP, **tags):
    return read(dicom(path / "x.dcm", levels, **tags))[0, :, 0].astype(int)


def table(first, data, bits=16, count=None):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) % 2**16 if count is None else count, first, bits])
    item.add_new("LUTData", "OW", np.asarray(data, dtype=np.uint16).tobytes())
    return Sequence([item])


def test_dicom_window_by_hand(tmp_path):
    # centre 1000, width 401 (PS3.3 C.11.2.1.2.1): black up to 799.5, white from 1199.5, (x - 999.5) / 400 + 1/2 between
    levels = np.array([[700, 800, 900, 1000, 1100, 1199, 1300, 4095]], dtype=np.uint16)
    expected = [0, 0, 64, 128, 192, 255, 255, 255]
    path = dicom(tmp_path / "x.dcm", levels, WindowCenter=1000, WindowWidth=401)
    assert read(path)[0, :, 0].tolist() == expected
    path = dicom(
        tmp_path / "x.dcm", levels, WindowCenter=1000, WindowWidth=401, PhotometricInterpretation="MONOCHROME1"
    )
    assert read(path)[0, :, 0].tolist() == [255 - value for value in expected]
    # by its mark, without an ending
    assert read(path.rename(tmp_path / "x"))[0, 0, 0] == 255


def test_a_window_that_the_image_does_not_fill_is_not_stretched(tmp_path):
    # levels in the middle fifth of a wide window stay grey: 1638 of 0..4095 is 102 of 255
    levels = np.array([[1638, 2048, 2457]], dtype=np.uint16)
    shown = read(dicom(tmp_path / "x.dcm", levels, WindowCenter=2048, WindowWidth=4096))[0, :, 0]
    assert np.abs(shown.astype(int) - [102, 127, 153]).max() <= 1


def test_dicom_rescaled_before_the_window_and_stretched_without_one(tmp_path):
    levels = np.array([[0, 1000, 2000]], dtype=np.uint16)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000, "WindowWidth": 4001}
    # values -1000, 1000, 3000 in a window of 1000 +- 2000
    shown = read(dicom(tmp_path / "x.dcm", levels, **rescaled))[0, :, 0]
    assert np.abs(shown.astype(int) - [0, 127, 255]).max() <= 1
    assert read(dicom(tmp_path / "y.dcm", levels))[0, :, 0].tolist() == [0, 128, 255]


def test_colour_of_an_ultrasound_and_several_frames(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colours = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    path = dicom(
        tmp_path / "x.dcm", colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, **eight
    )
    assert (read(path) == colours).all()
    frames = np.zeros((8, 8), dtype=np.uint16)
    path = dicom(tmp_path / "y.dcm", frames, NumberOfFrames=2, PixelData=frames.tobytes() * 2)
    with pytest.raises(ValueError, match="expected one frame, got 2"):
        load_image(path, study_id="s1")
    frames[0, 0] = 9
    path = dicom(tmp_path / "y.dcm", frames, NumberOfFrames=2, PixelData=bytes(128) + frames.tobytes())
    assert read(tmp_path / "y.dcm#frame=1").max() == 0 and read(tmp_path / "y.dcm#frame=2")[0, 0, 0] == 255
    with pytest.raises(ValueError, match=r"expected at most 100,000,000 pixels"):
        load_image(dicom(tmp_path / "z.dcm", frames, Rows=20000, Columns=20000), study_id="s1")


LEVELS = st.lists(st.integers(-2048, 2047), min_size=2, max_size=12)
WINDOWS = st.fixed_dictionaries(
    {
        "WindowCenter": st.integers(-3000, 6000),
        "WindowWidth": st.integers(2, 9000),
        "VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    }
)
TABLES = st.builds(
    table, st.integers(0, 5000), st.lists(st.integers(0, 65535), min_size=2, max_size=40), st.sampled_from([10, 12, 16])
).map(lambda sequence: {"VOILUTSequence": sequence})


@given(
    LEVELS,
    st.booleans(),
    st.sampled_from([(1, 0), (2, -1000), (3, 500)]),
    st.one_of(st.just({}), WINDOWS, TABLES),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_pixels_are_those_of_pydicom_rescaled(levels, signed, rescale, voi, photometric):
    levels = np.array([levels], dtype=np.int16) if signed else (np.array([levels]) + 2048).astype(np.uint16)
    slope, intercept = rescale
    dataset = made(levels, RescaleSlope=slope, RescaleIntercept=intercept, PhotometricInterpretation=photometric, **voi)
    values = apply_modality_lut(levels, dataset).astype(np.int64)
    expected = apply_voi_lut(values, dataset).astype(np.float64)
    # Black and white: the ends of what a window gives (PS3.3 C.11.2.1.2), of the table or of the image
    low, high = (-2048, 2047) if signed else (0, 4095)
    ends = np.array([low, high]) * slope + intercept
    if "VOILUTSequence" in voi:
        ends = np.frombuffer(dataset.VOILUTSequence[0].LUTData, dtype=np.uint16)
    elif not voi:
        ends = values
    share = (expected - ends.min()) / max(int(ends.max()) - int(ends.min()), 1e-9)
    share = 1 - share if photometric == "MONOCHROME1" else share
    assert np.abs(grey_levels(levels, dataset) - share * 255).max() <= 0.5 + 1e-6


EMPTY = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "NumberOfFrames")


@pytest.mark.parametrize("count", range(len(EMPTY) + 1))
def test_elements_without_a_value_count_as_absent(tmp_path, count):
    for names in itertools.combinations(EMPTY, count):
        for sequence in (None, Sequence([]), Sequence([Dataset()])):
            tags = {"WindowCenter": 2047.5, "WindowWidth": 4096} | dict.fromkeys(names)
            tags |= {"VOILUTSequence": sequence, "ModalityLUTSequence": sequence}
            assert np.abs(shown(tmp_path, **tags) - FULL).max() <= 1, (names, sequence)


def test_an_empty_table_leaves_the_window_and_a_second_table_is_found(tmp_path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", None)
    item.add_new("LUTData", "OW", None)
    window = {"WindowCenter": 1000.5, "WindowWidth": 2001}  # black up to 0, white from 2000
    assert shown(tmp_path, VOILUTSequence=Sequence([item]), **window).tolist() == [0, 64, 128, 255, 255, 255]
    both = Sequence([item, *table(0, [0] * 1000 + [65535])])
    assert shown(tmp_path, VOILUTSequence=both, **window).tolist() == [0, 0, 255, 255, 255, 255]


def test_tables_of_every_descriptor_by_hand(tmp_path):
    straight = np.linspace(0, 65535, 4096).round()
    # a table that starts at 0 once gave a white image: the level beyond its end was mapped to its beginning
    assert np.abs(shown(tmp_path, VOILUTSequence=table(0, straight)) - FULL).max() <= 1
    # 65,536 entries are written as 0; levels up to 4095 reach the sixteenth part of it
    whole = shown(tmp_path, VOILUTSequence=table(0, np.arange(65536), count=0))
    assert whole.tolist() == [0, 2, 4, 8, 12, 16]
    # levels -100 to 100, the first one -100 written as unsigned (65436)
    signed = np.array([[-200, -100, 0, 100, 200]], dtype=np.int16)
    ends = shown(tmp_path, signed, VOILUTSequence=table(65436, np.arange(201)))
    assert ends.tolist() == [0, 0, 128, 255, 255]
    # 8 bits, two entries per word, the first in its low byte: levels 0 to 3 -> 0, 85, 170, 255
    packed = table(0, [0 | 85 << 8, 170 | 255 << 8], bits=8, count=4)
    assert shown(tmp_path, np.array([[0, 1, 2, 3]], dtype=np.uint16), VOILUTSequence=packed).tolist() == [
        0,
        85,
        170,
        255,
    ]
    # modality table, then the range of the image
    inverse = table(0, np.arange(4095, -1, -1))
    assert np.abs(shown(tmp_path, ModalityLUTSequence=inverse) - [255 - value for value in FULL]).max() <= 1
    with pytest.raises(ValueError, match=r"study s1: .*expected a look-up table of 9 entries, got 8 bytes"):
        shown(tmp_path, VOILUTSequence=table(0, [1, 2, 3, 4], count=9))


def test_windows_that_are_none_and_windows_of_fractions(tmp_path):
    for width in (0, -5):
        assert np.abs(shown(tmp_path, WindowCenter=0, WindowWidth=width) - FULL).max() <= 1
    # levels 0 to 1, window 0.25 to 0.75: (x - 0.5) / 0.5 + 0.5
    fractions = {"RescaleSlope": "0.0002442", "RescaleIntercept": 0, "WindowCenter": "0.5", "WindowWidth": "0.5"}
    levels = np.array([[0, 1024, 2048, 3071, 4095]], dtype=np.uint16)
    assert np.abs(shown(tmp_path, levels, **fractions) - [0, 0, 128, 255, 255]).max() <= 1
    # the first of several windows
    first = shown(tmp_path, WindowCenter=[2047.5, 40], WindowWidth=[4096, 80])
    assert np.abs(first - FULL).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_range(tmp_path, photometric):
    levels = np.array([[-2000, 0, 50, 100, 1990, 1999]], dtype=np.int16)
    tags = {"PhotometricInterpretation": photometric}
    middle = [0, 128, 255] if photometric == "MONOCHROME2" else [255, 127, 0]
    for value, limit in ((1990, 1999), (1999, 1990)):
        seen = shown(tmp_path, levels[:, 1:], PixelPaddingValue=value, PixelPaddingRangeLimit=limit, **tags)
        assert np.abs(seen - [*middle, 0, 0]).max() <= 1
    for count, expected in ((4, [0, *middle]), (1, [0])):
        dataset = made(levels[:, :count], **tags)
        dataset.add_new("PixelPaddingValue", "US", 63536)  # -2000, written as unsigned
        assert np.abs(grey_levels(levels[:, :count], dataset)[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["x.dcm", "x.DCM", "x.IMA", "x", "1.2.840.99.17", "x.png"])
def test_files_are_known_by_their_content(tmp_path, name):
    content = written(made(RAMP))
    for kept in (content, content[132:]):  # with and without preamble and mark
        (tmp_path / name).write_bytes(kept)
        assert np.abs(read(tmp_path / name)[0, :, 0].astype(int) - FULL).max() <= 1


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_any_header(tmp_path, implicit):
    dataset = made(RAMP, ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian, SOPClassUID="1.2.3")
    file = io.BytesIO()
    del dataset.preamble
    dataset.save_as(file, implicit_vr=implicit, little_endian=True)
    content = file.getvalue()
    (tmp_path / "x").write_bytes(content[content.index(b"\x08\x00\x16\x00") :])
    assert np.abs(read(tmp_path / "x")[0, :, 0].astype(int) - FULL).max() <= 1


def test_a_deflated_file_is_read_and_a_bomb_refused_before_it_takes_memory(tmp_path):
    content = written(made(RAMP, DeflatedExplicitVRLittleEndian))
    (tmp_path / "x.dcm").write_bytes(content)
    assert np.abs(read(tmp_path / "x.dcm")[0, :, 0].astype(int) - FULL).max() <= 1
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = b"".join(packer.compress(bytes(2**20)) for _ in range(MAX_INFLATED // 2**20 + 1)) + packer.flush()
    length = int.from_bytes(content[140:144], "little")  # of the header, its first element's value
    (tmp_path / "bomb.dcm").write_bytes(content[: 144 + length] + zeros)
    assert len(zeros) < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"study s1: .*bomb.dcm .*expected at most 134,217,728 bytes once inflated"):
        load_image(tmp_path / "bomb.dcm", study_id="s1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_no_damage_escapes(tmp_path):
    window = {"WindowCenter": [2000, 100], "WindowWidth": [4000, 200], "PixelPaddingValue": 7, "NumberOfFrames": 1}
    levels = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
    contents = [written(made(levels, syntax, VOILUTSequence=table(0, range(9)), **window)) for syntax in syntaxes]
    packed = dcmread(io.BytesIO(contents[0]))
    packed.compress(RLELossless)
    contents += [written(packed), contents[0][132:]]
    assert 0 < count_read(contents, tmp_path / "x.dcm", count=2000) < 2000
