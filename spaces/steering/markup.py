"""What the page shows as HTML. Whatever a model, a visitor or a file says is escaped here, and none of it is markup.

Loads neither gradio nor torch.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FAULTS = {
    "special tokens": "it contains special tokens, as if turns began and ended inside it",
    "empty": "it is empty",
    "broken characters": "its characters are broken",
    "no words": "it has no words",
    "loop": "it goes round in a loop",
    "repeats": "it repeats itself",
    "babble": "it babbles",
    "jumbled scripts": "it jumbles scripts",
    "word salad": "its words do not belong together",
    "broken words": "its words fall apart",
}
"""By the reasons of ``fastzoo.steering.scoring.degenerate``."""

SIDES = {"unsteered": "Without steering", "steered": "Steered"}


def escape(text: Any) -> str:
    """Text for gr.HTML, whose templates also read ``${}``, ``{{}}`` and backticks."""
    shown = "" if text is None else str(text)
    # Pictures of control characters, which a page would swallow.
    shown = "".join(chr(0x2400 + ord(c)) if c < " " and c not in "\t\n" else c for c in shown)
    return re.sub(r"[`${}\\]", lambda match: f"&#{ord(match[0])};", html.escape(shown))


def problem(text: Any) -> str:
    """What went wrong, in the page."""
    return f"<p class='problem' role='alert'>{escape(text)}</p>"


def word(text: Any, title: str = "") -> str:
    """A token by itself, its blanks and line breaks to be seen."""
    shown = escape(text).replace("\n", "↵").replace("\t", "⇥")
    return f"<code title='{title}'>{shown}</code>" if title else f"<code>{shown}</code>"


def number(value: float) -> str:
    """A figure with three digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    return "&lt;0.1%" if 0 < value < 0.001 else f"{value:.1%}"


# --- tokens ------------------------------------------------------------------------------------


def token(text: str, share: float, tip: Iterable[str], label: str, **data: Any) -> str:
    """One token, marked by its ``share`` of the largest activation, with a tip that hovering or focus shows."""
    attributes = "".join(f" data-{key}='{escape(value)}'" for key, value in data.items())
    button = " role='button'" if data else ""
    lines = "".join(f"<span>{line}</span>" for line in tip)
    style = f" style='--a:{share:.3f}'" if share > 0 else ""
    shown = escape(text.replace("\n", "↵\n")) if text.strip() == "" else escape(text)
    return (
        f"<span class='tok' tabindex='0'{button}{style}{attributes} aria-label='{escape(label)}'>{shown}"
        f"<span class='tip' role='tooltip'>{lines}</span></span>"
    )


def answer_tokens(views: Sequence[Mapping[str, Any]], largest: float) -> str:
    """An answer token by token."""
    parts = []
    for view in views:
        act, text = view["activation"], view["text"]
        what = "attention sink: the SAE leaves it alone" if view["sink"] else f"latent: <b>{number(act)}</b>"
        own = (view["without"]["own"], view["steered"]["own"])
        tip = [what, f"this token: <b>{percent(own[0])}</b> without, <b>{percent(own[1])}</b> steered"]
        tip += [
            f"{name}: {_likely(view[key]['best'])}"
            for name, key in (("without", "without"), ("steered", "steered"))
        ]
        label = f"{text.strip() or 'blank'}, activation {number(act)}"
        parts.append(token(text, act / largest if largest > 0 else 0.0, tip, label))
    return f"<div class='tokens'>{''.join(parts)}</div>"


def _likely(best: Sequence[tuple[str, float]]) -> str:
    return " · ".join(f"{word(text)} {percent(p)}" for text, p in best)


def conversation(turns: Sequence[tuple[str, str]], side: str, last: str | None = None) -> str:
    """One column: questions and answers, the last answer as HTML where that is given."""
    parts = [f"<h3>{SIDES[side]}</h3>"]
    for place, (question, answer) in enumerate(turns):
        parts.append(f"<p class='asked'>{escape(question)}</p>")
        whole = last is not None and place == len(turns) - 1
        parts.append(last if whole else f"<p class='said'>{escape(answer) or '<i>…</i>'}</p>")
    if not turns:
        parts.append("<p class='hint'>The answer comes here.</p>")
    live = " aria-live='polite'" if side == "steered" else ""
    return f"<section class='column {side}'{live}>{''.join(parts)}</section>"


