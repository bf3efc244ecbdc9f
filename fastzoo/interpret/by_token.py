"""Reports on tokens: which latents fire on special tokens, on a given token, and on a text.

Plain data for all SAEs of a model, as ``fastzoo features`` shows it (by default, ``--token``,
``--text``). The model runs once over the dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastzoo.core.errors import InputError
from fastzoo.core.progress import Progress
from fastzoo.core.text import one_line
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.interpret.output_score import refuse_missing
from fastzoo.interpret.special_latents import Occurrences, SpecialLatents
from fastzoo.interpret.statistics import encode_packs, strongest
from fastzoo.loading import Assembly
from fastzoo.saes.names import parse_name
from fastzoo.saes.paper import paper_special_latents

DEFINITION = (
    "the latents with the largest mean_max: a latent's largest activation over the token's positions "
    "in a dialogue, wherever it stands there, averaged over the dialogues that contain it (dialogues, "
    "zeros included; a latent's own dialogues: those in which it fires on the token). As for special "
    "tokens, position 0 and attention sinks count only in with_sinks, unless the token stands nowhere else"
)


def of_special_tokens(assembly: Assembly, *, dialogues: int, top: int) -> dict[str, Any]:
    """Appendix F.3 for each SAE, the paper's own latents beside where it has some.

    Raises DataError, HubError, ModelError, TrainingError.
    """
    report = _of_tokens(assembly, SpecialTokens.of(assembly.chat), dialogues, top)
    for name, found in report["saes"].items():
        _add_paper(found, name)
    return report


def of_token(assembly: Assembly, token: str, *, dialogues: int, top: int) -> dict[str, Any]:
    """The same for any one token, given by its text or id, wherever it stands.

    Raises InputError: not a single token, or one that stands in none of the dialogues.
    """
    number = find_token(assembly, token)
    texts = assembly.texts
    report = _of_tokens(assembly, _OneToken(text=texts, number=number), dialogues, top)
    for found in report["saes"].values():
        found["definition"] = DEFINITION
    if not all(found["tokens"] for found in report["saes"].values()):
        where = f"none of the {report['split']['used']} dialogues; give others with --data{_as_text(assembly, token)}"
        raise InputError(f"--token: {texts(number)!r} (id {number}) is in {where}")
    return report


@dataclass(frozen=True)
class _OneToken(SpecialTokens):
    """One token instead of the special ones, wherever it stands."""

    number: int = 0

    def among(self, ids: np.ndarray, position: np.ndarray, special: np.ndarray) -> np.ndarray:
        return ids == self.number


@torch.no_grad()
def _of_tokens(assembly: Assembly, tokens: SpecialTokens, dialogues: int, top: int) -> dict[str, Any]:
    sequences, split = assembly.dialogues(dialogues, "interpretability")
    reader, saes = assembly.reader, assembly.saes
    sums = {name: SpecialLatents(sae.d_sae, reader.device) for name, (_, sae) in saes.items()}
    with Progress("reading dialogues", split["tokens"]) as bar:
        for group, encoded in encode_packs(reader, saes, sequences, lambda n: bar.advance(n, "tokens")):
            for name, _, acts_TF, sink_T in encoded:
                sums[name].add(acts_TF, Occurrences(group, tokens, reader.device, sink_T))
    found = {name: s.report(tokens.text, top) for name, s in sums.items()}
    return {"base_model": assembly.base_model, "split": split, "saes": found}


def _add_paper(found: dict[str, Any], name: str) -> None:
    """Add ``paper`` to each token: rank, latent and value that the paper reports, or None."""
    try:
        reported = paper_special_latents().get(parse_name(name), ())
    except InputError:
        reported = ()
    entries: dict[int, dict[str, Any]] = {entry["token_id"]: entry for entry in found["tokens"]}
    for entry in found["tokens"]:
        entry["paper"] = None
    for x in reported:
        unseen = {"dialogues": 0, "latents": [], "with_sinks": None, "paper": None}
        entry = entries.setdefault(x.token_id, {"token_id": x.token_id, "token": x.token, **unseen})
        latent = {"rank": x.rank, "latent": x.latent, "mean_max": x.mean_max_activation}
        entry["paper"] = [*(entry["paper"] or ()), latent]
    found["tokens"] = list(entries.values())


def find_token(assembly: Assembly, token: str) -> int:
    """The id of a token given by its text (or as the vocabulary writes it) or by its id.

    Raises InputError: not valid Unicode, not a single token, or an id that does not exist.
    """
    last = assembly.vocabulary - 1
    shown = one_line(token, 80)
    if _is_id(token):
        if int(token[:12]) > last:
            raise InputError(f"--token: {shown} is not a token id; ids are 0 to {last}")
        return int(token)
    texts = assembly.texts
    ids = _tokenized(assembly, "--token", token).tolist() if token else []
    single = len(ids) == 1
    # Vocabularies spell a byte as a letter: their 'é' is part of what they write 'Ã©'. But where the
    # tokenizer puts a space before a text, only the vocabulary has the token without it.
    spelled = assembly.chat.tokenizer.get_vocab().get(token)
    if spelled is not None and not (single and texts(ids[0]) == token):
        return int(spelled)
    if not single:
        parts = f" ({', '.join(repr(texts(number)) for number in ids[:8])})" if ids else ""
        what = f"is not a token of {assembly.chat.model_name} but {len(ids)}{parts}"
        raise InputError(f"--token: '{shown}' {what}; give one token, or an id from 0 to {last}")
    return int(ids[0])


def _tokenized(assembly: Assembly, option: str, text: str) -> np.ndarray:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{option}: '{one_line(text, 80)}' is not valid Unicode") from None
    return assembly.chat.tokenize([text])[0]


def _is_id(token: str) -> bool:
    return token.isascii() and token.isdigit()


def _as_text(assembly: Assembly, token: str) -> str:
    """A hint for users who meant the digits and not the id."""
    ids = assembly.chat.tokenize([token])[0].tolist() if _is_id(token) else []
    return f" (the text '{token}' is id {ids[0]})" if len(ids) == 1 else ""


@torch.no_grad()
def of_text(assembly: Assembly, text: str, *, raw: bool, top: int) -> dict[str, Any]:
    """For each token of a text, the latents that fire on it, the strongest first; none fires on a sink that
    the SAE skips, and ``skipped`` says so.

    The text is a user's message or, if ``raw``, taken as it is, special tokens included. Raises
    InputError: empty, longer than the model's context, or refused by the chat template.
    """
    return _of_sequence(assembly, _sequence(assembly, text, raw), raw, top)


@torch.no_grad()
def of_messages(
    assembly: Assembly, messages: Sequence[Mapping[str, Any]], *, top: int, asked: Sequence[int] = ()
) -> dict[str, Any]:
    """The same for a dialogue: turns with ``role`` and ``content``. Of the latents ``asked`` about, each token also has
    their activations, by latent. Raises InputError."""
    for name, (_, sae) in assembly.saes.items():
        refuse_missing(asked, sae.d_sae, name)
    return _of_sequence(assembly, _templated(assembly, "the dialogue", messages), False, top, asked)


def _of_sequence(
    assembly: Assembly, sequence: TokenSequence, raw: bool, top: int, asked: Sequence[int] = ()
) -> dict[str, Any]:
    texts = assembly.texts
    places = []
    for place, number in enumerate(sequence.ids.tolist()):
        role = None if raw else texts.role(sequence, place)
        places.append({"token_id": number, "token": texts(number), "position": place, "role": role})
    saes = {}
    for _, encoded in encode_packs(assembly.reader, assembly.saes, [sequence]):
        for name, x_TD, acts_TF, _ in encoded:
            skipped = assembly.saes[name][1].passed_through(x_TD).tolist()
            fired = [_fired(acts_F, top) for acts_F in acts_TF.float().cpu().numpy()]
            if asked:
                columns = acts_TF[:, list(asked)].tolist()
                fired = [
                    {**found, "asked": dict(zip(asked, acts, strict=True))}
                    for found, acts in zip(fired, columns, strict=True)
                ]
            saes[name] = {
                "tokens": [
                    {**place, "skipped": sink, **found}
                    for place, sink, found in zip(places, skipped, fired, strict=True)
                ]
            }
    return {"base_model": assembly.base_model, "raw": raw, "saes": saes}


def _fired(acts_F: np.ndarray, top: int) -> dict[str, Any]:
    """How many latents fire, and the ``top`` ones."""
    latents = [{"latent": k, "activation": float(acts_F[k])} for k in strongest(acts_F, top)]
    return {"firing": int((acts_F > 0).sum()), "latents": latents}


def _sequence(assembly: Assembly, text: str, raw: bool) -> TokenSequence:
    if not text.strip():
        raise InputError("--text: the text is empty")
    if not raw:
        return _templated(assembly, "--text", [{"role": "user", "content": text}])
    return _bounded(assembly, "--text", assembly.chat.sequence(_tokenized(assembly, "--text", text), 0))


def _templated(assembly: Assembly, what: str, messages: Sequence[Mapping[str, Any]]) -> TokenSequence:
    chat, counts = assembly.chat, Counts()
    row = {chat.data.column or "messages": list(messages)}
    for sequence in chat.dialogues([(0, row)], counts, truncate=False):
        return _bounded(assembly, what, sequence)
    use = "a user's message" if what.startswith("--") else "written by the chat template"
    raise InputError(f"{what}: cannot be {use} ({', '.join(counts.skipped)})")


def _bounded(assembly: Assembly, what: str, sequence: TokenSequence) -> TokenSequence:
    limit = assembly.chat.data.max_tokens
    if len(sequence) > limit:
        raise InputError(f"{what}: {len(sequence)} tokens; at most {limit} go through the model")
    return sequence
