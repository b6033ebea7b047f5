"""The options of `evaluate.py`'s commands, and how each command is run with them."""

import argparse
from pathlib import Path
from typing import get_args

from data.protocols import Protocol
from evaluation.weights import NEEDED, Weights, default_root, fetch, listing
from rewards.lexicon import CAROTID


def add_generate(commands: argparse._SubParsersAction) -> None:
    text = "write a report for each study of a manifest; under torchrun shared out over the ranks, resumable"
    parser = commands.add_parser("generate", help=text, description=text)
    parser.add_argument("--model", help="Qwen-VL checkpoint: a directory or a hub id")
    parser.add_argument(
        "--data", "--manifest", type=Path, required=True, help="JSONL manifest of studies (docs/data.md)"
    )
    parser.add_argument("--image-root", type=Path, help="folder that image paths start from (default: the manifest's)")
    parser.add_argument("--split", default="all", help="split of the manifest to report (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="predictions in ReXrank's JSON")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="token limit of a report (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 decodes greedily (default), else samples")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the tokens of this probability")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    parser.add_argument("--slots", type=int, default=64, help="reports decoded side by side (default: 64)")
    parser.add_argument("--prefill-tokens", type=int, default=16384, help="prompt tokens read at one time; lower it if "
                        "memory is short (default: 16384)")  # fmt: skip
    parser.add_argument("--part-size", type=int, help="studies a part; a kill loses at most one part a rank "
                        "(default: 256, with --endpoint 32)")  # fmt: skip
    served = parser.add_argument_group("a served model instead of --model (OpenAI-compatible, with images)")
    served.add_argument("--endpoint", metavar="URL", help="such as http://127.0.0.1:8000/v1")
    served.add_argument("--endpoint-model", metavar="NAME", help="name of the model, as the endpoint knows it")
    served.add_argument("--prompt", help="the question; indication and comparison are added")
    served.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable that holds the key")
    served.add_argument("--allow-external", action="store_true", help="images may leave this machine")
    served.add_argument("--max-side", type=int, default=1024, help="largest side of an image in pixels (default: 1024)")
    served.add_argument("--concurrency", type=int, default=8, help="studies asked at a time (default: 8)")
    served.add_argument("--retries", type=int, default=4, help="further requests after a fault (default: 4)")
    served.add_argument("--timeout-s", type=float, default=300.0, help="seconds of one request (default: 300)")
    parser.set_defaults(command=generate_command)


def generate_command(args: argparse.Namespace) -> None:
    from capo.sampling import SamplingConfig
    from evaluation.endpoint import PROMPT, EndpointConfig
    from evaluation.generate import GenerateConfig, generate

    if (args.endpoint is None) != (args.endpoint_model is None):
        raise ValueError("expected --endpoint URL and --endpoint-model NAME together, got one of them")
    endpoint = None
    if args.endpoint is not None:
        endpoint = EndpointConfig(
            url=args.endpoint, model=args.endpoint_model, prompt=args.prompt or PROMPT, api_key_env=args.api_key_env,
            allow_external=args.allow_external, max_side=args.max_side, max_tokens=args.max_new_tokens,
            temperature=args.temperature, concurrency=args.concurrency, retries=args.retries, timeout_s=args.timeout_s,
        )  # fmt: skip
    sampling = SamplingConfig(
        temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens,
        prefill_tokens=args.prefill_tokens,
    )  # fmt: skip
    part_size = args.part_size if args.part_size is not None else (256 if endpoint is None else 32)
    generate(GenerateConfig(
        data=args.data, out=args.out,
        image_root=args.image_root, model=args.model, endpoint=endpoint, split=args.split, sampling=sampling,
        seed=args.seed, slots=args.slots, part_size=part_size,
    ))  # fmt: skip


def _add_texts(parser: argparse.ArgumentParser) -> None:
    """Options of what is compared, and with what."""
    parser.add_argument("--protocol", choices=get_args(Protocol), default="rexrank",
                        help="rexrank: both sections, text untouched (default); or one section")  # fmt: skip
    parser.add_argument("--split", default="all", help="only references of this split (default: all)")
    parser.add_argument("--lexicon", type=Path, default=CAROTID, help="keywords of KeyWordMatch (default: carotid)")
    parser.add_argument("--workers", type=int, default=0, help="processes for metrics without weights (default: none)")
    parser.add_argument("--cache", type=Path, help="SQLite file that keeps RadGraph's graphs by text")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of resampling and random reports (default: 0)")
    _add_weights_options(parser)


def _add_weights_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weights (see the command weights)")
    group.add_argument(
        "--weights", type=Path, metavar="DIR", help="root (default: $RADFLOW_WEIGHTS or the user's cache)"
    )
    group.add_argument("--bertscore-path", type=Path, help="directory of distilroberta-base")
    group.add_argument("--chexbert-path", type=Path, help="chexbert.pth")
    group.add_argument("--chexbert-bert", type=Path, help="directory of bert-base-uncased (config and tokenizer)")
    group.add_argument("--radgraph-path", type=Path, help="RadGraph v1: a directory or radgraph.tar.gz")
    group.add_argument("--radgraph-encoder", type=Path, help="directory with config and tokenizer of its encoder")
    group.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    group.add_argument(
        "--token-budget", type=int, default=2048, help="tokens a batch; a GPU wants more (default: 2048)"
    )


def _weights(args: argparse.Namespace) -> Weights:
    return Weights(
        root=args.weights or default_root(), bertscore=args.bertscore_path, chexbert=args.chexbert_path,
        bert=args.chexbert_bert, radgraph=args.radgraph_path, radgraph_encoder=args.radgraph_encoder,
        device=args.device, token_budget=args.token_budget,
    )  # fmt: skip


def add_score(commands: argparse._SubParsersAction) -> None:
    text = "score one file of reports, beside baselines that see nothing or only copy"
    parser = commands.add_parser("score", help=text, description=text)
    parser.add_argument("--predictions", type=Path, help="ReXrank JSON, JSONL, CSV, or a folder of text files")
    parser.add_argument("--references", type=Path, help="the same, and files of MIMIC-CXR, IU, CheXpert Plus, "
                        "ReXGradient; not needed where the predictions hold them or --manifest is given")  # fmt: skip
    parser.add_argument("--train", type=Path, help="training references, for the baselines")
    parser.add_argument("--manifest", type=Path, help="JSONL manifest with the images, for the nearest neighbour")
    parser.add_argument("--image-root", type=Path, help="folder that image paths start from (default: the manifest's)")
    parser.add_argument("--precomputed", type=Path, help="JSONL of sub-scores or annotations by id (docs/evaluate.md)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="summary as text, Markdown, LaTeX and JSON, and "
                        "per study as CSV and JSONL")  # fmt: skip
    parser.add_argument("--baseline-sample", type=int, default=100,
                        help="training reports tried as constant report (default: 100)")  # fmt: skip
    _add_texts(parser)
    parser.set_defaults(command=score_command)


def score_command(args: argparse.Namespace) -> None:
    from evaluation.score import ScoreConfig, score, tables, write
    from evaluation.tables import documents

    config = ScoreConfig(
        predictions=args.predictions, references=args.references, train=args.train, manifest=args.manifest,
        image_root=args.image_root,
        precomputed=args.precomputed, protocol=args.protocol, split=args.split, lexicon=args.lexicon,
        workers=args.workers, cache=args.cache, baseline_sample=args.baseline_sample, num_resamples=args.resamples,
        seed=args.seed,
    )  # fmt: skip
    scored = score(config, _weights(args))
    if args.out is None:
        print(documents(*tables(scored))["txt"], end="")
    else:
        print(write(scored, args.out, config), end="")
        print(f"\nwritten to {args.out}")


def add_compare(commands: argparse._SubParsersAction) -> None:
    text = "compare two or more files of reports, paired by study"
    parser = commands.add_parser("compare", help=text, description=text)
    parser.add_argument("systems", type=Path, nargs="+", help="files of reports; others are compared with the first")
    parser.add_argument("--references", type=Path, help="references; else those beside the first system's predictions")
    parser.add_argument("--pairs", choices=("first", "all"), default="first", help="which pairs are tested")
    parser.add_argument(
        "--changed", type=int, default=10, help="studies shown that changed most, each way (default: 10)"
    )
    parser.add_argument("--changed-by", metavar="METRIC", help="metric of those studies, such as bleu2")
    parser.add_argument("--out", type=Path, metavar="DIR", help="comparison as text, Markdown, LaTeX and JSON")
    _add_texts(parser)
    parser.set_defaults(command=compare_command)


def compare_command(args: argparse.Namespace) -> None:
    from evaluation.compare import CompareConfig, compare, tables, write
    from evaluation.tables import documents

    config = CompareConfig(
        systems=tuple(args.systems), references=args.references, protocol=args.protocol, split=args.split,
        pairs=args.pairs, changed=args.changed, changed_by=args.changed_by, lexicon=args.lexicon, workers=args.workers,
        cache=args.cache, num_resamples=args.resamples, seed=args.seed,
    )  # fmt: skip
    compared = compare(config, _weights(args))
    shown, notes = tables(compared, config)
    print(documents(shown, notes)["txt"], end="")
    if args.out is not None:
        write(compared, args.out, shown, notes)
        print(f"\nwritten to {args.out}")


def add_cases(commands: argparse._SubParsersAction) -> None:
    text = "show studies side by side: image, reference, systems, with agreeing and contradicting findings coloured"
    parser = commands.add_parser("cases", help=text, description=text)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="one file of reports, or several")
    parser.add_argument("--references", type=Path, help="references; by default those of the manifest")
    parser.add_argument("--manifest", type=Path, required=True, help="JSONL manifest with the images")
    parser.add_argument("--image-root", type=Path, help="folder that image paths start from (default: the manifest's)")
    parser.add_argument("--ids", nargs="+", default=[], metavar="ID", help="studies to show (default: the first ones)")
    parser.add_argument("--most", type=int, default=20, help="studies shown where none are named (default: 20)")
    parser.add_argument("--side", type=int, default=512, help="largest side of an image in pixels (default: 512)")
    parser.add_argument("--protocol", choices=get_args(Protocol), default="rexrank", help="which text is shown")
    parser.add_argument("--out", type=Path, required=True, help="the page, one file")
    parser.set_defaults(command=cases_command)


def cases_command(args: argparse.Namespace) -> None:
    from evaluation.case_page import CasesConfig, write_cases

    config = CasesConfig(
        predictions=tuple(args.predictions), references=args.references, manifest=args.manifest,
        image_root=args.image_root, out=args.out,
        ids=tuple(args.ids), most=args.most, protocol=args.protocol, side=args.side,
    )  # fmt: skip
    print(f"{write_cases(config)} studies in {args.out}")


def add_weights(commands: argparse._SubParsersAction) -> None:
    text = "list what each metric needs, where it is looked for, its hash and licence; fetch what may be fetched"
    parser = commands.add_parser("weights", help=text, description=text)
    parser.add_argument("--fetch", nargs="+", metavar="NAME", default=[], help=f"download: {', '.join(NEEDED)}")
    parser.add_argument("--accept-licence", action="store_true", help="you have read it and are entitled to use it")
    _add_weights_options(parser)
    parser.set_defaults(command=weights_command)


def weights_command(args: argparse.Namespace) -> None:
    weights = _weights(args)
    for name in args.fetch:
        print(f"{name}: {fetch(name, weights, accept_licence=args.accept_licence)}")
    if not args.fetch:
        print(listing(weights))
