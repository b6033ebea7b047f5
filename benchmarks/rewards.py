"""Cost of rewards, in CPU seconds: RadGraph in batches against the radgraph package 0.1.18, and by length and batch;
BERTScore against the bert-score package 0.3.13.

Worker processes compute rewards while others decode, so CPU time is the cost, and it can be measured on a shared
machine. All variants run in turns in one process; what they need of memory is mostly
there already. Weights are random, of the published size, and give about as many entities and relations as real ones.
Texts are seeded draws of words that real reports use; they have the length of a report, not its sense.

A part of the reward is a function of `PARTS`, which returns its variants.
"""

import functools
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from flops import gflop
from harness import Run, arguments, machine, matmul_rate, peak_memory, start_watching_memory, summary, write
from tqdm import tqdm

ROOT = Path(__file__).parents[1]

GROUPS, ROLLOUTS = 3, 4  # studies, and reports of each
WORDS = {"IU": 28, "MIMIC": 76}  # mean words: Findings of IU X-ray; Findings and Impression of MIMIC-CXR
LENGTHS = {30: 16, 80: 8, 200: 4}  # words of a report -> reports
BUDGETS = (1, 512, 4096)  # word pieces a batch; 1 is one report at a time
MODEL = "radgraph"
LAYERS = 5  # of distilroberta-base, as ReXrank reads it
TYPICAL = (
    "the heart is normal in size and contour there no focal consolidation pleural effusion or pneumothorax lungs are "
    "clear mild left right lower lobe opacity bibasilar atelectasis unchanged from prior examination cardiomediastinal "
    "silhouette within limits acute cardiopulmonary process degenerative changes of thoracic spine small moderate "
    "interstitial edema suggestive pneumonia catheter tip terminates superior vena cava hila aorta tortuous calcified"
)
VOCABULARY = TYPICAL.split()


@dataclass(frozen=True)
class Variant:
    """Something to measure."""

    name: str
    work: Callable[[], int]  # returns how many reports it scored
    against: str  # name of the variant that it is compared with, perhaps itself


def texts(count: int, words: int, *, seed: int) -> list[str]:
    """Sentences of 5 to 9 words; a quarter more or less than `words` in all."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        left, sentences = round(words * draw.uniform(0.75, 1.25)), []
        while left > 0:
            length = min(left, draw.randint(5, 9))
            sentences.append(" ".join(draw.choices(VOCABULARY, k=length)).capitalize() + ".")
            left -= length
        made.append(" ".join(sentences))
    return made


def groups(words: int) -> list[tuple[list[str], list[str]]]:
    """Candidates and references of each study."""
    studies = [texts(ROLLOUTS + 1, words, seed=seed) for seed in range(GROUPS)]
    return [(study[1:], study[:1] * ROLLOUTS) for study in studies]


def radgraph(folder: Path) -> tuple[list[Variant], dict[str, float]]:
    """F1 of groups as in training, one call a study, against the package; and annotation by length and batch."""
    from radgraph.radgraph import F1RadGraph
    from radgraph_archives import PUBLISHED, write_archive
    from radgraph_package import restored_methods

    from radflow.rewards.radgraph.annotate import RadGraphAnnotator
    from radflow.rewards.radgraph.f1 import RadGraphConfig, RadGraphF1

    write_archive(folder, MODEL, texts(40, WORDS["MIMIC"], seed=1000), PUBLISHED)
    annotate = RadGraphAnnotator.load(RadGraphConfig(path=folder, model=MODEL, device="cpu"))
    with restored_methods():
        package = F1RadGraph(reward_level="partial", model_type=MODEL, model_cache_dir=str(folder), cuda=-1)

    def batched(words: int) -> int:
        reward = RadGraphF1(annotate, level="partial")  # a new one knows no references
        return sum(len(reward(candidates, references)) for candidates, references in groups(words))

    known = RadGraphF1(annotate, level="partial")
    for words in WORDS.values():
        for _, references in groups(words):
            known(references, references)

    def with_known_references(words: int) -> int:
        return sum(len(known(candidates, references)) for candidates, references in groups(words))

    def one_by_one(words: int) -> int:
        with restored_methods():
            return sum(len(package(refs=references, hyps=candidates)[1]) for candidates, references in groups(words))

    def annotated(words: int, max_tokens: int) -> int:
        annotate.encoder.max_tokens = max_tokens
        count = len(annotate(texts(LENGTHS[words], words, seed=words)))
        annotate.encoder.max_tokens = RadGraphConfig().max_tokens
        return count

    variants = []
    for corpus, words in WORDS.items():
        name = f"RadGraph F1, G {ROLLOUTS}, {corpus} length"
        for kind, work in (("package", one_by_one), ("new references", batched), ("known", with_known_references)):
            variants.append(Variant(f"{name}, {kind}", functools.partial(work, words), f"{name}, package"))
    for words in LENGTHS:
        names = {budget: f"graphs, {words} words, batches of {budget}" for budget in BUDGETS}
        names[1] = f"graphs, {words} words, one by one"
        variants += [
            Variant(names[budget], functools.partial(annotated, words, budget), names[1]) for budget in BUDGETS
        ]
    return variants, outside_the_encoder(annotate, package.radgraph)


def bertscore(folder: Path) -> tuple[list[Variant], dict[str, float]]:
    """Groups as in training, one call a study, against the package, with an encoder of distilroberta-base's sizes."""
    import bert_score
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    from radflow.rewards.metrics.bertscore import BertScore, BertScoreConfig

    trained, encoder = ByteLevelBPETokenizer(), folder / "roberta"
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(texts(400, WORDS["MIMIC"], seed=1000), vocab_size=2000, special_tokens=special)
    encoder.mkdir()
    trained.save_model(str(encoder))
    sizes = {"vocab_size": trained.get_vocab_size(), "num_hidden_layers": 6, "max_position_embeddings": 514}
    RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False).save_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder, add_prefix_space=True, model_max_length=512)
    tokenizer.save_pretrained(encoder)
    options = {"num_layers": LAYERS, "idf": False, "device": "cpu"}
    package = bert_score.BERTScorer(model_type=str(encoder), **options)
    package._tokenizer = tokenizer
    config = BertScoreConfig(path=str(encoder), num_layers=LAYERS, device="cpu")
    known = BertScore.load(config)

    def theirs(words: int) -> int:
        return sum(len(package.score(candidates, references)[2]) for candidates, references in groups(words))

    def ours(words: int) -> int:
        reward = BertScore(known.encoder, baseline=None, cache_mb=config.cache_mb)  # a new one knows no references
        return sum(len(reward(candidates, references)) for candidates, references in groups(words))

    def with_known_references(words: int) -> int:
        return sum(len(known(candidates, references)) for candidates, references in groups(words))

    variants = []
    for words in LENGTHS:
        name = f"BERTScore, G {ROLLOUTS}, {words} words"
        with_known_references(words)
        for kind, work in (("package", theirs), ("new references", ours), ("known", with_known_references)):
            variants.append(Variant(f"{name}, {kind}", functools.partial(work, words), f"{name}, package"))
    return variants, {}


