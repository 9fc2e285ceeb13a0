.PHONY: install test lint format types site all ci
instsite:
	mkdocs build
all:
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
