"""CPU milliseconds per report of each part of a reward, by report length, in groups of four as in training.

    python benchmarks/reward_parts.py

Models have random weights of the published sizes; references are cached, as from the second step on. RadGraph is
measured in rewards.py. The last row is Google's own package for ROUGE.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import arguments, machine, write
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from radflow.data.phantoms import make_studies
from radflow.data.sections import parse_sections
from radflow.rewards.config import RewardConfig
from radflow.rewards.hierarchy import LabelF1
from radflow.rewards.metrics.bertscore import BASELINES, BertScore
from radflow.rewards.metrics.chexbert import NUM_CLASSES, Chexbert, ChexbertLabels, SembScore
from radflow.rewards.metrics.encoder import TextEncoder
from radflow.rewards.registry import METRICS, Backends

STUDIES, GROUP = 4, 4
TIMES = (1, 2, 4)  # phantom reports joined to one: lengths of real corpora and beyond
NUMBERS = itertools.count()
RULES = (
    *("bleu2", "rouge_l", "entity_f1_rules", "consistency_rules", "label_f1_rules", "truth_rules"),
    "keyword_f1_rules",
)


def groups(times: int) -> list[tuple[list[tuple[str, str]], list[tuple[str, str]]]]:
    """Candidates and references, as Findings and Impression, of each study."""
    made = make_studies("chest", num_train=STUDIES * (GROUP + 1) * times, num_val=0, num_test=0, seed=3, size=56)
    rows = [made[i : i + times] for i in range(0, len(made), times)]
    reports = [tuple(" ".join(getattr(s, part) for s in row) for part in ("findings", "impression")) for row in rows]
    return [(reports[i + 1 : i + 1 + GROUP], [reports[i]] * GROUP) for i in range(0, len(reports), GROUP + 1)]


def text(report: tuple[str, str]) -> str:
    return f"Findings: {report[0]} Impression: {report[1]}"


def tokenizer(folder: Path):
    """Byte-level BPE of the corpus, so that a word is as few pieces as in the published vocabularies."""
    trained = ByteLevelBPETokenizer()
    corpus = [text(report) for candidates, references in groups(1) for report in [*candidates, *references]]
    trained.train_from_iterator(corpus, vocab_size=2000, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.save_model(str(folder))
    RobertaConfig(vocab_size=trained.get_vocab_size()).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, add_prefix_space=True)


def models(folder: Path) -> dict[str, Callable[[Sequence, Sequence], object]]:
    """Metric -> work on a group, for those that need a model."""
    words, limits = tokenizer(folder), {"max_tokens": 512, "token_budget": 2048, "device": "cpu"}
    roberta = RobertaModel(
        RobertaConfig(num_hidden_layers=5, max_position_embeddings=514, type_vocab_size=1), add_pooling_layer=False
    )
    bertscore = BertScore(
        TextEncoder(roberta, words, **limits), baseline=BASELINES["distilroberta-base", 5], cache_mb=64
    )
    bert = TextEncoder(BertModel(BertConfig(), add_pooling_layer=False), words, **limits)
    chexbert = Chexbert(bert, torch.randn(sum(NUM_CLASSES), 768), torch.zeros(sum(NUM_CLASSES)))
    labels = LabelF1(ChexbertLabels(chexbert, uncertain="positive"))
    semb = SembScore(chexbert)
    return {
        "bertscore": lambda c, r: bertscore(list(map(text, c)), list(map(text, r))),
        "sembscore": lambda c, r: semb(list(map(text, c)), list(map(text, r))),
        "label_f1_chexbert": lambda c, r: labels([b for _, b in c], [b for _, b in r]),
    }


def rules() -> dict[str, Callable[[Sequence, Sequence], object]]:
    backends, work = Backends(RewardConfig(), parse_sections), {}
    for name in RULES:
        metric, reads = METRICS[name].load(backends), METRICS[name].reads
        if reads in ("report", "described"):
            work[name] = lambda c, r, metric=metric: metric(list(map(text, c)), list(map(text, r)))
        elif reads == "sections":
            work[name] = lambda c, r, metric=metric: metric([f for f, _ in c], [i for _, i in c])
        else:
            index = 0 if reads == "findings" else 1
            work[name] = lambda c, r, metric=metric, i=index: metric([x[i] for x in c], [x[i] for x in r])
    package = RougeScorer(["rougeL"], use_stemmer=True)
    work["section parser"] = lambda c, r: [parse_sections(text(report)) for report in c]
    work["rouge_l, rouge-score 0.1.2"] = lambda c, r: list(map(package.score, map(text, r), map(text, c)))
    return work


def with_new_sentence(report: tuple[str, str]) -> tuple[str, str]:
    """The report with a sentence that no earlier one has, so that no cache of whole texts has it."""
    number = next(NUMBERS)
    return f"{report[0]} Image {number}.", f"{report[1]} Image {number}."


def cost(run: Callable[[Sequence, Sequence], object], studies: Sequence, rounds: int) -> float:
    """CPU milliseconds per report, median over the rounds; a round before them fills the cache of references."""
    costs = []
    for _ in range(rounds + 1):
        made = [([with_new_sentence(candidate) for candidate in written], wanted) for written, wanted in studies]
        began = time.process_time()
        for candidates, references in made:
            run(candidates, references)
        costs.append(1000 * (time.process_time() - began) / (STUDIES * GROUP))
    return statistics.median(costs[1:])


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        work = {**rules(), **models(Path(folder))}
        columns = {times: groups(times) for times in TIMES}
        rows = [
            [name, *(f"{cost(run, studies, options.rounds):.2f}" for studies in columns.values())]
            for name, run in tqdm(work.items(), "parts", disable=None)
        ]
    words = {t: statistics.fmean(len(text(r).split()) for c, _ in studies for r in c) for t, studies in columns.items()}
    write(
        "reward_parts",
        {
            "setting": f"CPU milliseconds per report, groups of {GROUP}, references known, {options.threads} thread(s)",
            "rounds": options.rounds,
            "machine": machine(options.threads),
            "columns": ["part", *(f"{words[t]:.0f} words (ms)" for t in TIMES)],
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
