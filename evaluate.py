"""Write reports with a trained model, one or many, score report files, compare systems.

    python evaluate.py predict --model runs/demo/rl/model --image frontal.png --indication "Cough."
    python evaluate.py generate --model runs/demo/rl/model --manifest studies.jsonl --out predictions.json
    python evaluate.py score --predictions predictions.json --references references.json
    python evaluate.py compare a.json b.json --references references.json

`train.py` evaluates with the same functions, so that a number means the same wherever it is printed.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from capo.journal import write_json, write_whole
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig
from capo.stopping import StopSignal
from data.phantoms import state_labels
from data.readers.manifest import read_manifest
from data.sections import parse_sections
from data.studies import Study, check_studies, decode_studies, load_image
from data.windowing import WindowConfig
from models.loading import locate
from models.processing import ReportProcessor
from models.qwen_vl import QwenVL, load
from rewards.catalogue import CATALOGUE, label_of
from rewards.config import RewardConfig
from rewards.hierarchy import HierarchicalReward
from rewards.statistics import bootstrap_mean, distinct_share, paired_bootstrap
from rollouts import watched

Columns = dict[str, list[float | None]]  # metric -> one value a study; None: the reference does not define it

TRUTH = "label_f1_true_state"  # phantoms only: the Impression against the true state, which no reward sees
LABELS = {"total": "total reward", TRUTH: "label F1 of the Impression (true state)"}


@dataclass(frozen=True)
class EvaluateConfig:
    """How held-out studies are evaluated."""

    max_new_tokens: int = 128
    """Token limit of a report; decoding is greedy."""
    slots: int = 64
    """Reports decoded side by side."""
    baseline_sample: int = 100
    """Training reports tried as constant report, and training references they are judged on."""
    metrics: tuple[str, ...] = ()
    """Columns beside the parts of the reward and the metrics of exploration, by their names in docs/rewards.md: what
    training does not aim at tells best whether it helps."""


def prompt_of(processor: ReportProcessor, study: Study, change: Callable | None = None):
    """The model's input for a study; `change` is applied to each image of it (augmentation)."""
    images = [load_image(source, study_id=study.id, window=study.window) for source in study.images]
    prior = [load_image(source, study_id=study.id, window=study.window) for source in study.prior_images]
    if change is not None:
        images, prior = [change(image) for image in images], [change(image) for image in prior]
    texts = {"indication": study.indication, "comparison": study.comparison}
    return processor.prompt(study.id, images, prior_images=prior, views=study.views, **texts)


def banned_mask(policy: QwenVL, processor: ReportProcessor) -> torch.Tensor:
    """[V] bool, tokens no report may hold. The same mask samples and scores.

    Rows of the embedding beyond the tokenizer's last token are padding of the published checkpoints: banned too.
    """
    processor.check_fits(policy.vocab_size)
    banned = torch.zeros(policy.vocab_size, dtype=torch.bool)
    banned[list(processor.banned_ids)] = True
    banned[len(processor.tokenizer) :] = True
    return banned.to(policy.device)


def write_reports(
    policy: QwenVL,
    processor: ReportProcessor,
    studies: Sequence[Study],
    config: EvaluateConfig,
    *,
    title: str,
    stop: StopSignal | None = None,
    shown: bool = True,
) -> list[str]:
    """One greedy report a study, in the order of `studies`.

    Raises:
        StopRequested: `stop` said so.
    """
    position = {study.id: i for i, study in enumerate(studies)}
    reports: list[str] = [""] * len(studies)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=config.max_new_tokens)
    requests = (Request(prompt_of(processor, study), (0,)) for study in studies)
    written = rollout(
        policy, requests, sampling=sampling, eos_id=processor.eos_id,
        banned=banned_mask(policy, processor), slots=min(config.slots, len(studies)), stop=stop,
    )  # fmt: skip
    for report in watched(written, title, len(studies), shown=shown):
        reports[position[report.study_id]] = processor.decode(report.response_ids)
    return reports


def score_reports(reward: HierarchicalReward, reports: Sequence[str], studies: Sequence[Study]) -> Columns:
    """The total reward and every metric of the reward, for every study; on phantoms the true state's label F1 too."""
    columns = _scored(reward, reports, studies)
    if all(study.state is not None for study in studies):
        impressions = reward.expert.labeler([parse_sections(report).impression for report in reports])
        truths = [{label for label, present in state_labels(study.state).items() if present} for study in studies]
        columns[TRUTH] = [reward.expert.agreement(a, b) for a, b in zip(impressions, truths, strict=True)]
    return columns


