# Marathi stories with the prompt of config/generate_hindi.py.

exec(open(find('config/generate_hindi.py'), encoding='utf-8').read())

language = 'marathi'
template += 'Every word of the story is in Marathi, not in Hindi, which has the same letters.\n'
books = 'the Panchatantra, the Isapniti fables and the stories of Bokya Satbande'
