# TinyNews' 28M model; its other settings are those of config/train_tinynews_3m.py.

exec(open(find('config/train_tinynews_3m.py'), encoding='utf-8').read())

out_dir = 'out/tinynews_28m'

n_layer = 12
n_head = 12
n_embd = 384
n_inner = 1536