def _scored(reward: HierarchicalReward, reports: Sequence[str], studies: Sequence[Study]) -> Columns:
    """Total and metrics, these on the texts as written (the reward itself reads them without line breaks).

    A metric that skips a study because the *report* lacks the Impression is 0 here: such a report agrees with the
    reference's on nothing. Where the *reference* lacks it, the study has no value for any system; nor has it where the
    metric could not be computed.
    """
    references = [study.report for study in studies]
    columns: Columns = {"total": [score.total for score in reward(reports, references)]}
    measured = reward.metrics(reports, references)
    for name, values in measured.values.items():
        columns[name] = values
        if name in CATALOGUE and CATALOGUE[name].reads == "impression":
            cells = zip(values, studies, strict=True)
            columns[name] = [(value or 0.0) if study.impression else None for value, study in cells]
    return columns


def label_of_column(name: str) -> str:
    """How tables name a column."""
    return LABELS[name] if name in LABELS else label_of(name)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def constant_report(reward: HierarchicalReward, train: Sequence[Study], sample: int) -> dict[str, str]:
    """For each metric, the training report that scores best when given for every training study.

    Tried on an even sample of the training set: all pairs would be quadratic in its size.
    """
    stride = max(1, len(train) // sample)
    studies = [study for study in train[::stride] if study.impression][:sample]
    candidates = list(dict.fromkeys(study.report for study in studies))
    best: dict[str, tuple[float, str]] = {}
    for candidate in tqdm(candidates, "constant baseline", unit="report", disable=None, leave=False):
        for name, values in _scored(reward, [candidate] * len(studies), studies).items():
            mean = statistics.fmean(_known(values)) if _known(values) else -math.inf
            if name not in best or mean > best[name][0]:
                best[name] = (mean, candidate)
    return {name: report for name, (_, report) in best.items()}


def nearest_reports(train: Sequence[Study], test: Sequence[Study], side: int = 32) -> list[str]:
    """Report of the training study whose first image is most alike: cosine of `side` x `side` standardised pixels."""

    def pixels(studies: Sequence[Study]) -> np.ndarray:
        rows = []
        for study in studies:
            image = load_image(study.images[0], study_id=study.id, window=study.window)
            image = image.convert("L").resize((side, side))
            row = np.asarray(image, dtype=np.float32).ravel()
            row = row - row.mean()
            rows.append(row / max(float(np.linalg.norm(row)), 1e-6))
        return np.stack(rows)

    nearest = (pixels(test) @ pixels(train).T).argmax(1)
    return [train[i].report for i in nearest]


def with_other_images(studies: Sequence[Study]) -> list[Study]:
    """The same studies, each with the images of another: a policy that scores the same on them does not look."""
    half = len(studies) // 2
    others = [*studies[half:], *studies[:half]]
    return [
        dataclasses.replace(study, images=other.images, prior_images=other.prior_images, views=other.views)
        for study, other in zip(studies, others, strict=True)
    ]


def baseline_columns(
    reward: HierarchicalReward, train: Sequence[Study], test: Sequence[Study], config: EvaluateConfig
) -> dict[str, Columns]:
    """What two systems that see nothing, or only copy, score on the test studies."""
    constants = constant_report(reward, train, config.baseline_sample)
    scored = {report: score_reports(reward, [report] * len(test), test) for report in dict.fromkeys(constants.values())}
    constant = {name: scored[report][name] for name, report in constants.items()}
    chosen = scored[constants["label_f1_rules" if "label_f1_rules" in constants else "total"]]
    constant |= {TRUTH: chosen[TRUTH]} if TRUTH in chosen else {}
    nearest = score_reports(reward, nearest_reports(train, test), test)
    return {"best constant": constant, "nearest neighbour": nearest}


def comparison_rows(
    first: Columns, second: Columns, baselines: Mapping[str, Columns] | None = None
) -> list[dict[str, object]]:
    """One row a metric: both means with their intervals, the paired difference with its own, and the baselines; None
    for all of them where no study has a value."""
    rows = []
    for name in first:
        pairs = [(a, b) for a, b in zip(first[name], second[name], strict=True) if a is not None and b is not None]
        a, b = [p[0] for p in pairs], [p[1] for p in pairs]
        row: dict[str, object] = {"metric": name, "studies": len(pairs)}
        if pairs:
            intervals = {
                "first": bootstrap_mean(a), "second": bootstrap_mean(b), "difference": paired_bootstrap(a, b)
            }  # fmt: skip
            row |= {key: dataclasses.asdict(interval) for key, interval in intervals.items()}
        for baseline, columns in (baselines or {}).items():
            known = _known(columns[name])
            row[baseline] = statistics.fmean(known) if known else None
        rows.append(row)
    return rows


def render_table(rows: Sequence[Mapping], names: tuple[str, str], notes: Sequence[str]) -> str:
    """The comparison as Markdown, readable on a terminal."""
    baselines = [k for k in rows[0] if k not in ("metric", "studies", "first", "second", "difference")]
    head = ["metric", names[0], names[1], "difference (95 % paired)", *baselines]
    body = []
    for row in rows:
        cells = [label_of_column(row["metric"]), *["unavailable"] * 3]
        if row["studies"]:
            d = row["difference"]
            cells[1:3] = f"{row['first']['mean']:.3f}", f"{row['second']['mean']:.3f}"
            cells[3] = f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        body.append([*cells, *("unavailable" if row[b] is None else f"{row[b]:.3f}" for b in baselines)])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in [head, *body]]
    lines.insert(1, "-|-".join("-" * w for w in widths))
    return "\n".join([*(f"| {line} |" for line in lines), "", *notes]) + "\n"