def verdict(found: Mapping[str, Any]) -> str:
    """What steering did to the answer, in a sentence or two."""
    before, after = found["scores"]["unsteered"], found["scores"]["steered"]
    kept = after["kept"]
    if after["fault"] and not before["fault"]:
        said = f"<b>The steered answer broke:</b> {FAULTS.get(after['fault'], escape(after['fault']))}. Push less."
    elif after["fault"]:
        said = "<b>Both answers are broken</b>, the unsteered one too: this question is beyond the model."
    elif kept > 0.9:
        said = "<b>Hardly anything changed.</b> Push more."
    else:
        said = f"<b>The answer changed and stayed whole</b>: {percent(1 - kept)} of it is new."
    if after["nll"] is not None and before["nll"] is not None:
        said += (
            f" To the unsteered model its tokens are on average {_surprise(after['nll'] - before['nll'])}."
        )
    return f"<p class='verdict'>{said}</p>"


def _surprise(nats: float) -> str:
    if nats < 0.1:
        return "as likely as those of its own answer"
    factor = math.exp(min(nats, 20))
    return f"{number(factor)} times less likely than those of its own answer"


# --- the slider's window -----------------------------------------------------------------------


def window(reach: Mapping[str, Any]) -> str:
    """What was measured over the slider's range: effect, quality and the window in which both are good."""
    end, known = reach["end"], reach["measured"]
    if not known:
        return (
            "<p class='hint'>No window was measured for this latent. The slider ends at 1.2 times the mean norm of the "
            "residual stream, where most answers are broken.</p>"
        )

    def points(values: Sequence[float]) -> str:
        return " ".join(
            f"{100 * a / end:.2f},{30 - 28 * v:.2f}" for a, v in zip(known["alphas"], values, strict=True)
        )

    band = ""
    if reach["window"]:
        low, high = (100 * alpha / end for alpha in reach["window"])
        band = f"<rect class='band' x='{low:.2f}' y='0' width='{max(high - low, 1.0):.2f}' height='32'/>"
    said = f"Measured on {known['questions']} questions: "
    if not reach["window"]:
        said += "no strength changes answers without spoiling them."
    else:
        said += (
            f"{number(known['low'])} to {number(known['high'])} changes answers and keeps most of them whole"
        )
        said += "." if known["holds"] else ", though not so on the questions that did not choose it."
    return (
        f"<svg class='window' viewBox='0 0 100 32' preserveAspectRatio='none' role='img' aria-label='{escape(said)}'>"
        f"{band}<polyline class='effect' points='{points(known['effect'])}'/>"
        f"<polyline class='quality' points='{points(known['quality'])}'/></svg>"
        f"<p class='hint'><span class='key effect'>effect</span> <span class='key quality'>quality</span> "
        f"<span class='key band'>window</span> {escape(said)}</p>"
    )


# --- latents -----------------------------------------------------------------------------------


def latent_button(latent: int, words: Sequence[str] = (), extra: str = "") -> str:
    said = " ".join(map(word, words))
    return (
        f"<button type='button' class='latent' data-latent='{int(latent)}' aria-label='latent {int(latent)}'>"
        f"{int(latent)}{f' {extra}' if extra else ''}{f' {said}' if said else ''}</button>"
    )


def special_latents(found: Sequence[Mapping[str, Any]]) -> str:
    """Buttons of the latents of special tokens."""
    rows = []
    for entry in found:
        buttons = "".join(
            latent_button(x["latent"], extra=f"<small>{number(x['mean'])}</small>") for x in entry["latents"]
        )
        rows.append(f"<tr><th scope='row'>{word(entry['token'])}</th><td>{buttons}</td></tr>")
    head = "<tr><th>token</th><th>latents, by mean activation on it</th></tr>"
    return f"<table class='plain'>{head}{''.join(rows)}</table>"


