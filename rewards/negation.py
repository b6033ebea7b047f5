# ruff: noqa: RUF001
"""Is what a sentence mentions present, absent, uncertain, or not a statement about this examination at all?

Words that deny or hedge ("cues") stand before or after a mention. A cue reaches a mention when no stop stands between
them: a list hands a denial on from item to item, a verb, "but" or "with" ends it. The cues and stops are tables.

Idea: NegEx (Chapman et al., J Biomed Inform 34, 2001). The word lists and the scope rules are this project's own.
"""

import re
from bisect import bisect_left, bisect_right

from rewards.report_text import tidy

REACH = 300  # characters

# A line that goes on in lower case was wrapped; a line that starts with a capital or a bullet is a new statement.
_ENDS = (
    r"(?<=[.!?;])\s", r"(?<=[a-z)]\.)(?=[A-Z])", r"\n\n", r"\n(?=[A-Z0-9*•-])",
    r"(?:(?<=\s)|(?<=^))\d{1,2}[.)]\s+(?=[A-Z])", r"[。；！？]",
)  # fmt: skip
SENTENCE = re.compile("|".join(_ENDS))
CLAUSE = re.compile(
    r"\b(?:but|however|although|though|while|whereas|except|otherwise|aside from|apart from|other than|despite"
    r"|besides|in addition to|with the exception of)\b|;",
    re.IGNORECASE,
)

_SURE = r"(?:(?:entirely|completely|definitely|definitively|confidently|reliably|totally|fully|absolutely) )?"
_NO_CHANGE = (
    r"\b(?:no|not|without|lack of) (?:(?:evidence|of|any|significant\w*|substantial\w*|appreciabl[ey]|interval|major"
    r"|definite|obvious|relevant|acute|new|further|much|gross\w*|radiographic\w*|large\w*|clear\w*|greatly|markedly) )*"
    r"(?:change[ds]?|increase[ds]?|improve\w*|worsen\w*|progress\w*|differen\w+|altered|decreased?|only)\b"
)
_STUDY = r"(?:study|exam\w*|radiograph\w*|films?|scans?|ct|x-?ray)"

# Cues that stand before a mention, by what they make of it. One pattern finds them all, so that a longer cue hides the
# shorter one inside it: "cannot exclude" is no "not", and "no change in" no "no".
_BEFORE = {
    "neutral": (
        _NO_CHANGE,
        r"\b(?:partial|incomplete|near|nearly|almost|incompletely|partially) (?:complete |interval )?resol\w+(?: of)?",
        # a double negation asserts
        r"\b(?:not|never) (?:entirely |completely )?(?:without|free of|free from|absent|negative for|clear of)",
        r"\bnot (?:well|optimally|adequately|fully|completely|clearly) (?:seen|evaluated|visuali[sz]ed|assessed)",
    ),
    "other": (  # a question, a plan, another time
        r"\b(?:rule[- ]out|r/o|evaluat(?:e|ion) (?:for|of)|assess(?:ment)? (?:for|of)|to (?:exclude|evaluate|assess)"
        r"|looking for|query|in (?:search|detection) of|screening for|if\b(?! any| present)|would better \w+)\b",
        r"\b(?:history|h/o|hx|histories) of\b", r"\b(?:sensitiv\w+|obscure|mask|hide|risk of|symptoms of)\b",
        r"\b(?:ensure|document|confirm|until|to|for) (?:complete |interval |the )?(?:resolution|clearing)(?: of)?\b",
        rf"\b(?:prior|previous|earlier) {_STUDY} (?:showed|demonstrated|described|revealed)\b",
        rf"\bon (?:a |an |the )?(?:prior|previous|outside|earlier) (?:\w+ ){{0,3}}{_STUDY}\b(?=.* (?:was|were)\b)",
    ),
    "uncertain": (
        r"\b(?:cannot|can not|could not|can't|not|difficult to|hard to|unable to|impossible to|insufficient to|without)"
        rf" (?:be )?{_SURE}(?:exclude[ds]?|excluding|rule[ds]?(?: \w+){{0,3}} out)",
        r"\b(?:possibl[ey]|possibility|probabl[ey]|may|might|could|suspicio\w+|suspect\w*|suggest\w*|question\w*"
        r"|likely|versus|vs|concern\w*|worrisome|equivocal|potential\w*|perhaps|presum\w+|differential"
        r"|consider|consideration\w*|favou?r\w*|would be|can be|if any|if present|\?)",
    ),
    "denied": (
        r"\b(?:no longer (?:seen|visuali[sz]ed|identified|evident|present) (?:is|are)|no longer|not likely"
        r"|unlikely|no|not|without|w/o|free of|free from|negative for|absence of|absent|never"
        r"|nor|neither|none|clear of|cleared|rather than|instead of|ruled out|rules out|excludes?|lack of|lacks|denies"
        r"|resolved|(?:resolution|clearing|removal) of|fails? to \w+|nothing)\b",
        # the verb belongs to the denial and does not end it
        r"\b(?:do|does|did) not (?:\w+ly )?(?:demonstrate|show|reveal|contain|have|appear|suggest)\b",
    ),
}  # fmt: skip
_CUES = re.compile("|".join(f"(?P<{name}>{'|'.join(found)})" for name, found in _BEFORE.items()), re.IGNORECASE)

