"""The paper's two questions to a large language model: is a report consistent, and does it describe anything abnormal?

Nothing is asked twice, and a question that stays unanswered is missing. httpx is imported when a judge is built, and
the server is first reached when it is asked.
"""

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from radflow.rewards.judge import prompts
from radflow.rewards.judge.answer_cache import AnswerCache
from radflow.rewards.judge.client import ChatClient, Reply, TroubleError
from radflow.rewards.judge.config import JudgeConfig, read_key
from radflow.rewards.judge.prompts import Answer, Prompt
from radflow.rewards.rules.criticality import Criticality, Definition

_POLL_S = 0.1  # while another process asks the same question
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class JudgeStats:
    """Counts of one judge since it was built: answered = questions - missing, of which `cached` were not asked."""

    asked: int  # questions for which at least one request was sent
    cached: int  # answered without a request: known before, asked by another process, or repeated in a batch
    missing: int  # without an answer, for whatever reason
    refused: int  # of them: the model declined
    over_budget: int  # of them: the budget did not allow another request
    retried: int  # requests beyond the first of their question
    spent: float  # in the currency of the prices; a request whose price is unknown counts with the most it can cost


@dataclass
class _Question:
    """One question while it is asked."""

    prompt: Prompt
    texts: Sequence[str]
    key: str
    requests: int = 0  # sent so far


