"""RadCliQ: how many errors a radiologist would find, estimated from four metrics; lower is better.

    v = intercept + sum_k coefficient_k (x_k - mean_k) / scale_k

The constants are those of the published regressions (200 and 160 reports). BLEU has no weight in v1 and a *bad* one in
v0: there a higher BLEU raises the score. Being linear, the mean over reports is that of the mean sub-scores.

Source: arXiv:2308.05046 (composite metric); rajpurkarlab/CXR-Report-Metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from radflow.rewards.types import Metric

# In the order of the regressions: ReXrank's RadGraph F1; F of distilroberta-base, layer 5, rescaled; cosine of CheXbert
# embeddings; BLEU-2.
SUB_SCORES = ("radgraph_f1_rexrank", "bertscore", "sembscore", "bleu2")
_Four = tuple[float, float, float, float]


@dataclass(frozen=True)
class Regression:
    """A published linear regression; each tuple is in the order of SUB_SCORES."""

    means: _Four
    scales: _Four
    coefficients: _Four
    intercept: float

    def __call__(self, *sub_scores: Any) -> Any:
        """RadCliQ of the four sub-scores, numbers or arrays of them."""
        terms = zip(self.coefficients, sub_scores, self.means, self.scales, strict=True)
        return self.intercept + sum(c * (x - mean) / scale for c, x, mean, scale in terms)


radcliq_v0 = Regression(
    means=(0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605),
    scales=(0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264),
    coefficients=(-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535),
    intercept=1.641666666666666,
)
radcliq_v1 = Regression(
    means=(0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174),
    scales=(0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838),
    coefficients=(-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12),
    intercept=2.466552561323256e-10,
)


class RadCliq:
    """RadCliQ per report, from the metrics of its sub-scores. A reward would be its negative.

    Its inverse, `1/RadCliQ-v1` of the tables, is one over the mean over reports and has no value per report: that would
    jump from +inf to -inf where v1 passes 0, as it does for good reports.
    """

    def __init__(self, regression: Callable[..., float], sub_scores: Sequence[Metric]) -> None:
        self.regression, self.sub_scores = regression, sub_scores

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        columns = [metric(candidates, references) for metric in self.sub_scores]
        return [self.regression(*values) for values in zip(*columns, strict=True)]