# What lies behind one of these is out of a cue's reach. First the adjectives that begin a statement of their own.
_NEW = (
    r"(?:stable|unchanged|persist\w+|small|mild(?:ly)?|minimal(?:ly)?|moderate(?:ly)?|chronic|old|again|slight(?:ly)?"
    r"|scattered|multiple|trace|tiny|borderline|improv\w+|worsening|increas\w+|new|interval|tortuous|calcified"
    r"|degenerative|status post|possibl[ey]|probabl[ey]|likely|questionable|suspected|cannot|prominent|low|elevated"
    r"|healed)"
)
_STOPS = re.compile(
    r"(?:\b(?:is|are|was|were|has|have|had|appears?|remains?|shows?|demonstrates?|reveals?|contains?)\b"
    r"(?! (?:\w+ ){0,2}(?:to (?:suggest|indicate|account|explain)|that (?:would )?suggest|of|in|suggestive|suspicious"
    r"|within)\b)|;|:"
    r"|(?<!consistent )(?<!compatible )(?<!associated )(?<!concordant )(?<!correlated )(?<!keeping )\bwith\b"
    rf"|(?:,|\band\b)\s+(?:and |with |there )?{_NEW}\b|\b(?:given|in (?:the )?(?:setting|presence) of|status post)\b)",
    re.IGNORECASE,
)
_CAUSE = re.compile(r"\b(?:due to|secondary to|related to|because of|caused by|attribut\w+ to|superimposed on)\b", re.I)

