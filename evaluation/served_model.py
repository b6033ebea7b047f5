"""Reports from any OpenAI-compatible vision endpoint: images travel as data URIs, in one message with the question."""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any

from tqdm import tqdm

from capo.checks import check_range
from capo.sampling import SamplingConfig
from radflow.chat.client import ChatClient
from radflow.chat.config import EndpointConfig
from radflow.chat.endpoint import TroubleError
from radflow.chat.forms import Chat
from radflow.data.image_files import as_data_uri
from radflow.data.studies import Study
from radflow.rewards.judge.prompts import defuse

PROMPT = (
    "Write the report of this chest radiograph as a radiologist does, with the sections Findings and Impression, in "
    "the form: Findings: ... Impression: ..."
)


@dataclass(frozen=True)
class ServedModelConfig(EndpointConfig):
    """A served model (OpenAI-compatible, with images) instead of a checkpoint, and how it is asked."""

    timeout_s: float = 300.0
    """Seconds that one request may take."""
    prompt: str = PROMPT
    """The question; indication and comparison of the study are added."""
    max_side: int = 1024
    """Larger images are scaled down to this side, in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.url is None) != (self.model is None):
            raise ValueError("expected endpoint.url and endpoint.model together, got one of them")
        check_range(self, "max_side", least=32)


class ServedModel:
    """Asks for reports; ValueError if the key is not set, or httpx or tenacity is not installed."""

    def __init__(self, config: ServedModelConfig, sampling: SamplingConfig) -> None:
        self.config = config
        self._client = ChatClient(config, max_tokens=sampling.max_new_tokens, temperature=sampling.temperature)

    def reports(self, studies: Sequence[Study], *, title: str) -> list[tuple[str, bool]]:
        """(report, whether it was cut at the token limit) of each study, in order.

        Raises:
            ValueError: a study got no report after all retries, or the model refused it; names the study.
        """
        # Images are encoded by the thread that sends them, so that few are held.
        with ThreadPool(self.config.concurrency) as threads:
            written = threads.imap(self._ask, studies)
            return list(tqdm(written, title, len(studies), unit="report", disable=None, leave=False))

    def _ask(self, study: Study) -> tuple[str, bool]:
        url, model = self.config.url, self.config.model
        try:
            reply = self._client.complete(build_question(study, self.config))
        except TroubleError as trouble:
            advice = "rerun the command when the server is well, finished parts are kept"
            raise ValueError(f"study {study.id}: no report from {url}: {trouble}; {advice}") from None
        if reply.refused or not reply.content:
            what = "refused to report it" if reply.refused else "answered with an empty report"
            what += " (its thoughts filled the token limit)" if reply.cut else ""
            advice = "drop the study, or change endpoint.prompt" + (" or max_new_tokens" if reply.cut else "")
            raise ValueError(f"study {study.id}: the model {model} {what}; {advice}")
        return reply.content, reply.cut


def build_question(study: Study, config: ServedModelConfig) -> Chat:
    """The chat about a study: context and images of one user message."""
    context = {"Indication": study.indication, "Comparison": study.comparison}
    # A control token in the text would be read as one.
    lines = [f"{name}: {defuse(value)}" for name, value in context.items() if value]
    parts: list[dict[str, Any]] = []
    for title, sources in (("Earlier study:", study.prior_images), ("This study:", study.images)):
        if sources and study.prior_images:
            parts.append({"type": "text", "text": title})
        for source in sources:
            image = study.load(source, size=config.max_side)
            parts.append({"type": "image_url", "image_url": {"url": as_data_uri(image)}})
    question = {"type": "text", "text": "\n".join([config.prompt, *lines])}
    return Chat([*parts, question], private=" ".join(lines))
