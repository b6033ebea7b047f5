"""Write reports with a trained model, score report files, compare systems.

    python evaluate.py generate --model runs/demo/rl/model --manifest studies.jsonl --out predictions.json
    python evaluate.py score --predictions predictions.json --references references.json
    python evaluate.py compare a.json b.json --references references.json

`train.py` evaluates with the same functions, so that a number means the same wherever it is printed.
"""

import argparse
import dataclasses
import json
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
from models.processing import ProcessorConfig, ReportProcessor
from models.qwen_vl import QwenVL, load
from rewards.hierarchy import HierarchicalReward, RewardConfig
from rewards.statistics import bootstrap_mean, distinct_share, paired_bootstrap
from rollouts import watched

Columns = dict[str, list[float | None]]  # metric -> one value a study; None: the reference does not define it

METRICS = {
    "total": "total reward",
    "bleu2": "BLEU-2",
    "rouge_l": "ROUGE-L",
    "entity_f1_rules": "entity F1 of the Findings (rules)",
    "consistency_rules": "consistency (rules)",
    "label_f1_rules": "label F1 of the Impression (rules)",
}
TRUTH = "label_f1_true_state"  # phantoms only: the Impression against the true state, which no reward sees


@dataclass(frozen=True)
class EvaluateConfig:
    """How held-out studies are evaluated."""

    max_new_tokens: int = 128
    """Token limit of a report; decoding is greedy."""
    slots: int = 64
    """Reports decoded side by side."""
    baseline_sample: int = 100
    """Training reports tried as constant report, and training references they are judged on."""


def prompt_of(processor: ReportProcessor, study: Study, change: Callable | None = None):
    """The model's input for a study; `change` is applied to each image of it (augmentation)."""
    images = [load_image(source, study_id=study.id) for source in study.images]
    prior = [load_image(source, study_id=study.id) for source in study.prior_images]
    if change is not None:
        images, prior = [change(image) for image in images], [change(image) for image in prior]
    return processor.prompt(
        study.id, images, indication=study.indication, comparison=study.comparison, prior_images=prior
    )


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
    """Every metric of every study.

    A part that the reward skips because the *report* lacks a section scores 0 here: a report without an Impression
    agrees with the reference's on nothing. Where the *reference* lacks it, the study has no value for any system.
    """
    scores = reward(reports, [study.report for study in studies])
    columns: Columns = {"total": [score.total for score in scores]}
    for name in list(METRICS)[1:]:
        columns[name] = [score.parts[name] for score in scores]
    columns["label_f1_rules"] = [
        (value or 0.0) if study.impression else None
        for value, study in zip(columns["label_f1_rules"], studies, strict=True)
    ]
    if all(study.state is not None for study in studies):
        impressions = reward.expert.labeler([parse_sections(report).impression for report in reports])
        truths = [{label for label, present in state_labels(study.state).items() if present} for study in studies]
        columns[TRUTH] = [reward.expert.agreement(a, b) for a, b in zip(impressions, truths, strict=True)]
    return columns


def constant_report(reward: HierarchicalReward, train: Sequence[Study], sample: int) -> dict[str, str]:
    """For each metric, the training report that scores best when given for every training study.

    Tried on an even sample of the training set: all pairs would be quadratic in its size.
    """
    stride = max(1, len(train) // sample)
    studies = [study for study in train[::stride] if study.impression][:sample]
    candidates = list(dict.fromkeys(study.report for study in studies))
    references = [study.report for study in studies]
    best: dict[str, tuple[float, str]] = {}
    for candidate in tqdm(candidates, "constant baseline", unit="report", disable=None, leave=False):
        scores = reward([candidate] * len(references), references)
        for name in METRICS:
            values = [s.total if name == "total" else s.parts[name] for s in scores]
            mean = statistics.fmean(v for v in values if v is not None)
            if name not in best or mean > best[name][0]:
                best[name] = (mean, candidate)
    return {name: report for name, (_, report) in best.items()}


def nearest_reports(train: Sequence[Study], test: Sequence[Study], side: int = 32) -> list[str]:
    """Report of the training study whose first image is most alike: cosine of `side` x `side` standardised pixels."""

    def pixels(studies: Sequence[Study]) -> np.ndarray:
        rows = []
        for study in studies:
            image = load_image(study.images[0], study_id=study.id).convert("L").resize((side, side))
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
        dataclasses.replace(study, images=other.images, prior_images=other.prior_images)
        for study, other in zip(studies, others, strict=True)
    ]


