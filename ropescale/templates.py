"""Chat templates are programs that come with a tokenizer: one that does not end, or fills the memory, is refused.

Jinja's sandbox keeps them from files and from Python, and neither from loops within loops nor from a text of a billion
letters. So a template is tried once in a process of its own, within bounds, before it is used here.
"""

import json
import subprocess
import sys
from typing import Any

from ropescale.errors import CheckpointError

SECONDS, GIGABYTES = 10, 2
TURNS = ({"role": "user", "content": "The letter"}, {"role": "assistant", "content": "The answer"})
# What Transformers gives a template, by its documentation: https://huggingface.co/docs/transformers/chat_templating
TRIAL = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1]) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]) << 30, int(sys.argv[2]) << 30))
except (ImportError, OSError, ValueError):
    pass  # a system without such bounds has the time of the caller
import jinja2, jinja2.sandbox
asked = json.load(sys.stdin)
def refuse(said):
    raise jinja2.TemplateError(said)
inside = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
inside.filters["tojson"] = lambda value, **_: json.dumps(value)
inside.globals["raise_exception"] = refuse
inside.globals["strftime_now"] = lambda form: "1 January 2026"
text = re.sub(r"{%[-+]?\\s*(end)?generation\\s*[-+]?%}", "", asked.pop("template"))
try:
    for more in (True, False):
        inside.from_string(text).render(add_generation_prompt=more, tools=None, documents=None, **asked)
except MemoryError:
    sys.exit(3)
except Exception:
    pass  # what it refuses or gets wrong ends, and is told where it is used
"""


def require_ending(tokenizer: Any, what: str) -> None:
    """Refuse a tokenizer whose chat template takes more than 10 seconds or 2 GB for a conversation of two turns.

    Args:
        tokenizer: of Transformers; one without a template passes.
        what: whose it is, for the message.

    Raises:
        CheckpointError: such a template.
    """
    written = getattr(tokenizer, "chat_template", None)
    for text in written.values() if isinstance(written, dict) else [written]:
        if not isinstance(text, str):
            continue
        asked = {"template": text, "messages": TURNS, **tokenizer.special_tokens_map}
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", TRIAL, str(SECONDS), str(GIGABYTES)],
                input=json.dumps(asked, default=str).encode("utf-8", "replace"),
                capture_output=True,
                timeout=3 * SECONDS,  # of the clock: other work may hold the processor
                check=False,
            )
            ended = done.returncode == 0
        except subprocess.TimeoutExpired:
            ended = False
        if not ended:
            raise CheckpointError(
                f"{what}: the chat template must write two turns within {SECONDS} seconds and {GIGABYTES} GB, got one "
                f"that does not; take the template of the published model"
            )
