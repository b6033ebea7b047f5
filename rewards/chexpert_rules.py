"""The 14 CheXpert labels by rules: mention, negation, uncertainty, sentence by sentence.

A fast local stand-in for CheXbert. It reports under its own name and is not the CheXbert score.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip

# A label of the Impression that may stand for a narrower one of the Findings (CheXpert's hierarchy), or explain it.
COVERS = {
    "Lung Opacity": {"Edema", "Consolidation", "Pneumonia", "Atelectasis", "Lung Lesion"},
    "Enlarged Cardiomediastinum": {"Cardiomegaly"},
    "Pneumonia": {"Lung Opacity", "Consolidation"},
    "Consolidation": {"Lung Opacity"},
    "Atelectasis": {"Lung Opacity"},
    "Edema": {"Lung Opacity"},
    "Lung Lesion": {"Lung Opacity"},
}

# Every wording that mentions a label.
MENTIONS = {
    "Enlarged Cardiomediastinum": r"mediastin\w+ (?:is |are |appears? )?(?:widen\w+|enlarge\w+)"
    r"|(?:widen\w+|enlarge\w+|prominen\w+) (?:\w+ )?mediastin\w+"
    r"|mediastinal (?:widening|enlargement)|cardiomediastinal enlargement",
    "Cardiomegaly": r"cardiomegaly|enlarge\w+ (?:\w+ ){0,2}(?:heart|cardiac)|(?:heart|cardiac)(?: \w+){0,6}? enlarg\w+"
    r"|cardiac enlargement|borderline (?:heart|cardiac) size",
    "Lung Opacity": r"opaci\w+|infiltrat\w+|air ?space disease|density|densities"
    r"|interstitial (?:markings|prominence|thickening|changes|disease)|scarring|scar\b|fibro\w+",
    "Lung Lesion": r"nodul\w+|mass(?:es)?\b|granulom\w+|lesions?\b|tumou?r|cavit\w+",
    "Edema": r"edema|(?:vascular|pulmonary|venous) congestion|chf\b|congestive heart failure",
    "Consolidation": r"consolidat\w+",
    "Pneumonia": r"pneumonias?\b|pneumonitis|bronchopneumonia",
    "Atelectasis": r"atelecta\w+|(?:volume loss|loss of volume)|lung collapse",
    "Pneumothorax": r"pneumothora\w+|hydropneumothora\w+",
    "Pleural Effusion": r"effusions?|pleural fluid|hydropneumothora\w+|hemothorax",
    "Pleural Other": r"pleural (?:thickening|plaques?|scarring|calcifi\w+|disease)|fibrothorax",
    "Fracture": r"fractur\w+",
    "Support Devices": r"pacemaker|pacer\b|catheter|endotracheal tube|\bet tube|picc\b|central (?:venous )?line"
    r"|chest tube|nasogastric|tracheostomy|sternotomy wires|defibrillator|\baicd\b|prosthe\w+|port-?a-?cath|mediport"
    r"|stent\b",
}
_MENTIONS = {label: re.compile(rf"\b(?:{pattern})", re.IGNORECASE) for label, pattern in MENTIONS.items()}

# Abnormal, but none of the 14 labels.
OTHER = re.compile(
    r"\b(?:degenerative|osteophyt\w+|spondylo\w+|scolio\w+|\w*scoliosis|kyphosis|dish\b|endplate|wedging|deformit\w+"
    r"|calcif\w+|calcinosis|atheroscler\w+|tortuous|tortuosity|unfolded|ectatic|aneurysm\w*|hernia\w*|emphysem\w*|bulla\w*"
    r"|bullous|copd|hyperinflat\w+|hyperexpan\w+|hyperlucen\w+|low lung volumes|hypoinflat\w+|elevat\w+|eventration"
    r"|flatten\w+|adenopathy|lymphadenopathy|osteopeni\w+|osteopor\w+|demineraliz\w+|arthritis|arthritic|arthropathy"
    r"|bronchiect\w+|clips?|sternotomy|cabg|foreign|curvature|sclero\w+|thickening|interstitial lung disease)",
    re.IGNORECASE,
)

# Statements that a structure is normal: the labels they deny.
_FINE = r"(?:\w+ )?(?:normal|within normal|unremarkable|not enlarged)"
NORMAL = (
    (rf"(?:heart|cardiac)(?: \w+){{0,4}}? (?:is |are |appears? |remains? )?{_FINE}", "Cardiomegaly"),
    (r"normal (?:heart|cardiac)", "Cardiomegaly"),
    (r"mediastin\w+(?: \w+){0,5}? (?:is |are )?(?:normal|within normal|unremarkable)", "Enlarged Cardiomediastinum"),
)  # fmt: skip
_NORMAL = tuple((re.compile(pattern, re.IGNORECASE), label) for pattern, label in NORMAL)

# A mention is denied when one of these stands before it in its clause, or one of the others after it.
_DENIED_BEFORE = re.compile(
    r"\b(?:no|not|without|free of|negative for|absence of|absent|never|resolved|resolution of|clear of|nor|neither"
    r"|rather than|rules? out|ruled out|excludes?)\b(?! (?:change|significant change|interval change|longer))",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^(?:\W+\w+){0,5}?\W+(?:(?:is|are|was|were|has been|have been) (?:not (?:\w+ )?(?:seen|identified|present"
    r"|visualized|evident|demonstrated|noted|appreciated)|ruled out|excluded|absent)"
    r"|(?:has|have) (?:now )?(?:resolved|cleared)|(?:is|are) (?:now )?resolved|resolved\b)",
    re.IGNORECASE,
)
_UNCERTAIN = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|may|might|could|cannot|can ?not|suspicious|suspected|suggest\w*|question\w*"
    r"|likely|versus|vs|or less likely|difficult to exclude|not excluded|borderline|concern\w* for"
    r"|equivocal|potential\w*)\b",
    re.IGNORECASE,
)
_NOT_A_DENIAL = re.compile(
    r"\b(?:cannot|can ?not|could not|not|difficult to|hard to) (?:be )?(?:entirely |completely )?"
    r"(?:exclude|rule out|excluded|ruled out)",
    re.IGNORECASE,
)
_NORMALITY = re.compile(
    r"\b(?:normal|unremarkable|clear|negative|no acute|no active|no evidence|no significant|no abnormal\w*)\b",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+|(?<=\.)(?=[A-Z])|\d+[.)]\s+")
CLAUSE = re.compile(
    r"\b(?:but|however|although|though|except|otherwise|aside from|apart from|other than)\b|;", re.IGNORECASE
)


def label_report(text: str) -> dict[str, int | None]:
    """Labels of a text: 1 positive, 0 denied, -1 uncertain, None not mentioned.

    Over several mentions positive wins over uncertain, and uncertain over denied. No Finding is 1 when nothing but
    Support Devices is positive or uncertain and the text says something normal; text about nothing has no label.
    """
    labels: dict[str, int | None] = dict.fromkeys(LABELS)
    for sentence in SENTENCE.split(text):
        for label, value in _sentence_labels(sentence):
            if labels[label] is None or value == 1 or (value == -1 and labels[label] == 0):
                labels[label] = value
    abnormal = any(labels[label] in (1, -1) for label in LABELS[:-2])
    normal = 0 in labels.values() or _NORMALITY.search(text) is not None
    labels["No Finding"] = 1 if normal and not abnormal else None
    return labels


class ChexpertRules:
    """Positive labels of each text; uncertain counts as positive (the rule of "rrg" CheXbert scores)."""

    labels = LABELS
    normal = "No Finding"
    ignorable = frozenset({"Support Devices", "No Finding"})  # their presence makes no report abnormal
    covers = COVERS

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        return [set(_positive(text)) for text in texts]

    def certain(self, text: str) -> set[str]:
        """Labels asserted without hedging."""
        return {label for label, value in _labels(text) if value == 1}

    def abnormalities(self, text: str) -> set[str]:
        """Abnormal labels asserted or hedged, and abnormal words that belong to none of the 14."""
        return (set(_positive(text)) - self.ignorable) | _others(text)


@lru_cache(maxsize=65536)
def _labels(text: str) -> tuple[tuple[str, int | None], ...]:
    return tuple(label_report(text).items())


@lru_cache(maxsize=65536)
def _positive(text: str) -> frozenset[str]:
    return frozenset(label for label, value in _labels(text) if value in (1, -1))


def _others(text: str) -> set[str]:
    return {
        mention.lower()
        for sentence in SENTENCE.split(text)
        for value, mention in _mentions(OTHER, sentence)
        if value != 0
    }


def _mentions(pattern: re.Pattern[str], sentence: str) -> list[tuple[int, str]]:
    """Polarity and wording of each mention, judged within its clause."""
    starts = [0, *(match.start() for match in CLAUSE.finditer(sentence))]
    found = []
    for match in pattern.finditer(sentence):
        start = max(s for s in starts if s <= match.start())
        end = min((s for s in starts if s > match.start()), default=len(sentence))
        found.append(
            (polarity(sentence[start : match.start()], match.group(), sentence[match.end() : end]), match.group())
        )
    return found


def _sentence_labels(sentence: str) -> list[tuple[str, int]]:
    found = [(label, 0) for pattern, label in _NORMAL if pattern.search(sentence)]
    for label, pattern in _MENTIONS.items():
        for value, mention in _mentions(pattern, sentence):
            # "the heart is not enlarged" both mentions an enlargement and says that there is none
            found.append((label, 0 if re.search(r"\bnot\b", mention) else value))
    return found


def polarity(before: str, mention: str, after: str) -> int:
    """1 positive, 0 denied, -1 uncertain; from the words around a mention in its clause."""
    if _NOT_A_DENIAL.search(before) or _NOT_A_DENIAL.search(after):
        return -1
    if _DENIED_BEFORE.search(before) or re.search(r"\bnot\b", mention) or _DENIED_AFTER.search(after):
        return 0
    return -1 if _UNCERTAIN.search(before) or _UNCERTAIN.search(after[:40]) else 1
