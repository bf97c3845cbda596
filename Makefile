# make        set up .venv, then the whole path: stories, tokens, a trained model, a story, a loss curve
# make test   set up .venv, then the tests
# make clean  forget the demo
# Stopped half-way, `make` goes on where it was.

PYTHON ?= python3
PY = .venv/bin/python

demo: env
	$(PY) generate_data.py config/generate_demo.py
	[ -f data/demo/meta.json ] || $(PY) prepare.py --source=data/demo/stories.jsonl --dataset=demo --vocab_size=2048 --val_fraction=0.01
	$(PY) train.py config/train_demo.py $$([ ! -f out/demo/ckpt.pt ] || echo --init_from=resume)
	@echo; echo 'A story (the loss curve is out/demo/loss.png):'; echo
	@$(PY) sample.py config/sample_demo.py

env: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	touch $@

test: env
	$(PY) -m pytest

clean:
	rm -rf data/demo out/demo

.PHONY: demo env test clean
