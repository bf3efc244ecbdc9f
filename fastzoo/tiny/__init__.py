"""The embedded default: a toy chat model and its synthetic dialogues, shipped in the package.

Everything in fastzoo runs on it in seconds, with no network, account or GPU. It is a toy: about
0.8M parameters that know a handful of animals, cities and sums in English and French.
`python -m fastzoo.tiny.build --out DIR` makes all of it again from fixed seeds.

Only paths live here, so importing this package costs nothing.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

MODEL = _HERE / "tiny-chat"  # a Hugging Face model folder: config, weights, tokenizer, template
DIALOGUES = _HERE / "data" / "dialogues.jsonl"  # rows {"messages": [{"role", "content"}, ...]}
HELDOUT = _HERE / "data" / "heldout.jsonl"  # same rows, another seed, none seen in training
TEXTS = _HERE / "data" / "texts.jsonl"  # rows {"text": ...}: plain prose of the same small world

__all__ = ["DIALOGUES", "HELDOUT", "MODEL", "TEXTS"]
