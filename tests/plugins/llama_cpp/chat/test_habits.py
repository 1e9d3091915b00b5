from __future__ import annotations

from meshnode_llama_cpp.chat.habits import Habits, find
from meshnode_llama_cpp.template import CHATML, Template


def habits(source: str) -> Habits:
    template = Template(source, model="tiny")
    template.probe()
    return find(template.attempt, source)


CALLS = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}ARGUMENTS{% endfor %}{% endfor %}"
)
OBJECTS = CALLS.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}")


def test_a_template_that_knows_no_tools() -> None:
    assert habits(CHATML) == Habits(tools=False, calls=False)


def test_a_template_that_knows_tools_and_calls() -> None:
    found = habits(OBJECTS)
    assert (found.tools, found.calls, found.objects, found.parallel) == (True, True, True, True)
    assert not found.null  # it would write "None"


def test_arguments_that_are_wanted_as_text() -> None:
    assert not habits(CALLS.replace("ARGUMENTS", "{{ '' + c.function.arguments }}")).objects
    assert not habits(CALLS.replace("ARGUMENTS", "{{ c.function.arguments }}")).objects


def test_no_content_beside_calls() -> None:
    assert habits(OBJECTS.replace("m.content", "m.content or ''")).null


def test_only_one_call_at_a_time() -> None:
    single = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    found = habits(OBJECTS.replace("{% for c", single + "{% for c"))
    assert found.calls
    assert not found.parallel


def test_short_ids() -> None:
    strict = "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    assert habits(OBJECTS.replace("{{ c.f", strict + "{{ c.f", 1)).short_ids


def test_no_system_messages() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    assert not habits(refuses + CHATML).system


def test_typed_content() -> None:
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert habits(source).typed


def test_where_reasoning_is_read() -> None:
    assert habits(CHATML + "{# message.reasoning_content #}").reasoning == "reasoning_content"
    assert habits(CHATML + "{# message.thinking #}").reasoning == "thinking"
    assert habits(CHATML + "{# thinking #}").reasoning == ""
    assert habits(CHATML + "{# developer #}").developer
