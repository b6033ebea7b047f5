"""Which part of the reward pays which tokens."""

from dataclasses import replace

import pytest
import torch
from toy_batch import ToyPrompt, ToyStudy

from capo.advantages import ESTIMATORS, estimate_advantages
from capo.config import EditsConfig, RlConfig
from capo.types import Rollout
from radflow.pipeline.batch import Batch
from radflow.pipeline.credit import advantages_of, impression_start
from radflow.rewards.types import Score

# Pieces of text as tokens; the last one is EOS.
PIECES = ["Findings:", " The heart is", " enlarged.", " Impression:", " Cardio", "megaly.", " Small effusion.", ""]
FULL, SHORT, LONG = [0, 1, 2, 3, 4, 5, 7], [0, 2, 3, 5, 7], [0, 1, 2, 6, 3, 4, 5, 6, 7]  # Impression at 3, 2 and 4
SWAPPED, BARE, ONLY_FINDINGS = [3, 4, 5, 0, 1, 2, 7], [1, 2, 6, 7], [0, 1, 2, 6, 7]
PARTS = ("syntax", "entity_f1_rules", "consistency_rules", "label_f1_rules")
BY_SECTION = {"credit": "section", "advantage_eps": 0.0}
every_estimator = pytest.mark.parametrize("advantage", ESTIMATORS)


def decode(ids, pieces=PIECES):
    return "".join(pieces[i] for i in ids.tolist()).strip()


def start_of(ids, pieces=PIECES):
    return impression_start(torch.tensor(ids), lambda given: decode(given, pieces))


def batch_of(reports, terms, *, group_size=None, edited=(), truths=None):
    """One group of these reports, or several of `group_size`; terms are rows of PARTS, all positive with `truths`."""
    size = group_size or len(reports)
    rollouts = [
        Rollout("s", i % size, torch.tensor(ids), torch.zeros(len(ids)), False, "added" if i in edited else None)
        for i, ids in enumerate(reports)
    ]
    scores = [
        Score(truth * sum(row), {}, terms=dict(zip(PARTS, row, strict=True)), truth=truth)
        for row, truth in zip(terms, truths or [1.0] * len(reports), strict=True)
    ]
    starts = range(0, len(reports), size)
    return Batch(
        studies=tuple(ToyStudy(f"s{i}", "") for i in starts),
        prompts=tuple(ToyPrompt(f"s{i}") for i in starts),
        groups=tuple(tuple(rollouts[i : i + size]) for i in starts),
        texts=tuple(tuple(decode(r.response_ids) for r in rollouts[i : i + size]) for i in starts),
        scores=tuple(tuple(scores[i : i + size]) for i in starts),
        seconds_rollout=0.0,
        seconds_reward=0.0,
        seconds_parts={},
    )


def rows_of(batch, weights=None, **rl):
    return advantages_of(batch, RlConfig(**{**BY_SECTION, **rl}), weights or {}, decode).advantages


# where the Impression begins


@pytest.mark.parametrize(("ids", "start"), [(FULL, 3), (SHORT, 2), (LONG, 4)])
def test_the_impression_begins_with_its_header_by_hand(ids, start):
    assert start_of(ids) == start


@pytest.mark.parametrize("ids", [SWAPPED, BARE, ONLY_FINDINGS, [7], [3, 4, 5, 7], [0, 3, 7], FULL[:-1] + FULL])
def test_a_report_whose_sections_are_not_one_after_the_other_has_no_such_token(ids):
    assert start_of(ids) is None


def test_a_token_that_holds_the_end_of_the_findings_and_the_header_is_the_impressions():
    assert start_of([0, 1, 2, 3], ["Findings:", " Clear", ". Impression:", " Normal."]) == 2
    assert start_of([0, 1, 2, 3, 4], ["Findings:", " Clear.", "\n\n", "Impression:", " Normal."]) in (2, 3)


@pytest.mark.parametrize(
    "pieces",
    [
        ["Indication:", " Clear.", " Findings:", " Clear.", " Impression:", " Clear."],
        ["Findings:", " Normal chest.", " No change.", " Findings are stable.", " Impression:", " Normal chest."],
        ["Clear. Comparison:", " None.", " Findings:", " None.", " Impression:", " None."],
    ],
)
def test_a_text_that_a_report_says_twice_does_not_confuse_its_sections(pieces):
    assert start_of(list(range(6)), pieces) == 4


def test_the_impression_begins_at_its_header_with_the_real_tokenizer(processor, studies):
    for study in studies:
        ids = processor.encode_report(study.report)
        start = impression_start(ids, processor.decode)
        findings, impression = study.report.split("Impression:")
        assert processor.decode(ids[:start]) == findings.strip()
        assert processor.decode(ids[start:]) == f"Impression:{impression}".strip()
        assert impression_start(ids[:start], processor.decode) is None


# who is paid for what


def test_sections_are_paid_by_hand():
    # syntax differs by 1, the Findings' part by 2, consistency by 4, the Impression's by -8. Without the Impression's
    # the second report is 7 better, without the Findings' 3 worse; of all parts it is 1 worse.
    batch = batch_of([FULL, SHORT], [(0, 0, 0, 8), (1, 2, 4, 0)])
    rows = rows_of(batch, advantage="centred")
    assert rows[0].tolist() == [-3.5] * 3 + [1.5] * 4
    assert rows[1, :5].tolist() == [3.5] * 2 + [-1.5] * 3
    assert rows_of(batch, advantage="centred", credit="report").tolist() == [0.5, -0.5]


