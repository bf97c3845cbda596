# French stories with the prompt of config/generate_hindi.py.

exec(open(find('config/generate_hindi.py'), encoding='utf-8').read())

language = 'french'
template = template.replace('“ and ”', '« and »')
books = 'Babar, Le Petit Nicolas and the Contes du chat perché'
