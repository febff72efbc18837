# Two commands for a newcomer: `make demo` and `make test`. Both do all their own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# The strict editable install links file by file, so it is renewed whenever a file has come or gone.
LINKS := .venv/links-$(shell find byol export serve -name '*.py' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)

.PHONY: demo test fuzz lint types wheel-check docs floors oldest-torch constraints clean

demo: $(LINKS)
	rm -rf demo
	$(BIN)/byol demo --out demo

# Each process with a file at a time: its fixtures are made once. Three for two cores, as many tests wait.
test: $(LINKS)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(LINKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(LINKS)
	$(BIN)/mypy byol export serve tests benchmarks

# The built wheel, alone, in an environment without torch.
wheel-check: $(LINKS)
	$(BIN)/python -m tests.checks.wheel

# The torch-free tests with the lowest versions that pyproject.toml allows.
floors: $(STAMP)
	$(BIN)/python -m tests.checks.floors

# The tests that need torch with the oldest one that pyproject.toml allows.
OLDEST_PYTHON ?= python3.12
OLDEST_TESTS ?=
oldest-torch: $(STAMP)
	$(BIN)/python -m tests.checks.oldest_torch --python $(OLDEST_PYTHON) $(OLDEST_TESTS)

# What a release was made with, each file with its hashes: to serve, and to train with all extras. For the Python and the
# platform that this runs on.
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --custom-compile-command 'make constraints'
EXTRAS := $(foreach extra,train demo report server remote tensorboard ray,--extra $(extra))
constraints: $(STAMP)
	$(COMPILE) pyproject.toml --output-file constraints/serve.txt
	$(COMPILE) pyproject.toml $(EXTRAS) --constraints constraints/serve.txt --output-file constraints/train.txt

# The site, in docs/_build. A warning (a dead link, markup that does not parse) is an error.
docs: $(LINKS)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . docs/_build

# Minutes of hostile input for every reader: FUZZ_SECONDS for each.
FUZZ_SECONDS ?= 120
fuzz: $(LINKS)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

$(STAMP): pyproject.toml byol/__init__.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --config-settings editable_mode=strict
	touch $(STAMP)

$(LINKS): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --editable . --config-settings editable_mode=strict
	rm -f .venv/links-*
	touch $(LINKS)

clean:
	rm -rf .venv build demo dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
