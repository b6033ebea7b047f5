"""Names of models on the Hugging Face hub, and the commit that each means.

A branch can be moved to other files at any time. `owner/name@revision` says which are meant; without a revision, a name
that is known here means one commit, and of any other the newest files are fetched, with a warning.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any

COMMITS = {
    "distilroberta-base": "fb53ab8802853c8e4fbdbcd0529f21fc6f459b2b",
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "StanfordAIMI/RRG_scorers": "6646433b3ad83a10f6e141db76d0ece44312b236",
}


def find_commit(name: str) -> tuple[str, str]:
    """(repository, revision) of owner/name or owner/name@revision."""
    repository, _, revision = name.partition("@")
    revision = revision or COMMITS.get(repository, "")
    if not revision:
        _warn_of_newest(repository)
    return repository, revision or "main"


def at_commit(name: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`: a directory as it is, else a repository and its revision; no code of either runs,
    and nobody is asked whether it may."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": name, "trust_remote_code": False}
    if not Path(name).is_dir():
        where["pretrained_model_name_or_path"], where["revision"] = find_commit(name)
    return where


@cache
def _warn_of_newest(repository: str) -> None:
    logging.getLogger(__name__).warning(
        "%s: no revision is given, so that its newest files are taken, which may change; name them as %s@COMMIT",
        repository,
        repository,
    )
