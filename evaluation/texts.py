"""`from radflow import score, compare`: lists of reports in, a frozen result out.

result = score(predictions, references, protocol="findings")
print(result)                       # the table of `radflow score`
result.values["bleu2"]              # each metric that could be computed
result.columns["bleu2"]             # its value for each report
result.to_pandas()                  # the same, one row per report

print(compare({"ours": reports, "theirs": others}, references))
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from radflow.data.protocols import Pairs, pair
from radflow.data.report_files import Report
from radflow.data.sections import SectionParser
from radflow.evaluation.compare import Compared, compare_pairs
from radflow.evaluation.measuring import MeasureConfig
from radflow.evaluation.score import score_pairs
from radflow.evaluation.scored import Scored
from radflow.evaluation.weights import Weights

Texts = Sequence[str | None]


def score(
    predictions: Texts,
    references: Texts,
    *,
    ids: Sequence[str] | None = None,
    train: Sequence[str] = (),
    weights: Weights | None = None,
    **settings: Any,
) -> Scored:
    """Score reports against references by every metric that can be computed here.

    Args:
        predictions: the reports, Findings and Impression; or the section that `protocol` names. None or "" is a report
            that the system did not write: it is scored, as the empty text.
        references: in the same order; a study whose reference is None is left out.
        ids: of the studies, by default their numbers from 1.
        train: references of training studies; with them the result has baselines.
        weights: where weights of models are looked for, by default as `radflow weights` shows.
        settings: fields of `radflow.evaluation.measuring.MeasureConfig`: protocol, labeler, workers, seed, ...

    Raises:
        ValueError: lists of different lengths, ids that are not distinct, a setting out of range, or nothing to score.
        TypeError: an unknown setting.
    """
    config = MeasureConfig(**settings)
    pairs = _pair(predictions, references, ids, config, "predictions")
    named = {f"training report {number}": text for number, text in enumerate(_texts(train, "train"), 1) if text}
    nearest = "needs images: score files with a manifest"
    return score_pairs(pairs, config, weights or Weights(), train=named or None, nearest=nearest)


def compare(
    systems: Mapping[str, Texts],
    references: Texts,
    *,
    ids: Sequence[str] | None = None,
    pairs: Literal["first", "all"] = "first",
    weights: Weights | None = None,
    **settings: Any,
) -> Compared:
    """Compare systems, each with the first one or every pair, over the same studies.

    Args:
        systems: reports by name of the system; otherwise as for `score`.

    Raises:
        ValueError, TypeError: as `score`; fewer than two systems.
    """
    if len(systems) < 2:
        raise ValueError(f"expected at least two systems to compare, got {len(systems)}")
    config = MeasureConfig(**settings)
    read = {name: _pair(reports, references, ids, config, name) for name, reports in systems.items()}
    return compare_pairs(read, config, weights or Weights(), which=pairs)


def _pair(reports: Texts, references: Texts, ids: Sequence[str] | None, config: MeasureConfig, name: str) -> Pairs:
    sides = {name: _texts(reports, name), "references": _texts(references, "references")}
    ids = [str(number) for number in range(1, len(references) + 1)] if ids is None else [str(one) for one in ids]
    if lengths := {side: len(texts) for side, texts in sides.items() if len(texts) != len(ids)}:
        raise ValueError(f"expected {len(ids)} reports, as many as ids or references, got {lengths}")
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"expected ids that differ, an id comes twice: {twice[0]}")
    written, expected = (dict(zip(ids, map(Report, texts), strict=True)) for texts in sides.values())
    return pair(written, expected, config.protocol, SectionParser(config.headers))


def _texts(texts: Texts, name: str) -> list[str | None]:
    if isinstance(texts, str) or not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: expected a list of texts, each of them a str or None; got {texts!r:.80}")
    return list(texts)