def strongest_latents(found: Sequence[Mapping[str, Any]]) -> str:
    buttons = "".join(latent_button(x["latent"], x["writes"][:4]) for x in found)
    return f"<p class='hint'>Latent, and the tokens that it makes likelier:</p><div class='buttons'>{buttons}</div>"


def dialogue_tokens(found: Mapping[str, Any], chosen: int | None = None) -> str:
    """A dialogue token by token; marked is how strongly a latent fires, or without one the strongest of each token."""

    def value(entry: Mapping[str, Any]) -> float:
        if chosen is not None:
            return float(entry["asked"][chosen])
        return max((x["activation"] for x in entry["latents"]), default=0.0)

    entries = found["tokens"]
    largest = max(map(value, entries), default=0.0)
    parts, role = [], None
    for entry in entries:
        if entry["role"] != role:
            role = entry["role"]
            parts.append(f"<span class='role'>{escape(role)}</span>" if role else "")
        tip = [f"{x['latent']}: <b>{number(x['activation'])}</b>" for x in entry["latents"][:5]]
        if entry["skipped"]:
            tip = ["attention sink: the SAE leaves it alone"]
        of_chosen = [] if chosen is None else [f"latent {chosen}: <b>{number(value(entry))}</b>"]
        tip = [f"position {entry['position']}, {entry['firing']} latents fire", *of_chosen, *tip]
        share = value(entry) / largest if largest > 0 else 0.0
        label = f"{entry['token'].strip() or 'blank'}, position {entry['position']}"
        parts.append(token(entry["token"], share, tip, label, position=entry["position"]))
    return f"<div class='tokens'>{''.join(parts)}</div>"


def token_latents(entry: Mapping[str, Any], writes: Mapping[int, Sequence[str]]) -> str:
    """The latents of one token of a dialogue."""
    if entry["skipped"]:
        return "<p class='hint'>This token is an attention sink, which the SAE leaves alone.</p>"
    buttons = (
        latent_button(x["latent"], writes[x["latent"]][:4], f"<small>{number(x['activation'])}</small>")
        for x in entry["latents"]
    )
    where = f"{word(entry['token'])} at position {entry['position']}"
    return f"<p class='hint'>{where}: latent, activation, and the tokens that it makes likelier.</p><div class='buttons'>{''.join(buttons)}</div>"


def latent_page(page: Mapping[str, Any]) -> str:
    """All that is known of a latent."""
    parts = [f"<h2>Latent {page['latent']} <small class='mono'>{escape(page['sae'])}</small></h2>"]
    parts += [
        f"<p>Kept as <b>{escape(known['title'])}</b>. {_window_said(known)}</p>" for known in page["measured"]
    ]
    facts = {
        "fires on": f"{percent(page['frequency'])} of tokens",
        "in": f"{percent(page['dialogue_frequency'])} of dialogues",
        "mean maximum": number(page["mean_max"]),
        "highest": number(page["highest"]),
        "on sinks": f"{page['sinks']['fired']} of {page['sinks']['tokens']}",
        "dialogues read": f"{page['dialogues_read']:,}",
    }
    parts.append(
        "<dl>"
        + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts.items())
        + "</dl>"
    )
    parts.append("<div class='columns'>")
    for end, what in (("top", "makes likelier"), ("bottom", "makes less likely")):
        words = " ".join(word(entry["token"], f"{entry['logit']:.3f}") for entry in page["writes"][end])
        parts.append(f"<div><h4>{what}</h4><p class='words'>{words}</p></div>")
    parts.append("</div><div class='columns'>")
    parts.append(f"<div><h4>activations</h4>{_histogram(page['histogram'])}</div>")
    rows = [
        (f"{word(x['token'])}", f"{x['fired']} of {x['occurrences']}", number(x["mean"]))
        for x in page["special"]
    ]
    parts.append(f"<div><h4>on special tokens</h4>{_table(('token', 'fires on', 'mean'), rows)}</div>")
    rows = [
        (f"{word(x['token'])}", f"{x['fired']} of {x['occurrences']}", f"{x['share']:.0%}")
        for x in page["tokens"]
    ]
    parts.append(
        f"<div><h4>tokens it fires on most</h4>{_table(('token', 'fires on', 'share of all'), rows)}</div>"
    )
    similar = "".join(
        latent_button(x["latent"], extra=f"<small>{x['cosine']:.2f}</small>") for x in page["similar"]
    )
    parts.append(
        f"<div><h4>similar latents <small>cosine</small></h4><div class='buttons'>{similar}</div></div></div>"
    )
    parts.append("<h4>where it fires most</h4>")
    parts += [_context(context) for context in page["contexts"]] or [
        "<p class='hint'>Nowhere in these dialogues.</p>"
    ]
    return f"<article class='latent-page'>{''.join(parts)}</article>"


