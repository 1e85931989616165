# Targets explain themselves: `make help`. PROFILE=smoke|short|paper, SEEDS, RESULTS, PROTOCOL and ARGS are yours to
# set; ARGS are more overrides for every run of a table: ARGS="dataset.root=/data/imagenet trainer=gpu".
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PROTOCOL ?= last
PROFILE ?= smoke
comma := ,
SEEDS ?= $(if $(filter smoke,$(PROFILE)),0,0$(comma)1$(comma)2)
WORK ?= outputs
# a smoke run proves the path: its records stay out of results/
RESULTS ?= $(if $(filter smoke,$(PROFILE)),$(WORK)/smoke,results)
# what tables, plots, report and verify read
SHOWN = $(if $(filter file,$(origin RESULTS)),results,$(RESULTS))

# for `set -o pipefail`: the output of a sweep goes through tee, and its exit code must not be lost
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help setup test check reproduce reproduce-tables compare tables plots report verify bench zoo latency clean run-rows \
	count-rows

help:  ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## virtual environment in .venv with lpslim and its tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpslim needs Python 3.11 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: setup  ## all tests, with the share of src/lpslim that they run (SLOW=1: also those that take minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --cov $(if $(SLOW),--slow)

check: setup  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy

reproduce: setup  ## the whole pipeline on embedded data: two networks, three methods, a table and plots
	$(BIN)/python run.py -m '+experiment/digits_resnet20=glob(*)' results_dir=$(WORK)/reproduce work_dir=$(WORK)
	$(BIN)/python run.py -m '+experiment/digits_vgg_small=glob(*)' results_dir=$(WORK)/reproduce work_dir=$(WORK)
	$(BIN)/python -m reproduce.figures --results $(WORK)/reproduce --protocol $(PROTOCOL)
	$(BIN)/python -m reproduce.tables --results $(WORK)/reproduce --protocol $(PROTOCOL)

ROWS_vgg16 = vgg16_cifar10
ROWS_resnet = resnet_cifar10
ROWS_resnet50 = resnet50_imagenet
ROWS_bert = bert_glue
TABLES = $(ROWS_vgg16) $(ROWS_resnet) $(ROWS_resnet50) $(ROWS_bert)

reproduce-table-%: setup  ## a table of the paper: vgg16, resnet, resnet50 or bert; PROFILE=smoke|short|paper
	@test -n "$(ROWS_$*)" || { echo "no table '$*': one of vgg16, resnet, resnet50, bert" >&2; exit 2; }
	@$(MAKE) --no-print-directory run-rows ROWS=$(ROWS_$*)

reproduce-tables: setup  ## all four of them, one after the other; PROFILE=smoke|short|paper
	@ended=0; for rows in $(TABLES); do $(MAKE) --no-print-directory run-rows ROWS=$$rows || ended=$$?; done; \
	$(MAKE) --no-print-directory count-rows ROWS='$(TABLES)'; exit $$ended

compare: setup  ## all rivals and controls but lp_channels_rewind at the paper's ResNet-56 row (58.6 %); PROFILE=smoke|short|paper
	@$(MAKE) --no-print-directory run-rows ROWS=compare

