"""RadCliQ: how many errors a radiologist would find, estimated from four metrics; lower is better.

    v = intercept + sum_k coefficient_k (x_k - mean_k) / scale_k

The constants are those of the published regressions (200 and 160 reports). BLEU has no weight in v1 and a *bad* one in
v0: there a higher BLEU raises the score.

Source: arXiv:2308.05046 (composite metric); rajpurkarlab/CXR-Report-Metric.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Regression:
    """A published linear regression; each tuple is in the order radgraph, bertscore, semb, bleu."""

    means: tuple[float, float, float, float]
    scales: tuple[float, float, float, float]
    coefficients: tuple[float, float, float, float]
    intercept: float

    def __call__(self, *, radgraph: float, bertscore: float, semb: float, bleu: float) -> float:
        """RadCliQ of one report; being linear, the mean over reports is that of the mean sub-scores.

        Args:
            radgraph: mean of entity and relation F1 (ReXrank's RadGraph).
            bertscore: rescaled F of distilroberta-base, layer 5.
            semb: cosine of CheXbert embeddings.
            bleu: BLEU-2.
        """
        values = (radgraph, bertscore, semb, bleu)
        terms = zip(self.coefficients, values, self.means, self.scales, strict=True)
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


def inverse_radcliq_v1(values: Sequence[float]) -> float:
    """`1/RadCliQ-v1` of the tables: one over the mean over reports, higher is better.

    Never the mean of inverses, and never a reward: a single report's value jumps from +inf to -inf where v1 passes 0,
    as it does for good reports. A reward is -v1.

    Raises:
        ValueError: no values, or a mean of 0.
    """
    mean = statistics.fmean(values) if values else 0.0
    if mean == 0:
        raise ValueError(f"expected RadCliQ-v1 values with a mean other than 0, got {len(values)} with mean {mean}")
    return 1 / mean
