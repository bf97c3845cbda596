# The 512 × 6 model of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989) on Hindi stories: 19 M
# parameters plus the embedding. For one GPU (a T4 is enough), or for 2, 4, 8 … GPUs with torchrun, with the same
# result.

dataset = 'hindi'
out_dir = 'out/hindi'

n_layer = 6
n_head = 8
n_embd = 512
block_size = 512

batch_size = 32
gradient_accumulation_steps = 8  # 8 × 32 × 512 = 131 thousand tokens per step
learning_rate = 1e-3
min_lr = 1e-4
max_iters = 5000
warmup_iters = 200
eval_interval = 250
