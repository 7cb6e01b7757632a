"""The skeleton of every page: one HTML file that opens from disk, loads nothing and runs nothing."""

from collections.abc import Mapping

from jinja2 import Environment
from markupsafe import Markup

from ropescale.pages.elements import section, shown
from ropescale.pages.style import STYLE

TEMPLATE = Environment(autoescape=True, keep_trailing_newline=True, trim_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<p class="kicker">{{ kicker }}</p>
<h1>{{ heading }}</h1>
{{ opening }}
<nav aria-label="Sections"><ul>
{% for name, (heading, _) in sections.items() %}
<li><a href="#{{ name }}">{{ heading }}</a></li>
{% endfor %}
</ul></nav>
</header>
<main id="main" tabindex="-1">
{% for name, (heading, body) in sections.items() %}
{{ section(name, heading, body) }}
{% endfor %}
</main>
{% if closing %}
<footer>
<p class="note">{{ closing }}</p>
</footer>
{% endif %}
</body>
</html>
""")


def document(
    *,
    title: str,
    kicker: str,
    heading: str,
    opening: str = "",
    sections: Mapping[str, tuple[str, str]],
    closing: str = "",
) -> str:
    """A whole page.

    Args:
        title: of the window; text, as `kicker`, `heading` and `closing` are.
        kicker: a line above the heading.
        heading: what the page says first.
        opening: HTML beneath the heading.
        sections: identifier -> heading, and HTML; those without HTML are left out.
        closing: a sentence at the end.
    """
    return TEMPLATE.render(
        style=Markup(STYLE),
        title=shown(title, 120),
        kicker=shown(kicker, 200),
        heading=shown(heading),
        opening=Markup(opening),
        sections={name: section for name, section in sections.items() if section[1]},
        section=lambda *parts: Markup(section(*parts)),
        closing=closing,
    )
