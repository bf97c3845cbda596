# make                  set up .venv, then the whole path: stories, tokens, a trained model, a story, a loss curve
# make test             set up .venv, then the tests that walk through every script, in minutes
# make test-all         the slow tests: everything else
# make test-pythons     the whole path with each of PYTHONS, which pyenv or uv install
# make chaos            kill, full disk and second process for every script, KILLS kills each; prints a table
# make gpu-check        check and measure one GPU in at most 6 minutes with the stories of CORPUS, beside PEERS; prints a table
# make clean            delete the demo's stories and model
#
# make env              set up .venv with PYTHON; VENV is another folder for it
# make env-gpu          the same, and check that PyTorch finds the GPU; TORCH_INDEX=https://… installs another build of it
# make generate-mistral MISTRAL_REQUESTS (or TOTAL) stories by MISTRAL_MODEL in LANGUAGE, for at most MAX_COST dollars,
#                       with NUM_WORKERS requests at a time
# make generate-openai  the same with OPENAI_REQUESTS and OPENAI_MODEL
# make translate        translate the stories of SOURCE_LANGUAGE, of SOURCE, or of a SPLIT of TinyStories into LANGUAGE,
#                       with NLLB_MODEL or by a chat API (PROVIDER, MODEL, NUM_WORKERS, MAX_COST)
# make prepare          SOURCE -> tokens in data/DATASET by TOKENIZER; the default is LeCarnet's stories and tokenizer
# make train            train a model on DATASET into OUT_DIR: LeCarnet's 3M, 8M or 21M by MODEL_CONFIG, or another CONFIG
# make inference        a story of at most MAX_NEW_TOKENS that begins with PROMPT (or START), by MODEL_NAME, else by the model
#                       in OUT_DIR, else by LeCarnet's model of the size MODEL_CONFIG
# make eval             evaluate the stories of EVAL_MODEL or OUT_DIR; PROVIDER and JUDGE_MODEL name a judge; see EVAL_CONFIG
# make push-dataset     upload the stories in FOLDER_PATH to the Hugging Face hub as REPO_NAME (or REPO); without FOLDER_PATH
#                       those of generate-mistral (or of PROVIDER), which are generated first
# make push-model       upload the model in MODEL_DIR (or OUT_DIR) as HF_REPO (or REPO)
#
#     make prepare train inference MODEL_CONFIG=8M
#     make prepare SOURCE=data/hindi/stories.jsonl TOKENIZER=train DATASET=hindi
#     make train CONFIG=config/train_hindi.py DATASET=hindi OUT_DIR=out/hindi ARGS='--batch_size=16 --max_minutes=50'
#     make eval OUT_DIR=out/hindi LANGUAGE=hindi DATASET=hindi PROVIDER=mistral
#     make translate SPLIT=train MODEL=facebook/nllb-200-distilled-600M
#
# After an interruption the same command continues. ARGS are more keys for the script. MODEL stands for the model that a
# target uses. Every name in capitals can be set.

unexport PYTHONDONTWRITEBYTECODE  # without bytecode each script starts three times as slowly

PYTHON ?= python3
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
VENV ?= .venv
PY = $(VENV)/bin/python
KILLS ?= 20

# not ?=, as for PROMPT: environment variables of these names are other programs'
LANGUAGE = french
MODEL =

SOURCE_LANGUAGE ?= english
TOTAL ?= 20000
MAX_COST ?= 5
MISTRAL_MODEL ?= $(MODEL)
MISTRAL_REQUESTS ?= $(TOTAL)
OPENAI_MODEL ?= $(MODEL)
OPENAI_REQUESTS ?= $(TOTAL)
NLLB_MODEL ?= $(MODEL)
TOKENIZER ?= lightonai/pagnol-small
DATASET ?= lecarnet
MODEL_CONFIG ?= 3M
CONFIG ?= config/train_lecarnet_$(subst M,m,$(MODEL_CONFIG)).py
OUT_DIR ?= out/lecarnet_$(subst M,m,$(MODEL_CONFIG))
MODEL_NAME ?= $(MODEL)
PROMPT = $(or $(START),Il était une fois)
MAX_NEW_TOKENS ?= 512
EVAL_MODEL ?= $(MODEL)
EVAL_CONFIG ?= config/evaluate_lecarnet.py
REPO_NAME ?= $(REPO)
HF_REPO ?= $(REPO)
MODEL_DIR ?= $(OUT_DIR)

