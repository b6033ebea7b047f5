"""Reports from any OpenAI-compatible vision endpoint: images travel as data URIs, in one message with the question."""

import asyncio
import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from capo.checks import check_range
from capo.sampling import SamplingConfig
from radflow.data.studies import Study, load_image
from radflow.rewards.judge.client import ChatClient, TroubleError
from radflow.rewards.judge.config import JudgeConfig, is_loopback, read_key
from radflow.rewards.judge.prompts import RESPONSE_FORMATS

PLAIN = RESPONSE_FORMATS.index(None)  # the reply is text, not JSON
PROMPT = (
    "Write the report of this chest radiograph as a radiologist does, with the sections Findings and Impression, in "
    "the form: Findings: ... Impression: ..."
)


@dataclass(frozen=True)
class EndpointConfig:
    """A served model (OpenAI-compatible, with images) instead of a checkpoint, and how it is asked."""

    url: str | None = None
    """Of the API, such as http://127.0.0.1:8000/v1; /chat/completions is appended."""
    model: str | None = None
    """Name of the model, as the endpoint knows it."""
    prompt: str = PROMPT
    """The question; indication and comparison of the study are added."""
    api_key_env: str | None = None
    """Name of the environment variable with the key."""
    allow_external: bool = False
    """Images may leave this machine: needed for every url that is not a loopback address."""
    max_side: int = 1024
    """Larger images are scaled down to this side, in pixels."""
    concurrency: int = 8
    """Studies asked about concurrently."""
    retries: int = 4
    """Further requests of a study after faults of the server."""
    backoff_s: float = 1.0
    """Wait before the first retry, in seconds; it doubles with each."""
    timeout_s: float = 300.0
    """Seconds that one request may take."""

    def __post_init__(self) -> None:
        if (self.url is None) != (self.model is None):
            raise ValueError("expected endpoint.url and endpoint.model together, got one of them")
        check_range(self, "backoff_s", least=0)
        check_range(self, "timeout_s", above=0)
        if self.url is None:
            return
        if not self.allow_external and not is_loopback(self.url):
            risk = f"endpoint.url {self.url} is not this machine, and images of patients would leave it"
            advice = "use a server at 127.0.0.1, or set endpoint.allow_external if the data's owner permits it"
            raise ValueError(f"{risk}; {advice}")
        check_range(self, "max_side", least=32)
        self.client(SamplingConfig())

    def client(self, sampling: SamplingConfig) -> JudgeConfig:
        """Settings of the client that the judge uses too."""
        own = {name: value for name, value in vars(self).items() if name not in ("prompt", "max_side")}
        try:
            return JudgeConfig(**own, temperature=sampling.temperature, max_tokens=sampling.max_new_tokens)
        except ValueError as error:
            raise ValueError(str(error).replace("judge.", "endpoint.")) from error


class Endpoint:
    """Asks for reports; ValueError if the key is not set or httpx is not installed."""

    def __init__(self, config: EndpointConfig, sampling: SamplingConfig) -> None:
        self.config, self._client_config = config, config.client(sampling)
        self._key = read_key(self._client_config)

    def reports(self, studies: Sequence[Study], *, title: str) -> list[tuple[str, bool]]:
        """(report, False) of each study, in order; the protocol does not say reliably whether a report was cut.

        Raises:
            ValueError: a study got no report after all retries, or the model refused it; names the study.
        """
        return asyncio.run(self._all(studies, title))

    async def _all(self, studies: Sequence[Study], title: str) -> list[tuple[str, bool]]:
        client, gate = ChatClient(self._client_config, self._key), asyncio.Semaphore(self.config.concurrency)
        try:
            with tqdm(total=len(studies), desc=title, unit="report", disable=None, leave=False) as bar:

                async def one(study: Study) -> tuple[str, bool]:
                    async with gate:  # images are encoded when it is their turn, so that few are held
                        report = await self._ask(client, study)
                    bar.update()
                    return report, False

                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(study)) for study in studies]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await client.close()
        return [task.result() for task in tasks]

    async def _ask(self, client: ChatClient, study: Study) -> str:
        config, chat = self.config, build_question(study, self.config)
        for attempt in range(config.retries + 1):
            try:
                reply = await client.send(chat, PLAIN)
            except TroubleError as trouble:
                if not trouble.retry or attempt == config.retries:
                    what = f"no report from {config.url} after {attempt + 1} requests: {trouble}"
                    advice = "rerun the command when the server is well, finished parts are kept"
                    raise ValueError(f"study {study.id}: {what}; {advice}") from None
                wait = config.backoff_s * 2**attempt * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(wait, min(trouble.wait_s or 0.0, 60.0)))
                continue
            if reply.refused or not reply.content.strip():
                what = "refused to report it" if reply.refused else "answered with an empty report"
                advice = "drop the study, or change endpoint.prompt"
                raise ValueError(f"study {study.id}: the model {config.model} {what}; {advice}")
            return reply.content.strip()
        raise AssertionError("the last attempt returns or raises")


def build_question(study: Study, config: EndpointConfig) -> list[dict[str, Any]]:
    """The chat about a study: context and images of one user message."""
    context = {"Indication": study.indication, "Comparison": study.comparison}
    text = "\n".join([config.prompt, *(f"{name}: {value}" for name, value in context.items() if value)])
    parts: list[dict[str, Any]] = []
    for title, sources in (("Earlier study:", study.prior_images), ("This study:", study.images)):
        if sources and study.prior_images:
            parts.append({"type": "text", "text": title})
        for source in sources:
            image = load_image(source, study_id=study.id, window=study.window)
            parts.append({"type": "image_url", "image_url": {"url": encode_png(image, config.max_side)}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def encode_png(image: Image.Image, side: int) -> str:
    """An image as PNG in a data URI, at most `side` pixels wide and high: lossless, as the model would see the file."""
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
