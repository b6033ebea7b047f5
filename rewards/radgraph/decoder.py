"""From word vectors to entities and relations, for the words of many reports at once.

Nothing is padded: the spans of all reports, and the pairs of spans, are in one row, and no mask is needed. Relations
are sought only among kept spans that are entities, since no other can be in the output.

Source: DyGIE++ (arXiv:1909.03546) as the radgraph package 0.1.18 runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from radflow.rewards.radgraph.archive import RadGraphArchive
from radflow.rewards.radgraph.text import Relation, Span

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAIRS_AT_ONCE = 1024  # of spans, with features of some 6 kB each: they fit in a processor's cache


@dataclass(frozen=True)
class Spans:
    """Candidate spans of several reports, by report, start and end; words are counted through all reports."""

    start: Tensor  # [S] int64, first word
    end: Tensor  # [S] int64, last word
    report: Tensor  # [S] int64

    def __getitem__(self, chosen: Tensor) -> Spans:
        return Spans(self.start[chosen], self.end[chosen], self.report[chosen])

    def rows(self) -> list[tuple[int, int, int]]:
        """Start, end and report of each span."""
        return list(zip(self.start.tolist(), self.end.tolist(), self.report.tolist(), strict=True))


@dataclass(frozen=True)
class Layers:
    """Linear layers with a ReLU before each: what follows the first layer of a network."""

    weights: tuple[Tensor, ...]  # [outputs, inputs] each
    biases: tuple[Tensor, ...]  # [outputs] each

    def __call__(self, hidden: Tensor) -> Tensor:
        from torch.nn.functional import linear

        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = linear(hidden.relu(), weight, bias)
        return hidden


@dataclass(frozen=True)
class SpanNetwork:
    """Scores of spans. The first layer is split by start word, end word and width, and computed once per word."""

    start: Tensor  # [h, H]
    end: Tensor  # [h, H]
    width: Tensor  # [widths, h], bias included
    rest: Layers

    @classmethod
    def of(cls, layers: Layers, widths: Tensor) -> SpanNetwork:
        """From whole layers on [start, end, width embedding]; widths: [widths, F]."""
        hidden_size = (layers.weights[0].shape[1] - widths.shape[1]) // 2
        start, end, width = layers.weights[0].split([hidden_size, hidden_size, widths.shape[1]], dim=1)
        return cls(start, end, widths @ width.T + layers.biases[0], Layers(layers.weights[1:], layers.biases[1:]))

    def __call__(self, words: Tensor, spans: Spans) -> Tensor:
        """[S, outputs] from word vectors [W, H]."""
        hidden = (words @ self.start.T)[spans.start]
        hidden += (words @ self.end.T)[spans.end]
        hidden += self.width[spans.end - spans.start]
        return self.rest(hidden)


@dataclass(frozen=True)
class PairNetwork:
    """Scores of ordered pairs. The first layer is split by source, target and their product, which has no order."""

    source: Tensor  # [h, E]
    target: Tensor  # [h, E]
    product: Tensor  # [h, E]
    bias: Tensor  # [h]
    rest: Layers

    @classmethod
    def of(cls, layers: Layers) -> PairNetwork:
        """From whole layers on [source, target, product]."""
        source, target, product = layers.weights[0].chunk(3, dim=1)
        return cls(source, target, product, layers.biases[0], Layers(layers.weights[1:], layers.biases[1:]))

    def __call__(self, vectors: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """[P, outputs] of first -> second, and of second -> first; vectors [K, E], first and second [P]."""
        import torch

        source, target = vectors @ self.source.T + self.bias, vectors @ self.target.T
        forth, back = [], []
        for a, b in zip(first.split(PAIRS_AT_ONCE), second.split(PAIRS_AT_ONCE), strict=True):
            product = (vectors[a] * vectors[b]) @ self.product.T
            forth.append(self.rest(source[a] + target[b] + product))
            back.append(self.rest(source[b] + target[a] + product))
        return torch.cat(forth), torch.cat(back)


class SpanDecoder:
    """Entities and relations of reports from the vectors of their words."""

    def __init__(self, archive: RadGraphArchive, *, device: str) -> None:
        a, weights = archive.architecture, archive.weights
        ner, relation = f"{a.dataset}__ner_labels", f"{a.dataset}__relation_labels"
        pruner = f"_relation._mention_pruners.{relation}._scorer."

        def layers(network: str, scorer: str) -> Layers:
            names = [f"{network}_linear_layers.{number}." for number in range(len(a.hidden_sizes))] + [scorer]
            return Layers(*(tuple(weights[n + kind].to(device).float() for n in names) for kind in ("weight", "bias")))

        self._widths = weights["_endpoint_span_extractor._span_width_embedding.weight"].to(device).float()
        scorer = f"_ner._ner_scorers.{ner}."
        self._ner = SpanNetwork.of(layers(f"{scorer}0._module.", f"{scorer}1._module."), self._widths)
        self._pruner = SpanNetwork.of(layers(f"{pruner}0._module.", f"{pruner}1._module."), self._widths)
        pairs = layers(f"_relation._relation_feedforwards.{relation}.", f"_relation._relation_scorers.{relation}.")
        self._pairs = PairNetwork.of(pairs)
        self._ner_labels, self._relation_labels = a.ner_labels[1:], a.relation_labels
        self._spans_per_word, self._max_width = a.spans_per_word, a.max_span_width

    def __call__(self, words: Tensor, lengths: Sequence[int]) -> list[tuple[list[Span], list[Relation]]]:
        """Entities, in the order of spans, and relations among kept spans that are entities, by source and target.

        Args:
            words: [W, H] vectors, reports one after the other.
            lengths: words of each report, at least 1.
        """
        spans = candidate_spans(lengths, max_width=self._max_width, device=words.device)
        scores, labels = self._ner(words, spans).max(dim=1)
        mentions = self._pruner(words, spans)[:, 0]
        is_entity = scores > 0  # the score of the null label
        kept = (self._select(mentions, spans, lengths) & is_entity).nonzero()[:, 0]
        relations = self._relate(words, spans[kept], mentions[kept], len(lengths))
        entities = is_entity.nonzero()[:, 0]
        return self._list(spans[entities], labels[entities], spans[kept], relations, lengths)

    def _select(self, mentions: Tensor, spans: Spans, lengths: Sequence[int]) -> Tensor:
        """[S] bool: the spans of each report with the highest scores of the pruner, as many as its length allows."""
        import torch

        counts = torch.bincount(spans.report, minlength=len(lengths))
        offsets = counts.cumsum(0) - counts
        table = mentions.new_full((len(lengths), int(counts.max())), -torch.inf)
        table[spans.report, torch.arange(len(mentions), device=mentions.device) - offsets[spans.report]] = mentions
        # In float32, as published; half of an odd number is rounded up.
        keep = (torch.tensor(lengths, device=mentions.device).float() * self._spans_per_word).ceil().long()
        keep = keep.clamp(min=1).minimum(counts)
        best = table.topk(int(keep.max())).indices + offsets[:, None]
        kept = torch.zeros(len(mentions), dtype=torch.bool, device=mentions.device)
        kept[best[torch.arange(best.shape[1], device=mentions.device) < keep[:, None]]] = True
        return kept

    def _relate(self, words: Tensor, spans: Spans, mentions: Tensor, num_reports: int) -> Tensor:
        """[R, 3] int64: source, target (indices of spans) and type of every relation, by source and target."""
        import torch

        vectors = torch.cat([words[spans.start], words[spans.end], self._widths[spans.end - spans.start]], dim=1)
        first, second = pairs_within(torch.bincount(spans.report, minlength=num_reports))
        bonus = (mentions[first] + mentions[second])[:, None]
        found = []
        for pairs, scores in zip(((first, second), (second, first)), self._pairs(vectors, first, second), strict=True):
            best, kind = (scores + bonus).max(dim=1)
            found.append(torch.stack([*pairs, kind], dim=1)[best > 0])  # 0: the score of no relation
        forth, back = found
        rows = torch.cat([forth, back[back[:, 0] != back[:, 1]]])  # a span with itself is one pair, not two
        return rows[(rows[:, 0] * len(mentions) + rows[:, 1]).argsort()]

    def _list(
        self, entities: Spans, labels: Tensor, kept: Spans, relations: Tensor, lengths: Sequence[int]
    ) -> list[tuple[list[Span], list[Relation]]]:
        """Entities and relations as lists, with words counted from the start of each report."""
        starts = [0, *accumulate(lengths)]
        listed: list[tuple[list[Span], list[Relation]]] = [([], []) for _ in lengths]
        for (start, end, report), label in zip(entities.rows(), labels.tolist(), strict=True):
            listed[report][0].append((start - starts[report], end - starts[report], self._ner_labels[label]))
        spans = kept.rows()
        for source, target, kind in relations.tolist():
            (first, last, report), (target_first, target_last, _) = spans[source], spans[target]
            offset, label = starts[report], self._relation_labels[kind]
            ends = (first - offset, last - offset, target_first - offset, target_last - offset)
            listed[report][1].append((*ends, label))
        return listed


def candidate_spans(lengths: Sequence[int], *, max_width: int, device: str | torch.device) -> Spans:
    """All spans of up to max_width words that lie within one report."""
    import torch

    counts = torch.tensor(lengths, device=device)
    report = torch.arange(len(lengths), device=device).repeat_interleave(counts)  # [W]
    limit = counts.cumsum(0)[report]  # [W], end of each word's report
    start = torch.arange(len(report), device=device)
    end = start[:, None] + torch.arange(max_width, device=device)  # [W, widths]
    inside = end < limit[:, None]
    return Spans(start[:, None].expand_as(end)[inside], end[inside], report[:, None].expand_as(end)[inside])


def pairs_within(counts: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs first <= second of items of one group; counts: [D] items of each group, which follow one another."""
    import torch

    squares, offsets = counts * counts, counts.cumsum(0) - counts
    group = torch.arange(len(counts), device=counts.device).repeat_interleave(squares)
    within = torch.arange(len(group), device=counts.device) - (squares.cumsum(0) - squares)[group]
    row, column = within // counts[group], within % counts[group]
    upper = row <= column
    return (offsets[group] + row)[upper], (offsets[group] + column)[upper]
