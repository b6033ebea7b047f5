"""Batches of questions to the LLM judge: nothing is asked twice, and a question that stays unanswered is missing."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answer_cache import AnswerCache, open_cache
from rewards.breaker import Breaker
from rewards.judge_client import ChatClient, Reply, TroubleError
from rewards.judge_config import JudgeConfig, read_key
from rewards.judge_prompts import (
    RESPONSE_FORMATS,
    Answer,
    BadReplyError,
    Prompt,
    messages,
    parse_answer,
    question_key,
)
from rewards.loop_thread import LoopThread
from rewards.spending import Spending

_LOOK_AGAIN_S = 0.1  # while another process asks the same question
_log = logging.getLogger(__name__)


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


class Asker:
    """Asks many questions at a time, in a thread of its own, for callers that wait.

    Raises:
        ValueError: judge.model is not set, the key is not in the environment, httpx is not installed, or judge.cache
            is another file.
    """

    def __init__(self, config: JudgeConfig) -> None:
        if config.model is None:
            raise ValueError("expected judge.model, the name under which the endpoint serves its model; it is not set")
        self.config, key = config, read_key(config)
        self.last_trouble = ""  # why a question has no answer, in words without report text
        self._counts: Counter[str] = Counter()
        self._spent = 0.0
        self._breaker = Breaker(config.breaker_failures, config.breaker_rest_s)
        self._running: dict[str, asyncio.Task[tuple[Answer | None, bool]]] = {}
        self._form, self._pause_until, self._random = 0, 0.0, random.Random()
        self._client, self._slots = ChatClient(config, key), asyncio.Semaphore(config.concurrency)
        self._thread = LoopThread("judge")
        try:
            self._thread.run(self._open())
        except BaseException:
            self._thread.stop()
            raise

    @property
    def stats(self) -> JudgeStats:
        names = ("asked", "cached", "missing", "refused", "over_budget", "retried")
        return JudgeStats(**{name: self._counts[name] for name in names}, spent=self._spent)

    def ask(self, prompt: Prompt, questions: Sequence[Sequence[str]]) -> list[Answer | None]:
        """An answer to each question, or None where it is missing.

        Args:
            questions: the texts of each, one for each title of the prompt.
        """
        return self._thread.run(self._ask_all(prompt, questions)) if questions else []

    def close(self) -> None:
        """End connection and thread; questions under way are given up. A program that ends need not call it."""
        self._thread.run(self._finish())
        self._thread.stop()

    async def _open(self) -> None:
        """What belongs to the thread: SQLite's connection, and the renewal of claims."""
        config = self.config
        self._connection = open_cache(config.cache)
        self._cache = AnswerCache(self._connection, claim_s=config.claim_s)
        self._spending = Spending(self._connection, max_calls=config.max_calls, max_money=config.max_money)
        self._renewing = asyncio.create_task(self._renew())

    async def _finish(self) -> None:
        tasks = [self._renewing, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        self._connection.close()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.config.claim_s / 4)
            if self._running:
                self._cache.renew()

    async def _ask_all(self, prompt: Prompt, questions: Sequence[Sequence[str]]) -> list[Answer | None]:
        tasks, first = [], []
        for texts in questions:
            key = question_key(prompt, self.config.model, texts)
            first.append(key not in self._running)
            if key not in self._running:
                self._running[key] = asyncio.create_task(self._answer(prompt, texts, key))
                self._running[key].add_done_callback(lambda _, key=key: self._running.pop(key))
            tasks.append(self._running[key])
        outcomes = await asyncio.gather(*tasks)
        for (answer, asked), new in zip(outcomes, first, strict=True):
            self._counts["asked"] += asked and new
            self._counts["cached"] += answer is not None and not (asked and new)
            self._counts["missing"] += answer is None
        return [answer for answer, _ in outcomes]

    async def _answer(self, prompt: Prompt, texts: Sequence[str], key: str) -> tuple[Answer | None, bool]:
        """The answer to one question, and whether this process asked it."""
        while (answer := self._cache.find(key)) is None:
            async with self._slots:
                if self._cache.claim(key):
                    try:
                        return await self._put(prompt, texts, key)
                    finally:
                        self._cache.release(key)
            await asyncio.sleep(_LOOK_AGAIN_S)
        return answer, False

    async def _put(self, prompt: Prompt, texts: Sequence[str], key: str) -> tuple[Answer | None, bool]:
        """Ask; after a reply of wrong form once more."""
        asked = False
        for again in (False, True):
            reply, sent = await self._request(messages(prompt, texts, again=again), first=not again)
            asked = asked or sent
            if reply is None:
                break
            if reply.refused:
                self._counts["refused"] += 1
                self.last_trouble = "the model declined to answer"
                break
            try:
                answer = parse_answer(reply.content)
            except BadReplyError as error:
                self.last_trouble = f"a reply of wrong form: {error}"
                continue
            self._cache.store(key, answer, prompt=prompt.version, model=self.config.model)
            return self._cache.find(key), True
        return None, asked

    async def _request(self, chat: list[dict[str, str]], *, first: bool) -> tuple[Reply | None, bool]:
        """A reply, or None when the retries are used up; and whether anything was sent."""
        most, form, failed, sent = self._client.most(chat), self._form, 0, False
        while True:
            await asyncio.sleep(max(0.0, self._pause_until - time.monotonic()))
            if not self._may_send(most):
                return None, sent
            self._counts["retried"] += sent or not first
            sent = True
            try:
                reply = await self._client.send(chat, form)
            except TroubleError as trouble:
                self._settle(most, trouble.cost)
                if trouble.other_form and form + 1 < len(RESPONSE_FORMATS):
                    form += 1
                    continue
                if not await self._try_again(trouble, failed):
                    return None, sent
                failed += 1
            else:
                self._settle(most, reply.cost)
                self._breaker.succeeded()
                self._form = form
                return reply, sent

    def _may_send(self, most: float) -> bool:
        """Whether breaker and budget allow a request; the budget has paid for it then."""
        if not self._breaker.allows():
            return False
        if self._spending.pay(most):
            return True
        if not self._counts["over_budget"]:
            _log.warning("the judge's budget is used up; questions stay unanswered until it is raised (judge.max_...)")
        self._counts["over_budget"] += 1
        self.last_trouble = "the budget is used up"
        return False

    def _settle(self, most: float, cost: float | None) -> None:
        cost = most if cost is None else cost
        self._spending.settle(most, cost)
        self._spent += cost

    async def _try_again(self, trouble: TroubleError, failed: int) -> bool:
        """After `failed` earlier failures of the request: wait and return True, or False where it is given up."""
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
        was_open = self._breaker.open
        self._breaker.failed()
        if self._breaker.open and not was_open:
            _log.warning(
                "the judge failed %d times in a row, last: %s; it is left alone for %g s",
                self.config.breaker_failures, trouble, self.config.breaker_rest_s,
            )  # fmt: skip
