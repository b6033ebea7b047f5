"""Score, compare and label reports, write them with a model, prepare data, train.

    radflow score    --predictions predictions.json --references references.json --out scores
    radflow compare  a.json b.json --references references.json
    radflow cases    --predictions a.json b.json --manifest studies.jsonl --out cases.html
    radflow label    reports.jsonl --out labels.jsonl
    radflow predict  --model MODEL --image frontal.png --indication "Cough."
    radflow generate --model MODEL --manifest studies.jsonl --out predictions.json
    radflow weights
    radflow gallery  --manifest studies.jsonl
    radflow prepare  csv --reports reports.csv --images images --out studies.jsonl
    radflow inputs   rexrank --manifest studies.jsonl --out rexrank.json
    radflow train    --config my.yaml
    radflow --version

`radflow COMMAND --help` explains the options of a command. `train` is `train.py` (on several GPUs: `torchrun -m
radflow.train`); all but it, `prepare` and `inputs` are commands of `evaluate.py` too.
"""

import sys
from collections.abc import Sequence

from capo import __version__
from capo.stopping import expect_ctrl_c
from radflow import INSTALL

expect_ctrl_c()

try:
    from radflow import evaluate
    from radflow.pipeline.command_line import run_program
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: {INSTALL}")

COMMANDS = evaluate.COMMANDS | {
    "prepare": "data.prepare:main",
    "inputs": "data.system_inputs:write_input",
    "train": "train:main",
}


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if list(words) == ["--version"]:
        print(f"radflow {__version__}")
    else:
        run_program("radflow", words, COMMANDS, __doc__)


if __name__ == "__main__":
    main()
