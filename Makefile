# Every target works on a fresh clone with nothing but Python 3.10+ and a C++ compiler.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
# The oldest and the newest supported torch. The builds on PyPI bring their own Triton; with a build
# for CPUs, name it too: OLDEST="torch==2.10.0+cpu triton==3.6.0".
OLDEST ?= torch==2.10.0
NEWEST ?= torch==2.14.1
# The tests of code that depends on parts of torch that change with its releases.
SHORT := $(patsubst %,tests/core/test_%.py,calls tracing compile transforms autograd recompute memory \
	modules refused ddp import) tests/surgery
TESTS ?= $(SHORT)
PYTEST ?=
PEERS ?=
GPU ?=
DRY ?=
# Here a C++ error is an error; `make MISHKIT_REQUIRE_KERNELS= …` goes on without the kernels.
export MISHKIT_REQUIRE_KERNELS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Tests start many processes: none of them should have to compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
LIBRARY := src/mishkit/_kernels.so
# Not -q: with it, MkDocs would not count the warnings that --strict turns into errors.
SITE := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
SANITIZED := build/sanitized
CSRC := setup.py $(shell find csrc -name '*.h' -o -name '*.cpp')

.PHONY: help venv kernels demo test slow opinfo check versions oldest newest sanitize wheel bench gpu peers accuracy zoo \
	exhaustive gallery docs format clean style types generated

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/installed ## make the environment in .venv: torch, then mishkit with everything it can use

kernels: $(LIBRARY) ## build the C++ kernels if csrc has changed

demo: kernels ## compare mish with its peers on this machine
	@.venv/bin/mishkit compare --seeds 3 --lr 5e-3 --target 0.93 --fresh

test: kernels ## run the tests on all cores; PYTEST="-k mish" passes options on
	@$(PY) -m pytest -n auto --dist worksteal -m "not slow" $(PYTEST)

slow: kernels ## run the tests that `make test` leaves out: more functions, shapes and dtypes
	@$(PY) -m pytest -n auto --dist worksteal -m slow $(PYTEST)

opinfo: kernels ## run torch's own checks of the operators that mishkit.enable answers, with both kernels
	@$(PY) tools/opinfo.py $(PYTEST)

# With -j the checks run at the same time, and while the kernels are compiled, which none of them needs.
check: kernels style types generated docs ## check style, types, and everything generated or declared by hand against its source

style: .venv/installed
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@$(PY) tools/check_house.py

types: .venv/installed
	@.venv/bin/mypy

generated: .venv/installed
	@$(PY) tools/check_torch_c.py
	@$(PY) tools/fit_math.py --check
	@$(PY) tools/fit_df_y.py --check
	@$(PY) tools/make_public.py --check

# Less optimised, and with the checks as calls, since compiling would otherwise take half an hour. Leaks
# are not detected here, because Python and torch leave some of their own. tests/core/test_refused.py
# counts ours, and asks for more memory than there is.
sanitize: .venv/installed ## run the tests of values, layouts and calls with the kernels under the sanitizers
	@CXXFLAGS="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined \
		--param asan-instrumentation-with-call-threshold=0" \
		LDFLAGS="-fsanitize=address,undefined" \
		$(PY) setup.py -q build --build-lib $(SANITIZED) --build-temp $(SANITIZED)-objects
	@LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=$(SANITIZED) \
		$(PY) -m pytest -n auto --dist worksteal tests/core/test_refused.py tests/core/test_layouts.py \
		tests/core/test_values.py tests/core/test_calls.py tests/core/test_norm.py tests/core/test_gate.py $(PYTEST)

versions: oldest newest ## run the tests that depend on torch with the oldest and the newest; TESTS=tests for all

oldest newest: %: kernels .venv-%/installed
	@PYTHONPATH=$(CURDIR)/src .venv-$@/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(TESTS) $(PYTEST)

