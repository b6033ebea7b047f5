"""IU X-ray in its four forms: the same studies from each, on files written here and on the real ones."""

from dataclasses import replace

import pytest
from dataset_files import studies_of, touch, write_csv, write_json

from radflow.data.readers.iu_xray import read_iu_rexrank, read_kaggle, read_openi, read_r2gen
from radflow.data.readers.manifest import manifest_records
from radflow.data.readers.records import Record, Unread, split_of_patient

OPENI = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="CXR{number}"/><licenseType>open-access</licenseType>
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><major>Opacity/lung/base   </major><automatic>heart</automatic></MeSH>
{images}</eCitation>"""


def openi(root, number, names, *, findings="", impression="", indication=""):
    images = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in names)
    text = OPENI.format(number=number, findings=findings, impression=impression, indication=indication, images=images)
    path = root / f"NLMCXR_reports/ecgen-radiology/{number}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


CASES = {
    "1": ("Clear &amp; dry.", "Normal.", ["1_IM-0001-4001", "1_IM-0001-3001"]),
    "23": ("Large heart.", "", ["23_IM-0879-1001", "23_IM-0879-2001"]),
}


@pytest.fixture
def iu(tmp_path):
    """The same two studies in all four forms, each in a folder of its own."""
    roots = {name: tmp_path / name for name in ("openi", "kaggle", "r2gen", "rexrank")}
    projections, reports, annotation, rexrank = [], [], {"train": [], "val": [], "test": []}, {}
    for (number, (findings, impression, names)), split in zip(CASES.items(), ("train", "test"), strict=True):
        # both ways in which Open-i names images
        stems = [f"CXR1_{name}" if number == "1" else f"CXR{name}" for name in names]
        openi(roots["openi"], number, stems, findings=findings, impression=impression, indication="Cough.")
        touch(roots["openi"] / f"NLMCXR_png/{stems[0]}.png")
        findings = findings.replace("&amp;", "&")
        views = ["Frontal", "Lateral"]
        projections += [[number, f"{name}.dcm.png", view] for name, view in zip(names, views, strict=True)]
        reports.append([number, "Cardiomegaly/mild;Opacity/lung/base", "", "", "Cough.", "None.", findings, impression])
        study, images = f"CXR{number}_IM-0879", [f"CXR{number}_IM-0879/{i}.png" for i in range(2)]
        annotation[split].append({"id": study, "report": findings, "image_path": images, "split": split})
        rexrank[study] = {
            "key_image_path": images[0],
            "image_path": images,
            "frontal_lateral": views,
            "split": split,
            "report": f"Findings: {findings} Impression: {impression}",
            "section_findings": findings,
            "section_impression": impression or float("nan"),
            "context": "Indication: Cough. Comparison: None.",
        }
    for name in ("openi", "kaggle", "r2gen"):
        write_csv(roots[name] / "indiana_projections.csv", "uid,filename,projection", *projections)
        write_json(roots[name] / "annotation.json", annotation)
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression"
    for name in ("kaggle", "r2gen"):
        write_csv(roots[name] / "indiana_reports.csv", header, *reports)
    write_json(roots["rexrank"] / "iu.json", rexrank)
    return roots


def test_the_four_forms_of_iu_xray_give_the_same_studies(iu):
    readers = {"openi": read_openi, "kaggle": read_kaggle, "r2gen": read_r2gen, "rexrank": read_iu_rexrank}
    read = {name: list(reader(iu[name])) for name, reader in readers.items()}
    bare = {
        name: [replace(study, images=(), views=(), labels={}) for study in studies_of(records)]
        for name, records in read.items()
    }
    assert bare["openi"] == bare["kaggle"] == bare["r2gen"] == bare["rexrank"]
    first, second = bare["openi"]
    assert (first.id, first.patient_id, first.split, first.findings) == ("CXR1", "1", "train", "Clear & dry.")
    assert (second.id, second.split, second.impression, second.indication) == ("CXR23", "test", "", "Cough.")
    assert not any(record.ambiguous for records in read.values() for record in records)
    for name in ("openi", "kaggle"):
        assert all(study.labels == {"Cardiomegaly/mild": 1, "Opacity/lung/base": 1} for study in studies_of(read[name]))
    for name in ("openi", "kaggle", "rexrank"):
        assert all(study.views == ("Frontal", "Lateral") for study in studies_of(read[name]))
    assert read["openi"][0].study.images[0] == iu["openi"] / "NLMCXR_png/CXR1_1_IM-0001-4001.png"
    assert read["kaggle"][1].study.images[1] == iu["kaggle"] / "images/images_normalized/23_IM-0879-2001.dcm.png"
    assert read["r2gen"][1].study.images[1] == iu["r2gen"] / "images/CXR23_IM-0879/1.png"


def test_iu_xray_without_the_annotation_is_split_by_patient(iu):
    for name, reader in (("openi", read_openi), ("kaggle", read_kaggle)):
        (iu[name] / "annotation.json").unlink()
        assert [study.split for study in studies_of(reader(iu[name]))] == [
            split_of_patient(number, (70, 10, 20)) for number in CASES
        ]


def test_iu_xray_study_outside_the_annotation_and_broken_xml_are_named(iu):
    openi(iu["openi"], "7", [], findings="Clear.")
    (iu["openi"] / "NLMCXR_reports/ecgen-radiology/8.xml").write_text("<eCitation><uId")
    unread = [item for item in read_openi(iu["openi"]) if isinstance(item, Unread)]
    assert [(item.id, item.reason) for item in unread] == [
        ("CXR7", "not in the split of annotation.json"),
        ("8.xml", "report file unreadable"),
    ]


def test_the_forms_of_iu_xray_agree_on_the_real_studies(shared, tmp_path):
    """The tables, the ReXrank JSON and the manifest as they are; Open-i and R2Gen written from them."""
    folder = shared / "data/iu_xray"
    manifest = {record.study.patient_id: record.study for record in manifest_records(folder / "manifest.jsonl")}
    kaggle = {study.patient_id: study for study in studies_of(read_kaggle(folder))}
    annotation = {"train": [], "val": [], "test": []}
    for study in manifest.values():
        paths = [f"{study.id}/{i}.png" for i in range(len(study.images))]
        annotation[study.split].append({"id": study.id, "report": study.findings, "image_path": paths})
    for name in ("r2gen", "openi"):
        write_json(tmp_path / name / "annotation.json", annotation)
        for table in ("indiana_reports.csv", "indiana_projections.csv"):
            (tmp_path / name / table).symlink_to(folder / table)
    for number, study in kaggle.items():
        names = [f"CXR{path.name.removesuffix('.dcm.png')}" for path in study.images]
        texts = {
            name: getattr(study, name).replace("&", "&amp;").replace("<", "&lt;") for name in ("findings", "impression")
        }
        openi(tmp_path / "openi", number, names, **texts)
    (tmp_path / "rexrank").mkdir()
    (tmp_path / "rexrank/ReXRank_IUXray_valid.json").symlink_to(folder / "iu_valid.json")
    rexrank, r2gen, xml = (
        {item.study.patient_id: item.study for item in reader(tmp_path / name) if isinstance(item, Record)}
        for name, reader in (("rexrank", read_iu_rexrank), ("r2gen", read_r2gen), ("openi", read_openi))
    )
    assert (len(manifest), len(kaggle), len(rexrank), len(r2gen), len(xml)) == (2216, 3112, 296, 2216, 2216)
    assert rexrank.keys() <= manifest.keys() == r2gen.keys() == xml.keys() <= kaggle.keys()
    for number, study in manifest.items():
        forms = [form[number] for form in (kaggle, r2gen, xml, rexrank) if number in form]
        sections = {(form.findings, form.impression) for form in (study, *forms)}
        assert len(sections) == 1, f"{study.id}: {sections}"
        assert {form.id for form in forms} == {f"CXR{number}"}
        assert {form.split for form in (study, *forms[1:])} == {study.split}, study.id
        views = dict(
            zip((path.name.split(".")[0] for path in kaggle[number].images), kaggle[number].views, strict=True)
        )
        assert tuple(views[path.stem] for path in study.images) == study.views
        assert views == {
            path.stem.removeprefix("CXR"): view
            for path, view in zip(xml[number].images, xml[number].views, strict=True)
        }


def test_file_names_that_lead_out_of_the_dataset_are_refused(iu):
    write_csv(iu["kaggle"] / "indiana_projections.csv", "uid,filename,projection", ["1", "/etc/passwd", "Frontal"])
    with pytest.raises(ValueError, match=r"expected a file inside .* got '/etc/passwd'"):
        list(read_kaggle(iu["kaggle"]))