def describe(name: str, reports: Sequence[str]) -> str:
    """How varied the reports are: a number above means little when they are all the same one."""
    words = statistics.fmean(len(report.split()) for report in reports)
    return f"{name}: {100 * distinct_share(reports):.1f} % distinct reports, {words:.1f} words on average"


def rexrank(studies: Sequence[Study], reports: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reports by study id, as ReXrank's JSON has them."""
    return {study.id: {"report": report} for study, report in zip(studies, reports, strict=True)}


def read_reports(path: Path) -> dict[str, str]:
    """Reports of a ReXrank JSON ({id: {"report": ...}} or with section_findings / section_impression) by study id."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON object of study id -> report, got {error}") from error
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"{path}: expected a JSON object of study id -> report, got {type(loaded).__name__}")
    reports = {}
    for study_id, entry in loaded.items():
        report = entry.get("report") if isinstance(entry, dict) else entry
        if not isinstance(report, str):
            raise ValueError(f"{path}: study {study_id}: expected the text of a report, got {type(report).__name__}")
        reports[study_id] = report
    return reports


def _studies_of(references: Mapping[str, str]) -> list[Study]:
    studies = []
    for study_id, report in references.items():
        sections = parse_sections(report)
        studies.append(Study(study_id, study_id, "test", (), sections.findings, sections.impression))
    return studies


def _same_ids(predictions: Mapping[str, str], references: Mapping[str, str], path: Path) -> None:
    missing = sorted(set(references) - set(predictions))
    unknown = sorted(set(predictions) - set(references))
    if missing or unknown:
        raise ValueError(
            f"{path}: expected exactly the {len(references)} studies of the references; {len(missing)} have no report "
            f"(first: {missing[:3]}), {len(unknown)} are not among the references (first: {unknown[:3]})"
        )


def score_command(args: argparse.Namespace) -> None:
    references = read_reports(args.references)
    predictions = read_reports(args.predictions)
    _same_ids(predictions, references, args.predictions)
    studies = _studies_of(references)
    reward = HierarchicalReward.from_config(RewardConfig(expert=args.expert), parse_sections)
    columns = score_reports(reward, [predictions[study.id] for study in studies], studies)
    for name, values in columns.items():
        known = _known(values)
        interval = bootstrap_mean(known)
        print(
            f"{label_of_column(name):40s} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]  n={len(known)}"
        )
    print(describe("predictions", [predictions[study.id] for study in studies]))
    if args.out:
        write_json(args.out, {"ids": [study.id for study in studies], "metrics": columns})


def compare_command(args: argparse.Namespace) -> None:
    references = read_reports(args.references)
    studies = _studies_of(references)
    reward = HierarchicalReward.from_config(RewardConfig(expert=args.expert), parse_sections)
    columns, notes = [], []
    for path in (args.first, args.second):
        predictions = read_reports(path)
        _same_ids(predictions, references, path)
        reports = [predictions[study.id] for study in studies]
        columns.append(score_reports(reward, reports, studies))
        notes.append(describe(path.name, reports))
    table = render_table(comparison_rows(*columns), (args.first.stem, args.second.stem), notes)
    print(table)
    if args.out:
        write_whole(args.out, table)


def open_model(path_or_id: str) -> tuple[QwenVL, ReportProcessor]:
    """A model as it lies on disk, on the GPU where there is one, and the prompt that it was trained with."""
    directory, device = locate(path_or_id), "cuda" if torch.cuda.is_available() else "cpu"
    return load(directory, dtype=None).to(device), ReportProcessor.load(directory)


def predict(policy: QwenVL, processor: ReportProcessor, study: Study, *, max_new_tokens: int) -> dict[str, str]:
    """The greedy report of one study: `report`, its `findings` and `impression`, and the parser's `status`.

    A report that was cut at the token limit has the status `truncated`, whatever sections it got to.
    """
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens)
    options = {"sampling": sampling, "eos_id": processor.eos_id, "banned": banned_mask(policy, processor), "slots": 1}
    (written,) = rollout(policy, [Request(prompt_of(processor, study), (0,))], **options)
    report = processor.decode(written.response_ids)
    sections = parse_sections(report)
    status = "truncated" if written.truncated else sections.status
    return {"report": report, "findings": sections.findings, "impression": sections.impression, "status": status}


def predict_command(args: argparse.Namespace) -> None:
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


def generate_command(args: argparse.Namespace) -> None:
    read = read_manifest(args.manifest, image_root=args.image_root)
    studies = [study for study in read if args.split in ("all", study.split)]
    check_studies(studies)
    decode_studies(studies)
    policy, processor = open_model(args.model)
    config = EvaluateConfig(max_new_tokens=args.max_new_tokens)
    reports = write_reports(policy, processor, studies, config, title="reports")
    write_json(args.out, rexrank(studies, reports))
    print(f"{len(reports)} reports in {args.out}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="predict | generate | score | compare")
    one = commands.add_parser("predict", help="write the report of one study")
    one.add_argument("--image", type=Path, action="append", required=True, help="an image; again for each further view")
    one.add_argument("--prior", type=Path, action="append", default=[], help="an image of an earlier study")
    one.add_argument("--indication", default="", help="why the examination was made")
    one.add_argument("--comparison", default="", help="what it is compared with")
    levels = "grey levels of a 16-bit image shown as black and white (default: its darkest and brightest)"
    one.add_argument("--levels", type=float, nargs=2, metavar=("BLACK", "WHITE"), help=levels)
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    one.set_defaults(command=predict_command)
    generate = commands.add_parser("generate", help="write a report for each study of a manifest")
    generate.add_argument("--manifest", type=Path, required=True, help="JSONL manifest of studies (docs/data.md)")
    generate.add_argument("--split", default="all", help="split of the manifest to report (default: all)")
    generate.add_argument(
        "--image-root", type=Path, help="folder that image paths start from (default: the manifest's)"
    )
    generate.add_argument("--out", type=Path, required=True, help="predictions in ReXrank's JSON")
    generate.set_defaults(command=generate_command)
    for command in (one, generate):
        command.add_argument("--model", required=True, help="Qwen-VL checkpoint: a directory or a hub id")
        command.add_argument("--max-new-tokens", type=int, default=256, help="token limit of a report (default: 256)")
    score = commands.add_parser("score", help="score one file of reports")
    score.add_argument("--predictions", type=Path, required=True, help="ReXrank JSON: study id -> report")
    compare = commands.add_parser("compare", help="compare two files of reports, paired by study")
    compare.add_argument("first", type=Path, help="ReXrank JSON of the first system")
    compare.add_argument("second", type=Path, help="ReXrank JSON of the second system")
    for command, run in ((score, score_command), (compare, compare_command)):
        command.add_argument("--references", type=Path, required=True, help="ReXrank JSON with the reference reports")
        command.add_argument("--expert", choices=["chexpert_rules", "carotid_rules"], default="chexpert_rules")
        command.add_argument("--out", type=Path, help="also write the result here")
        command.set_defaults(command=run)
    args = parser.parse_args(argv)
    try:
        args.command(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
