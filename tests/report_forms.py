"""Files of reports in every form that is read, damaged at random, and how many rows they have."""

import csv
import io
import json
import os
import random

from radflow.data.readers.tables import delimiter_of

FILES = int(os.environ.get("RADFLOW_FUZZ", "0"))  # damaged files that a test tries, instead of the few by default
REPORTS = {f"s{n}": f"Findings: Small nodule {n}, no effusion. Impression: Nodule {n}." for n in range(1, 7)}


def _rows(*columns):
    return [dict(zip(columns, pair, strict=True)) for pair in REPORTS.items()]


def _csv(header, rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    return text.getvalue()


FORMS = {
    "plain.json": json.dumps(REPORTS),
    "coco.json": json.dumps({study_id: [text] for study_id, text in REPORTS.items()}),
    "captions.json": json.dumps(_rows("image_id", "caption")),
    "annotations.json": json.dumps({"images": [], "annotations": _rows("image_id", "caption")}),
    "list.json": json.dumps(list(REPORTS.values())),
    "rexrank.json": json.dumps({i: {"report": text, "model_prediction": text} for i, text in REPORTS.items()}),
    "r2gen.json": json.dumps({"train": [], "test": _rows("id", "report")}, indent=1),
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in _rows("id", "report")),
    "numbered.jsonl": "\n".join(json.dumps({"report": text}) for text in REPORTS.values()),
    "comma.csv": _csv(["study_id", "report"], REPORTS.items()),
    "excel.csv": "\ufeff" + _csv(["Study_ID", "Split", "Report"], [(i, "test", t) for i, t in REPORTS.items()], ";"),
    "sections.csv": _csv(
        ["uid", "findings", "impression"], [(i, *t.split(". Impression: ")) for i, t in REPORTS.items()]
    ),
    "one_column.csv": _csv(["report"], [[text] for text in REPORTS.values()]),
    "tabs.tsv": _csv(["id", "text"], REPORTS.items(), "\t"),
    "radfm.csv": _csv(
        ["Question", "Ground Truth", "Pred", "belong_to"],
        [(["Report?"], [f"study {i}"], [text], ["chest"]) for i, text in REPORTS.items()],
    ),
    "lines.txt": "\n".join(REPORTS.values()),
}
PIECES = (
    *("\x00", "\r", "\r\n", "\n\n", '"', '""', ",", ";", "\t", "\ufeff", "\x1b[31m", "\u202e", "\u2028", "=1+1", "  "),
    *(
        "null",
        "NaN",
        "Infinity",
        "-1e999",
        "9" * 5000,
        "1e400",
        "true",
        "[]",
        "{}",
        '[["x"]]',
        '{"id": {}}',
        "[" * 5000,
    ),
    *('"\\ud800"', '"a": 1, "a": 2,', '"id": ', '"report": ', '"study_id": "s1", ', ",,,\n", "s1,other\n", "nan", "s2"),
)


def damaged(seed):
    """Name and content of a file: one of the forms, damaged in up to three ways."""
    draw = random.Random(seed)
    name, text = draw.choice(list(FORMS.items()))
    content = text.encode()
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        content = draw.choice(DAMAGES)(content, draw)
    return name, content


def _cut(content, draw):
    return content[: draw.randint(0, len(content))]


def _flip(content, draw):
    at = draw.randrange(len(content) or 1)
    return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]


def _insert(content, draw):
    at = draw.randint(0, len(content))
    return content[:at] + draw.choice(PIECES).encode() + content[at:]


def _replace_value(content, draw):
    """Another value instead of a text or a number."""
    at = content.find(b'"', draw.randint(0, len(content)))
    end = content.find(b'"', at + 1)
    return content[:at] + draw.choice(PIECES).encode() + content[end + 1 :] if 0 <= at < end else content


def _repeat(content, draw):
    first, last = sorted(draw.randint(0, len(content)) for _ in range(2))
    return content[:last] + content[first:]


def _swap_words(content, draw):
    words = [b"id", b"report", b"study_id", b"findings", b"s1", b"s2", b"caption", b"test", b"model_prediction"]
    return content.replace(draw.choice(words), draw.choice(words))


def _repeat_line(content, draw):
    lines = content.split(b"\n")
    return b"\n".join([*lines, draw.choice(lines), draw.choice([b"", b",,", b"\r\n", b" "])])


def _encode(content, draw):
    text = content.decode("utf-8", "replace")
    return draw.choice([text.replace("\n", "\r\n"), text.replace("\n", "\r"), "\ufeff" + text]).encode(
        draw.choice(["utf-8", "utf-8", "utf-16", "latin-1"]), "replace"
    )


DAMAGES = (_cut, _flip, _insert, _replace_value, _repeat, _swap_words, _repeat_line, _encode)


def count_rows(name, content):
    """Rows of a file that can be read, counted by the standard library alone."""
    text = content.decode("utf-8-sig")
    if name.endswith(".txt"):
        return len(io.StringIO(text, newline=None).readlines())
    if name.endswith(".jsonl"):
        return len(text.rstrip("\r\n").split("\n"))
    if name.endswith(".json"):
        loaded = json.loads(text, object_pairs_hook=lambda pairs: dict(enumerate(pairs)))
        if isinstance(loaded, list):
            return len(loaded)
        values = dict(loaded.values())
        if len(values) == len(loaded) and {"annotations", "images"} == values.keys():
            return len(values["annotations"])
        splits = [v for k, v in loaded.values() if k in ("train", "test") and _is_split(v)]
        return len(loaded) - len(splits) + sum(map(len, splits))
    lines = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), delimiter=delimiter_of(text))
    return sum(1 for _ in lines) - 1


def _is_split(value):
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
