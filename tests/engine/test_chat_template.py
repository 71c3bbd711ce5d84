"""The same prompt text as transformers' apply_chat_template, and errors that say what to do."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.chat_template import (
    ChatTemplate,
    ChatTemplateRefused,
    InvalidMessage,
    NoChatTemplate,
    UnknownRole,
    require_template,
)
from engine.model_folder_errors import InvalidChatTemplate
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import SPECIAL_TOKEN_BY_NAME, byte_level_backend, write_tokenizer

CHATML = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {%- if loop.first and not message.content %}{% continue %}{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

HEADERS_WITH_DATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INSTRUCTION = """\
{% set ns = namespace(system='') %}
{% for message in messages %}
  {% if message.role == 'system' %}
    {% set ns.system = '<<SYS>>' ~ message.content ~ '<</SYS>>' %}
  {% elif message.role == 'user' %}
    {{ bos_token + '[INST] ' + ns.system + message.content + ' [/INST]' }}
    {% set ns.system = '' %}
  {% else %}
    {% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
  {% endif %}
{% endfor %}
"""

AS_JSON = """\
{% for m in messages %}{{ m | tojson(indent=2) }}{{ m.content is none }}{% break %}{% endfor %}
{{ [unk_token, tools, documents] | tojson }}{{ 'x' if tools is not none }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "headers with a date": HEADERS_WITH_DATE,
    "instruction": INSTRUCTION,
    "json": AS_JSON,
}
CONVERSATION = [
    {"role": "system", "content": " Be kind. \n"},
    {"role": "user", "content": "1 < 2 & 'quoted' \"text\" 你好 {{ no }}"},
    {"role": "assistant", "content": "Yes.\n\n"},
    {"role": "user", "content": "Why?"},
]

messages_lists = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=12)}
    ),
    min_size=1,
    max_size=4,
)


def compiled(source: str) -> ChatTemplate:
    return ChatTemplate.from_source(source, SPECIAL_TOKEN_BY_NAME)


@pytest.fixture(scope="module", params=TEMPLATES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    config = {"chat_template": TEMPLATES[request.param]}
    write_tokenizer(folder, byte_level_backend(), adds_bos=True, config=config)
    tokenizer = Tokenizer.from_folder(folder)
    template = ChatTemplate.from_folder(folder, tokenizer)
    return require_template(template), tokenizer, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_prompt_and_its_ids_equal_those_of_transformers(
    pair: Any, add_generation_prompt: bool
) -> None:
    template, tokenizer, theirs = pair
    ours = template.render(CONVERSATION, add_generation_prompt=add_generation_prompt)
    options = {"add_generation_prompt": add_generation_prompt}
    assert ours == theirs.apply_chat_template(CONVERSATION, tokenize=False, **options)
    expected_ids = theirs.apply_chat_template(CONVERSATION, return_dict=False, **options)
    assert tokenizer.encode(ours, add_special_tokens=False) == expected_ids


@given(messages=messages_lists)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_any_conversation_renders_as_in_transformers(
    pair: Any, messages: list[dict[str, str]]
) -> None:
    template, _, theirs = pair
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template.render(messages) == expected


def test_the_date_comes_from_the_given_clock() -> None:
    template = ChatTemplate.from_source(
        "{{ strftime_now(format='%d %b %Y') }}", {}, now=lambda: datetime(2024, 7, 26)
    )
    assert template.render(CONVERSATION) == "26 Jul 2024"


def test_a_field_without_value_looks_absent_to_the_template() -> None:
    template = compiled("{{ 'tool_calls' in messages[0] }}")
    assert template.render([{"role": "user", "content": "a", "tool_calls": None}]) == "False"


def test_a_template_of_its_own_file_wins(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level_backend(), config={"chat_template": "field"})
    (tmp_path / "chat_template.jinja").write_text("file\n")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    template = ChatTemplate.from_folder(tmp_path, Tokenizer.from_folder(tmp_path))
    assert require_template(template).render(CONVERSATION) == "file"
    assert theirs.apply_chat_template(CONVERSATION, tokenize=False) == "file"


def test_of_several_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    entries = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    write_tokenizer(tmp_path, byte_level_backend(), config={"chat_template": entries})
    template = ChatTemplate.from_folder(tmp_path, Tokenizer.from_folder(tmp_path))
    assert require_template(template).render(CONVERSATION) == "d"


def test_a_model_without_template_is_named_when_messages_come(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level_backend())
    template = ChatTemplate.from_folder(tmp_path, Tokenizer.from_folder(tmp_path))
    assert template is None
    with pytest.raises(NoChatTemplate, match="send the prompt as text"):
        require_template(template)


@pytest.mark.parametrize("field", ["{% if %}", [{"name": "rag", "template": "r"}], 7])
def test_a_template_that_is_none_is_found_when_it_is_loaded(tmp_path: Path, field: object) -> None:
    write_tokenizer(tmp_path, byte_level_backend())
    tokenizer = Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": field}))
    with pytest.raises(InvalidChatTemplate, match="correct the template"):
        ChatTemplate.from_folder(tmp_path, tokenizer)


def test_a_template_file_that_is_not_text_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level_backend())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidChatTemplate, match="UTF-8"):
        ChatTemplate.from_folder(tmp_path, Tokenizer.from_folder(tmp_path))


def test_the_templates_own_complaint_reaches_the_caller() -> None:
    template = compiled("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateRefused, match="roles must alternate"):
        template.render(CONVERSATION)


def test_an_accident_in_the_template_does_not_quote_the_conversation() -> None:
    template = compiled("{{ messages[0].content.missing() + 1 }}")
    with pytest.raises(ChatTemplateRefused, match="UndefinedError") as refused:
        template.render([{"role": "user", "content": "secret"}])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "source", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ 1 // 0 }}"]
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(ChatTemplateRefused):
        compiled(source).render(CONVERSATION)


@pytest.mark.parametrize("role", ["narrator", None, 7, ["user"]])
def test_an_unknown_role_is_named_by_its_place(role: object) -> None:
    with pytest.raises(UnknownRole, match="message 1: role must be one of system"):
        compiled(CHATML).render([CONVERSATION[0], {"role": role, "content": "a"}])


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": 7}]])
def test_messages_of_the_wrong_shape_are_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidMessage):
        compiled(CHATML).render(messages)