# what can be set; SHELL is make's own
SETTINGS = PYTHON PYTHONS VENV PY TORCH_INDEX KILLS CORPUS PEERS ARGS LANGUAGE SOURCE_LANGUAGE TOTAL MAX_COST NUM_WORKERS \
  PROVIDER MODEL MISTRAL_MODEL MISTRAL_REQUESTS OPENAI_MODEL OPENAI_REQUESTS SOURCE SPLIT NLLB_MODEL TOKENIZER DATASET \
  MODEL_CONFIG CONFIG OUT_DIR MODEL_NAME PROMPT START MAX_NEW_TOKENS EVAL_MODEL JUDGE_MODEL EVAL_CONFIG FOLDER_PATH \
  REPO REPO_NAME HF_REPO MODEL_DIR

# make itself ignores NAME=value with a name that no target uses
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(strip $(filter-out $(SETTINGS) SHELL,$(given)))
$(if $(unknown),$(error no target uses $(unknown); the first lines of the Makefile list what can be set))

# what is set is text: a $ in it means nothing to make, and `quote` makes it one word for the shell
text := $(foreach name,$(SETTINGS),$(if $(filter command environment,$(origin $(name))),$(name)))
$(foreach name,$(text),$(eval override $(name) := $$(value $(name))))
quote = '$(subst ','\'',$1)'
option = $(if $2,--$1=$(call quote,$2))

demo: env
	$(PY) generate_data.py config/generate_demo.py
	[ -f data/demo/meta.json ] || $(PY) prepare.py --source=data/demo/stories.jsonl --dataset=demo --vocab_size=2048 --val_fraction=0.01 \
	  --story_template='{noun}, {verb}, {adjective}\n{text}' --plain_fraction=0.1
	$(PY) train.py config/train_demo.py $$([ ! -f out/demo/ckpt.pt ] || echo --init_from=resume)
	@echo; echo 'A story (the loss curve is out/demo/loss.png):'; echo
	@$(PY) sample.py config/sample_demo.py
	$(PY) export.py --out_dir=out/demo --format=page --language=hi --temperature=0.3

env: $(VENV)/installed

# --no-compile halves the time: Python compiles a module when it is first imported
$(VENV)/installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile -r requirements-dev.txt -c constraints.txt
	touch $@

env-gpu: env
	$(if $(TORCH_INDEX),$(PY) -m pip install --quiet --force-reinstall torch -c constraints.txt $(call option,extra-index-url,$(TORCH_INDEX)))
	@$(PY) -c "import torch; print(torch.cuda.get_device_name()) if torch.cuda.is_available() else exit(f'torch {torch.__version__} finds no GPU; \
	check with nvidia-smi that there is one, then find the TORCH_INDEX=https://… of its build on pytorch.org')"

# a request to a chat API: $(call api,provider,model)
api = $(call option,provider,$1) $(call option,model,$2) $(call option,num_workers,$(NUM_WORKERS)) --max_cost=$(call quote,$(MAX_COST))
# stories from it: $(call generated,provider,model,number)
generated = generate_data.py $(call quote,config/generate_$(LANGUAGE).py) --total=$(call quote,$3) $(call api,$1,$2)

generate-mistral: env
	$(PY) $(call generated,mistral,$(MISTRAL_MODEL),$(MISTRAL_REQUESTS)) $(ARGS)

generate-openai: env
	$(PY) $(call generated,openai,$(OPENAI_MODEL),$(OPENAI_REQUESTS)) $(ARGS)

# a split of a data set, in a file that `make push-dataset FOLDER_PATH=data/french/translated` uploads
split = --source=$(call quote,$(or $(SOURCE),hf:roneneldan/TinyStories):$(SPLIT)) --out=$(call quote,data/$(LANGUAGE)/translated/$(SPLIT).jsonl)

translate: env
	$(PY) translate.py $(if $(SPLIT),$(split),$(call option,source,$(SOURCE))) \
	  --source_language=$(call quote,$(SOURCE_LANGUAGE)) --target_language=$(call quote,$(LANGUAGE)) \
	  $(if $(PROVIDER),$(call api,$(PROVIDER),$(MODEL)),$(call option,model,$(NLLB_MODEL))) $(ARGS)

