"""Write reports with a trained or served model, score report files, compare systems, look at cases.

    python evaluate.py predict  --model runs/demo/rl/model --image frontal.png --indication "Cough."
    python evaluate.py generate --model runs/demo/rl/model --data studies.jsonl --out predictions.json
    python evaluate.py score    --predictions predictions.json --references references.json --out scores
    python evaluate.py compare  a.json b.json --references references.json
    python evaluate.py cases    --predictions a.json b.json --manifest studies.jsonl --out cases.html
    python evaluate.py weights

docs/evaluate.md says what each metric is, what it needs, and which files are read.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from capo.stopping import StopRequested
from evaluation.commands import (
    add_cases,
    add_compare,
    add_generate,
    add_score,
    add_weights,
)


def add_predict(commands: argparse._SubParsersAction) -> None:
    one = commands.add_parser("predict", help="write the report of one study")
    one.add_argument("--model", required=True, help="Qwen-VL checkpoint: a directory or a hub id")
    one.add_argument("--image", type=Path, action="append", required=True, help="an image; again for each further view")
    one.add_argument("--prior", type=Path, action="append", default=[], help="an image of an earlier study")
    one.add_argument("--indication", default="", help="why the examination was made")
    one.add_argument("--comparison", default="", help="what it is compared with")
    levels = "grey levels of a 16-bit image shown as black and white (default: its darkest and brightest)"
    one.add_argument("--levels", type=float, nargs=2, metavar=("BLACK", "WHITE"), help=levels)
    one.add_argument("--max-new-tokens", type=int, default=256, help="token limit of a report (default: 256)")
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    one.set_defaults(command=predict_command)


def predict_command(args: argparse.Namespace) -> None:
    from data.studies import Study, load_image
    from data.windowing import WindowConfig
    from reports_by_policy import open_model, predict

    study = Study(
        str(args.image[0]), "", "test", tuple(args.image), "", "", args.indication, args.comparison, tuple(args.prior),
        window=WindowConfig(levels=tuple(args.levels) if args.levels else None),
    )  # fmt: skip
    for source in (*study.images, *study.prior_images):  # before a large model is loaded for nothing
        load_image(source, study_id=study.id, window=study.window)
    found = predict(*open_model(args.model), study, max_new_tokens=args.max_new_tokens)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    sections = [f"{name.title()}: {found[name] or '-'}" for name in ("findings", "impression")]
    shown = sections if found["findings"] or found["impression"] else [found["report"]]
    print("\n\n".join([*shown, f"Status: {found['status'].replace('_', ' ')}"]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="predict | generate | score | compare | cases | weights")
    for add in (add_predict, add_generate, add_score, add_compare, add_cases, add_weights):
        add(commands)
    args = parser.parse_args(argv)
    try:
        args.command(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a disk that is full, a folder that may not be written
        sys.exit(f"error: {error.filename or 'output'}: {error.strerror or error}")
    except StopRequested as stopped:
        sys.exit(f"{stopped}; start the same command again to go on")


if __name__ == "__main__":
    main()
