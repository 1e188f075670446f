# Two commands matter: `make demo` shows what nplora does, `make test` proves it. Both build .venv first.
# Needs Python 3.11 or newer with pip, make, and a C compiler only where a dependency has no wheel.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/built
PICTURES := .venv/pictures

.PHONY: venv browser test lint bench floor demo fuzz clean

venv: $(STAMP)

# The stamp makes this a no-op until the dependencies change. pip keeps what it downloads in its own cache
# (`pip cache dir`), so a second build on one machine fetches nothing.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# In the order of the cheapest answer: style, types, tests with doctests, and then the wheel in an environment of its own.
test: lint browser
	$(BIN)/python -m pytest -n $(WORKERS)
	$(BIN)/python tests/wheel/smoke.py

# A real browser for the tests of the pages: Debian's, where apt-get may install it. Without one they are skipped and
# say so; playwright itself downloads none.
browser: venv
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	  || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update \
	       && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium >/dev/null; } \
	  || echo "no Chromium, and no leave to install it: the pages are tested without a browser"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

floor: venv
	$(BIN)/python benchmarks/floor.py

bench: venv
	$(BIN)/python benchmarks/run.py

# What the demo needs is less than what the tests need: set up for it alone, it is there minutes earlier.
demo: $(PICTURES)
	$(BIN)/python examples/demo.py

$(PICTURES): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pictures]' scipy  # scipy: the world's judge
	touch $@

# The test command runs this for seconds; here it runs for minutes.
fuzz: venv
	PYTHONPATH=tests $(BIN)/python -m hostile.fuzz_header --seconds 300

clean:
	rm -rf .venv dist build demo sdxl-pairs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
