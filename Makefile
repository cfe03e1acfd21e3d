# Everything runs in a virtual environment that make creates in $(VENV).
#
#   PYTHON=python3.12     the interpreter to make it with (>= 3.10)
#   VENV=.venv312         where (give another one to keep several Pythons)
#   TORCH_INDEX=URL       package index for torch alone, such as
#                         https://download.pytorch.org/whl/cpu
#   PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS   passed on to pytest, the demo, the benchmarks
#   GPU_...               of make gpu, see there
#   SYSTEM_PACKAGES=1     install nothing and make no environment: run with the
#                         packages that PYTHON already has

PYTHON ?= python3
VENV = .venv

ifeq ($(SYSTEM_PACKAGES),1)
RUN = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON)
CLANG_FORMAT = clang-format
ready = in-place
WORKERS =
else
RUN = $(VENV)/bin/python
CLANG_FORMAT = $(VENV)/bin/clang-format
ready = $(VENV)/.installed-$(1)
WORKERS = -n auto
endif
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help
help: ## print this list (default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(call ready,demo) ## run the demo (DEMO_ARGS="...")
	$(RUN) examples/next_token.py $(DEMO_ARGS)

.PHONY: examples
examples: $(call ready,examples) ## install what the examples need; then $(VENV)/bin/python examples/...
	@echo "Now: $(RUN) examples/images.py --help"

.PHONY: test
test: $(call ready,test) ## run the tests (PYTEST_ARGS="...")
	@echo "Running the tests ..."
	$(RUN) -m pytest $(WORKERS) $(PYTEST_ARGS)

.PHONY: bench
bench: $(call ready,bench) ## measure against every peer that installs (BENCH_ARGS="--quick")
	$(RUN) -m benchmarks $(BENCH_ARGS)

.PHONY: check
check: $(call ready,dev) ## lint, formatting and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	@files=$$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu' 2>/dev/null); \
	test -z "$$files" || { set -x; $(CLANG_FORMAT) --dry-run --Werror $$files; }

# The extension once more with AddressSanitizer and UBSan, as a package in build/sanitize that stands
# before the installed one; for GCC on Linux. A capability that the processor lacks is skipped.
SANITIZED = $(CURDIR)/build/sanitize
SANITIZE_PYTHON = $(if $(filter 1,$(SYSTEM_PACKAGES)),$(PYTHON),$(abspath $(VENV))/bin/python)
SANITIZE_SETS = default avx2 avx512
SANITIZE_TESTS = cpu regularisers test_merged_shards.py test_layouts.py test_conventions.py test_random.py test_errors.py test_inplace.py

.PHONY: sanitize
sanitize: $(call ready,test) ## run the C++ extension's tests under ASan and UBSan (slow)
	ANL_KERNELS_SANITIZE=1 ANL_KERNELS_BUILD=1 $(SANITIZE_PYTHON) setup.py -q build --force \
	    --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	cd $(SANITIZED)/lib && for set in $(SANITIZE_SETS); do \
	    echo "Running the tests of the extension under sanitizers, ATEN_CPU_CAPABILITY=$$set ..."; \
	    LD_PRELOAD="$(foreach lib,libasan.so libubsan.so libstdc++.so.6,$$(gcc -print-file-name=$(lib)))" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    ATEN_CPU_CAPABILITY=$$set PYTHONPATH=$(SANITIZED)/lib \
	    $(SANITIZE_PYTHON) -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) \
	        --import-mode=append -p no:cacheprovider -k "cpu and not triton" $(PYTEST_ARGS) \
	        $(SANITIZE_TESTS:%=$(CURDIR)/tests/%) || exit 1; \
	done

# What a GPU is needed for, in stages: GPU_STAGES="build bench" for some of them, or `make gpu-bench`
# for one. A stage that fails does not keep the later ones from leaving their results, but make ends
# in an error. With SYSTEM_PACKAGES=1 nothing is installed and no network is needed: torch, triton,
# pytest, numpy and rich have to be there.
#
#   GPU_LIMIT=540             seconds after which the build, the tests or a tool is stopped, so that
#                             a kernel that hangs does not take the time of the others
#   GPU_RESULTS=FOLDER        for the benchmarks' results; {device} in it becomes the GPU's name
#   GPU_BENCH_ARGS="--quick"  passed on to the benchmarks, which end themselves after 500 s
#   COMPUTE_SANITIZER=PATH    NVIDIA's tool; without it that stage is skipped
GPU_STAGES = build test sanitize bench
GPU_LIMIT = 540
GPU_RESULTS = benchmarks/results/{device}
COMPUTE_SANITIZER = compute-sanitizer
GPU_READY = $(if $(filter 1,$(SYSTEM_PACKAGES)),python-version,$(call ready,test))
GPU_TIMED = timeout --signal=INT --kill-after=20 $(GPU_LIMIT) env PYTHONUNBUFFERED=1
# A cudaError that PyTorch provokes and handles is none of ours. Memory comes straight from CUDA, or
# what lies outside a tensor would still be inside PyTorch's pool.
GPU_SANITIZE = $(COMPUTE_SANITIZER) --error-exitcode 1 --report-api-errors no --launch-timeout 0
GPU_SANITIZE_PATH = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"

