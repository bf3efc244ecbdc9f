"""What the page shows, as plain data: models, SAEs and latents, answers, sweeps and dialogues. Loads no gradio.

All that a visitor sends is checked here: an SAE is one of the zoo's names, texts and numbers are bounded.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fastzoo.config.recipe import EMBEDDED_MODEL
from fastzoo.core.errors import FastzooError, InputError
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.data.dialogues import Dialogue
from fastzoo.interpret.by_token import of_messages
from fastzoo.interpret.latent_page import LatentPages, LayerStates
from fastzoo.interpret.output_score import refuse_missing
from fastzoo.interpret.statistics import strongest
from fastzoo.lm.logit_lens import final_norm, lens_tokens
from fastzoo.lm.padding import padding_is_exact
from fastzoo.loading import Assembly, assemble, open_sae
from fastzoo.steering.edits import MODES
from fastzoo.steering.live import Live
from fastzoo.steering.measured import Measured, read_measured
from fastzoo.steering.outcome import Outcome
from fastzoo.steering.prepare import make_sweep
from fastzoo.steering.questions import Question, load_questions
from fastzoo.steering.run import run_steer
from fastzoo.steering.settings import SteerSettings
from fastzoo.steering.side_by_side import SideBySide

MOST_CHARACTERS = 2000
"""Of one text that a visitor writes."""
MOST_TURNS = 8
"""Questions of a conversation."""
MOST_TOKENS, USUAL_TOKENS = 200, 60
"""Of one answer."""
MOST_QUESTIONS, MOST_ALPHAS = 6, 9
"""Of a sweep."""
LARGEST_ALPHA = 1e6
COLDEST = 1e-3
"""Lower temperatures count as 0: dividing logits by them would overflow."""
KEPT_SAES = 4
"""SAEs that are in memory at once."""
READ_DIALOGUES, READ_TOKENS = 500, 65_536
"""Dialogues that latents are looked up in, at most."""
READ_AT_ONCE = 1
"""Dialogues that are read before visitors' answers go first again."""
RETRY = 60.0
"""Seconds after which dialogues that could not be had are asked for again."""
POSITIONS = ("all", "prompt", "generated", "user", "assistant")
NORMS = 1.2
"""The slider's end, in mean norms of the residual stream, where no window was measured."""


@dataclass
class Opened:
    """An SAE in memory, with its model."""

    name: str
    assembly: Assembly
    measured: list[Measured]
    building: threading.Lock = field(default_factory=threading.Lock)
    pages: LatentPages | None = None
    problem: str = ""
    """Why there are no pages."""
    asked_again: float = 0.0
    """When to try again."""

    @property
    def sae(self) -> Any:
        return next(iter(self.assembly.saes.values()))[1]


@dataclass(frozen=True)
class Push:
    """How a visitor steers."""

    sae: str
    latent: int
    alpha: float
    mode: str = "add"
    positions: str = "all"
    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = USUAL_TOKENS


@dataclass(frozen=True)
class Turn:
    """A question with its two answers."""

    question: str
    unsteered: str = ""
    steered: str = ""


