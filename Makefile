# make        set up .venv, then the whole path: stories, tokens, a trained model, a story, a loss curve
# make test   set up .venv, then the tests
# Every step leaves files, and a step whose files are there is not done again; `make clean` forgets the demo.

PYTHON ?= python3
PY = .venv/bin/python
VENV = .venv/.installed
DEMO = $(PY) -u

demo: out/demo/loss.png
	@echo
	$(PY) sample.py config/sample_demo.py

env: $(VENV)

$(VENV): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	touch $@

data/demo/stories.jsonl: $(VENV)
	$(PY) generate_data.py config/generate_demo.py

data/demo/meta.json: data/demo/stories.jsonl
	$(PY) prepare.py --source=data/demo/stories.jsonl --dataset=demo

out/demo/loss.png: data/demo/meta.json
	$(PY) train.py config/train_demo.py

test: $(VENV)
	$(PY) -m pytest

clean:
	rm -rf data/demo out/demo

.PHONY: demo env test clean