# Cues that stand after a mention, behind what is left of its list: "effusion, pneumothorax or edema is not seen".
_REST = (
    r"(?:\s*,)?(?:[\s,/]+(?!(?:is|are|was|were|has|have|had|with|but|there|no|not|may|which|cannot|could|can"
    r"|without)\b)"
    r"[\w'-]+){0,12}?[\s,]+"
)
_VERB = r"(?:(?:is|are|was|were|has been|have been|had been|appears?|has|have|being|remains?)\s+)?"
_SEEN = (
    r"(?:seen|identified|present|visuali[sz]ed|evident|demonstrated|noted|appreciated|observed|detected|found|apparent"
    r"|visible|suspected|confirmed|discernible|recognized|shown|there)(?! (?:on|in) (?:the )?(?:prior|previous"
    r"|comparison)"
    r"| previously| before)"
)
_OTHER_AFTER = re.compile(
    rf"{_REST}(?:(?:may|might|can|could) (?:not|easily) be|(?:may|might|could) be (?:missed|obscured|hidden|occult))",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    rf"(?:{_REST}(?:{_VERB}(?:now |also |currently )?(?:(?:not|no longer) (?:\w+ly )?{_SEEN}"
    r"|(?:been )?(?:ruled out|excluded|absent|removed|unlikely|not likely|negative))"
    r"|(?:is|are|was|were|has|have) (?:now |since |interval(?:ly)? |completely |entirely |subsequently |been )*"
    r"(?:resolved|cleared)|resolved\b|unlikely\b|ruled out\b|is no\b"
    rf"|can ?not be (?:\w+ly )?{_SEEN}"
    r"|(?:is|are|appears?|remains?) (?:\w+ )?(?:normal\b|within (?:the )?(?:normal|limits))))"
    r"|\s*[:=-]\s*(?:none|no|absent|negative|not \w+)\b",
    re.IGNORECASE,
)
_UNCERTAIN_AFTER = re.compile(
    rf"{_REST}(?:(?:has |have )?(?:cannot|can not|could not|can't|not) (?:be |been )?{_SURE}(?:excluded"
    rf"|ruled out|exclude)"
    r"|(?:is|are|was|were|remains?|would be|also|may be|might be|could be)\s+"
    r"(?:also |still |a |the |an |in |less |more |felt )*(?:possible|possibility|suspected|likely|probable|questioned"
    r"|questionable|differential|consideration|considered|concern|equivocal)"
    rf"|(?:is|are) (?:difficult|hard) to {_SURE}(?:exclude|rule out)|if (?:any|present)"
    r"|(?:may|might|could) (?:also |well )?be (?:present|superimposed)"
    r"|in the (?:appropriate|correct|right|proper) clinical (?:setting|context)"
    r"|(?:possible|suspected|questionable|not excluded)\s*(?:[.,;]|$))"
    r"|(?:\s+(?!and\b|or\b|with\b)[\w-]+){0,2}\s*,?\s+(?:versus|vs)\b|\s*\?",
    re.IGNORECASE,
)


def polarity(before: str, mention: str, after: str) -> int | None:
    """Value of a mention from the words around it in its clause.

    Returns:
        1 present, 0 denied, -1 uncertain, None where the clause asks, plans or tells of another time.
    """
    # All of a mention but its last word counts as before it: "the heart is not enlarged" denies an enlargement.
    before += mention[: mention.rstrip().rfind(" ") + 1]
    cues = {cue.lastgroup for cue in _CUES.finditer(before) if _reaches(cue, before)}
    if "other" in cues or _OTHER_AFTER.match(after):
        return None
    if _UNCERTAIN_AFTER.match(after):
        return -1
    if "denied" in cues or _DENIED_AFTER.match(after):
        return 0
    return -1 if "uncertain" in cues else 1


def _reaches(cue: re.Match[str], before: str) -> bool:
    """Nothing between a cue and the mention ends its scope; what hedges a cause hedges the finding named as one."""
    if _STOPS.search(before, cue.end()):
        return False
    return cue.lastgroup != "denied" or not _CAUSE.search(before, cue.end())


def mentions(pattern: re.Pattern[str], sentence: str) -> list[tuple[re.Match[str], int | None]]:
    """Every match of a pattern in a sentence with its polarity, judged within its clause."""
    found = [*pattern.finditer(sentence)]
    if not found:
        return []
    cuts = [0, *(match.start() for match in CLAUSE.finditer(sentence)), len(sentence)]
    judged = []
    for match in found:
        clause = bisect_right(cuts, match.start()) - 1
        # no cue reaches further than REACH; without a bound a text that never ends a sentence takes quadratic time
        start = max(cuts[clause], match.start() - REACH)
        end = min(cuts[bisect_left(cuts, match.end())], match.end() + REACH)
        value = polarity(sentence[start : match.start()], match.group(), sentence[match.end() : end])
        judged.append((match, value))
    return judged


def sentences(text: str) -> list[str]:
    """Sentences of a text, their white space made single; a list's numbers belong to none."""
    return [" ".join(piece.split()) for piece in SENTENCE.split(tidy(text)) if piece and piece.strip()]