@every_estimator
def test_each_section_has_the_advantage_of_the_parts_that_read_it_or_the_whole(advantage):
    generator = torch.Generator().manual_seed(3)
    terms = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    batch = batch_of([FULL, SHORT, LONG, BARE, LONG, FULL, SWAPPED, SHORT], terms.tolist(), group_size=4)
    weights = {"entity_f1_rules": 2.0, "label_f1_rules": 3.0}
    rows = rows_of(batch, weights, advantage=advantage)
    index, of_parts = torch.tensor([0] * 4 + [1] * 4), torch.tensor([1.0, 2.0, 1.0, 3.0])
    wanted = [
        estimate_advantages(advantage, terms[:, kept], index, of_parts[kept], eps=0.0).advantages
        for kept in ([0, 1, 2], [0, 2, 3], [0, 1, 2, 3])
    ]
    for i, start in enumerate([3, 2, 4, None, 4, 3, None, 2]):
        findings, impression, whole = (float(values[i]) for values in wanted)
        length = rows.shape[1]
        pays = [whole] * length if start is None else [findings] * start + [impression] * (length - start)
        assert rows[i].tolist() == pytest.approx(pays)


@every_estimator
@pytest.mark.parametrize(("name", "own"), [("entity_f1_rules", "findings"), ("label_f1_rules", "impression")])
def test_a_part_of_one_section_pays_no_token_of_the_other(advantage, name, own):
    terms = torch.tensor([[0.1, 0.9, 1, 0.5], [0.4, 0.2, -1, 0.6], [0.3, 0.5, 1, 0.1]], dtype=torch.float64)
    changed = terms.clone()
    changed[:, PARTS.index(name)] = torch.tensor([0.3, 0.1, 0.8])
    reports, starts = [FULL, SHORT, LONG], [3, 2, 4]
    before, after = (rows_of(batch_of(reports, x.tolist()), advantage=advantage) for x in (terms, changed))
    for old, new, start, ids in zip(before, after, starts, reports, strict=True):
        findings, impression = torch.equal(old[:start], new[:start]), torch.equal(old[start:], new[start:])
        assert (findings, impression) == (own != "findings", own != "impression")
        assert len(ids) <= len(old)


def test_decoupled_advantages_have_truth_once_by_hand():
    # Syntax prefers the first report by 0.5, truth the second: they cancel. As factors they give 1 and 1.5.
    options = {"credit": "report", "advantage_eps": 0.0}
    batch = batch_of([FULL, SHORT], [(2, 0, 0, 0), (1.5, 0, 0, 0)], truths=[0.5, 1.0])
    assert rows_of(batch, **options).tolist() == [0, 0]
    assert rows_of(batch, **options, advantage="centred").tolist() == [-0.25, 0.25]
    # With weight 3 for syntax, (3 - 1) / sqrt(2) and its opposite; over their std, 2
    assert rows_of(batch, {"syntax": 3.0}, **options).tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_a_report_that_no_part_is_known_of_is_missing_whatever_its_truth():
    batch = batch_of([FULL, SHORT, LONG], [(1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)])
    unknown = replace(batch.scores[0][2], total=None, terms={}, truth=0.1)
    scores = ((*batch.scores[0][:2], unknown),)
    found = advantages_of(replace(batch, scores=scores), RlConfig(advantage="decoupled"), {}, decode)
    assert found.num_missing == 1 and found.advantages[2] == 0 and found.advantages[0] < 0


def test_truth_pays_the_tokens_of_both_sections():
    batch = batch_of([FULL, SHORT], [(1, 1, 1, 1)] * 2, truths=[1.0, 0.5])
    rows = rows_of(batch)
    assert (rows[0] > 0).all() and (rows[1] < 0).all()


def test_parts_of_all_sections_pay_every_token():
    """Where no part reads one section only, credit by section is that of the report."""
    terms = [(0.1, 0.0, 1.0, 0.0), (0.5, 0.0, -1.0, 0.0), (0.3, 0.0, 1.0, 0.0)]
    rows = rows_of(batch_of([FULL, SHORT, LONG], terms))
    whole = rows_of(batch_of([FULL, SHORT, LONG], terms), credit="report")
    assert torch.equal(rows, whole[:, None].expand_as(rows))


def test_a_section_that_nothing_pays_for_has_no_advantage():
    batch = batch_of([FULL, SHORT], [(0, 0, 0, 1), (0, 0, 0, 0)])
    only = tuple(
        tuple(Score(s.total, {}, terms={"label_f1_rules": s.terms["label_f1_rules"]}) for s in group)
        for group in batch.scores
    )
    for advantage in ESTIMATORS:
        rows = rows_of(replace(batch, scores=only), advantage=advantage)
        assert not rows[0, :3].any() and rows[0, 3:].all()


def test_uncounted_copies_change_no_advantage_of_sampled_reports():
    terms = [(0.1, 0.9, 1, 0.5), (0.4, 0.2, -1, 0.6), (0.3, 0.5, 1, 0.1), (2.0, 3.0, 1, 1.0)]
    rl = RlConfig(credit="section", advantage="decoupled", edits=EditsConfig(share=0.5, counted=False))
    found = advantages_of(batch_of([FULL, SHORT, LONG, FULL], terms, edited={3}), rl, {}, decode).advantages
    alone = advantages_of(batch_of([FULL, SHORT, LONG], terms[:3]), rl, {}, decode).advantages
    torch.testing.assert_close(found[:3], alone)
    assert (found[3] > found[:3].max()).all()
    counted = RlConfig(credit="section", advantage="decoupled", edits=EditsConfig(share=0.5, counted=True))
    mixed = advantages_of(batch_of([FULL, SHORT, LONG, FULL], terms, edited={3}), counted, {}, decode).advantages
    assert not torch.allclose(mixed[:3], alone)