def outside_the_encoder(annotate: Callable, package: Callable) -> dict[str, float]:
    """CPU milliseconds per report of everything but the encoder's forward; and how dense the graphs are."""
    from radgraph_package import restored_methods

    reports = texts(16, WORDS["MIMIC"], seed=7)
    embedder = package.model._embedder.token_embedder_bert._matched_embedder
    with restored_methods():
        theirs = _outside(lambda: package(reports), embedder.transformer_model)
    ours, graphs = _outside(lambda: annotate(reports), annotate.encoder.model), annotate(reports)
    words = sum(len(text.split()) for text in reports)
    return {
        "package_cpu_ms_outside_encoder": theirs / len(reports),
        "batched_cpu_ms_outside_encoder": ours / len(reports),
        "entities_per_word": sum(map(len, graphs)) / words,
        "relations_per_word": sum(len(e["relations"]) for graph in graphs for e in graph.values()) / words,
    }


def _outside(work: Callable[[], object], model: torch.nn.Module) -> float:
    """CPU milliseconds of the second run of work, without those inside the model's forward."""
    inside, began = 0.0, 0.0

    def start(*_: object) -> None:
        nonlocal began
        began = time.process_time()

    def stop(*_: object) -> None:
        nonlocal inside
        inside += time.process_time() - began

    work()
    hooks = model.register_forward_pre_hook(start), model.register_forward_hook(stop)
    whole = time.process_time()
    work()
    milliseconds = 1000 * (time.process_time() - whole - inside)
    for hook in hooks:
        hook.remove()
    return milliseconds


PARTS = (radgraph, bertscore)


def measured(work: Callable[[], int]) -> Run:
    """CPU seconds, MB above what was held before and in all, reports."""
    before, began = start_watching_memory(), time.process_time()
    reports = work()
    seconds, peak = time.process_time() - began, peak_memory()
    return seconds, peak - before, peak, reports


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        variants, facts = [], {}
        for part in PARTS:
            made, further = part(Path(folder))
            variants += made
            facts |= further
        counted = {variant.name: gflop(variant.work) for variant in variants}
        runs: dict[str, list[Run]] = {variant.name: [] for variant in variants}
        for _ in range(options.rounds):
            for variant in tqdm(variants, "variants", disable=None):
                runs[variant.name].append(measured(variant.work))
    setting = (
        f"CPU seconds of rewards, {options.threads} thread(s): {GROUPS} studies of {ROLLOUTS} reports, one call "
        "a study; and graphs of reports of a length; random weights of the published size"
    )
    content = {"setting": setting, "rounds": options.rounds, "machine": machine(options.threads), "unit": "reports"}
    content["peak"] = matmul_rate(options.threads)
    results = {
        variant.name: replace(summary(runs[variant.name], runs[variant.against]), gflop=counted[variant.name])
        for variant in variants
    }
    content |= facts | {"variants": {name: asdict(result) for name, result in results.items()}}
    write("rewards", content)


if __name__ == "__main__":
    main()