FOLDERS = results_dir=$(RESULTS) work_dir=$(WORK)
SMOKE_bert_glue = dataset=toy_text model=bert_tiny target_params=0.3
SMOKE = $(if $(filter smoke,$(PROFILE)),$(or $(SMOKE_$(ROWS)),dataset=digits32 model.weights=null baseline.epochs=1))
JOBS = '+experiment/$(ROWS)=glob(*)' profile=$(PROFILE) 'seed=$(SEEDS)' $(FOLDERS) $(SMOKE) $(ARGS)
# the small development sets of GLUE scatter by points: five seeds in place of three
MORE_bert_glue = '+experiment/bert_glue=rte,mrpc,cola,stsb' profile=paper seed=3,4 $(FOLDERS) $(ARGS)
MORE = $(if $(filter paper,$(PROFILE)),$(if $(filter file,$(origin SEEDS)),$(MORE_$(ROWS))))
WANTED = $(words $(wildcard conf/experiment/$(ROWS)/*.yaml)) * $(words $(subst $(comma), ,$(SEEDS)))

# the plan first: its jobs must be the rows asked for; a row that fails keeps no other from running
run-rows:
	@planned=$$($(BIN)/python run.py -m $(JOBS) --dry-run | tee /dev/stderr | sed -n 's/^sweep: \([0-9]*\) jobs.*/\1/p'); \
	test "$$planned" = $$(($(WANTED))) || { echo "$(ROWS): $$planned jobs in place of $$(($(WANTED)))" >&2; exit 1; }
	@set -o pipefail; mkdir -p $(WORK) $(RESULTS); ended=0; said=$(WORK)/$(ROWS).log; \
	$(BIN)/python run.py -m $(JOBS) | tee $$said || ended=$$?; \
	$(if $(MORE),$(BIN)/python run.py -m $(MORE) | tee -a $$said || ended=$$?;) \
	echo; if test $$ended = 0; then echo "no job failed"; \
	else grep -E '^  (FAILED|LOST)' $$said || echo "the sweep stopped with exit code $$ended"; fi; \
	$(BIN)/python -m reproduce.tables --results $(RESULTS) --protocol $(PROTOCOL) \
	--rows $(addprefix conf/experiment/,$(ROWS)) && exit $$ended

count-rows:
	@$(BIN)/python -m reproduce.tables --results $(RESULTS) --protocol $(PROTOCOL) \
	--rows $(addprefix conf/experiment/,$(ROWS))

tables: setup  ## render every table from the records in results/ (PROTOCOL=last|val|paper, OUTDATED=1)
	$(BIN)/python -m reproduce.tables --results $(SHOWN) --protocol $(PROTOCOL) $(if $(filter results,$(SHOWN)),--readme README.md) $(if $(OUTDATED),--outdated)

plots: setup  ## draw every figure from the records in results/ (PROTOCOL=last|val|paper, OUTDATED=1)
	$(BIN)/python -m reproduce.figures --results $(SHOWN) --protocol $(PROTOCOL) $(if $(OUTDATED),--outdated)

report: $(VENV)/.report  ## a page of all results, results/index.html, that opens from the disk (PROTOCOL=, OUTDATED=1)
	$(BIN)/python -m reproduce.report --results $(SHOWN) --protocol $(PROTOCOL) $(if $(OUTDATED),--outdated)

$(VENV)/.report: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[report]'
	touch $@

verify: setup  ## are records and stored stages what was written?
	$(BIN)/python -m lpslim.experiment.verify --results $(SHOWN) --work-dir $(WORK)

# parts of others, and those that take hours or data
APART = timing silenced zoo zoo_page streams
bench: setup  ## side-by-side measurements: benchmarks/ (an hour)
	@for script in $(filter-out $(APART:%=benchmarks/%.py),$(sort $(wildcard benchmarks/*.py))); do \
	echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

zoo: setup  ## any network: torchvision's and timm's, measured where benchmarks/results/zoo.json lacks them (hours), and their page
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.zoo --render

latency: setup  ## latency of a pruned network beside its original: NETWORK=outputs/runs/<name>/<key>/pruned
	@test -n "$(NETWORK)" || { echo "NETWORK is not set: make latency NETWORK=outputs/runs/<name>/<key>/pruned" >&2; exit 2; }
	PYTHONPATH=. $(BIN)/python benchmarks/latency.py '$(NETWORK)'

clean:  ## remove finished stages and run folders, never results/
	@case '$(WORK)' in ''|.|..|/|results) echo "WORK=$(WORK): not removed" >&2; exit 2;; esac
	rm -rf -- '$(WORK)'
