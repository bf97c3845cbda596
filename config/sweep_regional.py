# The tokenizers and sizes of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989) in one table: three
# tokenizers × eight models on Hindi stories, with the settings of config/train_regional.py.
#     python sweep.py config/sweep_regional.py --nproc_per_node=4

out_dir = 'out/sweep_regional'
train_config = 'config/train_regional.py'
prepare_options = {
    'source': 'hf:TinyStories-Regional/hindi-generated_4o-mini_2M', 'dataset': 'hindi', 'val_fraction': 0.025}
settings = []
for _tokenizer in ('sarvamai/sarvam-1', 'TWO/sutra-mlt256-v2', 'tiktoken:gpt2'):
    for _n_embd, _n_layer in ((64, 2), (64, 6), (64, 12), (512, 2), (512, 6), (512, 12), (1024, 2), (1024, 7)):
        # up to 10 M parameters, around 50 M, from 70 M
        _learning_rate, _warmup_iters = 1e-3, 400
        if _n_embd == 64:
            _learning_rate, _warmup_iters = 4e-3, 200
        elif _n_embd * _n_layer <= 512 * 6:
            _learning_rate, _warmup_iters = 1.5e-3, 300
        settings.append({'tokenizer': _tokenizer, 'n_embd': _n_embd, 'n_layer': _n_layer,
                         'learning_rate': _learning_rate, 'warmup_iters': _warmup_iters})

start = 'FILE:data/hindi/prompts.txt'
num_samples = 3
sample_options = {'temperature': 0.8, 'top_k': 15, 'max_new_tokens': 350}
evaluate_config = 'config/evaluate_stories.py'
evaluate_options = {'exam': True, 'language': 'hindi'}  # add 'provider': 'openai' for grades
