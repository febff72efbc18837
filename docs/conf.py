"""The documentation as a site: `make docs`.

Its source is the whole repository, not this folder, so that links between pages, and from pages to code, hold here as
they do on a code forge.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import byol

project = "byol"
version = release = byol.__version__
html_title = f"byol {version}"
html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
include_patterns = [
    "docs/*.md",
    "benchmarks/README.md",
    "benchmarks/gpu/README.md",
    "benchmarks/results/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = [".*", "docs/_build"]
root_doc = "docs/index"
highlight_language = "none"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
smartquotes = False  # they make one dash of the two before an option
default_role = "literal"  # docstrings and help put code between single backticks

html_theme = "furo"
templates_path = ["_templates"]
html_additional_pages = {"index": "first_page.html"}
