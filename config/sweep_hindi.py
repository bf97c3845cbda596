# The eight models of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989): from 64 × 2 to 1024 × 7.

out_dir = 'out/sweep_hindi'
train_config = 'config/train_hindi.py'
settings = [{'n_embd': n_embd, 'n_layer': n_layer, 'n_head': max(2, n_embd // 64)}
            for n_embd, n_layer in ((64, 2), (64, 6), (64, 12), (512, 2), (512, 6), (512, 12), (1024, 2), (1024, 7))]
start = 'FILE:data/hindi/prompts.txt'
num_samples = 3
evaluate_config = 'config/evaluate_stories.py'
evaluate_options = {'train_stories': 'data/hindi/stories.jsonl'}  # add 'provider': 'mistral' for grades
