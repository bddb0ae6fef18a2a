"""Chat templates in the styles of three families, written for these tests."""

from __future__ import annotations

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Tools:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\n<tool_call>{"name": .., "arguments": ..}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('System message must be at the beginning.') }}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content if message.content is string else '' %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Block tags on lines of their own, trimming, a date, a namespace, loop controls, the BOS token.
LLAMA3 = """\
{{ bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = message['content'] | trim %}
        {%- break %}
    {%- endif %}
{%- endfor %}
<|im_start|>system

Today: {{ strftime_now('%d') | length }}
{% if tools is not none %}
{% for tool in tools %}
    {{ tool | tojson(indent=4) }}
{% endfor %}
{% endif %}
{{ ns.system }}<|im_end|>
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}
    {% generation %}{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n\\n' }}
{% endif %}
"""

# Strict about the order of roles; the system message goes into the user's; it knows strings only.
MISTRAL = """\
{%- if messages[0]["role"] == "system" -%}
    {%- set system = messages[0]["content"] -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set rest = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in rest -%}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{- raise_exception("Roles must alternate user/assistant/user/assistant/...") -}}
    {%- endif -%}
    {%- if message["role"] == "user" -%}
        {%- if loop.last and system is defined -%}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" -}}
        {%- else -%}
            {{- "[INST] " + message["content"] + "[/INST]" -}}
        {%- endif -%}
    {%- else -%}
        {{- " " + message["content"] | trim + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

# Content is a list of parts, never a string.
PARTS = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- for part in message.content -%}
        {%- if part.type == 'text' -%}{{- part.text -}}{%- endif -%}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
"""
