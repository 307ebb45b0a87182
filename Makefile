# Each target makes its own virtual environment; nothing else is needed but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
RUN := out/demo
INSTALL := pip install --quiet
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist=loadgroup

# What is for who runs it, and nothing else: not that TensorFlow finds no GPU, that pip has a
# newer version, or what setuptools has to say of an editable installation.
export TF_CPP_MIN_LOG_LEVEL ?= 3
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo test test-backends lint docs lock clean

# Three seeds of one convnet, then two minutes of meta-training for it, of a few numbers only: with
# so few outer steps, noise would move a thousand of them.
demo: $(VENV)/installed
	$(VENV)/bin/python benchmarks/own_model.py --model=convnet --seeds=3 --num_outer_steps=60 \
		--trained='b2|momentum|second_decay' --es_stddev=0.1 --outer_learning_rate=0.03 --out_dir=$(RUN)

# XLA keeps every program until its process ends: those of all tests would fill the memory. And
# flags of two commands that bear one name do not go into one process.
test: $(VENV)/installed lint
	$(PYTEST) tests/backends tests/benchmarks tests/export tests/lopt_keras tests/test_*.py
	$(PYTEST) tests/meta --ignore=tests/meta/analysis --ignore=tests/meta/inner --ignore=tests/meta/tasks \
		--ignore=tests/meta/training
	$(PYTEST) tests/meta/analysis
	$(PYTEST) tests/meta/inner tests/meta/tasks tests/meta/training

# The same optimizer under JAX and torch.
test-backends: $(VENV)-backends/installed
	$(VENV)-backends/bin/python -m pytest tests/backends

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml requirements_lock.txt
	@echo "Installing TensorFlow and what else is needed into $(VENV): a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m $(INSTALL) --upgrade pip
	$(VENV)/bin/python -m $(INSTALL) --require-hashes --requirement requirements_lock.txt
	PYTHONWARNINGS=ignore $(VENV)/bin/python -m $(INSTALL) --no-deps --editable .
	touch $@

# The versions that `make` installs, with hashes.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --extra test --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --quiet --output-file requirements_lock.txt

$(VENV)-backends/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-backends
	$(VENV)-backends/bin/python -m $(INSTALL) --upgrade pip
	PYTHONWARNINGS=ignore $(VENV)-backends/bin/python -m $(INSTALL) --editable '.[backends,test]'
	touch $@

# The site of the documentation, in out/site: a warning is an error.
docs: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet

$(VENV)-docs/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m $(INSTALL) --upgrade pip
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
		| xargs $(VENV)-docs/bin/python -m $(INSTALL)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-backends $(VENV)-docs out *.egg-info