.PHONY: gpu gpu-build gpu-test gpu-sanitize gpu-bench
gpu: $(GPU_READY) ## build, test, sanitize and measure on a GPU (GPU_STAGES="...")
	@$(RUN) -c 'import sys, torch; torch.cuda.is_available() or \
	sys.exit("make gpu: no GPU is visible to PyTorch " + torch.__version__)'
	@failed=; for stage in $(GPU_STAGES); do \
	    echo "gpu-$$stage ..."; start=$$(date +%s); \
	    $(MAKE) --no-print-directory gpu-$$stage || failed="$$failed gpu-$$stage"; \
	    echo "gpu-$$stage: $$(($$(date +%s) - start)) s"; \
	done; \
	test -z "$$failed" || { echo "make gpu: failed:$$failed" >&2; exit 1; }

# For this machine's GPU alone, which takes a part of the time; a failure still leaves what builds.
gpu-build: $(GPU_READY)
	@arch=$$($(RUN) -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())'); \
	export TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$arch}"; \
	FORCE_CUDA=$${FORCE_CUDA:-1} $(GPU_TIMED) $(RUN) setup.py -q build_ext --inplace || { \
	    echo "gpu-build: failed; building what else can be built ..." >&2; \
	    FORCE_CUDA=0 $(GPU_TIMED) $(RUN) setup.py -q build_ext --inplace; exit 1; }

gpu-test: $(GPU_READY)
	@workers=$$($(RUN) -c 'import xdist; print("-n auto")' 2>/dev/null); \
	$(GPU_TIMED) $(RUN) -m pytest $$workers $(PYTEST_ARGS)

gpu-sanitize: $(GPU_READY)
	@command -v $(COMPUTE_SANITIZER) >/dev/null || { \
	    echo "gpu-sanitize: skipped, there is no $(COMPUTE_SANITIZER)"; exit 0; }; \
	failed=; for tool in memcheck racecheck; do \
	    $(GPU_TIMED) PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(GPU_SANITIZE_PATH) \
	        $(GPU_SANITIZE) --tool $$tool $(SANITIZE_PYTHON) -m tests.gpu.sanitize || failed=1; \
	done; test -z "$$failed"

gpu-bench: $(GPU_READY)
	@$(GPU_TIMED) $(RUN) -m benchmarks --device cuda --targets --limit 500 \
	    --out "$(GPU_RESULTS)" $(GPU_BENCH_ARGS) || test $$? -eq 3  # a target that is missed

.PHONY: docs
docs: $(call ready,docs) ## the documentation as a site, in build/docs
	$(RUN) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "Wrote build/docs/index.html"

.PHONY: clean
clean: ## remove .venv, build products, caches and the demo's out/
	rm -rf .venv build dist out *.egg-info
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find anl_kernels -name '*.so' -exec rm -f {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: python-version
python-version:
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \
	sys.version_info >= (3, 10) or sys.exit("anl_kernels needs Python >= 3.10; $(PYTHON) is " + v + ". Give another: make PYTHON=/path/to/python")'

.PHONY: in-place
in-place: python-version
	$(PYTHON) setup.py -q build_ext --inplace

# The stamps: one for the environment with torch and the package in it, one for each of
# requirements/{test,demo,bench,dev}.txt on top.
PINS = $(wildcard requirements/*.txt)

SOURCES = setup.py $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

$(VENV)/.installed-package: $(PINS) pyproject.toml $(SOURCES) | python-version
	@echo "Installing torch and anl_kernels in $(VENV); the first time this downloads a lot ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	$(PIP) install -q -r requirements/base.txt
	@echo "Building anl_kernels ..."
	ANL_KERNELS_BUILD=1 $(PIP) install -q --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed-package
	@echo "Installing requirements/$*.txt in $(VENV) ..."
	$(PIP) install -q -r requirements/$*.txt
	@touch $@