class Breaker:
    """Open after `failures` failed requests in a row. After each rest one request tries whether the server is back.

    Args:
        rest_s: seconds between such tries.
        clock: seconds, never going back.
    """

    def __init__(self, failures: int, rest_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._rest_s, self._clock = failures, rest_s, clock
        self._failed, self._tried = 0, 0.0

    @property
    def open(self) -> bool:
        return self._failed >= self._limit

    def allows(self) -> bool:
        """Whether a request may be sent now; while open, True for the first that asks after each rest."""
        if not self.open:
            return True
        if self._clock() - self._tried < self._rest_s:
            return False
        self._tried = self._clock()  # the others wait for the outcome of this one
        return True

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        if self.open:
            self._tried = self._clock()


class Asker:
    """Asks many questions at a time, in an event loop in a thread of its own, for callers of any thread that wait.

    Raises:
        ValueError: judge.model is not set, the key is not in the environment, httpx is not installed, or judge.cache
            is another file.
    """

    def __init__(self, config: JudgeConfig) -> None:
        if config.model is None:
            raise ValueError("expected judge.model, the name under which the endpoint serves its model; it is not set")
        self.config, self.model = config, config.model
        self.last_trouble = ""  # why a question has no answer, in words without report text
        self._client, self._slots = ChatClient(config, read_key(config)), asyncio.Semaphore(config.concurrency)
        self._breaker = Breaker(config.breaker_failures, config.breaker_rest_s)
        self._counts: Counter[str] = Counter()
        self._running: dict[str, asyncio.Task[tuple[Answer | None, bool]]] = {}
        self._form, self._spent, self._pause_until, self._random = 0, 0.0, 0.0, random.Random()
        self._loop = asyncio.new_event_loop()
        # A daemon: a program that ends does not wait for it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._run(self._open())
        except BaseException:
            self._stop()
            raise

    @property
    def stats(self) -> JudgeStats:
        names = ("asked", "cached", "missing", "refused", "over_budget", "retried")
        return JudgeStats(**{name: self._counts[name] for name in names}, spent=self._spent)

    def ask(self, prompt: Prompt, questions: Sequence[Sequence[str]]) -> list[Answer | None]:
        """An answer to each question, or None if it is missing.

        Args:
            questions: the texts of each, one per title of the prompt.
        """
        return self._run(self._ask_all(prompt, questions)) if questions else []

    def close(self) -> None:
        """End connection and thread; questions under way are given up. A program that ends need not call it."""
        self._run(self._finish())
        self._stop()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises in the thread; it is cancelled when the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C too
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        """Make what belongs to the thread: SQLite's connection, and the renewal of claims."""
        config = self.config
        claim_s, max_calls, max_money = config.claim_s, config.max_calls, config.max_money
        self._cache = AnswerCache(config.cache, claim_s=claim_s, max_calls=max_calls, max_money=max_money)
        self._renewing = asyncio.create_task(self._renew())

    async def _finish(self) -> None:
        tasks = [self._renewing, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        self._cache.close()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.config.claim_s / 4)
            if self._running:
                self._cache.renew()

    async def _ask_all(self, prompt: Prompt, questions: Sequence[Sequence[str]]) -> list[Answer | None]:
        tasks, new = [], []
        for texts in questions:
            key = prompts.question_key(prompt, self.model, texts)
            new.append(key not in self._running)
            if new[-1]:
                self._running[key] = asyncio.create_task(self._answer(_Question(prompt, texts, key)))
                self._running[key].add_done_callback(partial(self._forget, key))
            tasks.append(self._running[key])
        outcomes = await asyncio.gather(*tasks)
        for (answer, asked), first in zip(outcomes, new, strict=True):
            self._counts["asked"] += asked and first
            self._counts["cached"] += answer is not None and not (asked and first)
            self._counts["missing"] += answer is None
        return [answer for answer, _ in outcomes]

    def _forget(self, key: str, _: object) -> None:
        del self._running[key]

    async def _answer(self, question: _Question) -> tuple[Answer | None, bool]:
        """The answer to a question, and whether this process sent a request for it."""
        while (answer := self._cache.find(question.key)) is None:
            async with self._slots:
                if self._cache.claim(question.key):
                    try:
                        return await self._ask(question), question.requests > 0
                    finally:
                        self._cache.release(question.key)
            await asyncio.sleep(_POLL_S)
        return answer, False

    async def _ask(self, question: _Question) -> Answer | None:
        """Ask the model; after a reply of wrong form once more."""
        prompt = question.prompt
        for again in (False, True):
            reply = await self._send(question, prompts.messages(prompt, question.texts, again=again))
            if reply is None:
                break
            if reply.refused:
                self._counts["refused"] += 1
                self.last_trouble = "the model declined to answer"
                break
            try:
                answer = prompts.parse_answer(reply.content)
            except prompts.BadReplyError as error:
                self.last_trouble = f"a reply of wrong form: {error}"
                continue
            self._cache.store(question.key, answer, prompt=prompt.version, model=self.model)
            return self._cache.find(question.key)
        return None

    async def _send(self, question: _Question, chat: list[dict[str, str]]) -> Reply | None:
        """A reply, or None when retries or budget are used up."""
        max_cost, form, failed = self._client.max_cost(chat), self._form, 0
        while True:
            await asyncio.sleep(max(0.0, self._pause_until - time.monotonic()))
            if not self._may_send(max_cost):
                return None
            self._counts["retried"] += question.requests > 0
            question.requests += 1
            try:
                reply = await self._client.send(chat, form)
            except TroubleError as trouble:
                self._settle(max_cost, trouble.cost)
                if trouble.other_form and form + 1 < len(prompts.RESPONSE_FORMATS):
                    form += 1
                    continue
                if not await self._try_again(trouble, failed):
                    return None
                failed += 1
            else:
                self._settle(max_cost, reply.cost)
                self._breaker.succeeded()
                self._form = form
                return reply

    def _may_send(self, max_cost: float) -> bool:
        """Whether breaker and budget allow a request; if so, the request is paid."""
        if not self._breaker.allows():
            return False
        if self._cache.pay(max_cost):
            return True
        if not self._counts["over_budget"]:
            _log.warning("the judge's budget is used up; questions stay unanswered until it is raised (judge.max_...)")
        self._counts["over_budget"] += 1
        self.last_trouble = "the budget is used up"
        return False

    def _settle(self, max_cost: float, cost: float | None) -> None:
        cost = max_cost if cost is None else cost
        self._cache.settle(max_cost, cost)
        self._spent += cost

    async def _try_again(self, trouble: TroubleError, failed: int) -> bool:
        """After `failed` earlier failures of the request: wait and return True, or False to give it up."""
        config, last = self.config, not trouble.retry or failed == self.config.retries
        self.last_trouble = str(trouble)
        # A busy server works: it counts as failing only when a question gets no answer for it.
        if not trouble.busy or last:
            self._note_failure(trouble)
        spread = self._random.uniform(0.5, 1)
        if trouble.wait_s is not None:  # meant for every question; these go on a little apart
            wait = min(trouble.wait_s, config.backoff_max_s) + spread * config.backoff_s
            self._pause_until = max(self._pause_until, time.monotonic() + wait)
        elif not last:
            await asyncio.sleep(spread * min(config.backoff_s * 2**failed, config.backoff_max_s))
        return not last

    def _note_failure(self, trouble: TroubleError) -> None:
        was_open, config = self._breaker.open, self.config
        self._breaker.failed()
        if self._breaker.open and not was_open:
            text = "the judge failed %d times in a row, last: %s; it is left alone for %g s"
            _log.warning(text, config.breaker_failures, trouble, config.breaker_rest_s)


class _LlmJudge:
    """A judge that asks its questions through an `Asker`."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    @classmethod
    def from_config(cls, config: JudgeConfig) -> Self:
        return cls(Asker(config))

    @property
    def stats(self) -> JudgeStats:
        return self.asker.stats


class ConsistencyLlm(_LlmJudge):
    """+1 if the Impression follows from the Findings, -1 if it does not (paper 4.2), None if no answer came.

    If a section is empty the score is -1, and nothing is asked.
    """

    name = "consistency_llm"

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float | None]:
        pairs = [(f.strip(), i.strip()) for f, i in zip(findings, impressions, strict=True)]
        answers = iter(self.asker.ask(prompts.CONSISTENCY, [pair for pair in pairs if all(pair)]))
        scores: list[float | None] = []
        for pair in pairs:
            answer = next(answers) if all(pair) else Answer(False, "a section is empty")
            scores.append(None if answer is None else 1.0 if answer.yes else -1.0)
        return scores


class CriticalityLlm(_LlmJudge):
    """A report is critical if it describes something abnormal (paper 4.3); None if no answer came.

    Args:
        definition: `acute` asks for something urgent, new or worsening.
    """

    def __init__(self, asker: Asker, definition: Definition = "paper") -> None:
        super().__init__(asker)
        self.question = prompts.CRITICALITY if definition == "paper" else prompts.CRITICALITY_ACUTE

    def __call__(self, reports: Sequence[str]) -> list[Criticality | None]:
        answers = self.asker.ask(self.question, [(report.strip(),) for report in reports])
        return [None if a is None else Criticality(a.yes, a.reason, self.asker.model) for a in answers]
