# The lowest loss in the first minutes on a CPU, on any stories: --dataset=… --max_iters=…
# docs/RESULTS.md has the gain of each setting.

dataset = 'english'
out_dir = 'out/quick'

n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
mlp = 'relu2'
qk_norm = True
tie_weights = False

bigram_steps = 40
optimizer = 'muon'
batch_size = 8
learning_rate = 1.2e-2
embedding_lr = 1e-3
muon_momentum = 0.85  # for thousands of steps: 0.95, with learning_rate = 5e-3
muon_ns_steps = 3
beta1 = 0.8
weight_decay = 0.0
min_lr = 0.0
cooldown = 0.5
warmup_iters = 10
max_iters = 120
eval_interval = 120