# The tag is that of this system: only machines with its libc or a newer one take the wheel. Those of a
# release are built in manylinux images: docs/release.md.
wheel: kernels ## build a wheel for this system in dist; it installs in seconds, without a compiler
	@rm -rf dist/*.whl build/bdist.* build/lib*
	@$(PY) -m pip wheel -qq --no-deps --no-build-isolation -w dist .
	@echo "$$(ls dist/*.whl), for $$(uname -m) and $$(getconf GNU_LIBC_VERSION 2>/dev/null || sw_vers -productVersion) or newer"

bench: kernels ## time the kernels, add the file of this CPU to the results, and write docs/benchmarks.md
	@.venv/bin/mishkit bench --results docs/results/bench
	@$(PY) benchmarks/bench_page.py

# On a bare machine: with the environment if there is one, otherwise with the system's Python and torch.
gpu: ## measure all that only a GPU can show, in nine minutes; goes on where it stopped; DRY=1 without one
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) benchmarks/gpu.py $(if $(DRY),--dry-run) $(GPU)

# The kernels come last: installing without them removes those that were built in place.
peers: .venv-peers/installed ## time other libraries' functions next to ours; PEERS=--quick
	@$(MAKE) -s kernels
	@.venv-peers/bin/python benchmarks/peers.py $(PEERS)

accuracy: kernels ## measure the error of the kernels
	@.venv/bin/mishkit accuracy

exhaustive: kernels ## measure the error for every float32, in an hour; resumes after Ctrl-C
	@.venv/bin/mishkit accuracy --exhaustive --markdown docs/accuracy-exhaustive.md

zoo: kernels ## try lean and unswap on every architecture family of timm and transformers, in an hour
	@$(PY) tools/zoo.py

gallery: .venv/installed ## draw every function into docs/gallery, and write docs/gallery.md
	@.venv/bin/mishkit plot --gallery docs

docs: .venv/installed ## build the site in build/site: open build/site/index.html
	@$(SITE)

format: .venv/installed ## format the Python files
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

clean: ## remove what was built; .venv stays
	@rm -rf build dist $(LIBRARY) src/mishkit/lab/accuracy/_errors.so src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests tools -name __pycache__ -prune -exec rm -rf {} +

.venv/torch:
	@echo "venv: $(TORCH)"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -qq "$(TORCH)" "setuptools>=77"
	@touch $@

# torch is named again so that no other package can move it: pip would fail instead. The library
# is left to the next rule, which builds it without an environment of its own.
.venv/installed: pyproject.toml setup.py .venv/torch
	@echo "venv: mishkit[lab,test,dev,integrations,onnx,docs]"
	@MISHKIT_REQUIRE_KERNELS= MISHKIT_NO_KERNELS=1 $(PY) -m pip install -qq "$(TORCH)" "$(TRITON)" -e ".[lab,test,dev,integrations,onnx,docs]"
	@touch $@

# Installing a copy of mishkit brings what the tests need; src on the path hides that copy from them.
.venv-oldest/installed: WANTED := $(OLDEST)
.venv-newest/installed: WANTED := $(NEWEST)
.venv-oldest/installed .venv-newest/installed: pyproject.toml
	@echo "$(@D): $(WANTED), mishkit[lab,test,onnx]"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -qq $(WANTED)
	@MISHKIT_REQUIRE_KERNELS= MISHKIT_NO_KERNELS=1 $(@D)/bin/python -m pip install -qq $(WANTED) ".[lab,test,onnx]"
	@touch $@

# Libraries that can't be installed are left out, and the page says so; the rest must be there. timm comes
# without its dependencies, which would bring another torch.
.venv-peers/installed: pyproject.toml
	@echo "venv-peers: $(TORCH), mishkit[peers]"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -qq "$(TORCH)"
	@MISHKIT_REQUIRE_KERNELS= MISHKIT_NO_KERNELS=1 .venv-peers/bin/python -m pip install -qq "$(TORCH)" -e ".[lab]"
	@.venv-peers/bin/python benchmarks/install_peers.py "$(TORCH)"
	@touch $@

$(LIBRARY): $(CSRC) .venv/installed build/compiled
	@$(PY) setup.py -q build_ext --inplace
	@touch -c $@

# Compiling needs setuptools alone, so with -j it goes on while everything else is installed.
build/compiled: $(CSRC) .venv/torch
	@$(PY) setup.py -q build_ext
	@mkdir -p build && touch $@
