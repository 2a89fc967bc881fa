"""Chat templates of several kinds, written for the tests: with and without a system role, and of models that think."""

_TURNS = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
_OWN_TURN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

WITH_SYSTEM = "{% for m in messages %}" + _TURNS + "{% endfor %}" + _OWN_TURN
# Refuses a system message.
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + WITH_SYSTEM
)
# Leaves it out.
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + _TURNS + "{% endfor %}" + _OWN_TURN
# Folds it into the first user's message by itself.
FOLDS_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ first if loop.first else '' }}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + _OWN_TURN
)
# Has a system message of its own where none is given.
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a parrot.<|im_end|>\n{% endif %}" + WITH_SYSTEM
)
SYSTEMS = {
    "with": WITH_SYSTEM,
    "refuses": REFUSES_SYSTEM,
    "drops": DROPS_SYSTEM,
    "folds": FOLDS_SYSTEM,
    "default": DEFAULT_SYSTEM,
}

# Thinks unless `enable_thinking` is false.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Always thinks: the model's turn starts within a trace.
ALWAYS_THINKS = WITH_SYSTEM + "{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"