class Engine:
    """Everything behind the page.

    Args:
        sources: the zoo: SAEs by the name that visitors choose, and where each is, as ``open_sae`` takes it.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        if not sources:
            raise InputError("no SAE is given")
        self.sources = dict(sources)
        self.names = list(sources)
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._readers: dict[str, Any] = {}
        self._opening, self._opened_lock = threading.Lock(), threading.Lock()
        self._wanted: list[None] = []
        """One for each visitor who runs the model, or waits to; lists change in one step, which counting does not."""
        self._model_lock, self._threads = threading.Lock(), torch.get_num_threads()

    @contextmanager
    def _model(self, *, can_wait: bool = False) -> Iterator[None]:
        """Whoever runs the language model is in here: one at a time is as fast, and exactly reproducible. Who can wait lets
        all others go first."""
        if can_wait:
            while self._wanted:
                time.sleep(0.01)
        else:
            self._wanted.append(None)
        try:
            with self._model_lock:
                self._all_threads()
                yield
        finally:
            if not can_wait:
                self._wanted.pop()

    def _all_threads(self) -> None:
        """Let torch compute in as many threads as ever. A thread that first used it while a generation had it down to
        one keeps that number, and sums in another order: a last digit would depend on who else is here."""
        torch.set_num_threads(self._threads)

    # --- SAEs and latents ----------------------------------------------------------------------

    def open(self, name: str) -> Opened:
        """One of the zoo's SAEs, fetched and loaded if need be. Raises InputError: another name; FastzooError."""
        if not isinstance(name, str) or name not in self.sources:
            hint = did_you_mean(str(name)[:100], self.names)
            raise InputError(f"there is no SAE '{one_line(name, 60)}' here.{hint and ' ' + hint}")
        with self._opened_lock:
            if name in self._opened:
                self._opened.move_to_end(name)
                return self._opened[name]
        with self._opening:  # one at a time; what is in memory need not wait for it
            if name not in self._opened:
                found = self._load(name)
                with self._opened_lock:
                    self._opened[name] = found
                    while len(self._opened) > KEPT_SAES:
                        self._opened.popitem(last=False)
            return self._opened[name]

    def _load(self, name: str) -> Opened:
        source = self.sources[name]
        assembly = assemble([source])
        key = f"{assembly.source.path}@{assembly.source.sha}"
        if key in self._readers:  # SAEs of one model share it
            assembly.__dict__["reader"] = self._readers[key]
        else:
            with self._model():
                self._readers = {key: assembly.reader}
                # Both are found out by forwards, which ``writes`` and the first answer then do without.
                _ = final_norm(assembly.reader.model), padding_is_exact(assembly.reader.model)
        try:
            measured = read_measured(open_sae(source))
        except InputError as error:  # a stranger's file may have come with a pulled SAE
            print(error, file=sys.stderr)
            measured = []
        return Opened(name, assembly, measured)

    def pages(self, name: str, tell: Callable[[int, int], None] = lambda done, total: None) -> LatentPages:
        """What is known of an SAE's latents, from dialogues that are read now if they were not before.

        ``tell`` hears how many of how many tokens were read. Raises FastzooError: there are no dialogues.
        """
        opened = self.open(name)
        with opened.building:
            if opened.problem and time.monotonic() < opened.asked_again:
                raise InputError(opened.problem)
            if opened.pages is None:
                try:
                    opened.pages = self._read(opened, tell)
                except FastzooError as error:
                    opened.problem = f"what latents fire on is unknown: {error}"
                    opened.asked_again = time.monotonic() + RETRY
                    raise InputError(opened.problem) from None
            return opened.pages

    def _read(self, opened: Opened, tell: Callable[[int, int], None]) -> LatentPages:
        assembly = opened.assembly
        ((layer, _),) = assembly.saes.values()
        sequences, split = assembly.dialogues(READ_DIALOGUES, "interpretability")
        while sum(map(len, sequences)) > READ_TOKENS and len(sequences) > 1:
            sequences = sequences[:-1]
        total, done, parts = sum(map(len, sequences)), 0, []
        for start in range(0, len(sequences), READ_AT_ONCE):
            some = sequences[start : start + READ_AT_ONCE]
            with self._model(can_wait=True):
                parts.append(LayerStates(assembly.reader, some, layer))
            done += sum(map(len, some))
            tell(done, total)
        pages = LatentPages(
            assembly, LayerStates.joined(parts), {**split, "used": len(sequences), "tokens": total}
        )
        _ = pages.figures
        return pages

    def latent_page(self, name: str, latent: int) -> dict[str, Any]:
        """All that is known of a latent; ``measured`` where its window is. Raises InputError."""
        page = self.pages(name).page(_whole(latent, "the latent", 0, 1 << 40))
        known = [found.model_dump() for found in self.open(name).measured if found.latent == latent]
        return page | {"measured": known, "dialogues_read": self.pages(name).split["used"]}

    def special_latents(self, name: str, top: int = 3) -> list[dict[str, Any]]:
        """For each special token of the dialogues, the latents that fire most strongly on it."""
        return self.pages(name).on_special_tokens(top)

    def strongest_latents(self, name: str, top: int = 12) -> list[dict[str, Any]]:
        """The latents with the largest mean maximum, with what they write; of those that fire in few dialogues, if there
        are any: those of every dialogue are about its form."""
        figures = self.pages(name).figures
        some = (figures.dialogue_frequency_F > 0.02) & (figures.dialogue_frequency_F < 0.5)
        mean_max_F = figures.mean_max_F.numpy()
        chosen = strongest(mean_max_F * some.numpy(), top) or strongest(mean_max_F, top)
        return [{"latent": k, "writes": self.writes(name, k)} for k in chosen]

    def latent_of(self, name: str, latent: Any) -> int:
        """The number of one of an SAE's latents. Raises InputError: it has no such latent."""
        number = _whole(latent, "the latent", 0, 1 << 40)
        refuse_missing([number], self.open(name).sae.d_sae, name)
        return number

    def writes(self, name: str, latent: int) -> list[str]:
        """The tokens that a latent's decoder row raises most."""
        opened, latent = self.open(name), self.latent_of(name, latent)
        model, texts = opened.assembly.reader.model, opened.assembly.texts
        _, ids_1K = lens_tokens(
            model, opened.sae.W_dec.detach()[[latent]], 6, vocabulary=opened.assembly.vocabulary
        )
        return [texts(int(token)) for token in ids_1K[0]]

    def reach(self, name: str, latent: int) -> dict[str, Any]:
        """How far a latent can be pushed, raw: the slider's ``end``, and where measured ``window`` (low, high or None)
        and ``best``."""
        opened, latent = self.open(name), self.latent_of(name, latent)
        known = next((found for found in opened.measured if found.latent == latent), None)
        if known:
            window = None if known.low is None or known.high is None else (known.low, known.high)
            best = known.best and _short(known.best)
            end = _short(known.alphas[-1])
            return {"end": end, "window": window, "best": best, "measured": known.model_dump()}
        length = opened.sae.W_dec[latent].float().norm().item() or 1.0
        if opened.pages is not None:
            norm = opened.pages.figures.residual_norm
        elif opened.measured:  # of the same layer
            norm = opened.measured[0].alphas[-1] / NORMS
        else:
            norm = 100.0
        return {"end": _short(NORMS * norm / length), "window": None, "best": None, "measured": None}

    def first_question(self, name: str) -> str:
        """A question that the model can answer."""
        return load_questions(tiny=self.open(name).assembly.source.name == EMBEDDED_MODEL)[0].text

    # --- steering ------------------------------------------------------------------------------

    def answers(self, push: Push, before: Sequence[Turn], question: str) -> Iterator[dict[str, Any]]:
        """Both answers as they are written: ``unsteered`` and ``steered`` texts, and whether they are ``done``.

        The last one also holds ``tokens`` of both, with the latent's activation and what was likely, and ``scores``.
        Raises InputError, DataError.
        """
        opened = self.open(push.sae)
        asked = [*map(_turn, before), Turn(_text(question, "the question"))]
        if len(asked) > MOST_TURNS:
            raise InputError(
                f"this conversation has {MOST_TURNS} questions, the most there may be; begin a new one"
            )
        chats = [conversation(asked, which) for which in ("unsteered", "steered")]
        sweep = make_sweep(_settings(push), opened.assembly, [Question(chat) for chat in chats])
        both = SideBySide(replace(sweep, alphas=[_finite(push.alpha)]))
        with self._model():
            for _ in both.steps():
                unsteered, steered = both.texts()
                yield {"unsteered": unsteered, "steered": steered, "done": False}
            assembly = opened.assembly
            self._all_threads()  # each step of a generator can be in another thread
            views = both.tokens(assembly.reader, assembly.texts, assembly.vocabulary)
            scores = both.scores()
        unsteered, steered = (cell.text for cell in both.cells)
        yield {
            "unsteered": unsteered,
            "steered": steered,
            "done": True,
            "tokens": {
                key: list(map(asdict, found))
                for key, found in zip(("unsteered", "steered"), views, strict=True)
            },
            "scores": {
                key: {"fault": score.fault, "nll": score.nll, "kept": score.kept, "ended": score.ended}
                for key, score in zip(("unsteered", "steered"), scores, strict=True)
            },
        }

    def sweep(
        self, push: Push, questions: Sequence[str], alphas: Sequence[float]
    ) -> Iterator[tuple[int, Outcome | None]]:
        """A sweep of one latent: yields how many tokens were written, and at the end what was found."""
        opened = self.open(push.sae)
        if not isinstance(questions, (list, tuple)) or not isinstance(alphas, (list, tuple)):
            raise InputError("a sweep takes a list of questions and a list of strengths")
        texts = [_text(text, "a question") for text in questions]
        wanted = sorted({0.0, *(_finite(alpha) for alpha in alphas)})
        if not 1 <= len(texts) <= MOST_QUESTIONS or not 2 <= len(wanted) <= MOST_ALPHAS:
            raise InputError(
                f"a sweep here takes up to {MOST_QUESTIONS} questions and {MOST_ALPHAS} alphas, 0 among them"
            )
        settings = replace(_settings(push), questions=texts, alphas=wanted, control=len(texts) > 1)
        live = Live(lambda watch: run_steer(settings, lambda sweep: nullcontext(watch), opened.assembly))
        with self._model():
            written = 0
            for step in live.steps():
                written += len(step)
                yield written, None
        yield written, live.result

    # --- looking -------------------------------------------------------------------------------

    def read_dialogue(
        self, name: str, turns: Sequence[Mapping[str, str]], top: int = 8, asked: int | None = None
    ) -> dict[str, Any]:
        """Every token of a dialogue with its strongest latents, and the activation of the one ``asked`` about. Raises
        InputError."""
        if not isinstance(turns, (list, tuple)) or not 1 <= len(turns) <= 2 * MOST_TURNS:
            raise InputError(f"a dialogue here has 1 to {2 * MOST_TURNS} turns")
        messages = []
        for turn in turns:
            if not isinstance(turn, Mapping):
                raise InputError('each turn is {"role": "...", "content": "..."}')
            role = str(turn.get("role", ""))
            if role not in ("system", "user", "assistant"):
                raise InputError(f"role '{one_line(role, 30)}' is not one of system, user, assistant")
            messages.append({"role": role, "content": _text(turn.get("content", ""), f"the {role}'s turn")})
        opened = self.open(name)
        with self._model():
            latents = [] if asked is None else [_whole(asked, "the latent", 0, 1 << 40)]
            found = of_messages(opened.assembly, messages, top=_whole(top, "top", 1, 50), asked=latents)
        return {"sae": name, "turns": messages, **next(iter(found["saes"].values()))}


