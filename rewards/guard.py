"""Rules against reports that are written for the reward: each scales down what the report earns.

The metrics that a reward is made of can be pleased without saying anything: sets of entities and labels do not mind
repetition or filler, and an Impression is easily consistent with Findings that hold nothing true. Honest reports are
hardly touched (docs/rewards.md has the figures).
"""

from collections.abc import Sequence

from radflow.rewards import unspaced

_SEQUENCE = 4  # words; shorter sequences recur in ordinary reports
SLACK_WORDS = 30
SLACK_BREAKS = 10


def guard(candidate: str, reference: str) -> float:
    """Factor in [0, 1] for what the candidate earns: the product of the rules on its text."""
    return repetition(candidate) * length(candidate, reference) * line_breaks(candidate)


def repetition(text: str) -> float:
    """1 while at least half of the four-word sequences are distinct, then twice their share.

    Everything may be said twice, in the Findings and in the Impression; a report said n times gets 2 / n.
    """
    words = _words(text)
    sequences = [tuple(words[i : i + _SEQUENCE]) for i in range(len(words) - _SEQUENCE + 1)]
    return min(1.0, 2 * len(set(sequences)) / len(sequences)) if sequences else 1.0


def length(candidate: str, reference: str) -> float:
    """1 from a quarter of the reference's words to twice as many and 30 more; falls to 0 at 0 words and at double that.

    A ramp and not a step: a policy that writes too much is told in which direction to go.
    """
    words, expected = len(_words(candidate)), len(_words(reference))
    most = 2 * expected + SLACK_WORDS
    too_long = min(1.0, max(0.0, 2 - words / most))
    return too_long * min(1.0, 4 * words / expected) if expected else too_long


def line_breaks(text: str) -> float:
    """1 up to a line break for every three words and 10 more, then that number over the breaks there are."""
    breaks = text.count("\n")
    return min(1.0, (len(_words(text)) / 3 + SLACK_BREAKS) / breaks) if breaks else 1.0


def _words(text: str) -> Sequence[str]:
    return unspaced.words(text.lower())
