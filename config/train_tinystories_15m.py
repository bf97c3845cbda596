# TinyStories Llama 15M, the stories15M of llama2.c (https://github.com/karpathy/llama2.c, train.py and README): 6
# layers × 288.
#     python prepare.py --source=hf:roneneldan/TinyStories --val_source=hf:roneneldan/TinyStories:validation \
#         --dataset=tinystories \
#         --tokenizer=tokenizer.model --trim=False
#     python train.py config/train_tinystories_15m.py
# From its train.py: everything below. llama2.c's tokenizer.model is Llama 2's, with 32,000 tokens. A guess: that the
# published model was trained with these defaults.

dataset = 'tinystories'
out_dir = 'out/tinystories_15m'

n_layer = 6
n_head = 6
n_embd = 288
n_inner = 768
block_size = 256

batch_size = 128
gradient_accumulation_steps = 4
learning_rate = 5e-4
min_lr = 0.0
max_iters = 100_000
warmup_iters = 1000
weight_decay = 0.1
eval_interval = 2000
eval_iters = 100