def conversation(turns: Sequence[Turn], which: str) -> Dialogue:
    """The turns as one of the two models has them; the last one is not answered yet."""
    messages = []
    for turn in turns[:-1]:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": getattr(turn, which)},
        ]
    return Dialogue([*messages, {"role": "user", "content": turns[-1].question}])


def _short(value: float) -> float:
    """A strength as people write it."""
    return float(f"{value:.4g}")


def _settings(push: Push) -> SteerSettings:
    """As ``fastzoo steer`` has them. Raises InputError for what a visitor may not ask for."""
    for value, allowed, what in ((push.mode, MODES, "mode"), (push.positions, POSITIONS, "positions")):
        if value not in allowed:
            raise InputError(f"{what} '{one_line(value, 40)}' is not one of {', '.join(allowed)}")
    temperature = _finite(push.temperature)
    if not 0 <= temperature <= 5:
        raise InputError("the temperature is 0 to 5")
    return SteerSettings(
        source=push.sae,
        questions=[],
        latents=[_whole(push.latent, "the latent", 0, 1 << 40)],
        alphas=[_finite(push.alpha)],
        units="raw",
        mode=push.mode,
        positions=push.positions,
        temperature=temperature if temperature >= COLDEST else 0.0,
        seed=_whole(push.seed, "the seed", 0, 2**31),
        max_new_tokens=_whole(push.max_new_tokens, "the length of an answer", 1, MOST_TOKENS),
    )


def _turn(turn: Turn) -> Turn:
    """A turn of before; an empty answer, which templates refuse, is a blank."""
    answers = (text[: 8 * MOST_CHARACTERS] or " " for text in (turn.unsteered, turn.steered))
    return Turn(_text(turn.question, "a question"), *answers)


def _text(text: Any, what: str) -> str:
    """A visitor's text. Raises InputError."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{what} is empty")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{what} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read")
    return re.sub(r"[\ud800-\udfff]", "\ufffd", text)


def _whole(value: Any, what: str, low: int, high: int) -> int:
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not low <= value <= high or value != int(value):
        raise InputError(f"{what} is a whole number from {low} to {high}")
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_ALPHA:
        raise InputError(f"a strength is a number from -{LARGEST_ALPHA:g} to {LARGEST_ALPHA:g}")
    return float(value)
