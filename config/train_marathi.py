# The model of config/train_hindi.py on Marathi stories.

exec(open(find('config/train_hindi.py'), encoding='utf-8').read())

dataset = 'marathi'
out_dir = 'out/marathi'
