# `make demo` and `make test` need Python (3.11 or newer) and make; the first call builds .venv (about 7 GB,
# most of it torch with its CUDA packages).
PYTHON ?= python3
BIN := .venv/bin

# The tests of a file stay together, as they share what is slow to make, until another worker has none left.
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal

# What needs a plain install only.
CORE := tests/layers tests/models tests/zoo tests/test_device.py tests/test_precision.py tests/test_preprocess.py tests/test_sensors.py

.PHONY: demo test test-oldest check style types quick slow-tests whole lint tables pictures lock-weights bench build clean

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[geo,train,eval,onnx,scale,search,dev]"
	touch $@

# SCENE=path.tif [RADAR=path.tif] embeds a scene of yours instead of the simulated one.
demo: .venv/installed
	$(BIN)/python examples/demo.py --output demo $(if $(SCENE),--scene "$(SCENE)") $(if $(RADAR),--radar "$(RADAR)")

# What a change should pass while it is being written: under 90 seconds on two cores.
QUICK := -m "not slow and not multiprocess and not network and not bench"
check: .venv/installed
	$(MAKE) --jobs style types quick

test: .venv/installed
	$(MAKE) --jobs style types whole

# At the same time: types take a minute of one core, and some tests wait.
style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

quick: .venv/installed
	$(BIN)/python -m pytest $(WORKERS) $(QUICK)

# Records which tests take more than a moment; to be repeated where `make check` has become slow.
slow-tests: .venv/installed
	$(BIN)/python -m pytest $(WORKERS) -p tests.cpu_times

whole: .venv/installed
	$(BIN)/python -m pytest $(WORKERS) --durations=30

# The core suite on the oldest supported versions of a plain install.
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -r tests/oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --no-deps --editable .
	.venv-oldest/bin/python -m pytest $(WORKERS) -m "not slow" $(CORE)

lint: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

# The tables of the README, the model cards, and the records of the public API and of the command line.
tables: .venv/installed
	$(BIN)/python -m rsbackbones.zoo.cards
	$(BIN)/python -m benchmarks.encode_page
	$(BIN)/python -m tests.test_api_surface
	$(BIN)/python -m tests.test_cli_surface

# The pictures of the README, by the committed examples.
pictures: .venv/installed
	$(BIN)/python examples/demo.py --output demo
	$(BIN)/python examples/land_cover_map.py --output demo/land_cover
	$(BIN)/python examples/large_area.py --output demo/large_area
	$(BIN)/python -c "from PIL import Image; \
	  Image.open('demo/large_area/shards.png').convert('RGB').save('docs/images/shards.jpg', quality=88); \
	  Image.open('demo/large_area/similarity.png').convert('RGB').save('docs/images/similarity.jpg', quality=88); \
	  Image.open('demo/demo.png').convert('RGB').save('docs/images/demo.jpg', quality=85); \
	  Image.open('demo/land_cover/map.png').convert('RGB').quantize(64).save('docs/images/land_cover.png')"

# On a machine with network: downloads and verifies all published weights, and records full digests, sizes and
# golden activations in the manifest; then the tables. DATA=FOLDER, with data sets as torchgeo keeps them, also
# measures the scores that the publishers state (a GPU is advisable), into runs/published_scores.
lock-weights: .venv/installed
	$(BIN)/python -m rsbackbones manifest lock "*" --download --golden --output weights_manifest.json
	$(BIN)/python -m rsbackbones.zoo.cards
	$(if $(DATA),$(BIN)/python -m benchmarks.published_scores --data "$(DATA)" --output runs/published_scores)

# Encoding against peers, under 60 minutes on two cores; QUICK=1 takes under 5. Writes to the folder bench.
bench: .venv/installed
	$(BIN)/python -m benchmarks.encode --output bench $(if $(QUICK),--quick)

build: .venv/installed
	$(BIN)/python -m build

clean:
	rm -rf .venv .venv-oldest demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
