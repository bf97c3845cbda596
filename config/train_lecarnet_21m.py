# LeCarnet's 21M model; its other settings are those of config/train_lecarnet_3m.py.

exec(open(find('config/train_lecarnet_3m.py'), encoding='utf-8').read())

out_dir = 'out/lecarnet_21m'

n_embd = 256
n_inner = 1024
