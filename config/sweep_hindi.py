# The eight models of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989): from 64 × 2 to 1024 × 7.

out_dir = 'out/sweep_hindi'
train_config = 'config/train_hindi.py'
settings = [
    {'n_embd': 64, 'n_layer': 2, 'n_head': 2},
    {'n_embd': 64, 'n_layer': 6, 'n_head': 2},
    {'n_embd': 64, 'n_layer': 12, 'n_head': 2},
    {'n_embd': 512, 'n_layer': 2, 'n_head': 8},
    {'n_embd': 512, 'n_layer': 6, 'n_head': 8},
    {'n_embd': 512, 'n_layer': 12, 'n_head': 8},
    {'n_embd': 1024, 'n_layer': 2, 'n_head': 16},
    {'n_embd': 1024, 'n_layer': 7, 'n_head': 16},
]
start = 'FILE:data/hindi/prompts.txt'
num_samples = 3
evaluate_config = 'config/evaluate_stories.py'
evaluate_options = {'train_stories': 'data/hindi/stories.jsonl'}  # add 'provider': 'mistral' for grades
