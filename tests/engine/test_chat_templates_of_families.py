"""Conversations in the forms of the supported families, beside transformers' apply_chat_template.

The templates use what the published ones use (folded system messages, alternation checks, messages
in reverse, cut-out reasoning), with special tokens that are in the tokenizer.
"""

from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.chat_template import ChatTemplate, ChatTemplateRefused, require_template
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import byte_level_backend, write_tokenizer

# Gemma: no system role, the assistant is called model, roles must take turns.
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set opening = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (opening if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for part in message['content'] -%}{{ part['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# Mistral and Mixtral: instructions in brackets, the system message before the last of them.
MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message.content + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message.content + '[/INST]' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content|trim + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant roles are known') }}
    {%- endif %}
{%- endfor %}
"""

# Phi-3: a token for each role, one for the end of each turn.
PHI3 = """\
{% for message in messages %}
{% if message['role'] in ['system', 'user', 'assistant'] and message['content'] %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# Qwen3: the reasoning of turns before the last question is cut out.
QWEN3 = """\
{%- set ns = namespace(searching=true, last_question=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == 'user' and message.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last_question = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last_question %}
            {%- set content = '<think>' + reasoning.strip('\\n') + '</think>' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

TEMPLATES = {"gemma": GEMMA, "mistral": MISTRAL, "phi3": PHI3, "qwen3": QWEN3}
TURN_TOKENS = [
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|system|>", "<|user|>",
    "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "  Why is the sky blue?\n"}],
    "several turns": [
        {"role": "user", "content": "1 < 2 & 'quoted' 你好"},
        {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nYes. "},
        {"role": "user", "content": "Why? <|im_end|>"},
    ],
    "system": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ],
    "ends with an answer": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi"},
    ],
}


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    backend = byte_level_backend()
    backend.add_special_tokens(TURN_TOKENS)
    backend.add_tokens(["<think>", "</think>"])
    write_tokenizer(
        folder, backend, adds_bos=True, config={"chat_template": TEMPLATES[request.param]}
    )
    tokenizer = Tokenizer.from_folder(folder)
    template = require_template(ChatTemplate.from_folder(folder, tokenizer))
    return template, tokenizer, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("adds_prompt", [True, False])
def test_the_prompt_and_its_ids_equal_those_of_transformers(
    pair: Any, name: str, adds_prompt: bool
) -> None:
    template, tokenizer, theirs = pair
    conversation = CONVERSATIONS[name]
    ours = template.render(conversation, add_generation_prompt=adds_prompt)
    options = {"add_generation_prompt": adds_prompt}
    assert ours == theirs.apply_chat_template(conversation, tokenize=False, **options)
    expected = theirs.apply_chat_template(conversation, return_dict=False, **options)
    assert tokenizer.encode(ours, add_special_tokens=False) == expected


def test_turn_tokens_are_not_shown_and_other_added_tokens_are(pair: Any) -> None:
    _, tokenizer, theirs = pair
    ids = tokenizer.encode("<|im_start|><think>so</think><|im_end|>", add_special_tokens=False)
    assert len(ids) <= 6
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == "<think>so</think>"


@pytest.mark.parametrize(
    ("source", "second_role", "complaint"),
    [(GEMMA, "user", "take turns"), (MISTRAL, "tool", "roles are known")],
)
def test_a_template_refuses_what_its_model_was_not_trained_on(
    source: str, second_role: str, complaint: str
) -> None:
    template = ChatTemplate.from_source(source, {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(ChatTemplateRefused, match=complaint):
        template.render([{"role": "user", "content": "a"}, {"role": second_role, "content": "b"}])