def baseline_columns(
    reward: HierarchicalReward, train: Sequence[Study], test: Sequence[Study], config: EvaluateConfig
) -> dict[str, Columns]:
    """What two systems that see nothing, or only copy, score on the test studies."""
    constants = constant_report(reward, train, config.baseline_sample)
    constant: Columns = {}
    for name, report in constants.items():
        constant[name] = score_reports(reward, [report] * len(test), test)[name]
    if any(study.state is not None for study in test):
        chosen = constants["label_f1_rules"]
        constant[TRUTH] = score_reports(reward, [chosen] * len(test), test)[TRUTH]
    nearest = score_reports(reward, nearest_reports(train, test), test)
    return {"best constant": constant, "nearest neighbour": nearest}


def comparison_rows(
    first: Columns, second: Columns, baselines: Mapping[str, Columns] | None = None
) -> list[dict[str, object]]:
    """One row a metric: both means with their intervals, the paired difference with its own, and the baselines."""
    rows = []
    for name in [*METRICS, TRUTH]:
        if name not in first:
            continue
        pairs = [(a, b) for a, b in zip(first[name], second[name], strict=True) if a is not None and b is not None]
        a, b = [p[0] for p in pairs], [p[1] for p in pairs]
        row: dict[str, object] = {"metric": name, "studies": len(pairs)}
        for key, interval in (
            ("first", bootstrap_mean(a)), ("second", bootstrap_mean(b)), ("difference", paired_bootstrap(a, b)),
        ):  # fmt: skip
            row[key] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        for baseline, columns in (baselines or {}).items():
            row[baseline] = statistics.fmean(v for v in columns[name] if v is not None)
        rows.append(row)
    return rows


def render_table(rows: Sequence[Mapping], names: tuple[str, str], notes: Sequence[str]) -> str:
    """The comparison as Markdown, readable on a terminal."""
    baselines = [k for k in rows[0] if k not in ("metric", "studies", "first", "second", "difference")]
    head = ["metric", names[0], names[1], "difference (95 % paired)", *baselines]
    body = []
    for row in rows:
        d = row["difference"]
        label = METRICS.get(row["metric"], "label F1 of the Impression (true state)")
        cells = [label, f"{row['first']['mean']:.3f}", f"{row['second']['mean']:.3f}"]
        cells.append(f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]")
        body.append([*cells, *(f"{row[b]:.3f}" for b in baselines)])
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
        known = [value for value in values if value is not None]
        interval = bootstrap_mean(known)
        print(f"{METRICS[name]:40s} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]  n={len(known)}")
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


def generate_command(args: argparse.Namespace) -> None:
    read = read_manifest(args.manifest, image_root=args.image_root)
    studies = [study for study in read if args.split in ("all", study.split)]
    check_studies(studies)
    decode_studies(studies)
    policy = load(args.model).eval()
    processor = ReportProcessor.load(args.model, ProcessorConfig())
    config = EvaluateConfig(max_new_tokens=args.max_new_tokens)
    reports = write_reports(policy, processor, studies, config, title="reports")
    write_json(args.out, rexrank(studies, reports))
    print(f"{len(reports)} reports in {args.out}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="generate | score | compare")
    generate = commands.add_parser("generate", help="write a report for each study of a manifest")
    generate.add_argument("--model", type=Path, required=True, help="directory of a Qwen-VL checkpoint")
    generate.add_argument("--manifest", type=Path, required=True, help="JSONL manifest of studies (docs/data.md)")
    generate.add_argument("--split", default="all", help="split of the manifest to report (default: all)")
    generate.add_argument(
        "--image-root", type=Path, help="folder that image paths start from (default: the manifest's)"
    )
    generate.add_argument("--out", type=Path, required=True, help="predictions in ReXrank's JSON")
    generate.add_argument("--max-new-tokens", type=int, default=256, help="token limit of a report (default: 256)")
    generate.set_defaults(command=generate_command)
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
