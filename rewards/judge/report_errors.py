"""Questions that list the errors of a report against its reference, and the scores that follow from the lists.

`green_like` asks in our words for what GREEN counts (Ostmeier et al., EMNLP 2024): its repository has no licence file.
`crimson` asks with the prompt of CRIMSON (Baharoon et al., arXiv:2603.06183, MIT), from its authors' package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from radflow.chat.forms import Chat
from radflow.rewards.judge.prompts import Prompt, defuse, fenced_prompt

_PACKAGE = "crimson-score"
_SIGNIFICANCE = {"urgent": 1.0, "actionable_not_urgent": 0.5, "not_actionable_not_urgent": 0.25, "benign_expected": 0.0}
_SEVERITY = {"significant": 0.5, "negligible": 0.0}
_OTHER = 0.25  # weight of a word that is none of these
_TEXT = {"type": "string"}


@dataclass(frozen=True)
class Errors:
    """What a model found, and the score that follows."""

    score: float
    listed: Mapping[str, Any]  # as the model wrote it


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _read_green_like(found: Mapping[str, Any]) -> Errors:
    """Score matched / (matched + significant errors), in [0, 1]; 0 if nothing is matched. As GREEN's."""
    matched, errors = _rows(found, "matched", str), _rows(found, "errors", dict)
    if wrong := [e for e in errors if e.get("category") not in set("abcdef") or type(e.get("significant")) is not bool]:
        raise ValueError(f"expected errors of category a to f that are significant or not, got {len(wrong)} others")
    significant = sum(error["significant"] for error in errors)
    return Errors(len(matched) / (len(matched) + significant) if matched else 0.0, found)


def _rows(found: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    rows = found.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
        raise ValueError(f'expected a list "{key}" of {kind.__name__}')
    return rows


GREEN_LIKE = fenced_prompt(
    "green_like",
    "green_like",
    _object(
        matched=_list(_TEXT),
        errors=_list(_object(category={**_TEXT, "enum": list("abcdef")}, significant={"type": "boolean"}, error=_TEXT)),
    ),
    _read_green_like,
)


class _CrimsonPrompt(Prompt[Errors]):
    def chat(self, texts: Sequence[str], *, again: bool = False) -> Chat:
        """Without our fence, which is no part of the published prompt; control tokens are broken up."""
        user = _load_crimson()(*map(defuse, texts)) + (f"\n{self.again}" if again else "")
        return Chat(user, " ".join(texts), self.system, self.schema)


def crimson() -> Prompt[Errors]:
    """CRIMSON's prompt with its guidelines, without context of the patient; ValueError if the package is not there."""
    _load_crimson()
    finding = _object(id=_TEXT, finding=_TEXT, clinical_significance={**_TEXT, "enum": list(_SIGNIFICANCE)})
    pair = {"ref_id": _TEXT, "pred_id": _TEXT}
    severity, kinds = {**_TEXT, "enum": list(_SEVERITY)}, _list(_TEXT)
    attribute = _object(**pair, severity=severity, error_types=kinds, explanation=_TEXT)
    errors = _object(false_findings=_list(_TEXT), missing_findings=_list(_TEXT), attribute_errors=_list(attribute))
    both, matched = _list(finding), _list(_object(**pair))
    schema = _object(reference_findings=both, predicted_findings=both, matched_findings=matched, errors=errors)
    system = "You are an expert radiology evaluator that assesses the accuracy of radiology reports."  # of the package
    version, again = f"{_PACKAGE} {metadata.version(_PACKAGE)}", "An earlier reply was not of this form."
    return _CrimsonPrompt(version, system, ("REFERENCE", "CANDIDATE"), schema, read_crimson, again)


def _load_crimson() -> Callable[[str, str], str]:
    """The function of the package that writes its prompt."""
    try:
        from CRIMSON.prompt_parts import build_prompt
    except ImportError as error:
        how = f"pip install --no-deps --ignore-requires-python {_PACKAGE}"
        raise ValueError(
            f"crimson asks with the prompt of the package {_PACKAGE}, which is not there: {how}"
        ) from error
    return build_prompt


def read_crimson(found: Mapping[str, Any]) -> Errors:
    """The score in (-1, 1] of the lists that the prompt asks for: 1 for a report without errors, 0 for one that is as
    good as a normal template. Significance weighs findings; a wrong attribute takes a share of its finding.

    Source: CRIMSON, arXiv:2603.06183, and version 0.2.2 of its package.
    """
    errors = found.get("errors")
    if not isinstance(errors, dict):
        raise ValueError('expected an object "errors"')
    reference, predicted = (
        {str(row.get("id")): _SIGNIFICANCE.get(str(row.get("clinical_significance")), _OTHER) for row in rows}
        for rows in (_rows(found, "reference_findings", dict), _rows(found, "predicted_findings", dict))
    )
    false = sum(predicted.get(name, 0.0) for name in _rows(errors, "false_findings", str))
    missed = sum(reference.get(name, 0.0) for name in _rows(errors, "missing_findings", str))
    lost: dict[str, float] = {}
    for row in _rows(errors, "attribute_errors", dict):
        name = str(row.get("ref_id"))
        lost[name] = lost.get(name, 0.0) + _SEVERITY.get(str(row.get("severity")), _OTHER)
    matched = _rows(found, "matched_findings", dict)
    earned = 0.0
    for name in {str(row.get("ref_id")) for row in matched}:
        weight = reference.get(name, 0.0)
        earned += weight * weight / (weight + lost.get(name, 0.0)) if weight else 0.0
    total = sum(reference.values()) if reference else len(matched) + missed
    without_findings = 1.0 if false == missed == 0 else -1.0
    share = (earned - false) / total if total else without_findings
    excess = max(0.0, false - earned)
    return Errors(round(share if share >= 0 else -excess / (1 + excess), 4), found)
