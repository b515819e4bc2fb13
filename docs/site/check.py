"""Check the site in build/site: links, anchors and pictures within it, and the Python reference.

    python docs/site/check.py

`zensical build --strict` checks the links of Markdown, but not those of docstrings, and continues
after warnings and errors of mkdocstrings.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

BUILD = Path(__file__).parents[2] / "build"
SITE, LOG = BUILD / "site", BUILD / "docs.log"  # the output of `zensical build`
COMPLAINT = re.compile(r"^(griffe|mkdocstrings|ERROR|WARNING)\b.*", re.MULTILINE)
DOCUMENTED = ("can_jax.load", "can_jax.pretrain", "can_jax.objectives.base.Objective")


class Page(HTMLParser):
    """The links, pictures and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes of a tag that are links or anchors."""
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        self.links += [value for name in ("href", "src") if (value := values.get(name))]


def broken_links(site: Path) -> list[str]:
    """Return a line for each link within the site that has no target."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # Its links are absolute.
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchors = pages[target].anchors if target in pages else set()
            missing = parts.fragment and target in pages and unquote(parts.fragment) not in anchors
            if not target.exists() or missing:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def main() -> None:
    """Exit with a message if the site is incomplete."""
    broken = broken_links(SITE.resolve())
    reference = Page((SITE / "api.html").read_text())
    broken += [
        f"api.html: {name} is missing" for name in DOCUMENTED if name not in reference.anchors
    ]
    broken += [match[0] for match in COMPLAINT.finditer(LOG.read_text())]
    if broken:
        sys.exit("\n".join(["the site is incomplete:", *broken]))
    print(f"site to open: {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
