from __future__ import annotations

import gc
import signal
from typing import Any

import pytest
from meshnode_llama_cpp.template import CHATML, PROBE, Bounds, Template

from p2p_mesh.errors import ModelError, RequestError
from p2p_mesh.testing.models import GIGANTIC, LOOPING

QUICK = Bounds(seconds=0.05)
HELLO = {"role": "user", "content": "Hello"}


def template(source: str) -> Template:
    return Template(source, model="tiny", bos="<s>", eos="</s>", bounds=QUICK)


def render(source: str, *messages: dict[str, Any], asked_at: int = 0) -> str:
    return template(source).render(messages or PROBE, asked_at=asked_at)


def test_chatml() -> None:
    assert render(CHATML, {"role": "system", "content": "Be brief."}, HELLO) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_what_templates_expect_is_there() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.last %}{% continue %}{% endif %}"
        "{{ m | tojson }}{% endfor %}{% generation %} so {% endgeneration %}"
        "{{ strftime_now('%d %b %Y') }}{% if tools is none %}{{ eos_token }}{% endif %}"
    )
    text = render(source, {"role": "user", "content": "<é>"}, HELLO, asked_at=1_700_000_000)
    assert text == '<s>{"role": "user", "content": "<é>"} so 14 Nov 2023</s>'


def test_blocks_leave_no_blank_lines() -> None:
    assert render("  {% if true %}\n  yes\n  {% endif %}\nno") == "  yes\nno"


def test_tools_and_variables_are_there() -> None:
    source = "{{ tools[0].name }} {{ effort }} {{ enable_thinking }}"
    written = template(source).render(
        PROBE, [{"name": "add"}], asked_at=0, variables={"effort": "low"}
    )
    assert written == "add low True"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token"])
def test_variables_shadow_nothing(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is no variable"):
        template(CHATML).render(PROBE, asked_at=0, variables={name: 1})


def test_a_template_that_goes_through_no_tools_gets_an_empty_list() -> None:
    source = "{% for tool in tools %}{{ tool }}{% endfor %}{{ tools is none }}"
    unasked = template(source)
    assert unasked.attempt(PROBE, None) is None
    unasked.probe()
    assert unasked.attempt(PROBE, None) == "False"


def test_what_a_filter_gives_becomes_json() -> None:
    source = "{{ tools | map(attribute='name') | tojson }}"
    assert template(source).attempt(PROBE, [{"name": "add"}]) == '["add"]'


def test_the_time_limit_covers_tools() -> None:
    source = "{% if tools %}" + LOOPING + "{% endif %}"
    slow = template(source)
    slow.probe()
    assert slow.attempt(PROBE, [{}]) is None
    with pytest.raises(RequestError, match="did not end"):
        slow.render(PROBE, [{}], asked_at=0)


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(RequestError, match="does not take these messages: only one"):
        render("{{ raise_exception('only one') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ nothing.at.all }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_that_fails_is_refused_with_the_request(source: str) -> None:
    template(source).probe()
    with pytest.raises(RequestError, match="fails on these messages"):
        render(source)


def test_a_template_that_calls_itself_for_ever_is_refused() -> None:
    gc.disable()  # others' garbage, collected at the end of the stack, would fail there
    try:
        with pytest.raises(RequestError, match="RecursionError"):
            render("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}")
    finally:
        gc.enable()


def test_a_template_that_does_not_parse_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="the chat template of tiny is broken"):
        template("{% if")


@pytest.mark.parametrize(
    "source", [LOOPING, "{{ lipsum(n=99999) }}", "{{ ('a.' * 3000000) | urlize }}"]
)
def test_a_template_that_does_not_end_is_ended(source: str) -> None:
    looping = template(source)
    with pytest.raises(ModelError, match=r"of tiny did not end within 0\.05 s"):
        looping.probe()
    with pytest.raises(RequestError, match="did not end"):
        looping.render(PROBE, asked_at=0)


@pytest.mark.parametrize(
    "source",
    [
        GIGANTIC,
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 7 ** 1000000000 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ range(100000) | list | join('a' * 80000) }}",
        "{% for i in range(9999) %}{{ 'a' * 8000000 }}{% endfor %}",
        "{% set n = namespace(a='a') %}"
        "{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
        "{% set n = namespace(a='a') %}"
        "{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}",
        "{% set n = namespace(a=9) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}",
    ],
)
def test_a_template_that_makes_gigantic_values_is_ended(source: str) -> None:
    with pytest.raises(ModelError, match="the chat template of tiny makes values of more"):
        Template(source, model="tiny").probe()


def test_limits_end_with_the_template() -> None:
    before = signal.getsignal(signal.SIGALRM)
    render(CHATML)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