source = $(or $(SOURCE),hf:MaxLSB/LeCarnet)

prepare: env
	$(PY) prepare.py --source=$(call quote,$(source)) $(if $(filter hf:MaxLSB/LeCarnet,$(source)),--val_source=$(source):validation) \
	  --dataset=$(call quote,$(DATASET)) --tokenizer=$(call quote,$(TOKENIZER)) $(ARGS)

checkpoint = $(call quote,$(OUT_DIR)/ckpt.pt)

train: env
	$(PY) train.py $(call quote,$(CONFIG)) --dataset=$(call quote,$(DATASET)) --out_dir=$(call quote,$(OUT_DIR)) \
	  $$([ ! -f $(checkpoint) ] || echo --init_from=resume) $(ARGS)

# LeCarnet's own model, where no other one is named or trained
published = $(if $(filter file,$(origin OUT_DIR)),$(shell [ -f $(checkpoint) ] || echo MaxLSB/LeCarnet-$(MODEL_CONFIG)))
# the keys of sample.py for a model: $(call sampled,model)
sampled = $(if $1,--init_from=$(call quote,$1),--out_dir=$(call quote,$(OUT_DIR)))

inference: env
	$(PY) sample.py $(call sampled,$(or $(MODEL_NAME),$(published))) $(call option,start,$(PROMPT)) \
	  --max_new_tokens=$(call quote,$(MAX_NEW_TOKENS)) --temperature=0.7 --top_k=50 $(ARGS)

eval_model = $(or $(EVAL_MODEL),$(published))
eval_dir = $(if $(eval_model),out/$(notdir $(patsubst %/,%,$(eval_model))),$(OUT_DIR))
samples = $(call quote,$(eval_dir)/samples.jsonl)
judge = $(or $(PROVIDER),$(if $(JUDGE_MODEL),mistral))

eval: env
	[ $(samples) -nt $(call quote,$(eval_dir)/best.pt) ] || $(PY) sample.py $(call sampled,$(eval_model)) \
	  --start=$(call quote,FILE:data/$(LANGUAGE)/prompts.txt) --out=$(samples)
	$(PY) evaluate.py $(call quote,$(EVAL_CONFIG)) --samples=$(samples) \
	  $(call option,train_stories,$(wildcard data/$(DATASET)/stories.jsonl)) $(if $(judge),$(call api,$(judge),$(JUDGE_MODEL))) $(ARGS)

# a folder of stories, perhaps with a file for each split, as `make translate SPLIT=…` writes it
folder = prepare.py $(if $(shell ls $(call quote,$(FOLDER_PATH))/validation* 2>&-), \
  $(call option,source,$(FOLDER_PATH)/train*) $(call option,val_source,$(FOLDER_PATH)/validation*),$(call option,source,$(FOLDER_PATH)))

push-dataset: env
	$(PY) $(if $(FOLDER_PATH),$(folder),$(call generated,$(or $(PROVIDER),mistral),$(MISTRAL_MODEL),$(MISTRAL_REQUESTS))) \
	  --push=$(call quote,$(or $(REPO_NAME),$(error $@ needs REPO=user/name))) $(ARGS)

push-model: env
	$(PY) export.py --out_dir=$(call quote,$(MODEL_DIR)) --push=$(call quote,$(or $(HF_REPO),$(error $@ needs REPO=user/name))) $(ARGS)

test: env
	$(PY) -m pytest -m 'not slow'

test-all: env
	$(PY) -m pytest -m slow

test-pythons:
	for python in $(PYTHONS); do $(MAKE) env VENV=.venv-$$python PYTHON=$$python && .venv-$$python/bin/python -m pytest tests/test_platforms.py || exit 1; done

chaos: env
	$(PY) tests/chaos.py --kills=$(call quote,$(KILLS))

# with a PY of your own, nothing is installed: make gpu-check PY=python3
gpu-check: $(if $(filter $(VENV)/bin/python,$(PY)),env)
	$(PY) tests/gpu_check.py $(call option,corpus,$(CORPUS)) $(call option,peers,$(PEERS)) $(ARGS)

clean:
	rm -rf data/demo out/demo

.PHONY: demo env env-gpu generate-mistral generate-openai push-dataset translate prepare train inference eval push-model test test-all test-pythons chaos gpu-check clean
