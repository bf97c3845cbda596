# make                  set up .venv, then the whole path: stories, tokens, a trained model, a story, a loss curve
# make test             set up .venv, then the tests that walk through every script, in minutes
# make test-all         the slow tests: everything else
# make test-pythons     the whole path with each of PYTHONS, which pyenv or uv install
# make chaos            kill, full disk and second process for every script, KILLS kills each; prints a table
# make gpu-check        check and measure one GPU in at most 6 minutes with the stories of CORPUS, beside PEERS; prints a table
# make clean            delete the demo's stories and model
#
# make env              set up .venv
# make env-gpu          the same, and check that PyTorch finds the GPU; TORCH_INDEX=https://… installs another build of it
# make generate-mistral TOTAL stories from a chat API in LANGUAGE, for at most MAX_COST dollars
# make generate-openai  the same from another chat API
# make translate        translate the stories of SOURCE_LANGUAGE into LANGUAGE
# make prepare          SOURCE -> tokens in data/DATASET; the default is LeCarnet's stories and tokenizer
# make train            train a model on DATASET into OUT_DIR: LeCarnet's 3M, 8M or 21M by MODEL_CONFIG, or another CONFIG
# make inference        generate a story that begins with START
# make eval             evaluate the model's stories; a judge grades them if PROVIDER is set
# make push-dataset     generate the stories of generate-mistral (or of PROVIDER) and upload them to the Hugging Face hub as REPO
# make push-model       upload the model in OUT_DIR as REPO
#
#     make prepare train inference MODEL_CONFIG=8M
#     make prepare SOURCE=data/hindi/stories.jsonl TOKENIZER=train DATASET=hindi
#     make train CONFIG=config/train_hindi.py DATASET=hindi OUT_DIR=out/hindi ARGS='--batch_size=16 --max_minutes=50'
#     make eval OUT_DIR=out/hindi LANGUAGE=hindi DATASET=hindi PROVIDER=mistral
#
# After an interruption the same command continues. ARGS are more keys for the script. Every name in capitals can be set.

unexport PYTHONDONTWRITEBYTECODE  # without bytecode each script starts three times as slowly

PYTHON ?= python3
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
VENV ?= .venv
PY = $(VENV)/bin/python

LANGUAGE ?= french
SOURCE_LANGUAGE ?= english
TOTAL ?= 20000
MAX_COST ?= 5
SOURCE ?= hf:MaxLSB/LeCarnet
TOKENIZER ?= lightonai/pagnol-small
DATASET ?= lecarnet
MODEL_CONFIG ?= 3M
CONFIG ?= config/train_lecarnet_$(subst M,m,$(MODEL_CONFIG)).py
OUT_DIR ?= out/lecarnet_$(subst M,m,$(MODEL_CONFIG))
KILLS ?= 20
EVAL_CONFIG ?= config/evaluate_lecarnet.py

demo: env
	$(PY) generate_data.py config/generate_demo.py
	[ -f data/demo/meta.json ] || $(PY) prepare.py --source=data/demo/stories.jsonl --dataset=demo --vocab_size=2048 --val_fraction=0.01 \
	  --story_template='{noun}, {verb}, {adjective}\n{text}' --plain_fraction=0.2
	$(PY) train.py config/train_demo.py $$([ ! -f out/demo/ckpt.pt ] || echo --init_from=resume)
	@echo; echo 'A story (the loss curve is out/demo/loss.png):'; echo
	@$(PY) sample.py config/sample_demo.py

env: $(VENV)/installed

# --no-compile halves the time: Python compiles a module when it is first imported
$(VENV)/installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile -r requirements-dev.txt -c constraints.txt
	touch $@

env-gpu: env
	$(if $(TORCH_INDEX),$(PY) -m pip install --quiet --force-reinstall torch -c constraints.txt --extra-index-url=$(TORCH_INDEX))
	@$(PY) -c "import torch; print(torch.cuda.get_device_name()) if torch.cuda.is_available() else exit(f'torch {torch.__version__} finds no GPU; \
	check with nvidia-smi that there is one, then find the TORCH_INDEX=https://… of its build on pytorch.org')"

GENERATE = $(PY) generate_data.py config/generate_$(LANGUAGE).py --total=$(TOTAL) --max_cost=$(MAX_COST)

generate-mistral: env
	$(GENERATE) --provider=mistral $(ARGS)

generate-openai: env
	$(GENERATE) --provider=openai $(ARGS)

push-dataset: env
	$(GENERATE) --provider=$(or $(PROVIDER),mistral) --push=$(or $(REPO),$(error $@ needs REPO=user/name)) $(ARGS)

translate: env
	$(PY) translate.py --source_language=$(SOURCE_LANGUAGE) --target_language=$(LANGUAGE) $(ARGS)

prepare: env
	$(PY) prepare.py --source=$(SOURCE) $(and $(filter hf:MaxLSB/LeCarnet,$(SOURCE)),--val_source=$(SOURCE):validation) --dataset=$(DATASET) --tokenizer=$(TOKENIZER) $(ARGS)

train: env
	$(PY) train.py $(CONFIG) --dataset=$(DATASET) --out_dir=$(OUT_DIR) $$([ ! -f $(OUT_DIR)/ckpt.pt ] || echo --init_from=resume) $(ARGS)

inference: env
	$(PY) sample.py --out_dir=$(OUT_DIR) --start="$(START)" $(ARGS)

eval: env
	[ $(OUT_DIR)/samples.jsonl -nt $(OUT_DIR)/best.pt ] || $(PY) sample.py --out_dir=$(OUT_DIR) --start=FILE:data/$(LANGUAGE)/prompts.txt --out=$(OUT_DIR)/samples.jsonl
	$(PY) evaluate.py $(EVAL_CONFIG) --samples=$(OUT_DIR)/samples.jsonl --train_stories=$(wildcard data/$(DATASET)/stories.jsonl) \
	  $(and $(PROVIDER),--provider=$(PROVIDER) --max_cost=$(MAX_COST)) $(ARGS)

push-model: env
	$(PY) export.py --out_dir=$(OUT_DIR) --push=$(or $(REPO),$(error $@ needs REPO=user/name)) $(ARGS)

test: env
	$(PY) -m pytest -m 'not slow'

test-all: env
	$(PY) -m pytest -m slow

test-pythons:
	for python in $(PYTHONS); do $(MAKE) env VENV=.venv-$$python PYTHON=$$python && .venv-$$python/bin/python -m pytest tests/test_platforms.py || exit 1; done

chaos: env
	$(PY) tests/chaos.py --kills=$(KILLS)

# with a PY of your own, nothing is installed: make gpu-check PY=python3
gpu-check: $(if $(filter $(VENV)/bin/python,$(PY)),env)
	$(PY) tests/gpu_check.py --corpus=$(CORPUS) --peers=$(PEERS) $(ARGS)

clean:
	rm -rf data/demo out/demo

.PHONY: demo env env-gpu generate-mistral generate-openai push-dataset translate prepare train inference eval push-model test test-all test-pythons chaos gpu-check clean