def _window_said(known: Mapping[str, Any]) -> str:
    if known["low"] is None:
        return "No strength changes answers without spoiling them."
    return f"Window of strengths: {number(known['low'])} to {number(known['high'])}."


def _context(context: Mapping[str, Any]) -> str:
    largest = max(x["activation"] for x in context["tokens"])
    tokens = (
        f"<span class='tok' style='--a:{max(x['activation'], 0) / largest:.3f}' title='{number(x['activation'])}'>{escape(x['token'])}</span>"
        for x in context["tokens"]
    )
    where = f"{escape(context['role'] or 'no turn')}, {number(context['activation'])}"
    return f"<div class='context'><span class='role'>{where}</span><span class='tokens'>{''.join(tokens)}</span></div>"


def _histogram(found: Mapping[str, Any]) -> str:
    counts, edges = found["counts"], found["edges"]
    if not counts:
        return "<p class='hint'>It never fires.</p>"
    top, width = math.log1p(max(counts)), 100 / len(counts)
    bars = "".join(
        f"<rect x='{i * width:.2f}' y='{40 - 38 * math.log1p(n) / top:.2f}' width='{width * 0.9:.2f}' height='{38 * math.log1p(n) / top:.2f}'>"
        f"<title>{number(edges[i])} to {number(edges[i + 1])}: {n} tokens</title></rect>"
        for i, n in enumerate(counts)
    )
    label = f"histogram of its activations, 0 to {number(edges[-1])}"
    return (
        f"<svg class='histogram' viewBox='0 0 100 40' preserveAspectRatio='none' role='img' aria-label='{label}'>{bars}</svg>"
        f"<p class='axis'><span>0</span><span>tokens, log scale</span><span>{number(edges[-1])}</span></p>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='plain'><tr>{head}</tr>{body}</table>"


# --- sweeps ------------------------------------------------------------------------------------


def sweep_table(questions: Sequence[str], rows: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Answers with alphas as columns; spans that repeat what was said are marked."""
    if not rows or not rows[0]:
        return ""
    head = "".join(f"<th scope='col'>{number(entry['cell'].alpha)}</th>" for entry in rows[0])
    body = []
    for question, cells in zip(questions, rows, strict=True):
        shown = "".join(f"<td>{_swept(entry)}</td>" for entry in cells)
        body.append(f"<tr><th scope='row'>{escape(question)}</th>{shown}</tr>")
    return (
        "<p class='hint'>Columns are strengths. What repeats an earlier part of the answer is <mark>marked</mark>.</p>"
        f"<div class='scroll' tabindex='0' role='region' aria-label='answers by strength'><table class='swept'><tr><th></th>{head}</tr>{''.join(body)}</table></div>"
    )


def _swept(entry: Mapping[str, Any]) -> str:
    parts = (f"<mark>{escape(text)}</mark>" if marked else escape(text) for text, marked in entry["parts"])
    fault = entry["score"].fault
    note = f"<p class='fault'>{FAULTS.get(fault, escape(fault))}</p>" if fault else ""
    return f"<div class='answer'>{''.join(parts) or '<i>empty</i>'}</div>{note}"
