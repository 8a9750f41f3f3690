# Every target is one script in tools/; what a target does is told there.
.DEFAULT_GOAL := help
.PHONY: help up test test-unit lint bench pm
export REPO JSON

help:  ## what can be made
	@sed -n 's/^\([a-z][a-zA-Z%-]*\):.*## /  make \1|/p' $(firstword $(MAKEFILE_LIST)) | sed 's/%/NAME/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

up:  ## install what is needed and start Fairwater here, with a first workspace [REPO=GIT_URL]
	@tools/up.sh

test:  ## every check and test that this machine can run (as root: all of them)
	@tools/test.sh all

test-unit:  ## checks and tests that need no privilege, one to two minutes
	@tools/test.sh unit

lint:  ## ruff, formatting, mypy, import contracts
	@tools/test.sh lint

bench:  ## all benchmarks, each with a table and a line of JSON
	@tools/bench.sh

bench-%:  ## one benchmark: bench/NAME.py
	@tools/bench.sh $*

pm:  ## the rows of the post-mortem with the checks and sabotages that show each [JSON=1]
	@tools/pm.sh
