"""Chat templates of uploaded models: what they may use, and what stops them."""

from datetime import datetime
from typing import Any

import pytest
from jinja2 import Environment

from functions.adapters.language.template import SOURCE_CHARACTERS, ChatTemplate
from functions.core.errors import InvalidModel, InvalidRequest

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is <b>? "},
]

CHATML = (
    "{% for message in messages %}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "  {{- '<|im_start|>assistant\\n' }}\n"
    "{% endif %}"
)

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>' + system_message + '<</SYS>>' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)

DOUBLING = """{% set ns = namespace(a="x") %}{% for i in range(99) %}
{% set ns.a = ns.a ~ ns.a %}{% endfor %}"""


def render(source: str, messages: Any = CHAT, tools: Any = (), **tokens: str) -> str:
    return ChatTemplate(source, tokens).render(messages, tools)


def test_chatml_is_rendered_as_by_transformers() -> None:
    """transformers renders by Jinja with these two options."""
    jinja = Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 (no HTML)
    expected = jinja.from_string(CHATML).render(messages=CHAT, add_generation_prompt=True)

    assert render(CHATML) == expected
    assert expected.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_llamas_template_gets_its_special_tokens() -> None:
    prompt = render(LLAMA2, bos_token="<s>", eos_token="</s>")
    assert prompt == "<s>[INST] <<SYS>>Be brief.<</SYS>> What is <b>? [/INST]"


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ tools is none }}", "True"),
        ("{{ messages[0] | tojson }}", '{"role": "system", "content": "Be brief."}'),
        ("{{ {'é': ['<']} | tojson(indent=1) }}", '{\n "é": [\n  "<"\n ]\n}'),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{% generation %}x{%- endgeneration -%} y", "xy"),
        ("{{ messages[::-1][0].role }}", "user"),
        ("{{ messages[1].content.split('<')[0].strip() }}", "What is"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}", "[1]"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ nothing }}{{ nothing is defined }}{{ none }}", "FalseNone"),
    ],
)
def test_what_templates_of_transformers_use(source: str, prompt: str) -> None:
    assert render(source) == prompt


def test_tools_are_given_as_they_are() -> None:
    assert render("{{ tools[0].function.name }}", tools=[{"function": {"name": "f"}}]) == "f"


def test_a_template_refuses_messages_for_its_own_reason() -> None:
    with pytest.raises(InvalidRequest, match="refuses them: roles must alternate"):
        render(LLAMA2, [{"role": "assistant", "content": "Hi"}])


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "LIMIT"),
        ("{{ 'x' * 1000000000 }}", "LIMIT"),
        ("{% for i in range(9999) %}{{ 'x' * 1000 }}{% endfor %}", "LIMIT"),
        (DOUBLING, "LIMIT"),
        ("{{ 'x' | replace('x', 'x' * 9999999) | replace('x', 'x' * 999999) }}", "LIMIT"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "FAILED"),
        ("{{ range(1000000) }}", "FAILED"),
        ("{{ 1 / 0 }}", "FAILED"),
        ("{{ strftime_now(3) }}", "FAILED"),
        ("{% include '/etc/passwd' %}", "FAILED"),
        ("{{ debug() }}", "FAILED"),
        ("{{ messages[0].content.encode().decode.__globals__ }}", "FAILED"),
    ],
)
def test_a_template_is_stopped_at_its_limits(source: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        render(source)
    assert error.value.instance_code == f"TEMPLATE_{code}"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{% for i in x %}", "INVALID"),
        ("{{ 'x' ", "INVALID"),
        ("{% unknown %}", "INVALID"),
        ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "INVALID"),
        ("{% if true %}" * 3000 + "{% endif %}" * 3000, "INVALID"),
        ("x" * (SOURCE_CHARACTERS + 1), "TOO_LARGE"),
    ],
)
def test_a_template_that_is_no_jinja_is_refused(source: str, code: str) -> None:
    with pytest.raises(InvalidModel) as error:
        ChatTemplate(source)
    assert error.value.instance_code == f"TEMPLATE_{code}"
