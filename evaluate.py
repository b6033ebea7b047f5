"""Write reports with a model, score report files, compare systems, look at cases, label, try a reward.

    python evaluate.py predict  --model runs/demo --image frontal.png --indication "Cough."
    python evaluate.py generate --model runs/demo/rl/model --manifest studies.jsonl --out predictions.json
    python evaluate.py score    --predictions predictions.json --references references.json --out scores
    python evaluate.py compare  a.json b.json --references references.json
    python evaluate.py cases    --predictions a.json b.json --manifest studies.jsonl --out cases.html
    python evaluate.py cases    runs/demo --out cases.html
    python evaluate.py label    reports.jsonl --out labels.jsonl
    python evaluate.py gallery  --manifest studies.jsonl --reward.expert chexpert_rules
    python evaluate.py weights

`evaluate.py COMMAND --help` explains the options of a command; docs/evaluate.md says what each metric is, what it
needs, and which files are read.
"""

import sys
from collections.abc import Sequence

from capo.stopping import expect_ctrl_c

if __name__ == "__main__":
    expect_ctrl_c()

from radflow.pipeline.command_line import run_program

COMMANDS = {
    "predict": "evaluation.predict:predict",
    "generate": "evaluation.generate:generate",
    "score": "evaluation.score:score_files",
    "compare": "evaluation.compare:compare_files",
    "cases": "evaluation.case_page:write_cases",
    "label": "evaluation.label:label",
    "gallery": "evaluation.gallery:gallery",
    "weights": "evaluation.weights:weights",
}


def main(argv: Sequence[str] | None = None) -> None:
    run_program("evaluate.py", sys.argv[1:] if argv is None else argv, COMMANDS, __doc__)


if __name__ == "__main__":
    main()
