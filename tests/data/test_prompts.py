"""What a model is asked begins as what its SAEs were trained on, on every day."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from conftest import recipe
from transformers import AutoModelForCausalLM

import fastzoo
from fastzoo import tiny
from fastzoo.data.dialogues import Dialogue
from fastzoo.data.sequences import Counts
from fastzoo.data.special_tokens import answer_starts
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.saes.standard import StandardSAE
from fastzoo.steering.sweep import Sweep

TURNS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

LLAMA_3_2 = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    "{{- '<|im_start|>system\\nToday Date: ' + date_string + '\\n\\n<|im_end|>' }}" + TURNS
)
"""As the head of Llama 3.2's."""

GRANITE = "{{- '<|im_start|>system\\nToday is ' ~ strftime_now('%d %B %Y') ~ '.<|im_end|>' }}" + TURNS
"""As those of Granite, SmolLM3, Mistral Small and gpt-oss, which know no ``date_string``."""

QUESTION = {"role": "user", "content": "Where is Paris?"}


@pytest.mark.parametrize(
    ("template", "date"),
    [(LLAMA_3_2, "Today Date: 26 Jul 2024\n"), (GRANITE, "Today is 26 July 2024.")],
    ids=["llama-3.2", "granite"],
)
def test_prompts_begin_as_training_sequences_do(template: str, date: str, tokenizer: Any) -> None:
    dated = deepcopy(tokenizer)
    dated.chat_template = template
    chat = ChatTokenizer(dated, recipe().data, "test model")
    row = {"messages": [QUESTION, {"role": "assistant", "content": "In France."}]}
    (trained,) = chat.dialogues([(0, row)], Counts())
    assert date in tokenizer.decode(trained.ids)
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL)
    sweep = Sweep(model, chat, StandardSAE(8, 8), 1, [0], [Dialogue([QUESTION])], [0.0])
    (prompt,) = sweep.prompts()
    assert prompt == trained.ids[: len(prompt)].tolist()
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    (start,) = answer_starts(chat, [trained], 1)
    assert start.ids.tolist() == prompt
    mask = fastzoo.roles(dated, "user")(torch.tensor([prompt]))[0]
    assert tokenizer.decode(torch.tensor(prompt)[mask]).startswith("<|im_start|>user")


def test_another_date_is_written_in_the_templates_own_format(tokenizer: Any) -> None:
    dated = deepcopy(tokenizer)
    dated.chat_template = GRANITE
    chat = ChatTokenizer(dated, recipe(data={"date": "1 Feb 2023"}).data, "test model")
    assert "Today is 01 February 2023." in chat.template.write(Dialogue([QUESTION]))
    chat = ChatTokenizer(dated, recipe(data={"date": "a day in May"}).data, "test model")
    assert "Today is a day in May." in chat.template.write(Dialogue([QUESTION]))
