"""Time and memory of `radflow prepare mimic_cxr` on a tree of its size and layout.

The tree is synthetic: reports of about 90 words, images of a few bytes, the published tables.
"""

import argparse
import csv
import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness import Result, machine, write
from tqdm import tqdm

from radflow.data.readers.mimic_cxr import CHEXPERT, LABELS, METADATA, SPLIT

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough, study {study}  // eval for infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural effusion or pneumothorax. Bilateral nodular opacities
 that most likely represent nipple shadows. The cardiomediastinal silhouette is normal, number {study}.
 Clips project over the left lung, potentially within the breast. The imaged upper
 abdomen is unremarkable. Chronic deformity of the posterior left sixth and
 seventh ribs are noted.

 IMPRESSION:

 No acute cardiopulmonary process.
"""
METADATA_COLUMNS = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)

CHILD = """
import sys, pathlib
from radflow.data.prepare import main
main(sys.argv[1:])
print(*[line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")])
"""


def make_tree(root: Path, studies: int) -> int:
    """Write it; the number of images."""
    with ExitStack() as stack:
        names = (METADATA, SPLIT, CHEXPERT)
        tables = [stack.enter_context(gzip.open(root / name, "wt", newline="", compresslevel=1)) for name in names]
        return _write_studies(root, studies, *map(csv.writer, tables))


def _write_studies(root: Path, studies: int, metadata, splits, labels) -> int:
    generator, images = random.Random(0), 0
    metadata.writerow(METADATA_COLUMNS.split(","))
    splits.writerow(["dicom_id", "study_id", "subject_id", "split"])
    labels.writerow(["subject_id", "study_id", *LABELS])
    for number in tqdm(range(studies), "tree", disable=None, mininterval=1):
        subject, study = 10_000_000 + number // 4, 50_000_000 + number
        split = ("train", "train", "train", "validate", "test")[number // 4 % 5]
        folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}"
        (folder / f"s{study}").mkdir(parents=True)
        (folder / f"s{study}.txt").write_text(REPORT.format(study=study))
        for view in ("PA", "LATERAL")[: 1 + generator.randrange(2)]:
            dicom = "-".join(f"{generator.getrandbits(32):08x}" for _ in range(5))
            day = 21_800_101 + number % 4 * 10_000
            metadata.writerow([dicom, subject, study, "", view, 2544, 3056, day, "130242.109", "", "", ""])
            splits.writerow([dicom, study, subject, split])
            (folder / f"s{study}" / f"{dicom}.jpg").write_bytes(b"tiny")
            images += 1
        labels.writerow([subject, study, *generator.choices(["", "1.0", "0.0", "-1.0"], k=len(LABELS))])
    return images


def measure(command: Sequence[object]) -> tuple[float, float, float]:
    """Wall-clock seconds, CPU seconds and peak MB of one command.

    The peak is read by the process itself: `getrusage` of children includes the memory of this process at the fork.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(run.stdout)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, int(re.findall(r"VmHWM:\s+(\d+) kB", run.stdout)[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200_000)
    args = parser.parse_args()
    variants, processor = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "mimic", Path(folder) / "mimic.jsonl"
        root.mkdir()
        images = make_tree(root, args.studies)
        for name, options in {"index and reports": [], "and prior studies": ["--prior"]}.items():
            seconds, busy, peak = measure(["mimic_cxr", "--root", root, "--out", out, *options])
            summary = json.loads(Path(f"{out}.summary.json").read_text())
            assert (summary["studies"], summary["images"]) == (args.studies, images)
            first = next(iter(variants.values()), {"seconds": seconds})["seconds"]
            variants[name] = vars(Result(seconds, seconds / first, peak, peak, args.studies, args.studies / seconds))
            processor[name] = busy
    content = {
        "setting": f"prepare mimic_cxr: {args.studies:,} studies, {images:,} images, on {os.cpu_count()} cores",
        "rounds": 1,
        "machine": machine(1),
        "unit": "studies",
        "processor_seconds": processor,
        "variants": variants,
    }
    write("data_prepare", content)


if __name__ == "__main__":
    main()
