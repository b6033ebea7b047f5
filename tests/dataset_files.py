"""Writing small files in the layouts that datasets are distributed in."""

import csv
import gzip
import io
import json


def write_csv(path, header, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.StringIO()
    csv.writer(content).writerows([header.split(",") if isinstance(header, str) else header, *lines])
    encoded = content.getvalue().encode()
    path.write_bytes(gzip.compress(encoded) if path.suffix == ".gz" else encoded)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def studies_of(records):
    return [record.study for record in records]
