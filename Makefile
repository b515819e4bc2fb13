# make quickstart     train CAN on synthetic shapes, on a CPU in a few minutes
# make test           lint, and run the fast tests
# make test-all       also run the tests that take minutes each
# make test-trackers  run the tests that need the clients of W&B, MLflow and Aim
# make test-torch     run the tests that need PyTorch
# make test-remote    run the tests with servers of S3 and Google Cloud Storage, and with a Ray cluster
# make test-gpu       compile the step for GPUs (none is needed), and check its kernels and traffic (Python 3.12)
# make docs           build the documentation's site in build/site; warnings are errors
# make test-browser   run the test that needs Chromium; installs it with apt-get (as root) if it is missing
# make constraints    update the tested versions of the dependencies
#
# Each target creates the virtual environment that it needs. PYTHON=python3.12 selects another Python.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV ?= .venv-$(VERSION)
GPU_PYTHON ?= python3.12
WORKDIR ?= runs/quickstart
CONSTRAINTS := constraints/py$(subst .,,$(VERSION)).txt
REQUIREMENTS := requirements.txt pyproject.toml setup.py $(wildcard $(CONSTRAINTS))
# A variable, since a comma would end an argument of a call.
TORCH := '.[test,torch]'

# Installs the package with its extras $(1), and with the options and packages of $(2) if given. Prints
# a dot every two seconds, since pip prints nothing for minutes.
define install
@echo "installing $(1) into $(VENV); this usually takes one to five minutes"
@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable $(1) $(2) & \
	pid=$$!; while kill -0 $$pid 2> /dev/null; do sleep 2; printf .; done; echo; wait $$pid
endef

.PHONY: quickstart test test-all test-trackers test-torch test-remote test-gpu test-browser docs lint constraints clean

quickstart: $(VENV)/installed
	$(VENV)/bin/python -m can_jax.main --config=configs/quickstart.py --workdir=$(WORKDIR)

test: $(VENV)/installed-test lint
	$(VENV)/bin/python -m pytest -m "not slow and not trackers"

test-all: $(VENV)/installed-test lint
	$(VENV)/bin/python -m pytest -m "not trackers"

test-trackers: .venv-trackers/installed
	.venv-trackers/bin/python -m pytest tests/monitoring/test_trackers.py --numprocesses=0

test-torch: $(VENV)/installed-torch
	$(VENV)/bin/python -m pytest tests/export tests/weights tests/benchmark tests/augment/test_randaugment.py

test-remote: .venv-remote/installed
	.venv-remote/bin/python -m pytest tests/remote --numprocesses=0

# In an environment of its own, since JAX uses the packages for GPUs wherever they are installed.
test-gpu:
	$(MAKE) .venv-gpu/installed-gpu PYTHON=$(GPU_PYTHON) VENV=.venv-gpu
	.venv-gpu/bin/python -m pytest tests/plan/test_step_traffic.py --numprocesses=0

test-browser: $(VENV)/installed-test
	command -v chromium || { apt-get update && apt-get install --yes --no-install-recommends chromium; }
	$(VENV)/bin/python -m pytest tests/evaluate/test_protocols.py -k in_a_browser

docs: $(VENV)/installed-docs
	$(VENV)/bin/python docs/site/build.py
	NO_COLOR=1 $(VENV)/bin/zensical build --clean --strict > build/docs.log 2>&1 || { cat build/docs.log; exit 1; }
	$(VENV)/bin/python docs/site/check.py

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Stamp files: packages are installed once, and again after their lists change.
$(VENV)/installed: $(REQUIREMENTS)
	@test -f $(CONSTRAINTS) || { echo "Python $(VERSION) is not supported: use 3.11, 3.12 or 3.13, such as make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(call install,'.[cpu]')
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(call install,'.[test]')
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(call install,'.[docs]')
	@touch $@

# Environments of their own, without constraints, since some of the packages need other versions.
.venv-trackers/installed: EXTRAS := test,wandb,mlflow,aim
.venv-remote/installed: EXTRAS := test,servers
.venv-trackers/installed .venv-remote/installed: $(REQUIREMENTS)
	$(PYTHON) -m venv $(@D)
	@echo "installing '.[$(EXTRAS)]' into $(@D); this takes a few minutes"
	$(@D)/bin/python -m pip install --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/installed-gpu: $(VENV)/installed-test constraints/py312-cuda.txt
	$(call install,'.[test]',--constraint constraints/py312-cuda.txt 'jax[cuda13]')
	@touch $@

$(VENV)/installed-torch: $(VENV)/installed-test
	$(call install,$(TORCH))
	@touch $@

# Write the tested versions: those of a new environment with the newest versions that are allowed.
constraints:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --editable '.[test]'
	$(VENV)-newest/bin/python -m pip freeze --exclude-editable > $(CONSTRAINTS)

clean:
	rm -rf .venv-* runs build *.egg-info
