.PHONY: install test lint format types all ci
install:
	pip install -e '.[test]'
test:
	pytest
lint:
	ruff check . && ruff format --check .
format:
	ruff check --fix . && ruff format .
types:
	mypy
all:
	pytest -m 'not peers'  # these need other libraries: docs/attacks.md
ci:
	bash .ci/run
