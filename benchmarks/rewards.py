"""Cost of rewards: RadGraph in batches against the radgraph package 0.1.18, on a random archive of the published size.

A part of the reward is a list of variants, made by a function of `PARTS`; all of them go into one table. The texts are
seeded draws of words that real reports use; they have the length of a report, not its sense.
"""

import functools
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import arguments, compare

ROOT = Path(__file__).parents[1]
# Before this folder, where `rewards` is this file; processes of the harness get the same path.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

GROUPS, ROLLOUTS, WORDS = 4, 4, 76  # studies, reports of each, and the mean words of MIMIC-CXR findings and impression
LENGTHS = {30: 16, 80: 8, 200: 4}  # words of a report -> reports
BUDGETS = (1, 512, 4096)  # word pieces a batch; 1 is one report at a time
MODEL = "radgraph"
TYPICAL = (
    "the heart is normal in size and contour there no focal consolidation pleural effusion or pneumothorax lungs are "
    "clear mild left right lower lobe opacity bibasilar atelectasis unchanged from prior examination cardiomediastinal "
    "silhouette within limits acute cardiopulmonary process degenerative changes of thoracic spine small moderate "
    "interstitial edema suggestive pneumonia catheter tip terminates superior vena cava hila aorta tortuous calcified"
)
VOCABULARY = TYPICAL.split()
Variants = dict[str, Callable[[], Callable[[], float]]]


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


def groups() -> list[tuple[list[str], list[str]]]:
    """Candidates and references of each study."""
    studies = [texts(ROLLOUTS + 1, WORDS, seed=seed) for seed in range(GROUPS)]
    return [(study[1:], study[:1] * ROLLOUTS) for study in studies]


def radgraph_batched(folder: Path) -> Callable[[], float]:
    """As in training: one call a study, whose reference is annotated once."""
    from rewards.radgraph import RadGraphConfig, RadGraphF1

    reward = RadGraphF1.load(RadGraphConfig(path=folder))
    reward(*groups()[0])  # the first call of a process pays for what torch sets up
    return lambda: float(sum(len(reward(candidates, references)) for candidates, references in groups()[1:]))


def radgraph_package(folder: Path) -> Callable[[], float]:
    from radgraph.radgraph import F1RadGraph
    from radgraph_package import restored_methods

    with restored_methods():
        reward = F1RadGraph(reward_level="partial", model_type=MODEL, model_cache_dir=str(folder), cuda=-1)

    def score(candidates: list[str], references: list[str]) -> int:
        with restored_methods():
            return len(reward(refs=references, hyps=candidates)[1])

    score(groups()[0][0][:1], groups()[0][1][:1])
    return lambda: float(sum(score(candidates, references) for candidates, references in groups()[1:]))


def radgraph_annotated(folder: Path, words: int, max_tokens: int) -> Callable[[], float]:
    """Reports of one length, in batches of a size."""
    from rewards.radgraph import RadGraphConfig, RadGraphF1

    annotate = RadGraphF1.load(RadGraphConfig(path=folder, max_tokens=max_tokens)).annotate
    annotate(texts(1, words, seed=100))
    return lambda: float(len(annotate(texts(LENGTHS[words], words, seed=words))))


def radgraph(folder: Path) -> tuple[Variants, dict[str, str], dict[str, float]]:
    """Variants, what each is compared with, and further figures."""
    from radgraph_archives import PUBLISHED, write_archive

    write_archive(folder, MODEL, texts(40, WORDS, seed=1000), PUBLISHED)
    batched, package = "RadGraph, G 4, batched", "RadGraph, G 4, package"
    variants: Variants = {
        batched: functools.partial(radgraph_batched, folder),
        package: functools.partial(radgraph_package, folder),
    }
    against = {package: batched}
    for words in LENGTHS:
        for budget in BUDGETS:
            name = f"RadGraph, {words} words, " + ("one by one" if budget == 1 else f"batches of {budget}")
            variants[name] = functools.partial(radgraph_annotated, folder, words, budget)
            against[name] = f"RadGraph, {words} words, one by one"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        facts = pool.apply(outside_the_encoder, (folder,))
    return variants, against, facts


def outside_the_encoder(folder: Path) -> dict[str, float]:
    """CPU milliseconds a report of everything but the encoder's forward, one thread; and how dense the graphs are."""
    from radgraph_package import load_package, restored_methods

    from rewards.radgraph import RadGraphConfig, RadGraphF1

    torch.set_num_threads(1)
    reports = texts(16, WORDS, seed=7)
    annotate = RadGraphF1.load(RadGraphConfig(path=folder)).annotate
    with restored_methods():
        package = load_package(folder, MODEL)
        embedder = package.model._embedder.token_embedder_bert._matched_embedder
        theirs = _outside(lambda: package(reports), embedder.transformer_model)
    ours = _outside(lambda: annotate(reports), annotate.encoder.model)
    graphs = annotate(reports)
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
    model.register_forward_pre_hook(start)
    model.register_forward_hook(stop)
    whole = time.process_time()
    work()
    return 1000 * (time.process_time() - whole - inside)


PARTS = (radgraph,)


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        variants, against, facts = {}, {}, {}
        for part in PARTS:
            made = part(Path(name))
            for whole, piece in zip((variants, against, facts), made, strict=True):
                whole |= piece
        compare(
            "rewards",
            variants,
            setting=f"Rewards on a CPU: {GROUPS - 1} studies of {ROLLOUTS} reports of about {WORDS} words, and "
            "RadGraph alone on reports of a length; random weights of the published size",
            rounds=options.rounds,
            threads=options.threads,
            facts=facts,
            against=against,
            unit="reports",
        )


if __name__ == "__main__":
    main()
