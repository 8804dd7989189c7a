# make picture PROMPT="a smiling cat"      set everything up and make a picture
# make test                              set everything up and pass the tests
.DEFAULT_GOAL := help
.PHONY: help picture test lint types format wheel

# As typed: a $ in the prompt is not make's, and quotes in it are not the shell's.
PROMPT ?= a smiling cat
export UNDUST_PROMPT := $(value PROMPT)

help:
	@sed -n 's/^# make/make/p' Makefile

picture:
	@scripts/setup run
	@.venv/bin/undust generate -- "$$UNDUST_PROMPT"

test:
	@scripts/setup test
	@.venv/bin/python scripts/browser || [ -z "$$UNDUST_BROWSER" ] # some tests need one
	.venv/bin/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile
	@$(MAKE) --no-print-directory lint types

lint:
	@scripts/setup test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	@scripts/setup test
	.venv/bin/pyright

format:
	@scripts/setup test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

wheel:
	@scripts/setup test
	rm -rf build # what an earlier wheel had and this one should not
	.venv/bin/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir dist .
