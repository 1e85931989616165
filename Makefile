# Targets explain themselves: `make help`. PROFILE=smoke|short|paper, SEEDS, RESULTS and ARGS are yours to set;
# ARGS are more overrides for every run of a table: ARGS="dataset.root=/data/imagenet trainer.precision=bf16".
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SELECTION ?= last
PROFILE ?= smoke
SEEDS ?= $(if $(filter smoke,$(PROFILE)),0,0$(comma)1$(comma)2)
comma := ,
WORK ?= outputs
# a smoke run proves the path: its records stay out of results/
RESULTS ?= $(if $(filter smoke,$(PROFILE)),$(WORK)/smoke,results)

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow check reproduce tables plots bench latency compare clean

help:  ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## virtual environment in .venv with lpslim and its tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpslim needs Python 3.11 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: setup  ## all tests
	$(BIN)/python -m pytest

test-slow: setup  ## all tests, also those that take minutes: runs killed at many points
	$(BIN)/python -m pytest --slow

check: setup  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy

reproduce: setup  ## the main job on embedded data: two networks, three methods, a table and plots
	$(BIN)/python run.py -m '+experiment/digits_resnet20=glob(*)' results_dir=$(WORK)/reproduce work_dir=$(WORK)
	$(BIN)/python run.py -m '+experiment/digits_vgg_small=glob(*)' results_dir=$(WORK)/reproduce work_dir=$(WORK)
	$(BIN)/python -m reproduce.figures --results $(WORK)/reproduce
	$(BIN)/python -m reproduce.tables --results $(WORK)/reproduce --selection $(SELECTION)

ROWS_vgg16 = vgg16_cifar10
ROWS_resnet = resnet_cifar10
ROWS_resnet50 = resnet50_imagenet
ROWS_bert = bert_glue

reproduce-table-%: setup  ## a table of the paper: vgg16, resnet, resnet50 or bert; PROFILE=smoke|short|paper
	@test -n "$(ROWS_$*)" || { echo "no table '$*': one of vgg16, resnet, resnet50, bert" >&2; exit 2; }
	@$(MAKE) --no-print-directory run-rows ROWS=$(ROWS_$*); ended=$$?; \
	$(MAKE) --no-print-directory render && exit $$ended

JOBS = '+experiment/$(ROWS)=glob(*)' profile=$(PROFILE) seed=$(SEEDS) \
    results_dir=$(RESULTS) work_dir=$(WORK) $(if $(filter smoke,$(PROFILE)),$(or $(SMOKE_$(ROWS)),dataset=digits32)) $(ARGS)
SMOKE_bert_glue = dataset=grammar model=bert_tiny target_params=0.3
# the small development sets of GLUE scatter by points: five seeds in place of three
MORE_bert_glue = '+experiment/bert_glue=rte,mrpc,cola,stsb' profile=paper seed=3,4 \
    results_dir=$(RESULTS) work_dir=$(WORK) $(ARGS)
MORE = $(if $(filter paper,$(PROFILE)),$(if $(filter file,$(origin SEEDS)),$(MORE_$(ROWS))))

compare: setup  ## every rival and control at the paper's ResNet-56 row (58.6 %); PROFILE=smoke|short|paper
	@$(MAKE) --no-print-directory run-rows ROWS=compare; ended=$$?; \
	$(MAKE) --no-print-directory render && exit $$ended

.PHONY: run-rows render
render:
	$(BIN)/python -m reproduce.tables --results $(RESULTS) --selection $(SELECTION)

# the plan's failure (-) is no reason to stop, nor is one sweep's: a row that cannot run must not keep others from it
run-rows:
	-$(BIN)/python run.py -m $(JOBS) --dry-run
	$(if $(MORE),-$(BIN)/python run.py -m $(MORE) --dry-run)
	ended=0; $(BIN)/python run.py -m $(JOBS) || ended=$$?; \
	$(if $(MORE),$(BIN)/python run.py -m $(MORE) || ended=$$?;) exit $$ended

tables: setup  ## render every table from the records in results/ (SELECTION=last|val|paper, OUTDATED=1)
	$(BIN)/python -m reproduce.tables --results results --selection $(SELECTION) --readme README.md $(if $(OUTDATED),--outdated)

plots: setup  ## draw every figure from the records in results/ (OUTDATED=1)
	$(BIN)/python -m reproduce.figures --results results $(if $(OUTDATED),--outdated)

verify: setup  ## are records and stored stages what was written? DATA=1 also reads the data again, below data/
	$(BIN)/python -m lpslim.records verify --results results --work-dir $(WORK) $(if $(DATA),--data)

# what the measurements share, and the page that one of them renews
SHARED = $(addprefix benchmarks/,timing.py pairs.py layers.py render.py)

bench: setup  ## side-by-side measurements: benchmarks/ (an hour)
	@for script in $(filter-out $(SHARED),$(sort $(wildcard benchmarks/*.py))); do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

latency: setup  ## latency of a pruned network beside its original: NETWORK=outputs/runs/<name>/<key>/pruned
	@test -n "$(NETWORK)" || { echo "NETWORK is not set: make latency NETWORK=outputs/runs/<name>/<key>/pruned" >&2; exit 2; }
	$(BIN)/python benchmarks/latency.py '$(NETWORK)'

clean:  ## remove finished stages and run folders, never results/
	rm -rf $(WORK)
